"""The audio tokenizer: waveforms to codes and back."""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

from higgs_native.audio.files.reading import read_audio
from higgs_native.audio.resample import resample_soxr
from higgs_native.audio_tokenizer import encoder
from higgs_native.audio_tokenizer.checkpoint import load_tensors
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.decoder import StreamingDecoder, checked_codes
from higgs_native.audio_tokenizer.graph_decoder import DecoderWindows, WindowedDecoder
from higgs_native.audio_tokenizer.weights import pack_weights
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.checkpoint.hub import HubOptions
from higgs_native.convention import Convention
from higgs_native.errors import AudioError, one_line
from higgs_native.ops.device import checked_device
from higgs_native.utils.exact_arithmetic import exact_arithmetic
from higgs_native.utils.uncopyable import Shareable


DECODE_WINDOW = 250
"""Frames that `decode` decodes at a time; each needs about 0.4 MB meanwhile."""

_CACHED_AUDIOS = 64
_LOGGER = logging.getLogger(__name__)


class HiggsAudioTokenizer(Shareable):
    """Encodes waveforms into codes, 8 per frame of 40 ms, and decodes codes into waveforms.

    Several threads may call it. The codes of the last 64 audios are cached, so that a voice is encoded once.

    Args:
        config: of the checkpoint.
        tensors: as `checkpoint.load_tensors` returns them.
        device: where to run.

    Example:
        >>> tokenizer = HiggsAudioTokenizer.from_pretrained("bosonai/higgs-audio-v2-tokenizer")
        >>> codes = tokenizer.encode("voice.wav")  # int64 [8, frames]
        >>> waveform = tokenizer.decode(codes)  # float32 [frames * 960], 24 kHz
    """

    def __init__(
        self,
        config: HiggsAudioTokenizerConfig,
        tensors: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
    ) -> None:
        self.config = config
        self.device = device
        with torch.inference_mode(), exact_arithmetic():
            weights = pack_weights(tensors, config)
            self._weights = {name: weight.to(device) for name, weight in weights.items()}
        self._windows = DecoderWindows(self._weights, config) if device.type == "cuda" else None
        self._cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._cache_lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls, path_or_name: str | Path, device: str | torch.device = "cpu", **hub: Unpack[HubOptions]
    ) -> "HiggsAudioTokenizer":
        """Load a checkpoint of either layout.

        Args:
            path_or_name: a folder with `config.json` and `model.safetensors` or `model.pth`, or a Hub name.
            device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU if there is one.
            hub: how a Hub name is fetched; see `higgs_native.checkpoint.hub.HubOptions`.

        Raises:
            ConfigError, CheckpointError: the files are missing, damaged, or contradict each other.
            ParameterError: there is no such device, or HIGGS_NATIVE_ISA names no instruction set of this machine.
        """
        device = checked_device(device)
        folder = resolve_folder(path_or_name, kind="audio tokenizer", **hub)
        begin = time.perf_counter()
        config = HiggsAudioTokenizerConfig.from_pretrained(folder)
        tokenizer = cls(config, load_tensors(folder, config), device)
        seconds = time.perf_counter() - begin
        _LOGGER.info("audio tokenizer: on %s, from %s in %.2f s", device, one_line(str(folder)), seconds)
        return tokenizer

    @property
    def sampling_rate(self) -> int:
        """Sampling rate of decoded audio, in Hz."""
        return self.config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.config.frame_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.config.hop_length

    @property
    def num_codebooks(self) -> int:
        """Codes per frame."""
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes are between 0 and this, exclusive."""
        return self.config.codebook_size

    @property
    def context_frames(self) -> int:
        """The decoder's receptive field: frames on each side that a frame's samples depend on."""
        return self.config.decoder_context

    def named_weights(self) -> dict[str, torch.Tensor]:
        """Return all tensors, as `pack_weights` names them."""
        return dict(self._weights)

    def encode(
        self,
        audio: Any,
        sampling_rate: float | None = None,
        convention: str | Convention = Convention.BOSON,
    ) -> torch.Tensor:
        """Encode audio of any sampling rate; up to 8 channels are averaged.

        Args:
            audio: a file's path, its contents, samples in an array or a tensor, or any other form that
                `higgs_native.audio.files.reading.read_audio` takes; 0.1 to 120 seconds.
            sampling_rate: of samples, in Hz; other audio has its own.
            convention: how a length that is no multiple of 960 samples becomes frames: `boson` as in
                `boson_multimodal`, `transformers` as in `HiggsAudioV2TokenizerModel.encode` (whose processor first
                pads the audio with zeros to a multiple of 960, where both conventions agree), `higgs_tts_3` as
                `transformers` without that padding, after audio below 1 s is padded with zeros to it.

        Returns:
            [8, frames], int64.

        Raises:
            AudioError: the file can't be read, the audio is empty, too short, too long, or not finite, the shape,
                dtype or sampling rate is wrong, or the convention can't encode this length.
            ParameterError: there is no such convention.
        """
        convention = Convention.parse(convention)
        waveform, rate = read_audio(audio, sampling_rate)
        return self.encode_waveform(resample_soxr(waveform, rate, self.sampling_rate), convention)

    def encode_waveform(self, waveform: np.ndarray, convention: Convention) -> torch.Tensor:
        """Encode a waveform of any length.

        Args:
            waveform: [samples], float32, finite, at `sampling_rate`.
            convention: see `encode`.

        Returns:
            [8, frames], int64.

        Raises:
            AudioError: the convention can't encode this length.
        """
        missing = self.sampling_rate - len(waveform)
        if convention is Convention.HIGGS_TTS_3 and missing > 0:
            waveform = np.pad(waveform, (0, missing))
        key = hashlib.sha256(waveform.tobytes() + convention.value.encode()).digest()
        with self._cache_lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key].clone()
        with torch.inference_mode(), exact_arithmetic():
            try:
                samples = torch.tensor(waveform, dtype=torch.float32, device=self.device)[None]
                codes = encoder.encode(self._weights, self.config, samples, convention)
            except ValueError as error:
                raise AudioError(str(error)) from None
        codes = codes.to("cpu", torch.int64, copy=True)  # outside of inference mode, for an ordinary tensor
        with self._cache_lock:
            self._cache[key] = codes
            if len(self._cache) > _CACHED_AUDIOS:
                self._cache.popitem(last=False)
        return codes.clone()

    def decode(self, codes: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Decode codes, `DECODE_WINDOW` frames at a time to bound the memory.

        Args:
            codes: [8, frames], integers between 0 and 1023, at least one frame.

        Returns:
            [frames * 960], float32, at `sampling_rate`; not clipped.

        Raises:
            AudioError: the shape or dtype is wrong, or a code out of range.
        """
        codes = checked_codes(codes, self.config)
        if codes.shape[1] == 0:
            raise AudioError(f"codes must hold at least one frame, got {list(codes.shape)}")
        decoder = self.streaming_decoder()
        windows = codes.split(DECODE_WINDOW, dim=1)
        return torch.cat([decoder.decode(window, is_last=window is windows[-1]) for window in windows])

    def streaming_decoder(self, lookahead: int | None = None) -> StreamingDecoder | WindowedDecoder:
        """Return a decoder for codes that arrive a few frames at a time.

        Args:
            lookahead: frames that must follow a frame before its audio is returned; None: `context_frames`, all that
                it depends on. With fewer, audio comes earlier, and is not quite that of `decode`.

        Raises:
            ParameterError: lookahead is not between 0 and `context_frames`.
        """
        if self._windows is not None:
            return WindowedDecoder(self._windows, lookahead)
        return StreamingDecoder(self._weights, self.config, lookahead)
