"""The audio tokenizer's decoder on a GPU: windows of fixed sizes, each one CUDA graph.

A window holds frames of one audio, with as many around those that are wanted as they depend on, so it needs nothing of
what was computed before: all streams share the graphs, and a stream keeps codes alone. What is computed again for the
context, 20 frames of a window, costs a GPU less than the launches that a graph saves.
"""

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from higgs_native import ops
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.decoder import checked_codes, checked_lookahead, decoder_layers
from higgs_native.audio_tokenizer.layers import Weights
from higgs_native.errors import ParameterError
from higgs_native.ops.device import CAPTURING


SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 270)
"""Of the windows, in frames. In the largest fit 250 frames, which a long audio is decoded by, and their context."""

_NO_FRAME = -1


class DecoderWindows:
    """The decoder's graphs, with their memory: about 0.4 MB for each frame of the largest window.

    Safe to use from several threads, which take turns. On a GPU the graphs are captured when this is made, and run on
    a stream of their own, so that a window does not wait for frames of speech that were launched ahead. On the CPU
    windows are computed as they are.

    Attributes:
        config: of the checkpoint.
        largest: how many frames a window can have.

    Args:
        weights: as `codec.prepare` makes them; the windows are on their device.
        config: of the checkpoint.
        sizes: of the windows, in frames, ascending. The last is more than twice `config.decoder_context`.
    """

    def __init__(self, weights: Weights, config: HiggsAudioTokenizerConfig, sizes: Sequence[int] = SIZES) -> None:
        self.config = config
        self.largest = sizes[-1]
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None
        with torch.inference_mode():
            self._windows = [_Window(weights, config, size) for size in sizes]
            device = weights["decode.table"].device
            if device.type == "cuda":
                self._stream = torch.cuda.Stream(device, priority=-1)
                self._stream.wait_stream(torch.cuda.current_stream(device))
                pool = torch.cuda.graph_pool_handle()
                # The largest first: the smaller ones fit into its memory.
                with CAPTURING:
                    for window in reversed(self._windows):
                        window.capture(pool, self._stream)

    def decode(self, codes: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Decode frames as if they were all of an audio; return that of frames `first` to `last`, exclusive.

        Args:
            codes: [codebooks, frames], int32, on the CPU, in range; 1 to `largest` frames.

        Returns:
            [(last - first) * hop length], float32, on the CPU.
        """
        frames, hop_length = codes.shape[1], self.config.hop_length
        window = next(window for window in self._windows if window.size >= frames)
        with self._lock, torch.cuda.stream(self._stream):
            with torch.inference_mode():
                window.codes.copy_(F.pad(codes, (0, window.size - frames), value=_NO_FRAME))
                window.run()
            # Outside of inference mode: an ordinary tensor. To copy it is to wait for it.
            return window.audio[first * hop_length : last * hop_length].to("cpu", copy=True)


class _Window:
    """The tensors of a window of `size` frames, and the work on them.

    Attributes:
        codes: [codebooks, size], int32: written by the caller; behind the audio's end `_NO_FRAME`.
        audio: [size * hop length], float32: what `run` computes; behind the end it means nothing.
    """

    def __init__(self, weights: Weights, config: HiggsAudioTokenizerConfig, size: int) -> None:
        self.size = size
        self._table, self._bias = weights["decode.table"], weights["decode.bias"]
        self._layers = list(decoder_layers(weights, config))
        self.codes = self._table.new_zeros((config.num_codebooks, size), dtype=torch.int32)
        self.audio = self._table.new_empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self) -> None:
        """Compute `audio` from `codes`."""
        if self._graph is None:
            self._compute()
        else:
            self._graph.replay()

    def capture(self, pool: tuple[int, int], stream: torch.cuda.Stream) -> None:
        """Make the work one CUDA graph, in a memory pool that graphs share since none run at the same time."""
        with torch.cuda.stream(stream):
            self._compute()  # the first run of a kernel may do what a capture can't
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with what is theirs.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._compute()
        self._graph = graph

    def _compute(self) -> None:
        behind_end = (self.codes[0] == _NO_FRAME)[:, None]
        latent = self._table.new_empty(self.size, self._table.shape[2])
        ops.rvq_decode(latent, self.codes.clamp(min=0), self._table, self._bias)
        x = latent.T.contiguous()[None]
        for layer in self._layers:
            # Each layer pads its input with zeros; where the audio ends inside of the window, they are made here.
            x.view(x.shape[1], self.size, -1).masked_fill_(behind_end, 0)
            out = x.new_empty(1, layer.channels, x.shape[2] * layer.stride)
            layer.run(out, x, 0)
            x = out
        self.audio = x[0, 0]


class WindowedDecoder:
    """A `StreamingDecoder` that decodes by windows. Its audio has the same bits.

    Args:
        windows: of the device.
        lookahead: as of `StreamingDecoder`.

    Raises:
        ParameterError: lookahead is outside of 0 .. `config.decoder_context`.
    """

    def __init__(self, windows: DecoderWindows, lookahead: int | None = None) -> None:
        self.lookahead = checked_lookahead(lookahead, windows.config)
        self._windows = windows
        self._context = windows.config.decoder_context
        # Frames whose audio is yet to be given out, and before them `_before` ones of context.
        self._codes = torch.empty(windows.config.num_codebooks, 0, dtype=torch.int32)
        self._before = 0
        self._ended = False

    def decode(self, codes: torch.Tensor | np.ndarray, is_last: bool = False) -> torch.Tensor:
        """Take the next frames, and return the audio that has become final; see `StreamingDecoder.decode`."""
        if self._ended:
            raise ParameterError("the last codes have been decoded; a new audio needs a new decoder")
        self._codes = torch.cat([self._codes, checked_codes(codes, self._windows.config)], dim=1)
        self._ended = is_last
        lookahead = 0 if is_last else self.lookahead
        pieces = [torch.empty(0)]
        while self._codes.shape[1] - lookahead > self._before:
            window = self._codes[:, : self._windows.largest]
            # The end of a window that is not the end of all depends on what follows.
            end = window.shape[1] - (lookahead if window.shape == self._codes.shape else self._context)
            pieces.append(self._windows.decode(window, self._before, end))
            over = max(end - self._context, 0)
            self._before = end - over
            self._codes = self._codes[:, over:].clone()
        return torch.cat(pieces)
