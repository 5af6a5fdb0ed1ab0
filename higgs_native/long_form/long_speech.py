"""Speech of long texts: a book, chunk by chunk, in one voice, that can be cut off and taken up again."""

import hashlib
import math
import secrets
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from higgs_native.errors import GenerationError, ParameterError, PromptError
from higgs_native.generation.sampling_params import SamplingParams, check_parameters
from higgs_native.long_form.chunk_store import Attempt, ChunkStore, SpokenChunk
from higgs_native.long_form.chunking import TextChunk, chunk_text, spoken_seconds
from higgs_native.long_form.failure_checks import detect_failures, max_seconds
from higgs_native.long_form.joining import Pauses, trim_silence
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.chat import AudioContent, Message, build_prompt, spoken_turns
from higgs_native.prompt.recordings import read_recording
from higgs_native.prompt.voices import Voice, choose_voices
from higgs_native.speech import Speech, check_output_path, writing_audio
from higgs_native.utils.checks import check_integer


CHUNK_SECONDS = 20.0
CONTEXT_CHUNKS = 2
EMBEDDED_VOICE_CHUNK_SECONDS = 4.5
EMBEDDED_VOICE_CONTEXT_CHUNKS = 0
"""The embedded voice was trained on single sentences of up to sixteen words, after one recording at most. It gets no
chunks of several sentences: of such it often speaks the first one only."""
MAX_RETRIES = 3

_SEEDS_PER_CHUNK = 1000
_LARGEST_WAV = 2**32 - 2**16  # bytes: a WAV file counts them in 32 bits


class LongSpeech:
    """A long text, spoken chunk by chunk. Iterating gives the chunks, each as soon as it is finished.

        book = LongSpeech(HiggsAudio.from_pretrained(), text, folder="book.parts", seed=1)
        for chunk in book:
            play(chunk.audio)
        book.save("book.wav")

    Every finished chunk is kept in `folder`. A second iteration reads them from there, and so does another process
    that is given the same folder and the same inputs after this one was killed: it goes on where the work ended, and
    what it makes is, to the bit, what an undisturbed run makes on the same machine.

    The voice stays the same since each chunk is spoken with chunks before it in its prompt, text and codes: the last
    `context_chunks`, and, where no recording shows the speaker's voice, that speaker's first one. A chunk that ran
    away (see `failure_checks`) is spoken again with the next seed; chunks with faults are never context.

    Attributes:
        chunks: the text, cut (see `higgs_native.long_form.chunking`).
        seed: the one given, or the one drawn. Chunk i is first spoken with `seed + 1000 * i`.
        folder: where finished chunks are.

    Args:
        engine: speaks.
        text: what to say; `[SPEAKER0]`, `[SPEAKER1]`, ... stand before the turns of several speakers.
        folder: where finished chunks are kept; made if missing. None: a temporary one, which goes with this object.
        voice, reference_audio, reference_text, scene, temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat,
            voices_folder: as for `HiggsAudio.speak`.
        seed: the same seed gives the same speech; None: that of the run in `folder`, or else a new one.
        chunk_seconds: how long a chunk may be by `chunking.spoken_seconds`, 2 to 30; None: 20, with the embedded voice
            4.5. With that voice a chunk holds one sentence at most.
        context_chunks: how many of the last chunks a chunk has as context, as far as the cache has room for them;
            None: 2, with the embedded voice 0.
        max_retries: how often a chunk that ran away is spoken again. After that the best attempt is kept: the one with
            the fewest faults, then the one whose length is nearest to what the text should take.
        strict: raise at a chunk with faults. `folder` keeps it: without `strict` the run goes on behind it.
        pauses: between chunks. These, and `strict`, may change from one run over a folder to the next.

    Raises:
        PromptError: there is nothing to say, a text holds special tokens, the voice is unknown, or references leave no
            room for a chunk in the cache.
        AudioError: the reference audio can't be read or used.
        ParameterError: a parameter is outside its range, or the folder can't be used, or holds another run.
        GenerationError: with `strict`, while iterating: a chunk ran away with every seed.

    Warns:
        VoiceWarning: as for `HiggsAudio.speak`.
    """

    def __init__(
        self,
        engine: HiggsAudio,
        text: str,
        folder: str | Path | None = None,
        voice: str | Voice | Sequence[str | Voice] | None = None,
        reference_audio: str | Path | tuple[np.ndarray, int] | None = None,
        reference_text: str | None = None,
        scene: str | None = None,
        seed: int | None = None,
        temperature: float = 0.3,
        top_k: int | None = 50,
        top_p: float | None = 0.95,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        chunk_seconds: float | None = None,
        context_chunks: int | None = None,
        max_retries: int = MAX_RETRIES,
        strict: bool = False,
        pauses: Pauses | None = None,
        voices_folder: str | Path | None = None,
    ) -> None:
        sampling = SamplingParams(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
        check_long_form(sampling, context_chunks, max_retries)
        if chunk_seconds is None:
            chunk_seconds = EMBEDDED_VOICE_CHUNK_SECONDS if engine.is_embedded_voice else CHUNK_SECONDS
        if context_chunks is None:
            context_chunks = EMBEDDED_VOICE_CONTEXT_CHUNKS if engine.is_embedded_voice else CONTEXT_CHUNKS
        self.chunks = chunk_text(text, chunk_seconds, join_sentences=not engine.is_embedded_voice)
        self._engine = engine
        self._context_chunks = int(context_chunks)
        self._max_retries = max_retries
        self._strict = strict
        self._pauses = pauses or Pauses()

        voices = choose_voices(voice, reference_audio, reference_text, voices_folder)
        # What every chunk's prompt begins with. Its speakers are those of the whole text; recordings are encoded once.
        self._opening = engine.speech_messages(text, voices, scene)[:-1]
        recordings = []
        for item in (item for message in self._opening for item in message.contents()):
            if isinstance(item, AudioContent):
                samples, sampling_rate = read_recording(item)
                item.codes = engine.audio_tokenizer.encode(samples, sampling_rate)
                recordings.append([hashlib.sha256(np.ascontiguousarray(samples)).hexdigest(), sampling_rate])
        # Whose voice a recording shows; a single one is that of a text without tags, too.
        shown = [index for index, voice in enumerate(voices) if voice.reference_audio is not None]
        self._recorded = {f"[SPEAKER{index}]" for index in shown} | ({""} if len(voices) == 1 and shown else set())
        longest = max(self.chunks, key=lambda chunk: spoken_seconds(chunk.text))
        self._conversation(longest, [], None)  # refuses references that leave no room

        # Last: all else is checked, and what it makes is a folder.
        self._temporary = tempfile.TemporaryDirectory(prefix="higgs-native-") if folder is None else None
        self._folder = ChunkStore(folder if self._temporary is None else self._temporary.name)
        if seed is None:
            seed = self._folder.run["inputs"].get("seed") if self._folder.run else secrets.randbelow(2**32)
        self.seed = int(seed)
        self.folder = self._folder.path
        self._sampling: dict[str, Any] = {name: value for name, value in asdict(sampling).items() if name != "seed"}
        self._folder.claim(
            {
                "text": [asdict(chunk) for chunk in self.chunks],
                "voices": [[voice.profile, voice.reference_text] for voice in voices],
                "recordings": recordings,
                "scene": scene,
                "seed": self.seed,
                **self._sampling,
                "chunk_seconds": chunk_seconds,
                "context_chunks": context_chunks,
                "max_retries": max_retries,
                "model": engine.fingerprint(),
            }
        )

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def num_finished(self) -> int:
        """How many chunks are in the folder."""
        return self._folder.num_records

    def __iter__(self) -> Iterator[SpokenChunk]:
        first: dict[str, SpokenChunk] = {}  # of each speaker
        last: deque[SpokenChunk] = deque(maxlen=self._context_chunks)
        for index, text in enumerate(self.chunks):
            pause = self._pauses.before(text.seam) if index else 0.0
            chunk = self._folder.load(index, text, pause)
            if chunk is None:
                context = list(last)
                shown = None if text.tag in self._recorded else first.get(text.tag)
                if shown is not None and shown not in context:
                    context.insert(0, shown)
                self._speak(index, text, self._conversation(text, context, shown))
                chunk = self._folder.load(index, text, pause)
            if self._strict and chunk.faults:
                tried = "; ".join(f"{', '.join(attempt.faults)} (seed {attempt.seed})" for attempt in chunk.attempts)
                raise GenerationError(f"chunk {index} ran away with every seed: {tried}; its text is {text.text!r}")
            if not chunk.faults:
                first.setdefault(text.tag, chunk)
                last.append(chunk)
            yield chunk

    def save(self, path: str | Path) -> None:
        """Finish all chunks, and write the whole speech to a .wav, .flac, .ogg or .mp3 file, a chunk at a time.

        Raises:
            ParameterError: the ending is another, the file can't be written, or the speech is too long for .wav (24
                hours).
            GenerationError: as while iterating.
        """
        path = check_output_path(path)
        # All are made before the file is begun: the work of hours leaves nothing half-written where it is cut off.
        size = sum(chunk.pcm.nbytes for chunk in self)
        if path.suffix.lower() == ".wav" and size > _LARGEST_WAV:
            raise ParameterError(f"{path}: the speech is too long for .wav; expected .flac, .ogg or .mp3")
        with writing_audio(path, self._engine.audio_tokenizer.sampling_rate) as file:
            for chunk in self:
                file.write(chunk.pcm)

    def _speak(self, index: int, text: TextChunk, messages: list[Message]) -> None:
        """Generate a chunk, again where it runs away, and store the best attempt."""
        attempts: list[Attempt] = []
        speeches: list[Speech] = []
        for number in range(self._max_retries + 1):
            seed = (self.seed + _SEEDS_PER_CHUNK * index + number) % 2**63
            speech = self._engine.generate(
                messages, True, seed=seed, max_new_tokens=self._max_new_tokens(text), **self._sampling
            )
            attempts.append(Attempt(seed, speech.duration, tuple(detect_failures(speech, text.text))))
            speeches.append(speech)
            if not attempts[-1].faults or (number and torch.equal(speech.codes, speeches[-2].codes)):
                break  # it is good, or greedy: further seeds change nothing
        expected = spoken_seconds(text.text)
        kept = min(range(len(attempts)), key=lambda i: (len(attempts[i].faults), abs(attempts[i].duration - expected)))
        speech = speeches[kept]
        audio = trim_silence(speech.audio, speech.sampling_rate)
        self._folder.store(index, text, audio, speech.sampling_rate, speech.codes, kept, attempts)

    def _max_new_tokens(self, text: TextChunk) -> int:
        """The bound of `detect_failures`; with BOS, EOS and the delay pattern's end, which are frames but no audio."""
        frames = math.ceil(max_seconds(text.text) * self._engine.audio_tokenizer.frame_rate)
        return frames + self._engine.model.config.num_codebooks + 2

    def _conversation(
        self, text: TextChunk, context: Sequence[SpokenChunk], shown: SpokenChunk | None
    ) -> list[Message]:
        """The messages that ask for a chunk, with as much of its context as the cache has room for.

        The oldest goes first, but `shown`, the one that shows the speaker's voice, goes last.
        """
        model, max_new_tokens = self._engine.model, self._max_new_tokens(text)
        while True:
            turns = [(chunk.text.prompt, chunk.codes) for chunk in context]
            messages = [*self._opening, *spoken_turns(turns), Message("user", text.prompt)]
            prompt = build_prompt(messages, model.tokenizer, self._engine.layout, force_audio_gen=True)
            # A placeholder becomes its frames, BOS and EOS, and the delay.
            frames = sum(item.codes.shape[1] + model.config.num_codebooks for item in prompt.audio)
            positions = prompt.input_ids.shape[1] + frames + max_new_tokens
            if positions <= model.max_cache_length:
                return messages
            if not context:
                raise PromptError(
                    f"a chunk needs {positions} positions with its references; the cache holds "
                    f"{model.max_cache_length} (max_cache_length); expected shorter references or chunk_seconds"
                )
            oldest = next((chunk for chunk in context if chunk is not shown), shown)
            context = [chunk for chunk in context if chunk is not oldest]


def check_long_form(sampling: SamplingParams, context_chunks: int | None, max_retries: int) -> None:
    """Raise ParameterError where a parameter of `LongSpeech` lies outside its range."""
    check_parameters(sampling, max_new_tokens=1)
    check_integer("context_chunks", context_chunks, optional=True)
    check_integer("max_retries", max_retries)
    if context_chunks is not None and context_chunks < 0:
        raise ParameterError(f"context_chunks must be at least 0, got {context_chunks}")
    if not 0 <= max_retries < _SEEDS_PER_CHUNK:
        raise ParameterError(f"max_retries must lie between 0 and {_SEEDS_PER_CHUNK - 1}, got {max_retries}")
