"""The command `higgs-native`, a module per command."""

from higgs_native.cli.main import main


__all__ = ["main"]
