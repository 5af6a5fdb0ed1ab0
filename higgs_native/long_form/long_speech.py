"""Speech of long texts, such as books: spoken in chunks, in one voice; an interrupted run can be continued."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from higgs_native.audio.files.m4b import M4B_SUFFIX, check_m4b_path, is_m4b
from higgs_native.audio.files.writing import check_output_path
from higgs_native.audio.tempo import check_speed
from higgs_native.errors import GenerationError, ParameterError, short_repr
from higgs_native.failure_checks import max_seconds
from higgs_native.generation.sampling_params import SamplingOptions, SamplingParams
from higgs_native.long_form.chunk_speaker import ChunkSpeaker
from higgs_native.long_form.chunk_store import ChunkStore, SpokenChunk
from higgs_native.long_form.chunking import TextChunk, chunk_text
from higgs_native.long_form.conversation import Conversation
from higgs_native.long_form.saving import ChapterStart, Saver, chapter_paths
from higgs_native.long_form.settings import (
    CHUNK_SECONDS,
    CONTEXT_CHUNKS,
    EMBEDDED_VOICE_CHUNK_SECONDS,
    MAX_RETRIES,
    PARALLEL_CHUNKS,
    Pauses,
)
from higgs_native.manuscript.books.book import Book, file_names
from higgs_native.manuscript.lexicon import Lexicon, LexiconLike
from higgs_native.manuscript.timing import Passage, without_timing
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.messages import AudioContent, Message
from higgs_native.prompt.pace import spoken_seconds
from higgs_native.prompt.recordings import RecordingLike, read_recording
from higgs_native.prompt.voices import Voice
from higgs_native.streaming import ChunkSizes, GeneratePassage, SpeechStream, SpokenPassage
from higgs_native.subtitles import Cue, check_subtitles_path, chunk_cues, write_subtitles
from higgs_native.utils.checks import check_callable, check_flag, check_instance, check_integer


_SEEDS_PER_CHUNK = 1000


class LongSpeech:
    """A long text, spoken in chunks. Iteration yields them in order, each as soon as it is finished.

        book = LongSpeech(HiggsAudio.from_pretrained(), text, folder="book.parts", seed=1)
        for chunk in book:
            play(chunk.audio)
        book.save("book.wav")

    `folder` holds every finished chunk. A second iteration reads them from there. If this process is killed, another
    one with the same folder and inputs continues the run; the result has the bits of an uninterrupted run on the same
    machine.

    The voice stays the same because the prompt of a chunk holds earlier chunks, their text and codes: the last
    `context_chunks`, and, if no recording shows the speaker's voice, that speaker's first one. A failed chunk (see
    `higgs_native.failure_checks`) is spoken again with the next seed; it never becomes context.

    Without `context_chunks`, chunks are spoken side by side, `parallel` at a time; those of a speaker without a
    recording begin after that speaker's first one. Each has the bits that it has with `parallel=1`.

    Attributes:
        chunks: of the text (see `higgs_native.long_form.chunking`).
        seed: the given or drawn one. Chunk i is first spoken with `seed + 1000 * i`.
        folder: path of the finished chunks.

    Args:
        engine: speaks the chunks.
        text: to speak; `[SPEAKER0]`, `[SPEAKER1]`, ... begin the turns of several speakers. Or a book, as
            `higgs_native.read_book` returns it.
        folder: path for finished chunks; made if missing. None: a temporary folder, deleted with this object.
        voice, reference_audio, reference_text, scene, voices_folder: as for `HiggsAudio.speak`.
        normalize, strip_markup, lexicon, adapter: as for `HiggsAudio.speak`.
        sampling, options: as for `HiggsAudio.speak`, without `max_new_tokens`, which follows from each chunk's text.
            The seed None takes that of the run in `folder`, or else a new one.
        chunk_seconds: maximum length of a chunk by `prompt.pace.spoken_seconds`, 2 to 30; None: 20, with the embedded
            voice 4.5. With that voice a chunk holds one sentence at most.
        context_chunks: maximum number of last chunks in a prompt, fewer if the cache has no room; None: 2, with the
            embedded voice or with `parallel` above 1 it is 0.
        max_retries: how often a failed chunk is spoken again. The best attempt is kept: the one with the fewest
            failures, then the one whose duration is nearest to `prompt.pace.spoken_seconds`.
        strict: raise an error at a failed chunk. `folder` holds it, so a run without `strict` continues after it.
        parallel: maximum number of chunks that are spoken at the same time; above 1 `context_chunks` must be 0, since
            a chunk with context waits for the chunks before it. None: 8 where `context_chunks` is 0, else 1. With 1
            the first chunk is finished earliest.
        pauses: between chunks. Pauses, `strict`, `parallel` and the numbers of speeds in the text may differ between
            runs over a folder.
        on_progress: called in the iterating thread after every frame, with the seconds of audio of the frame's
            attempt. What it raises ends the iteration.
        is_cancelled: asked after every step, maybe by another thread; True ends the iteration with GenerationError.

    Raises:
        PromptError: the text holds nothing to say or special tokens, the voice is unknown, or references leave no room
            for a chunk in the cache.
        AudioError: the reference audio can't be read or used.
        ParameterError: a parameter is out of range, or the folder can't be used or holds another run.
        GenerationError: during iteration: it is cancelled, or, with `strict`, a chunk failed with every seed.

    Warns:
        VoiceWarning: as for `HiggsAudio.speak`.
    """

    def __init__(
        self,
        engine: HiggsAudio,
        text: str | Book,
        folder: str | Path | None = None,
        voice: str | Voice | Sequence[str | Voice] | None = None,
        reference_audio: RecordingLike | None = None,
        reference_text: str | None = None,
        scene: str | None = None,
        chunk_seconds: float | None = None,
        context_chunks: int | None = None,
        max_retries: int = MAX_RETRIES,
        strict: bool = False,
        parallel: int | None = None,
        pauses: Pauses | None = None,
        voices_folder: str | Path | None = None,
        on_progress: Callable[[float], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        normalize: bool = False,
        strip_markup: bool = False,
        lexicon: LexiconLike | None = None,
        adapter: str | None = None,
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> None:
        check_instance("engine", engine, HiggsAudio)
        check_flag("strict", strict)
        check_callable("on_progress", on_progress, optional=True)
        check_callable("is_cancelled", is_cancelled, optional=True)
        if pauses is not None:
            check_instance("pauses", pauses, Pauses)
        self._sampling = SamplingParams.of(sampling, options, engine.default_sampling)
        if self._sampling.max_new_tokens not in (
            SamplingParams.max_new_tokens,
            engine.default_sampling.max_new_tokens,
        ):
            raise ParameterError(
                "max_new_tokens must be left out, since each chunk has its own limit, "
                f"got {self._sampling.max_new_tokens}"
            )
        check_long_form(context_chunks, max_retries, parallel)
        if chunk_seconds is None:
            chunk_seconds = EMBEDDED_VOICE_CHUNK_SECONDS if engine.is_embedded_voice else CHUNK_SECONDS
        if context_chunks is None:
            has_context = not engine.is_embedded_voice and (parallel is None or parallel == 1)
            context_chunks = CONTEXT_CHUNKS if has_context else 0
        if parallel is None:
            parallel = 1 if context_chunks else PARALLEL_CHUNKS
        self._title = text.title if isinstance(text, Book) else None
        chapters = (
            [(chapter.title, chapter.text) for chapter in text.chapters] if isinstance(text, Book) else [("", text)]
        )
        self.chunks: list[TextChunk] = []
        self._chapters: list[tuple[str, int]] = []  # title and first chunk
        words = None if lexicon is None else Lexicon.of(lexicon)
        texts = [engine.prepare_text(chapter, normalize, strip_markup, words) for _, chapter in chapters]
        for (title, _), prepared in zip(chapters, texts, strict=True):
            chunks = chunk_text(
                prepared, chunk_seconds, not engine.is_embedded_voice, engine.convention, engine.can_read
            )
            if not chunks:
                continue
            if self.chunks:
                chunks[0] = replace(chunks[0], boundary="chapter")
            self._chapters.append((title, len(self.chunks)))
            self.chunks += chunks
        text = "\n\n".join(texts)
        self._engine = engine
        self._context_chunks = int(context_chunks)
        self._max_retries = max_retries
        self._strict = strict
        self._parallel = int(parallel)
        self._pauses = pauses or Pauses()
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled

        voices = engine.choose_voices(voice, reference_audio, reference_text, voices_folder, adapter)
        self._adapter = adapter
        # The messages that begin every prompt. They describe all speakers of the text; recordings are encoded once.
        self._spell = engine.spelling(voices)
        self._opening = engine.speech_messages(without_timing(text), voices, scene)[:-1]
        recordings = []
        for item in (item for message in self._opening for item in message.contents()):
            if isinstance(item, AudioContent):
                recording = read_recording(item)
                item.codes = engine.encode_recording(recording)
                recordings.append([recording.sha256, recording.sampling_rate])
        recorded = [index for index, voice in enumerate(voices) if voice.reference_audio is not None]
        self._recorded_tags = {f"[SPEAKER{index}]" for index in recorded}
        if recorded and len(voices) == 1:
            self._recorded_tags.add("")  # a single voice also speaks text without tags
        longest = max(self.chunks, key=lambda chunk: spoken_seconds(chunk.text))
        self._conversation().messages(longest, self._max_new_tokens(longest))  # refuses references that leave no room

        # Last, so that refused inputs make no folder.
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="higgs-native-")  # deleted with this object
            folder = self._temporary.name
        self._store = ChunkStore(folder)
        if self._sampling.seed is None and self._store.run:
            self._sampling = replace(self._sampling, seed=self._store.run["inputs"].get("seed"))
        self._sampling = self._sampling.with_seed()
        self.seed = self._sampling.known_seed
        self.folder = self._store.folder
        self._store.claim(
            {
                "text": [_record(chunk) for chunk in self.chunks],
                # More recordings are further items.
                "voices": [
                    [voice.profile, voice.reference_text, *(item.reference_text for item in voice.more_recordings)]
                    for voice in voices
                ],
                "recordings": recordings,
                "scene": scene,
                **asdict(self._sampling),
                "seed": self.seed,
                "chunk_seconds": chunk_seconds,
                "context_chunks": context_chunks,
                "max_retries": max_retries,
                "model": engine.fingerprint(),
                # Left out without an adapter: such a run has the record that it had before there were any.
                **({} if adapter is None else {"adapter": engine.model.require_adapter(adapter).fingerprint}),
            }
        )

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def num_finished(self) -> int:
        """Number of chunks in the folder."""
        return self._store.num_records

    def __iter__(self) -> Iterator[SpokenChunk]:
        conversation = self._conversation()
        stored: set[int] = set()
        with closing(self._chunk_speaker()) as speaker:
            for index, text in enumerate(self.chunks):
                while (chunk := None if index in speaker.indices else self._load(index)) is None:
                    stored.discard(index)
                    self._begin_chunks(index, conversation, speaker, stored)
                    stored |= speaker.wait()
                if self._strict and chunk.failures:
                    tried = (f"{', '.join(attempt.failures)} (seed {attempt.seed})" for attempt in chunk.attempts)
                    raise GenerationError(
                        f"chunk {index} failed with every seed: {'; '.join(tried)}; its text is {text.text!r}"
                    )
                if not chunk.failures:
                    conversation.add(text, chunk.codes)
                yield chunk

    def stream(self) -> SpeechStream:
        """Speak the text for a listener who hears each chunk while it is generated.

        Each chunk has the codes of its first attempt, also if that failed: it has been heard when failures are found.
        Silence between chunks is cut as by `HiggsAudio.stream`. The folder has no part in it, nor have `max_retries`,
        `strict`, `parallel`, `on_progress` and `is_cancelled`.
        """
        conversation = self._conversation()

        def prepare(spoken: Sequence[SpokenPassage]) -> GeneratePassage:
            index = len(spoken)
            if spoken and not spoken[-1].failures:
                conversation.add(self.chunks[index - 1], spoken[-1].codes)
            messages, sampling = self._request(index, conversation)
            return self._engine.prepare(messages, True, sampling, adapter=self._adapter)

        return SpeechStream(
            prepare,
            self._engine.model.config,
            self._engine.audio_tokenizer,
            self._engine.convention,
            ChunkSizes(),
            self._engine.audio_tokenizer.context_frames,
            [Passage(chunk.text, self._pause(index), chunk.speed) for index, chunk in enumerate(self.chunks)],
            self.seed,
        )

    def save(
        self,
        path: str | Path,
        format: str | None = None,
        title: str | None = None,
        loudness: float | None = None,
        speed: float = 1.0,
    ) -> None:
        """Finish all chunks, then write the whole speech to a file.

        Args:
            path: of a file as for `Speech.save`, or of an audio book, .m4b, which has marks of the chapters and needs
                PyAV (`pip install av`).
            format, title, loudness, speed: as for `Speech.save`; the loudness is that of the blocks of all chunks, and
                the title is that of the book, if there is one.

        Raises:
            ParameterError: a parameter is wrong, the file can't be written, or the speech is too long for .wav (24
                hours at 24 kHz and 16 bit).
            GenerationError: as during iteration.
        """
        saver = self._saver(loudness, speed)
        title = self._title if title is None else title
        # All chunks are finished before the file is begun, so that an interrupt during the long part leaves no file.
        if is_m4b(path):
            if format is not None:
                raise ParameterError(f"format must be left out for {M4B_SUFFIX}, got {short_repr(format)}")
            saver.save_m4b(self, check_m4b_path(path), title, self._starts())
        else:
            saver.save(self, check_output_path(path, format), format, title)

    def save_chapters(
        self, folder: str | Path, format: str = "mp3", loudness: float | None = None, speed: float = 1.0
    ) -> list[Path]:
        """Finish all chunks, then write a file per chapter: `01 Title.mp3`, ...

        Args:
            folder: made if it is missing.
            format, loudness, speed: as for `save`; all chapters are scaled by one factor.

        Returns:
            The files.

        Raises:
            ParameterError, GenerationError: as for `save`.
        """
        saver = self._saver(loudness, speed)
        paths = chapter_paths(folder, file_names([title for title, _ in self._chapters]), format)
        saver.save_chapters(self, paths, format, self._starts())
        return paths

    def cues(self, words: bool = False) -> Iterator[Cue]:
        """Yield the subtitles of the whole speech; those of a chunk when it is finished.

        Where a chunk begins and ends is exact; times within a chunk are estimated (see `higgs_native.subtitles`).

        Args:
            words: a cue per word, instead of a cue per sentence or part of it.
        """
        check_flag("words", words)
        rate = self._engine.audio_tokenizer.sampling_rate
        position = 0
        for index, chunk in enumerate(self):
            pause = round(self._pause(index) * rate)
            yield from chunk_cues(chunk.text.text, chunk.audio[pause:], rate, (position + pause) / rate, words)
            position += len(chunk.pcm)

    def save_subtitles(self, path: str | Path, words: bool = False, speed: float = 1.0) -> None:
        """Finish all chunks, then write the subtitles of the file that `save` writes.

        Args:
            path: of a .srt or .vtt file.
            words: as for `cues`.
            speed: as for `save`.

        Raises:
            ParameterError, GenerationError: as for `save`.
        """
        path = check_subtitles_path(path)
        check_speed(speed)
        write_subtitles(path, list(self.cues(words)), speed)

    def _saver(self, loudness: float | None, speed: float) -> Saver:
        return Saver(self._engine.audio_tokenizer.sampling_rate, self._engine.name, self.seed, loudness, speed)

    def _starts(self) -> list[ChapterStart]:
        rate = self._engine.audio_tokenizer.sampling_rate
        return [ChapterStart(title, index, round(self._pause(index) * rate)) for title, index in self._chapters]

    def _chunk_speaker(self) -> ChunkSpeaker:
        return ChunkSpeaker(
            self._engine, self._store, self._max_retries, self._on_progress, self._is_cancelled, self._adapter
        )

    def _conversation(self) -> Conversation:
        return Conversation(self._engine, self._opening, self._recorded_tags, self._context_chunks, self._spell)

    def _load(self, index: int) -> SpokenChunk | None:
        rate = self._engine.audio_tokenizer.sampling_rate
        return self._store.load(index, self.chunks[index], self._pause(index), rate)

    def _pause(self, index: int) -> float:
        """Return the silence before a chunk, in seconds."""
        text = self.chunks[index]
        if text.pause is not None:
            return text.pause
        return self._pauses.before(text.boundary) if index else 0.0

    def _begin_chunks(self, first: int, conversation: Conversation, speaker: ChunkSpeaker, stored: set[int]) -> None:
        """Begin chunks from `first` on whose prompts are known, until `parallel` are being spoken.

        Args:
            first: the first chunk that is missing.
            conversation: holds all chunks before it.
            speaker: speaks the chunks.
            stored: the later chunks that are known to be in the folder; those that are found are added.
        """
        speaking = speaker.indices
        tags = set()  # of speakers whose first chunk may be among those before the chunk
        for index in range(first, len(self.chunks)):
            if len(speaking) == self._parallel:
                return
            text = self.chunks[index]
            is_known = conversation.has_voice(text.tag) or text.tag not in tags
            tags.add(text.tag)
            if not is_known or index in speaking or index in stored:
                continue
            if index > first and self._load(index) is not None:
                stored.add(index)
                continue
            speaker.begin(index, text, *self._request(index, conversation))
            speaking.add(index)

    def _request(self, index: int, conversation: Conversation) -> tuple[list[Message], SamplingParams]:
        """Return the prompt of a chunk, and the sampling parameters of its first attempt."""
        text = self.chunks[index]
        limit = self._max_new_tokens(text)
        seed = (self.seed + _SEEDS_PER_CHUNK * index) % 2**64
        return conversation.messages(text, limit), replace(self._sampling, seed=seed, max_new_tokens=limit)

    def _max_new_tokens(self, text: TextChunk) -> int:
        """Return the bound of `detect_failures` in frames, plus BOS, EOS and the end of the delay pattern."""
        frames = math.ceil(max_seconds(text.text) * self._engine.audio_tokenizer.frame_rate)
        return frames + self._engine.model.config.num_codebooks + 2


def _record(chunk: TextChunk) -> dict[str, Any]:
    """Return what `run.json` tells of a chunk: what is set, so that old records stay valid.

    The speed is left out: stored speech has that of the model, so that a run can be continued at another one.
    """
    return {name: value for name, value in asdict(chunk).items() if value is not None and name != "speed"}


def check_long_form(context_chunks: int | None, max_retries: int, parallel: int | None) -> None:
    """Raise ParameterError if a parameter of `LongSpeech` is out of range."""
    check_integer("context_chunks", context_chunks, optional=True)
    check_integer("max_retries", max_retries)
    check_integer("parallel", parallel, optional=True)
    if context_chunks is not None and context_chunks < 0:
        raise ParameterError(f"context_chunks must be at least 0, got {context_chunks}")
    if not 0 <= max_retries < _SEEDS_PER_CHUNK:
        raise ParameterError(f"max_retries must be between 0 and {_SEEDS_PER_CHUNK - 1}, got {max_retries}")
    if parallel is not None and parallel < 1:
        raise ParameterError(f"parallel must be at least 1, got {parallel}")
    if context_chunks and parallel is not None and parallel > 1:
        raise ParameterError(f"context_chunks must be 0 if parallel is {parallel}, got {context_chunks}")
