"""Kokoro-82M: phonemes to speech, with the F0, the alignment and the phase that its network computes on the way."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recipe.snake import multiplies_bfloat16
from recipe.teacher_decoder import STYLE, TeacherDecoder, read_weights


if TYPE_CHECKING:
    from onnx import GraphProto


SAMPLING_RATE = 24000
FRAME_RATE = 80
"""F0 and phase per second."""
ALIGNMENT = 0.025
"""Seconds per step of the alignment."""

_SOUNDS = "/encoder/MatMul_1_output_0"
_F0 = "/encoder/Reshape_output_0"
_ENERGY = "/encoder/Reshape_1_output_0"
_SOURCE = "/decoder/decoder/generator/Concat_3_output_0"
_ENDS = "/encoder/CumSum_output_0"
_PHASE = "/decoder/decoder/generator/m_source/l_sin_gen/CumSum_output_0"
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


def _reduce(graph: "GraphProto", outputs: tuple[str, ...]) -> None:
    """Leave in a graph only what these outputs are computed from."""
    from onnx import helper

    makers = {output: node for node in graph.node for output in node.output}
    needed, open_ends = set(), list(outputs)
    while open_ends:
        node = makers.get(open_ends.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            open_ends += node.input
    nodes = [node for node in graph.node if node.name in needed]
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, kept in (
        (graph.node, nodes),
        (graph.initializer, tensors),
        (graph.output, [helper.make_empty_tensor_value_info(name) for name in outputs]),
    ):
        del field[:]
        field.extend(kept)


class Teacher:
    """Kokoro in one thread: onnxruntime runs its graph up to the decoder, and `TeacherDecoder` the rest.

    Args:
        materials: the folder that `recipe.materials` filled.
    """

    def __init__(self, materials: Path) -> None:
        import onnx
        import onnxruntime

        torch.set_num_threads(1)
        folder = materials / "teacher"
        model = onnx.load(folder / "kokoro.onnx")
        dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
        self._decoder = TeacherDecoder(read_weights(model.graph), dtype)
        _reduce(model.graph, (_SOUNDS, _F0, _ENERGY, _SOURCE, _ENDS, _PHASE))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # every utterance has shapes of its own
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
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
        style = self._voices[voice][len(tokens)]
        *inner, ends, phase = self._session.run(
            None,
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": style,
                "speed": np.array([speed], np.float32),
            },
        )
        audio = self._decoder(*map(torch.from_numpy, inner), torch.from_numpy(style[:, :STYLE]))
        return Rendered(
            audio.numpy(),
            inner[1].ravel(),
            phase.reshape(-1, phase.shape[-1])[:, 0] * _SAMPLES_PER_FRAME,
            ends.ravel(),
        )
