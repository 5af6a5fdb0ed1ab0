"""The program `higgs-native`, before its imports. They take seconds, so this lies outside of the package."""

import atexit
import gc
import signal


def main() -> None:
    """Run the command. Ctrl-C ends it without a traceback, also while it imports and while it exits."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Else Python's last collection visits all that torch made, for 0.4 s after the command's end.
    atexit.register(gc.freeze)
    from higgs_native.cli import main

    main()
