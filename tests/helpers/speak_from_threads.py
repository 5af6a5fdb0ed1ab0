"""Speak from eight threads with one engine; each speech must have the samples that it has alone.

`tests/sanitizers.sh` runs it as a script.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from higgs_native import _C, HiggsAudio


THREADS = 8


def main() -> None:
    print(f"operators of {_C.__file__}, {torch.get_num_threads()} threads per operator")
    engine = HiggsAudio.from_pretrained()
    together = Barrier(THREADS)

    def speak(seed: int) -> bytes:
        return engine.speak("The sun rises.", seed=seed).audio.tobytes()

    def speak_together(seed: int) -> bytes:
        together.wait()
        return speak(seed)

    # First together: the first calls of all threads meet.
    with ThreadPoolExecutor(THREADS) as pool:
        shared = list(pool.map(speak_together, range(THREADS)))
    alone = [speak(seed) for seed in range(THREADS)]
    different = [seed for seed in range(THREADS) if shared[seed] != alone[seed]]
    if different:
        sys.exit(f"speeches of seeds {different} must be the same with {THREADS} threads as alone, got others")
    if len(set(alone)) < THREADS:
        sys.exit(f"{THREADS} seeds must give {THREADS} speeches, got {len(set(alone))}")
    print(f"{THREADS} threads speak as one does")


if __name__ == "__main__":
    main()
