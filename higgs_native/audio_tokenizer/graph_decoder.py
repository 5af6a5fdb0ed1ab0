"""The audio tokenizer's decoder on a GPU: windows of fixed sizes, each one CUDA graph.

A window holds the wanted frames and all frames that they depend on, so it needs no earlier results: all streams share
the graphs, and a stream keeps only codes. Decoding the context anew, 20 frames per window, costs a GPU less than the
launches that a graph saves. Short windows that wait for their turn at the same time are one graph, too.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from higgs_native import ops
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.decoder import checked_codes, checked_lookahead, decoder_layers
from higgs_native.audio_tokenizer.layers import Weights
from higgs_native.errors import ParameterError
from higgs_native.utils.checks import check_flag
from higgs_native.utils.cuda_graph import GraphedWork, capture_graphs
from higgs_native.utils.uncopyable import Uncopyable


SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 270)
"""Sizes of the windows, in frames. The largest holds 250 frames, which `decode` takes at a time, and 20 of context."""

BATCHES = (1, 2, 4, 8, 16)
"""Audios that a graph decodes at the same time, where they have no more frames than the largest window."""

_NO_FRAME = -1


@dataclass(eq=False)
class _Request:
    """A thread's window: its codes, and then its audio."""

    codes: torch.Tensor
    first: int
    last: int
    size: int
    audio: torch.Tensor | None = None


class DecoderWindows:
    """The decoder's graphs, with their memory: about 0.4 MB for each frame of the largest window.

    Several threads may use it; they take turns, and one of them decodes for others whose windows have the same size.
    On a GPU the graphs are captured here and run on a separate stream, so that a window does not wait for frames of
    speech that are in flight. On the CPU there are no graphs.

    Attributes:
        config: of the checkpoint.
        largest: the largest window's size, in frames.

    Args:
        weights: as `pack_weights` returns them; the windows are on their device.
        config: of the checkpoint.
        sizes: of the windows, in frames, ascending. The last must be more than twice `config.decoder_context`.
    """

    def __init__(self, weights: Weights, config: HiggsAudioTokenizerConfig, sizes: Sequence[int] = SIZES) -> None:
        self.config = config
        self.largest = sizes[-1]
        self._turn = threading.Condition()
        self._is_taken = False
        self._waiting: list[_Request] = []
        self._stream: torch.cuda.Stream | None = None
        with torch.inference_mode():
            self._windows = {
                size: [_Window(weights, config, size, n) for n in BATCHES if n == 1 or n * size <= self.largest]
                for size in sizes
            }
            device = weights["decode.table"].device
            if device.type == "cuda":
                self._stream = torch.cuda.Stream(device, priority=-1)
                windows = [window for windows in self._windows.values() for window in windows]
                windows.sort(key=lambda window: window.codes.numel(), reverse=True)
                capture_graphs(windows, self._stream)

    def decode(self, codes: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Decode frames as if they were a whole audio; return the audio of frames `first` to `last`, exclusive.

        Args:
            codes: [codebooks, frames], int32, on the CPU, in range; 1 to `largest` frames.
            first, last: frames of `codes`.

        Returns:
            [(last - first) * hop length], float32, on the CPU.
        """
        frames = codes.shape[1]
        own = _Request(codes, first, last, next(size for size in self._windows if size >= frames))
        together: list[_Request] = []
        try:
            with self._turn:
                self._waiting.append(own)
                self._turn.wait_for(lambda: own.audio is not None or not self._is_taken)
                if own.audio is None:
                    together = self._with_others(own)
                    self._is_taken = True
                    self._waiting = [request for request in self._waiting if request not in together]
            if together:
                self._decode_own(together)
        finally:
            with self._turn:
                if together:
                    self._is_taken = False
                others = [request for request in together[1:] if request.audio is None]
                self._waiting = [request for request in self._waiting if request is not own] + others
                self._turn.notify_all()
        assert own.audio is not None
        return own.audio

    def _with_others(self, own: _Request) -> list[_Request]:
        """A request, and others of its size that wait: as many as a graph decodes."""
        others = [request for request in self._waiting if request.size == own.size and request is not own]
        batch = max(window.batch for window in self._windows[own.size] if window.batch <= 1 + len(others))
        return [own, *others[: batch - 1]]

    def _decode_own(self, requests: list[_Request]) -> None:
        """Set the audio of the first request, and of the others if nothing fails: they have a turn of their own."""
        try:
            self._decode_together(requests)
        except Exception:
            if len(requests) == 1:
                raise
            self._decode_together(requests[:1])

    def _decode_together(self, requests: list[_Request]) -> None:
        """Set the audio of requests of one size, as many as a window decodes."""
        hop_length = self.config.hop_length
        window = next(window for window in self._windows[requests[0].size] if window.batch == len(requests))
        with torch.cuda.stream(self._stream):
            with torch.inference_mode():
                window.fill(request.codes for request in requests)
                window.run()
            # Outside of inference mode, for an ordinary tensor. The copies wait for the window.
            for audio, request in zip(window.audio, requests, strict=True):
                part = audio[request.first * hop_length : request.last * hop_length]
                request.audio = part.to("cpu", copy=True)


class _Window(GraphedWork):
    """The tensors of windows of `size` frames, and the work on them.

    Attributes:
        codes: [codebooks, batch, size], int32: `_NO_FRAME` after an audio's end.
        audio: [batch, size * hop length], float32: written by `run`; undefined after an audio's end.
    """

    def __init__(self, weights: Weights, config: HiggsAudioTokenizerConfig, size: int, batch: int) -> None:
        self.size, self.batch = size, batch
        self._table, self._bias = weights["decode.table"], weights["decode.bias"]
        self._layers = list(decoder_layers(weights, config))
        self.codes = self._table.new_zeros((config.num_codebooks, batch, size), dtype=torch.int32)
        self.audio = self._table.new_empty(0)

    def fill(self, codes: Iterable[torch.Tensor]) -> None:
        """Write the codes of `batch` audios, [codebooks, frames] each."""
        filled = torch.full(self.codes.shape, _NO_FRAME, dtype=torch.int32, device="cpu")
        for index, of_audio in enumerate(codes):
            filled[:, index, : of_audio.shape[1]] = of_audio
        self.codes.copy_(filled)

    def compute(self) -> None:
        """Compute `audio` from `codes`."""
        after_end = (self.codes[0] == _NO_FRAME)[:, None, :, None]
        latent = self._table.new_empty(self.batch * self.size, self._table.shape[2])
        ops.rvq_decode(latent, self.codes.flatten(1).clamp(min=0), self._table, self._bias)
        x = latent.view(self.batch, self.size, -1).mT.contiguous()
        for layer in self._layers:
            # Layers pad with zeros at the end of their input, but the audio may end before the window does.
            x.view(self.batch, x.shape[1], self.size, -1).masked_fill_(after_end, 0)
            out = x.new_empty(self.batch, layer.channels, x.shape[2] * layer.stride)
            layer.run(out, x)
            x = out
        self.audio = x[:, 0]


class WindowedDecoder(Uncopyable):
    """A `StreamingDecoder` that decodes by windows. Its audio has the same bits.

    Args:
        windows: on the device.
        lookahead: as for `StreamingDecoder`.

    Raises:
        ParameterError: lookahead is not between 0 and `config.decoder_context`.
    """

    _instead = "; its audio may be"

    def __init__(self, windows: DecoderWindows, lookahead: int | None = None) -> None:
        self.lookahead = checked_lookahead(lookahead, windows.config)
        self._windows = windows
        self._context = windows.config.decoder_context
        # `_before` frames of context, then the frames whose audio is not returned yet.
        self._codes = torch.empty(windows.config.num_codebooks, 0, dtype=torch.int32, device="cpu")
        self._before = 0
        self._ended = False

    def decode(self, codes: torch.Tensor | np.ndarray, is_last: bool = False) -> torch.Tensor:
        """Decode the next frames; see `StreamingDecoder.decode`."""
        check_flag("is_last", is_last)
        if self._ended:
            raise ParameterError("codes must not follow the last ones; a new audio needs a new decoder")
        self._codes = torch.cat([self._codes, checked_codes(codes, self._windows.config)], dim=1)
        self._ended = is_last
        lookahead = 0 if is_last else self.lookahead
        pieces = [torch.empty(0, dtype=torch.float32, device="cpu")]
        while self._codes.shape[1] - lookahead > self._before:
            window = self._codes[:, : self._windows.largest]
            # The last frames of a window depend on the frames that follow, unless it holds the last codes.
            end = window.shape[1] - (lookahead if window.shape == self._codes.shape else self._context)
            pieces.append(self._windows.decode(window, self._before, end))
            drop = max(end - self._context, 0)
            self._before = end - drop
            self._codes = self._codes[:, drop:].clone()
        return torch.cat(pieces)
