"""The audio tokenizer: waveforms to codes and back."""

import hashlib
import operator
import os
import threading
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch

from higgs_native import codec
from higgs_native.audio.libsndfile import SoundFile, memory_file
from higgs_native.checkpoint import resolve_folder
from higgs_native.codec_checkpoint import load_tensors
from higgs_native.codec_config import HiggsAudioTokenizerConfig
from higgs_native.codec_decoder import StreamingDecoder, checked_codes
from higgs_native.codec_windows import DecoderWindows, WindowedDecoder
from higgs_native.device import checked_device
from higgs_native.errors import AudioError, ParameterError


LENGTH_RULES = ("boson", "transformers")
MIN_SECONDS = 0.1
"""The shortest audio that `encode` takes."""
MAX_SECONDS = 120.0
"""The longest audio that `encode` takes: its memory grows with the length, to about 2 GB here."""
MAX_CHANNELS = 8
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1000, 768_000
DECODE_WINDOW = 250
"""Frames decoded at a time; each takes about 0.4 MB while it is decoded."""

_CACHED_AUDIOS = 64
_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


class HiggsAudioTokenizer:
    """Encodes waveforms into codes, 8 a frame of 40 ms, and decodes codes into waveforms.

    Safe to call from several threads. Codes of the last audios encoded are kept, so that a voice used again costs
    nothing.

    Args:
        config: the shapes.
        tensors: by the names of `codec_config.tensor_shapes`, float32, weight norm folded.
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
        with torch.inference_mode():
            weights = codec.prepare(tensors, config)
            self._weights = {name: weight.to(device) for name, weight in weights.items()}
        self._windows = DecoderWindows(self._weights, config) if device.type == "cuda" else None
        self._cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._cache_lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, device: str | torch.device = "cpu") -> "HiggsAudioTokenizer":
        """Load a checkpoint of either layout.

        Args:
            path_or_name: a folder with `config.json` and `model.safetensors` or `model.pth`, or a Hub name.
            device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU where there is one.

        Raises:
            ConfigError, CheckpointError: the files are missing, damaged, or don't fit each other.
            ParameterError: there is no such device, or HIGGS_NATIVE_ISA names no instruction set of this machine.
        """
        device = checked_device(device)
        folder = resolve_folder(path_or_name, kind="audio tokenizer")
        config = HiggsAudioTokenizerConfig.from_pretrained(folder)
        return cls(config, load_tensors(folder, config), device)

    @property
    def sampling_rate(self) -> int:
        """Of decoded audio, in Hz."""
        return self.config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.config.frame_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.config.hop_length

    @property
    def num_codebooks(self) -> int:
        """Codes a frame."""
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes run from 0 to this, exclusive."""
        return self.config.codebook_size

    @property
    def context_frames(self) -> int:
        """Frames on each side that a frame's samples depend on: the decoder's receptive field."""
        return self.config.decoder_context

    def named_weights(self) -> dict[str, torch.Tensor]:
        """All tensors, as `codec.prepare` names them."""
        return dict(self._weights)

    def encode(
        self,
        audio: str | os.PathLike | BinaryIO | np.ndarray | torch.Tensor,
        sampling_rate: int | None = None,
        length_rule: str = "boson",
    ) -> torch.Tensor:
        """Encode audio, of any rate and up to 8 channels, which are averaged.

        Args:
            audio: a file (wav, flac, ogg, mp3 and what else libsndfile reads), or samples: [samples],
                [channels, samples] or [samples, channels] (the shorter axis is the channels), floating (full scale 1),
                int16 or int32. 0.1 to 120 seconds.
            sampling_rate: of the samples, in Hz; a file knows its own.
            length_rule: how a length that is no multiple of 960 samples becomes frames: `boson` as in
                `boson_multimodal`, `transformers` as in `HiggsAudioV2TokenizerModel.encode` (whose processor first
                pads the audio with zeros to a multiple of 960, where both rules agree).

        Returns:
            [8, frames], int64.

        Raises:
            AudioError: the file can't be read, the audio is empty, too short, too long, or not finite, the shape,
                dtype or sampling rate is wrong, or the rule can't encode this length.
            ParameterError: there is no such length rule.
        """
        if length_rule not in LENGTH_RULES:
            raise ParameterError(f"length_rule is {length_rule!r}; expected one of {LENGTH_RULES}")
        if isinstance(audio, (np.ndarray, torch.Tensor)):
            if sampling_rate is None:
                raise AudioError("audio given as samples needs its sampling_rate, in Hz")
            waveform, rate = mono_samples(audio), checked_rate(sampling_rate)
        else:
            waveform, rate = read_audio(audio)
        _check_duration(len(waveform), rate)
        waveform = _resampled(waveform, rate, self.sampling_rate)

        key = hashlib.sha256(waveform.tobytes() + length_rule.encode()).digest()
        with self._cache_lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key].clone()
        with torch.inference_mode(), _exact_convolutions():
            try:
                samples = torch.tensor(waveform, device=self.device)[None]
                codes = codec.encode(self._weights, self.config, samples, length_rule)
            except ValueError as error:
                raise AudioError(str(error)) from None
        codes = codes.to("cpu", torch.int64, copy=True)  # outside of inference mode: an ordinary tensor
        with self._cache_lock:
            self._cache[key] = codes
            if len(self._cache) > _CACHED_AUDIOS:
                self._cache.popitem(last=False)
        return codes.clone()

    def decode(self, codes: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Decode codes, `DECODE_WINDOW` frames at a time, so that memory does not grow with the length.

        Args:
            codes: [8, frames], integers 0 .. 1023, at least one frame.

        Returns:
            [frames * 960], float32, at `sampling_rate`; not clipped.

        Raises:
            AudioError: the shape or dtype is wrong, or a code out of range.
        """
        codes = checked_codes(codes, self.config)
        if codes.shape[1] == 0:
            raise AudioError("there are no codes to decode; expected at least one frame")
        decoder = self.streaming_decoder()
        windows = codes.split(DECODE_WINDOW, dim=1)
        return torch.cat([decoder.decode(window, is_last=window is windows[-1]) for window in windows])

    def streaming_decoder(self, lookahead: int | None = None) -> StreamingDecoder | WindowedDecoder:
        """Return a decoder for codes that come a few frames at a time.

        Args:
            lookahead: how many frames must follow a frame before its audio is given out; None: `context_frames`, as
                many as it depends on. Fewer give the audio earlier, and not quite what `decode` gives.

        Raises:
            ParameterError: lookahead is negative, or more than `context_frames`.
        """
        if self._windows is not None:
            return WindowedDecoder(self._windows, lookahead)
        return StreamingDecoder(self._weights, self.config, lookahead)


def _exact_convolutions() -> AbstractContextManager[None]:
    """On a GPU: float32 products as such, not rounded to 19 bits, and the same sums each time."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def read_audio(
    file: str | os.PathLike | BinaryIO, offset: float = 0, duration: float | None = None
) -> tuple[np.ndarray, int]:
    """Read an audio file, or a part of it, its channels averaged.

    Args:
        file: a path, or a file opened for reading bytes.
        offset: where to begin, in seconds, at least 0.
        duration: how many seconds to read at most, at least 0; None for all.

    Returns:
        The waveform, [samples], float32, and its sampling rate in Hz.

    Raises:
        AudioError: there is no such file, it is no audio, too long, empty, or not finite, or the part is.
    """
    is_path = isinstance(file, (str, os.PathLike))
    if not is_path and not hasattr(file, "read"):
        raise AudioError(f"audio is a {type(file).__name__}; expected a path, an open file, an array or a tensor")
    name = os.fspath(file) if is_path else "the audio file"
    if is_path and not os.path.isfile(file):
        raise AudioError(f"{name} is no file; expected an audio file (wav, flac, ogg, mp3)")
    try:
        # A file object's bytes are read here: the library would call Python back for them.
        source = nullcontext(os.fspath(file)) if is_path else memory_file(file.read())
        with source as path_or_descriptor, SoundFile(path_or_descriptor, closefd=False) as opened:
            # Before reading: a file of hours would fill the memory.
            rate = checked_rate(opened.samplerate)
            begin, count = cut(opened.frames, rate, offset, duration, name)
            _check_duration(count, rate, name)
            opened.seek(begin)
            samples = opened.read(count, dtype="float32", always_2d=True)
    # TypeError: a headerless file (.raw), whose rate soundfile can't know.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", str(error))  # without the file's name
        raise AudioError(f"{name} can't be read as audio: {reason.strip()}") from None
    return mono_samples(samples.mean(axis=1)), rate


def cut(samples: int, rate: int, offset: float, duration: float | None, name: str = "the audio") -> tuple[int, int]:
    """The first sample of a part, and how many it has, of `samples` at `rate` Hz; see `read_audio`.

    Raises:
        AudioError: there are samples, but none in the part.
    """
    begin = round(min(offset * rate, samples))
    count = samples - begin if duration is None else round(min(duration * rate, samples - begin))
    if samples and begin == samples:
        raise AudioError(f"offset is {offset:g} s, but {name} lasts {samples / rate:.4g} s; expected less")
    if samples and not count:
        raise AudioError(
            f"duration is {duration:g} s, which leaves nothing of {name}; expected at least {MIN_SECONDS:g} s"
        )
    return begin, count


def mono_samples(audio: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return samples, as `HiggsAudioTokenizer.encode` takes them, as [samples], float32, full scale 1.

    Raises:
        AudioError: they are empty or not finite, or the type, shape or dtype is wrong.
    """
    if not isinstance(audio, np.ndarray | torch.Tensor):
        raise AudioError(f"the samples are a {type(audio).__name__}; expected an array or a tensor")
    samples = audio.detach().cpu() if isinstance(audio, torch.Tensor) else audio
    if isinstance(samples, torch.Tensor):
        samples = samples.float().numpy() if samples.is_floating_point() else samples.numpy()
    if samples.size == 0:
        raise AudioError("the audio is empty")
    if samples.ndim > 2 or samples.ndim == 0 or (samples.ndim == 2 and min(samples.shape) > MAX_CHANNELS):
        raise AudioError(
            "audio must be [samples], [channels, samples] or [samples, channels] with at most "
            f"{MAX_CHANNELS} channels, got {list(samples.shape)}"
        )
    if samples.dtype in _FULL_SCALE:
        samples = samples / np.float32(_FULL_SCALE[samples.dtype])
    elif not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"audio must be floating, int16 or int32, got {samples.dtype}")
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise AudioError("the audio holds samples that are not finite (NaN or infinite)")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    return np.ascontiguousarray(samples)


def checked_rate(sampling_rate: int) -> int:
    """Return a sampling rate in Hz. Raises AudioError where it is no whole number, or out of range."""
    try:
        rate = operator.index(sampling_rate)
    except TypeError:
        rate = int(sampling_rate) if isinstance(sampling_rate, float) and sampling_rate.is_integer() else 0
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise AudioError(
            f"sampling_rate is {sampling_rate!r}; expected a whole number of Hz from {MIN_SAMPLING_RATE} to "
            f"{MAX_SAMPLING_RATE}"
        )
    return rate


def _check_duration(samples: int, rate: int, name: str = "the audio") -> None:
    seconds = samples / rate
    if samples == 0:
        raise AudioError(f"{name} is empty")
    if seconds < MIN_SECONDS:
        raise AudioError(f"{name} lasts {seconds:.3g} s; expected at least {MIN_SECONDS:g} s")
    if seconds > MAX_SECONDS:
        raise AudioError(f"{name} lasts {seconds:.4g} s; expected at most {MAX_SECONDS:g} s")


def _resampled(waveform: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    if rate == to_rate:
        return waveform
    # The length of librosa.resample, which the codec's users have encoded with: rounded up, padded or cut at the end.
    samples = -(-len(waveform) * to_rate // rate)
    resampled = soxr.resample(waveform, rate, to_rate, quality="HQ")[:samples]
    return np.pad(resampled, (0, samples - len(resampled))).astype(np.float32, copy=False)
