"""The codes of the recordings of a manifest: checked, computed once, and cached beside each recording."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from higgs_native.audio.quality import advise
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.errors import AudioError, CheckpointError
from higgs_native.prompt.recordings import Recording
from higgs_native.training.data.manifest import Clip, Entry, located
from higgs_native.utils.files import replacing
from higgs_native.utils.tensors import fingerprint


_TOKENIZER_KEY = "audio_tokenizer"


class CodesCache:
    """Codes of recordings, in files beside them whose names hold a digest of the recording and the tokenizer.

    Args:
        audio_tokenizer: computes what is missing.
        folder: holds the codes of recordings that are no files.
    """

    def __init__(self, audio_tokenizer: HiggsAudioTokenizer, folder: Path) -> None:
        self._tokenizer = audio_tokenizer
        self._folder = folder
        self._fingerprint = fingerprint(repr(audio_tokenizer.config), audio_tokenizer.named_weights())

    def check(self, entries: Sequence[Entry], on_advice: Callable[[str], None]) -> None:
        """Read every recording, and every file of codes that the manifest names, before anything is computed.

        Args:
            entries: of a manifest.
            on_advice: called with the flaws of each poor recording.

        Raises:
            AudioError: a recording is missing, empty, silent, too short, too long, or can't be read.
            CheckpointError: a file of codes is missing or damaged, or holds the codes of another audio tokenizer.
        """
        for entry in entries:
            with located(entry.location):
                for clip in entry.clips():
                    if clip.codes is not None:
                        self._load(clip.codes)
                        continue
                    recording = clip.read()
                    if recording.quality is None:
                        raise AudioError(f"audio must be heard, got silence in {recording.name}")
                    for advice in advise(recording.quality, clip.text, is_reference=False):
                        on_advice(f"{entry.location}: {recording.name}: {advice}")

    def codes(self, clip: Clip, offset: float = 0.0) -> torch.Tensor:
        """Return the codes [codebooks, frames] of a recording; compute and store them if they are not cached.

        Args:
            clip: the recording, or its codes, which are returned whatever the offset.
            offset: the share of a frame that is left out at the beginning, at least 0 and below 1.
        """
        if clip.codes is not None:
            return self._load(clip.codes)
        recording = clip.read()
        first = round(offset * recording.sampling_rate / self._tokenizer.frame_rate)
        path = self._path(clip, recording, first)
        if path.is_file():
            return self._load(path)
        codes = self._tokenizer.encode(recording.samples[first:], recording.sampling_rate)
        try:
            with replacing(path) as temporary:
                save_file({"codes": codes.to(torch.int16)}, temporary, {_TOKENIZER_KEY: self._fingerprint})
        except OSError as error:
            raise AudioError(f"codes must be cached beside the recording, got {path}: {error.strerror}") from None
        return codes

    def _path(self, clip: Clip, recording: Recording, first: int) -> Path:
        """The file of the codes from sample `first` on."""
        key = f"{recording.sha256} {recording.sampling_rate} {self._fingerprint}" + f" from {first}" * (first > 0)
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.codes"
        file = Path((clip.audio and clip.audio.audio_url) or "")
        return file.with_name(f"{file.name}.{name}") if recording.name == str(file) else self._folder / name

    def _load(self, path: Path) -> torch.Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                tokenizer = (file.metadata() or {}).get(_TOKENIZER_KEY)
                codes = file.get_tensor("codes").to(torch.int64)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"codes must be a file of codes, got {path}: {error}") from None
        if tokenizer != self._fingerprint:
            raise CheckpointError(f"codes must be those of this audio tokenizer, got those of another one in {path}")
        shape, size = (self._tokenizer.num_codebooks,), self._tokenizer.codebook_size
        if codes.dim() != 2 or codes.shape[:1] != shape or not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise CheckpointError(f"codes must be [{shape[0]}, frames] from 0 to {size - 1}, got others in {path}")
        return codes
