"""Streaming: frames of codes in, chunks of audio out, while generation continues."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from higgs_native.audio.samples import pcm_samples
from higgs_native.audio.silence import SilenceTrimmer
from higgs_native.audio.tempo import Tempo, float_samples
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.errors import ParameterError
from higgs_native.failure_checks import Failure, detect_failures, frame_levels
from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.delay_pattern import SegmentReader
from higgs_native.generation.requests import GenerationOutput, OnFrame, OnToken, Playback, WantsItems
from higgs_native.manuscript.passages import cut_ends
from higgs_native.manuscript.timing import Passage
from higgs_native.utils.background_iterator import BackgroundIterator
from higgs_native.utils.checks import check_integer, check_number
from higgs_native.utils.tensors import equal_fields


_CHUNKS_AHEAD = 8

GeneratePassage = Callable[[OnFrame, OnToken, WantsItems, Playback], GenerationOutput]
"""Generates a passage; given the callbacks and the playback of `GenerationRequest`."""


class SpokenPassage(NamedTuple):
    """A passage that has been spoken.

    Attributes:
        codes: [codebooks, frames], int64: all that were generated; nothing is trimmed.
        failures: as in `Speech`.
    """

    codes: torch.Tensor
    failures: tuple[Failure, ...]


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """A chunk of speech.

    Attributes:
        samples: [samples], float32, mono, full scale at 1; a whole number of frames, possibly none in the last chunk,
            or the silence of a pause. At another speed than 1, any number of samples.
        sampling_rate: in Hz.
        start_frame: the number of audio frames before it, 40 ms each, rounded down after a pause and at another speed.
        is_last: whether no chunk follows.
    """

    samples: np.ndarray
    sampling_rate: int
    start_frame: int
    is_last: bool

    def __eq__(self, other: object) -> bool:
        return equal_fields(self, other) if isinstance(other, AudioChunk) else NotImplemented


@dataclass(frozen=True)
class ChunkSizes:
    """The lengths of a stream's chunks in frames. Small chunks come early, large ones cost less work per frame.

    Attributes:
        first: length of the first chunk.
        growth: length of each chunk over that of the one before it.
        largest: maximum length.
    """

    first: int = 5
    growth: float = 1.5
    largest: int = 50

    def __post_init__(self) -> None:
        check_integer("first_chunk_frames", self.first)
        check_integer("max_chunk_frames", self.largest)
        check_number("chunk_growth", self.growth)
        if not 1 <= self.first <= self.largest:
            raise ParameterError(
                f"first_chunk_frames must be between 1 and max_chunk_frames, got {self.first} and {self.largest}"
            )
        if not 1 <= self.growth < float("inf"):
            raise ParameterError(f"chunk_growth must be at least 1, got {self.growth}")

    def after(self, size: float) -> float:
        """The length that follows `size`; fractions of a frame add up."""
        return min(size * self.growth, self.largest)


class SpeechStream(BackgroundIterator[AudioChunk]):
    """Speech in chunks, iterated once, by `for` or by `async for`; see `HiggsAudio.stream`.

    A background thread generates it, from the start of the iteration on and at most 8 chunks ahead of the consumer.
    Leaving the loop ends the thread, at the latest when the prompt has been computed.

    Attributes:
        sampling_rate: in Hz.
        first_audio_seconds: from the start of the iteration to the first chunk; None before it.
        underrun_margin_seconds: the minimum time between a chunk's arrival and its playback, if the first one is
            played on arrival. Below zero, playback pauses for that long. Time in which the consumer kept the thread
            waiting does not count. None before the second chunk.
        seed: the given or drawn one, as in `Speech`.
        script: the texts of the passages that have begun, each with the index of its first sample.
        finish_reason, usage, failures, codes: as in `Speech`; None before the end.

    Args:
        prepare: given the passages that have been spoken, returns a function that generates the next one.
        config: of the language model.
        audio_tokenizer: decodes the codes.
        convention: the one that the generation follows.
        sizes: the chunks' lengths.
        lookahead: the decoder's, in frames; see `StreamingDecoder`.
        passages: what is spoken, in order.
        seed: the seed of the first passage.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[SpokenPassage]], GeneratePassage],
        config: HiggsAudioConfig,
        audio_tokenizer: HiggsAudioTokenizer,
        convention: Convention,
        sizes: ChunkSizes,
        lookahead: int,
        passages: Sequence[Passage],
        seed: int,
    ) -> None:
        super().__init__(_speak, _CHUNKS_AHEAD)
        self.sampling_rate = audio_tokenizer.sampling_rate
        self.first_audio_seconds: float | None = None
        self.underrun_margin_seconds: float | None = None
        self.finish_reason: str | None = None
        self.usage: Mapping[str, int] | None = None
        self.failures: tuple[Failure, ...] | None = None
        self.codes: torch.Tensor | None = None
        self.seed = seed
        self.script: list[tuple[str, int]] = []
        self._prepare = prepare
        self._config = config
        self._audio_tokenizer = audio_tokenizer
        self._convention = convention
        self._sizes = sizes
        self._size: float = sizes.first
        self._lookahead = lookahead
        self._passages = passages
        self._num_samples = 0  # of all chunks so far

    def _speak(self) -> None:
        self._began = time.perf_counter()
        spoken: list[SpokenPassage] = []
        finish_reasons: list[str] = []
        usage: Counter[str] = Counter()
        for index, passage in enumerate(self._passages):
            # The codes and levels of all frames of the passage so far, for the detection of failures.
            self._codes: list[torch.Tensor] = []
            self._levels: list[np.ndarray] = []
            self._trimmer = SilenceTrimmer(self._audio_tokenizer.hop_length, *cut_ends(self._passages, index))
            self._tempo = None if passage.speed == 1 else Tempo(self.sampling_rate, passage.speed, is_steady=True)
            self._begin_segment()
            if passage.pause:
                self._put_chunk(np.zeros(round(passage.pause * self.sampling_rate), dtype=np.float32), is_last=False)
            self.script.append((passage.text, self._num_samples))
            generate = self._prepare(spoken)
            playback = Playback(self._reader.delay + self._lookahead, int(self._size), max(self._margin(), 0.0))
            output = generate(self._on_frame, self._on_token, self._wants_items, playback)
            rest = self._decode(is_last=True)
            codes = torch.cat(self._codes, dim=1)
            finish_reasons.append(output.finish_reason)
            usage.update(output.usage)
            failures = detect_failures(
                passage.text,
                np.concatenate(self._levels),
                codes,
                self._audio_tokenizer.frame_rate,
                output.finish_reason,
            )
            spoken.append(SpokenPassage(codes, failures))
            if len(spoken) < len(self._passages):
                self._put(rest, ends_passage=True)
        self.finish_reason = "length" if "length" in finish_reasons else "stop"
        self.usage = dict(usage)
        self.failures = tuple(dict.fromkeys(failure for passage in spoken for failure in passage.failures))
        self.codes = torch.cat([passage.codes for passage in spoken], dim=1)
        self._put(rest, ends_passage=True, is_last=True)

    def _begin_segment(self) -> None:
        self._reader = SegmentReader(self._config, self._convention)
        self._decoder = self._audio_tokenizer.streaming_decoder(self._lookahead)
        self._frames: list[torch.Tensor] = []  # of the next chunk
        self._chunk_frames = self._reader.delay + self._lookahead + int(self._size)  # that complete it
        self._is_text = False  # whether text came last

    def _wants_items(self, num_items: int) -> bool:
        """Return whether the next chunk is complete. This thread wakes once a chunk, not at each frame."""
        return self.consumer_left or len(self._frames) + num_items >= self._chunk_frames

    def _on_frame(self, frame: torch.Tensor) -> None:
        self.check()
        self._is_text = False
        self._frames.append(frame)
        if self._wants_items(0):
            self._put(self._decode())
            self._size = self._sizes.after(self._size)
            self._chunk_frames = int(self._size)

    def _on_token(self, token: int) -> None:
        """Text ends the audio segment before it."""
        self.check()
        if not self._is_text:
            rest = self._decode(is_last=True)
            self._begin_segment()
            if len(rest):
                self._put(rest)
        self._is_text = True

    def _decode(self, is_last: bool = False) -> np.ndarray:
        none = torch.empty(self._config.num_codebooks, 0, dtype=torch.int64, device="cpu")
        codes = self._reader.read(torch.stack(self._frames, dim=1) if self._frames else none)
        codes = behavior_of(self._convention).decodable(codes, self._audio_tokenizer.codebook_size)
        self._frames = []
        self._codes.append(codes)
        samples = self._decoder.decode(codes, is_last).numpy()
        self._levels.append(frame_levels(samples, self._audio_tokenizer.hop_length))
        return samples

    def _put(self, samples: np.ndarray, ends_passage: bool = False, is_last: bool = False) -> None:
        """Pass on what stays of decoded samples beside the passage's pauses, at its speed."""
        kept = self._trimmer.trim(samples)
        if self._tempo is not None:
            changed = [self._tempo.change(pcm_samples(kept)), *([self._tempo.finish()] if ends_passage else ())]
            kept = float_samples(np.concatenate(changed))
        if len(kept) or is_last:
            self._put_chunk(kept, is_last)

    def _put_chunk(self, samples: np.ndarray, is_last: bool) -> None:
        if len(samples):
            if self.first_audio_seconds is None:
                self.first_audio_seconds = self._now()
            else:
                margins = [self._margin(), self.underrun_margin_seconds]
                self.underrun_margin_seconds = min(margin for margin in margins if margin is not None)
        start_frame = self._num_samples // self._audio_tokenizer.hop_length
        self.put(AudioChunk(samples, self.sampling_rate, start_frame, is_last))
        self._num_samples += len(samples)

    def _now(self) -> float:
        """Return the seconds since the start that did not go by while the consumer kept the thread waiting."""
        return time.perf_counter() - self._began - self.waited

    def _margin(self) -> float:
        """Return the seconds of audio that are still to be played, if the first chunk was played on arrival."""
        if self.first_audio_seconds is None:
            return 0.0
        return self.first_audio_seconds + self._num_samples / self.sampling_rate - self._now()


def _speak(stream: BackgroundIterator[AudioChunk]) -> None:
    # A bound method would keep the stream alive while its thread waits for a consumer that is gone.
    assert isinstance(stream, SpeechStream)
    stream._speak()
