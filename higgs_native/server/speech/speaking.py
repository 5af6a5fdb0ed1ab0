"""From a request to samples: streamed as they are generated, or chunk by chunk if the client waits for the end."""

import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from anyio.to_thread import run_sync

from higgs_native.audio.samples import pcm_samples
from higgs_native.errors import GenerationError
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.long_form.chunk_store import SpokenChunk
from higgs_native.long_form.chunking import chunk_text
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.long_form.settings import CHUNK_SECONDS, EMBEDDED_VOICE_CHUNK_SECONDS
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.markup import SPEED
from higgs_native.prompt.pace import spoken_seconds
from higgs_native.prompt.voices import Voice
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.holder import EngineHolder
from higgs_native.server.speech.schema import MODEL_ALIASES, ApiError, SpeechRequest
from higgs_native.server.speech.voices import VoiceStore
from higgs_native.streaming import SpeechStream
from higgs_native.subtitles import Cue, phrase_cues, word_cues
from higgs_native.utils.background_iterator import BackgroundIterator


_SPOKEN_AHEAD = 2  # maximum chunks of a long text that wait for the client


@dataclass
class Utterance:
    """A text that is about to be spoken, or is.

    Attributes:
        engine: speaks it.
        text: to speak.
        voices: of SPEAKER0, SPEAKER1, ...
        scene: where or how it is spoken.
        sampling: the seed is set.
        adapter: the name of the adapter that speaks; None: the checkpoint's own weights.
        is_live: whether it is heard while it is generated; otherwise failed chunks of a long text are spoken again.
        seconds: of audio so far.
        failures: found in the speech (see `higgs_native.failure_checks`), in a long text those of all chunks.
        prompt_tokens: of the prompts; of a long text that is not live, those of the text. 0 before the end.
        completion_tokens: of the replies. 0 before the end.
        audio: all samples, int16; None: they are not kept. Those of a text with speeds are as the model spoke them.
        granularities: of the times that the client asked for: `word`, `segment`.
        script: the texts that were spoken so far, each with the index of its first sample.
        words: with their times, if the client asked for times. Empty before the end.
    """

    engine: HiggsAudio
    text: str
    voices: Sequence[Voice]
    scene: str | None
    sampling: SamplingParams
    adapter: str | None = None
    is_live: bool = True
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    audio: list[np.ndarray] | None = None
    granularities: Collection[str] = ()
    script: list[tuple[str, int]] = field(default_factory=list)
    words: list[Cue] = field(default_factory=list)

    def times(self, speed: float) -> dict[str, list[dict[str, Any]]]:
        """Return the times that the client asked for, in seconds of audio of a speed."""

        def described(name: str, cues: Sequence[Cue]) -> list[dict[str, Any]]:
            return [{name: c.text, "start": round(c.start / speed, 3), "end": round(c.end / speed, 3)} for c in cues]

        times = {}
        if "word" in self.granularities:
            times["words"] = described("word", self.words)
        if "segment" in self.granularities:
            times["segments"] = described("text", phrase_cues(self.words))
        return times

    @property
    def usage(self) -> dict[str, int]:
        """Tokens as clients read them."""
        total = self.prompt_tokens + self.completion_tokens
        return {"input_tokens": self.prompt_tokens, "output_tokens": self.completion_tokens, "total_tokens": total}


class Speaker:
    """Speaks requests with an engine.

    Args:
        engines: holds the engine.
        voices: that requests name.
        settings: the limits.
        model_id: the name of the model.
    """

    def __init__(self, engines: EngineHolder, voices: VoiceStore, settings: ServerSettings, model_id: str) -> None:
        engine = engines.get()
        self._engines = engines
        self._voices = voices
        self._settings = settings
        self.models = (model_id, *MODEL_ALIASES)
        self.sampling_rate = engine.audio_tokenizer.sampling_rate
        self.default_sampling = engine.default_sampling

    def utterance(self, request: SpeechRequest, uploads: Sequence[bytes] = ()) -> Utterance:
        """Check a request before it waits for its turn. It may block.

        Args:
            request: what to speak, and how.
            uploads: the contents of each uploaded `ref_audio`.

        Raises:
            ApiError, HiggsNativeError: the request is wrong.
        """
        if request.model not in self.models:
            models = ", ".join(self.models)
            raise ApiError(
                404, f"model must be one of {models}, got {request.model!r:.80}", "model_not_found", "model"
            )
        limit = self._settings.max_characters
        if len(request.input) > limit:
            message = f"input must have at most {limit} characters, got {len(request.input)}"
            raise ApiError(400, message, "string_above_max_length", "input")
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        sampling = request.sampling(seed, self.default_sampling)
        engine = self._engines.get()
        adapter, names = self._adapter(request, engine)
        if references := uploads or request.recordings:
            voices = [self._voices.reference(references, request.recorded_texts)]
        elif request.recorded_texts:
            raise ApiError(400, "ref_audio must be given with ref_text, got none", "invalid_value", "ref_audio")
        else:
            voices = [self._voices.find(name, adapter) for name in names]
        text = engine.prepare_text(request.input, request.normalize, request.strip_markup)
        granularities = frozenset(request.timestamp_granularities or ())
        return Utterance(
            engine,
            text,
            voices,
            request.instructions or None,
            sampling,
            adapter,
            request.is_live,
            granularities=granularities,
        )

    def _adapter(self, request: SpeechRequest, engine: HiggsAudio) -> tuple[str | None, list[str]]:
        """Return the adapter of a request, by its field or as its voice, and the other voices.

        Raises:
            ParameterError: there is no such adapter.
            ApiError: an adapter is one of several voices: all speakers of a text have the same one.
        """
        names = request.voice_names
        adapters = [name for name in names if name in engine.model.adapters]
        if request.adapter is not None:
            engine.model.require_adapter(request.adapter)
            return request.adapter, [name for name in names if name != request.adapter]
        if adapters and len(names) > 1:
            message = f"voice must be one alone if it is an adapter, got {', '.join(names):.100}"
            raise ApiError(400, message, "invalid_value", "voice")
        return (adapters[0], []) if adapters else (None, names)

    async def speak(self, utterance: Utterance) -> AsyncGenerator[np.ndarray, None]:
        """Yield samples [samples], int16, as they are generated. Leaving the loop ends the generation.

        Raises:
            HiggsNativeError: the text or the references are wrong.
        """
        stream = await run_sync(self._stream, utterance)
        chunks = self._chunks(utterance) if stream is None else self._streamed(utterance, stream)
        timed: list[np.ndarray] = []
        async with aclosing(chunks):
            async for samples in chunks:
                self._engines.touch()
                utterance.seconds += len(samples) / self.sampling_rate
                if utterance.audio is not None:
                    utterance.audio.append(samples)
                if utterance.granularities:
                    timed.append(samples)
                yield samples
        if timed:
            utterance.words = await run_sync(self._timed_words, utterance.script, np.concatenate(timed))

    def invents_voice(self, utterance: Utterance) -> bool:
        """Return whether another seed would give an utterance another voice."""
        recorded = any(voice.reference_audio is not None for voice in utterance.voices)
        return not recorded and len(utterance.voices) <= 1 and not utterance.engine.voices_with(utterance.adapter)

    def _timed_words(self, script: Sequence[tuple[str, int]], audio: np.ndarray) -> list[Cue]:
        ends = [*(begin for _, begin in script[1:]), len(audio)]
        words: list[Cue] = []
        for (text, begin), end in zip(script, ends, strict=True):
            samples = audio[begin:end].astype(np.float32)
            words += word_cues(text, samples, self.sampling_rate, begin / self.sampling_rate)
        return words

    def _is_long(self, utterance: Utterance) -> bool:
        if utterance.engine.is_embedded_voice:  # it was trained on one sentence or two at a time
            return len(chunk_text(utterance.text, EMBEDDED_VOICE_CHUNK_SECONDS, join_sentences=False)) > 1
        return spoken_seconds(utterance.text) > CHUNK_SECONDS

    def _stream(self, utterance: Utterance) -> SpeechStream | None:
        """Return the stream of an utterance; None for a long one that is not live."""
        if self._is_long(utterance):
            return self._long_speech(utterance).stream() if utterance.is_live else None
        return utterance.engine.stream(
            utterance.text,
            voice=utterance.voices,
            scene=utterance.scene,
            adapter=utterance.adapter,
            sampling=utterance.sampling,
        )

    def _long_speech(self, utterance: Utterance, is_cancelled: Callable[[], bool] | None = None) -> LongSpeech:
        return LongSpeech(
            utterance.engine,
            utterance.text,
            voice=utterance.voices,
            scene=utterance.scene,
            adapter=utterance.adapter,
            sampling=utterance.sampling,
            is_cancelled=is_cancelled,
        )

    async def _streamed(self, utterance: Utterance, stream: SpeechStream) -> AsyncGenerator[np.ndarray, None]:
        async with aclosing(aiter(stream)) as chunks:
            async for chunk in chunks:
                if len(chunk.samples):
                    yield pcm_samples(chunk.samples)
        utterance.script = stream.script
        if stream.usage is not None and stream.failures is not None:
            utterance.prompt_tokens = stream.usage["prompt_tokens"]
            utterance.completion_tokens = stream.usage["completion_tokens"]
            utterance.failures += stream.failures
        if stream.codes is not None:
            await self._undo_speeds(utterance, [stream.codes])

    async def _undo_speeds(self, utterance: Utterance, codes: Sequence[torch.Tensor]) -> None:
        """Let the samples that are kept be those of the codes, each [codebooks, frames], if the text has speeds."""
        spoken = [part for part in codes if part.shape[1]]
        if utterance.audio is not None and spoken and SPEED.search(utterance.text):
            samples = await run_sync(utterance.engine.audio_tokenizer.decode, torch.cat(spoken, dim=1))
            utterance.audio = [pcm_samples(samples.cpu().numpy())]

    async def _chunks(self, utterance: Utterance) -> AsyncGenerator[np.ndarray, None]:
        def produce(chunks: BackgroundIterator[SpokenChunk]) -> None:
            try:
                for chunk in self._long_speech(utterance, lambda: chunks.consumer_left):
                    chunks.put(chunk)
            except GenerationError:
                chunks.check()  # raises if the client has left: then this is no error
                raise

        async with aclosing(aiter(BackgroundIterator(produce, _SPOKEN_AHEAD))) as chunks:
            num_samples = 0
            codes: list[torch.Tensor] = []
            async for chunk in chunks:
                if utterance.audio is not None:
                    codes.append(chunk.codes)
                utterance.script.append((chunk.text.text, num_samples))
                num_samples += len(chunk.pcm)
                utterance.completion_tokens += chunk.codes.shape[1]
                utterance.failures += chunk.failures
                if len(chunk.pcm):
                    yield chunk.pcm
        await self._undo_speeds(utterance, codes)
        tokens = utterance.engine.tokenizer.encode(utterance.text, add_special_tokens=False)
        utterance.prompt_tokens = len(tokens.ids)
