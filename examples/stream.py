"""Play speech, or write it, while it is generated.

    python examples/stream.py --out stream.wav
    python examples/stream.py --out - | aplay -f S16_LE -r 24000
    python examples/stream.py --play

A pipe gets raw PCM. A file appears when it is complete. --play needs `pip install sounddevice`.
"""

import argparse
import signal
import sys
from contextlib import ExitStack

import numpy as np

from higgs_native import HiggsAudio, exit_on_bad_input
from higgs_native.audio.files.writing import check_output_path, writing_audio


@exit_on_bad_input()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="The wind and the rain came over the mountain in the night.")
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--play", action="store_true", help="play on the sound device, and write nothing")
    parser.add_argument("--out", default="stream.wav", help="a file, or - for raw PCM on standard output")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.play:
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: PortAudio is missing
            parser.error(f"--play needs PortAudio and sounddevice (pip install sounddevice): {error}")
    elif args.out != "-":
        check_output_path(args.out)  # fails before the work, not after it

    engine = HiggsAudio.from_pretrained(args.model)
    stream = engine.stream(args.text, seed=args.seed)
    with ExitStack() as stack:
        if args.play:
            options = {"samplerate": stream.sampling_rate, "channels": 1, "dtype": "float32"}
            write = stack.enter_context(sounddevice.OutputStream(**options)).write
        elif args.out == "-":
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly if the reader closes the pipe
            write = write_pcm
        else:
            write = stack.enter_context(writing_audio(args.out, stream.sampling_rate)).write
        for chunk in stream:
            write(chunk.samples)
    print(f"the first audio came after {stream.first_audio_seconds:.2f} s", file=sys.stderr)


def write_pcm(samples: np.ndarray) -> None:
    """Write float32 samples [samples] to standard output as 16-bit little-endian PCM."""
    sys.stdout.buffer.write((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
