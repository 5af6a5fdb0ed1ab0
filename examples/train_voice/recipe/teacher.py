"""Kokoro-82M: phonemes to speech, with the F0, the alignment and the phase that its network computes on the way."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


SAMPLING_RATE = 24000
FRAME_RATE = 80
"""F0 and phase per second."""
ALIGNMENT = 0.025
"""Seconds per step of the alignment."""

_OUTPUTS = (
    "/encoder/F0_proj/Conv_output_0",
    "/encoder/CumSum_output_0",
    "/decoder/decoder/generator/m_source/l_sin_gen/CumSum_output_0",
)
# The source sums F0 / sampling rate over one of 300 samples.
_SAMPLES_PER_FRAME = SAMPLING_RATE // FRAME_RATE


@dataclass
class Rendered:
    """Speech of one utterance.

    Attributes:
        audio: float32 [samples], 24 kHz.
        f0: float32 [frames], in Hz, 80 a second; below 10 where nothing is voiced.
        phase: float32 [frames], of the fundamental, in cycles since the beginning; a frame's last sample.
        ends: int64 [phonemes + 2], where each phoneme ends, in steps of 25 ms; silence before and after included.
    """

    audio: np.ndarray
    f0: np.ndarray
    phase: np.ndarray
    ends: np.ndarray


class Teacher:
    """Kokoro in one thread.

    Args:
        materials: the folder that `recipe.materials` filled.
    """

    def __init__(self, materials: Path) -> None:
        import onnx
        import onnxruntime

        folder = materials / "teacher"
        graph = onnx.load(folder / "kokoro.onnx")
        graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in _OUTPUTS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # every utterance has shapes of its own
        self._session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
        self._vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        self._voices = {
            path.stem: np.fromfile(path, np.float32).reshape(-1, 1, 256) for path in (folder / "voices").glob("*.bin")
        }

    def render(self, phonemes: str, voice: str, speed: float) -> Rendered:
        """Speak phonemes, at most 509 of them.

        Raises:
            KeyError: a phoneme or a voice that the teacher doesn't know.
        """
        tokens = [self._vocabulary[phoneme] for phoneme in phonemes]
        audio, f0, ends, phase = self._session.run(
            None,
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": self._voices[voice][len(tokens)],
                "speed": np.array([speed], np.float32),
            },
        )
        return Rendered(
            audio.ravel(), f0.ravel(), phase.reshape(-1, phase.shape[-1])[:, 0] * _SAMPLES_PER_FRAME, ends.ravel()
        )
