"""From text to speech: prompt, model and audio tokenizer in one object."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from typing_extensions import Unpack

from higgs_native.audio.quality import VoiceWarning
from higgs_native.audio.samples import pcm_samples
from higgs_native.audio.silence import SilenceTrimmer
from higgs_native.audio.tempo import float_samples, steady_at_speed
from higgs_native.audio_tokenizer.checkpoint import has_audio_tokenizer
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.adapter import Adapter
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import AUDIO_TOKENIZER_FOLDER, resolve_folder
from higgs_native.checkpoint.hub import HubOptions, check_hub_options
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.convention import Convention
from higgs_native.errors import ConfigError, ParameterError, one_line, short_repr
from higgs_native.failure_checks import Failure, detect_failures, frame_levels
from higgs_native.generation.model import HiggsAudioModel
from higgs_native.generation.sampling_params import SamplingOptions, SamplingParams
from higgs_native.manuscript.lexicon import LexiconLike
from higgs_native.manuscript.passages import Passages, cut_ends
from higgs_native.manuscript.phonemes import PhonemeReader
from higgs_native.manuscript.preparation import prepare_text
from higgs_native.manuscript.timing import split_passages, without_timing
from higgs_native.model.transformer import checked_dtype
from higgs_native.model.weights import open_weights
from higgs_native.ops.device import checked_device
from higgs_native.prompt.chat import check_plain_text, normalized_text, speech_messages, tagged_text
from higgs_native.prompt.messages import Message
from higgs_native.prompt.normalize import drop_invisible
from higgs_native.prompt.recordings import Recording, RecordingLike
from higgs_native.prompt.voices import Voice, check_voice, choose_voices, read_voice, spelled_voice
from higgs_native.replies import ReplyGenerator
from higgs_native.speech import Speech, SpokenSpan, join_speeches
from higgs_native.streaming import ChunkSizes, GeneratePassage, SpeechStream, SpokenPassage
from higgs_native.utils.checks import check_callable, check_instance, check_integer
from higgs_native.utils.files import read_json_object
from higgs_native.utils.tensors import fingerprint


AUDIO_TOKENIZER_NAME = "bosonai/higgs-audio-v2-tokenizer"
EMBEDDED_VOICE = Path(__file__).with_name("embedded_voice")
"""The folder of the small checkpoint in the package: a demonstration voice."""
EMBEDDED_VOICE_KEY = "higgs_native_embedded_voice"
"""The key that is true in the `config.json` of that checkpoint and of its quantized copies."""
VOICES_KEY = "higgs_native_voices"
"""The key in `config.json` that lists the voices that a checkpoint was trained on, by the words that describe them."""


class HiggsAudio(ReplyGenerator):
    """A text-to-speech engine.

        engine = HiggsAudio.from_pretrained("bosonai/higgs-audio-v2-generation-3B-base")
        speech = engine.speak("The sun rises in the east.", reference_audio="voice.wav", reference_text="Hello there.")
        speech.save("out.wav")

    A checkpoint of the original layout is prompted and sampled by Boson's convention, one of the transformers layout
    by that of transformers, and one of Higgs TTS 3 by its own.

    Args:
        model: the language model.
        audio_tokenizer: encodes recordings into codes, and decodes codes into audio.
        convention: `boson`, `transformers`, `higgs_tts_3`, or None: that of the checkpoint.

    Attributes:
        is_embedded_voice: whether it was loaded from `EMBEDDED_VOICE` or a quantized copy of it.
        trained_voices: names of the voices that the checkpoint was trained on; the published one has none.
        phonemes: turns text into the phonemes that the checkpoint's voices read; None if they read words.
        name: of the checkpoint: on the Hub, or that of its folder; None if it was not loaded by `from_pretrained`.

    Raises:
        CheckpointError: the codebooks of the two differ, or the model has no text tokenizer.
        ParameterError: one of them is something else, or the model follows no such convention.
    """

    def __init__(
        self,
        model: HiggsAudioModel,
        audio_tokenizer: HiggsAudioTokenizer,
        convention: str | Convention | None = None,
    ) -> None:
        super().__init__(model, audio_tokenizer, convention)
        self.is_embedded_voice = False
        self.trained_voices: tuple[str, ...] = ()
        self._fingerprint: str | None = None
        self.phonemes: PhonemeReader | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        audio_tokenizer: str | Path | HiggsAudioTokenizer | None = None,
        quantization: str | Quantization | None = None,
        adapter: str | Path | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        **hub: Unpack[HubOptions],
    ) -> "HiggsAudio":
        """Load a checkpoint of either layout, or a packed one.

        Args:
            path_or_name: its folder, or its name on the Hub; None: the embedded voice.
            device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU if there is one. Both networks run there.
            dtype: of the weights: `float32`, `bfloat16`, `float16`, or `auto`: the one that config.json names, or else
                that of the stored matrices.
            audio_tokenizer: its folder, its name on the Hub, or a loaded one. By default the folder `audio_tokenizer`
                within the checkpoint, the one in the checkpoint's own files (Higgs TTS 3), or else
                `bosonai/higgs-audio-v2-tokenizer` from the Hub.
            quantization: format of the language model's matrices: `fp8`, `int8`, `int4`, or one per part
                (`int4,heads=int8`; see `higgs_native.checkpoint.quantization`); None: as stored.
            adapter: a folder that `higgs-native train` or PEFT wrote (LoRA); it is merged into the weights at load.
                Its speakers are added to `trained_voices`.
            adapters: folders of adapters by name, for `load_adapter`; with `adapter` there can be none.
            hub: how Hub names are fetched: `revision` (of the model), `token`, `cache_dir`, `local_files_only` and
                `force_download`; see `higgs_native.checkpoint.hub.HubOptions`.

        Raises:
            CheckpointError, ConfigError: a checkpoint is missing, damaged, or not one of this model, or the adapter is
                of another base.
            ParameterError: there is no such device, dtype or quantization.
        """
        check_hub_options(hub)
        if adapters is not None and not isinstance(adapters, Mapping):
            raise ParameterError(f"adapters must be folders by name, got {short_repr(adapters)}")
        device = checked_device(device)
        weights_dtype = checked_dtype(dtype)
        if quantization is not None:
            quantization = Quantization.parse(quantization)
        folder = EMBEDDED_VOICE if path_or_name is None else resolve_folder(path_or_name, **hub)
        merged = None if adapter is None else Adapter.from_pretrained(adapter)
        beside = {name: Adapter.from_pretrained(path) for name, path in (adapters or {}).items()}
        # Reads headers only, so that most faults of the model show before an audio tokenizer is fetched.
        config = HiggsAudioConfig.from_pretrained(folder)
        weights = open_weights(folder, config, weights_dtype, quantization, device, merged)
        for item in beside.values():
            weights.check_adapter(item)
        if not isinstance(audio_tokenizer, HiggsAudioTokenizer):
            if audio_tokenizer is None:
                audio_tokenizer = audio_tokenizer_of(folder)
            hub.pop("revision", None)
            audio_tokenizer = HiggsAudioTokenizer.from_pretrained(audio_tokenizer, device, **hub)
        model = HiggsAudioModel.from_pretrained(folder, device, dtype, quantization=quantization, adapter=merged)
        for name, item in beside.items():
            model.load_adapter(name, item)
        engine = cls(model, audio_tokenizer)
        # For a folder, only its last part: files of speech hold the name, and are given away.
        is_name = path_or_name is not None and not os.path.exists(os.path.expanduser(path_or_name))
        engine.name = str(path_or_name) if is_name else folder.resolve().name
        engine.phonemes = PhonemeReader.from_folder(folder)
        engine.is_embedded_voice = read_json_object(folder / "config.json").get(EMBEDDED_VOICE_KEY) is True
        speakers = () if merged is None else merged.speakers
        engine.trained_voices = tuple(dict.fromkeys((*read_trained_voices(folder), *speakers)))
        return engine

    def speak(
        self,
        text: str,
        voice: str | Voice | Sequence[str | Voice] | None = None,
        reference_audio: RecordingLike | None = None,
        reference_text: str | None = None,
        scene: str | None = None,
        voices_folder: str | Path | None = None,
        on_progress: Callable[[float], None] | None = None,
        normalize: bool = False,
        strip_markup: bool = False,
        lexicon: LexiconLike | None = None,
        adapter: str | None = None,
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Speech:
        """Speak `text`. For texts longer than half a minute there is `LongSpeech`.

        `failures` of the result tells whether the model lost the text; `LongSpeech` speaks such a chunk again.

        Args:
            text: what to say, with `[SPEAKER0]`, `[SPEAKER1]`, ... before the turns of several speakers. It is
                normalized by `higgs_native.normalize_text`; for Higgs TTS 3 it may hold control tags instead.
                `[pause:1s]` or `[pause:250ms]` is silence of that length, and `[speed:1.2]` is the speed of what
                follows: what is between such tags is spoken by itself, in the same voice; the first part has the seed,
                and each other part the next one. A text that begins with `<speak>` is read as SSML (see
                `higgs_native.manuscript.ssml`). For a voice that reads phonemes, `[[...]]` holds some (see
                `higgs_native.english.pronunciation`). Speeds other than 1 need PyAV (`pip install av`).
            voice: the name of a voice in `voices_folder` or in `trained_voices`, or a `Voice`; several, in a list or
                separated by commas, are those of SPEAKER0, SPEAKER1, ...
            reference_audio: a recording to clone instead: an audio file, its contents, `(samples, sampling rate)`, or
                another form that `Recording.read` takes.
            reference_text: the words spoken in the recording; with them the clone is closer.
            scene: where or how it is spoken, in words.
            voices_folder: see `higgs_native.prompt.voices`; by default the one that HIGGS_NATIVE_VOICES names.
            on_progress: called after every frame with the seconds of audio that exist so far.
            normalize: write out numbers, dates, units and the like of an English text.
            strip_markup: leave out the markup of Markdown, and emoji; it needs `markdown-it-py`.
            lexicon: how words are spelled to be spoken right: a file, or spellings by word (see
                `higgs_native.manuscript.lexicon`).
            adapter: the name of one that `load_adapter` has loaded. Its speakers are voices, too; the first of them
                speaks if no voice and no reference audio is given.
            sampling: how to draw and when to stop; None: what `options` and `default_sampling` build.
            options: in place of `sampling`, its attributes: seed, temperature, max_new_tokens, ...

        Raises:
            PromptError: the text is empty or holds special tokens, the voice is unknown, or the prompt is longer than
                the cache.
            AudioError: the reference audio can't be read or used.
            ParameterError: a parameter is of a wrong type, or outside its range.

        Warns:
            VoiceWarning: the reference audio is poor, or its words are not given (see `higgs_native.audio.quality`).
        """
        voices = self.choose_voices(voice, reference_audio, reference_text, voices_folder, adapter)
        params = SamplingParams.of(sampling, options, self.default_sampling)
        check_callable("on_progress", on_progress, optional=True)
        params = params.with_seed()
        text = self.prepare_text(text, normalize, strip_markup, lexicon)
        opening = self.speech_messages(without_timing(text), voices, scene)[:-1]
        passages = self._passages(text, voices, opening, adapter)
        speeches: list[Speech] = []
        sounds = [np.zeros(0, dtype=np.float32)]
        spans: list[SpokenSpan] = []
        for index, passage in enumerate(passages.passages):
            messages = passages.messages(index, speeches[0].codes if speeches else None)
            seconds = sum(map(len, sounds)) / self.audio_tokenizer.sampling_rate
            progress = None if on_progress is None else partial(_report, on_progress, seconds, passage.speed)
            speech = self.generate(messages, True, progress, passage_sampling(params, index), adapter=adapter)
            speeches.append(replace(speech, failures=self.failures(speech, passage.text), script=passage.text))
            trimmer = SilenceTrimmer(self.audio_tokenizer.hop_length, *cut_ends(passages.passages, index))
            silence = np.zeros(round(passage.pause * speech.sampling_rate), dtype=np.float32)
            sound = trimmer.trim(speech.audio)
            if passage.speed != 1:
                changed = steady_at_speed(pcm_samples(sound), speech.sampling_rate, passage.speed)
                sound = float_samples(changed)
            begin = sum(map(len, sounds)) + len(silence)
            spans.append(SpokenSpan(passage.text, begin, begin + len(sound)))
            sounds += [silence, sound]
        changes_speed = any(passage.speed != 1 for passage in passages.passages)
        return join_speeches(speeches, np.concatenate(sounds), spans if changes_speed else ())

    def stream(
        self,
        text: str,
        voice: str | Voice | Sequence[str | Voice] | None = None,
        reference_audio: RecordingLike | None = None,
        reference_text: str | None = None,
        scene: str | None = None,
        voices_folder: str | Path | None = None,
        first_chunk_frames: int = 5,
        chunk_growth: float = 1.5,
        max_chunk_frames: int = 50,
        low_latency: int = 0,
        normalize: bool = False,
        strip_markup: bool = False,
        lexicon: LexiconLike | None = None,
        adapter: str | None = None,
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> SpeechStream:
        """Speak `text` in chunks that come while it is generated, for `for` or `async for`.

        Joined, the chunks are the audio that `speak` returns for the same seed.

            for chunk in engine.stream("The sun rises in the east.", seed=1):
                play(chunk.samples)

        Args:
            text, voice, reference_audio, reference_text, scene, voices_folder: as for `speak`.
            normalize, strip_markup, lexicon, sampling, options: as for `speak`.
            first_chunk_frames: length of the first chunk, in frames of 40 ms.
            chunk_growth: length of each chunk over that of the one before it, at least 1.
            max_chunk_frames: maximum length of a chunk; the last one may be longer by the decoder's lookahead.
            low_latency: frames by which the decoder's lookahead is shortened, 0 to 10. Audio comes earlier and differs
                a little from that of `speak`; `StreamingDecoder` states the error of a lookahead of
                10 - `low_latency` frames. Each chunk then costs additional decoding.

        Raises:
            PromptError, AudioError, ParameterError: as for `speak`, and where a setting of the stream is outside its
                range. Errors that show later are raised by the iteration.

        Warns:
            VoiceWarning: as for `speak`.
        """
        voices = self.choose_voices(voice, reference_audio, reference_text, voices_folder, adapter)
        sizes = ChunkSizes(first_chunk_frames, chunk_growth, max_chunk_frames)
        context = self.audio_tokenizer.context_frames
        check_integer("low_latency", low_latency)
        if not 0 <= low_latency <= context:
            raise ParameterError(f"low_latency must be between 0 and {context} frames, got {low_latency}")
        params = SamplingParams.of(sampling, options, self.default_sampling).with_seed()
        text = self.prepare_text(text, normalize, strip_markup, lexicon)
        opening = self.speech_messages(without_timing(text), voices, scene)[:-1]
        passages = self._passages(text, voices, opening, adapter)

        def prepared(spoken: Sequence[SpokenPassage]) -> GeneratePassage:
            messages = passages.messages(len(spoken), spoken[0].codes if spoken else None)
            sampling = passage_sampling(params, len(spoken))
            return self.prepare(messages, True, sampling, adapter=adapter)

        first = prepared(())  # refuses what is wrong

        def prepare(spoken: Sequence[SpokenPassage]) -> GeneratePassage:
            return prepared(spoken) if spoken else first

        return SpeechStream(
            prepare,
            self.model.config,
            self.audio_tokenizer,
            self.convention,
            sizes,
            context - low_latency,
            passages.passages,
            params.known_seed,
        )

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Load an adapter (LoRA) for `adapter=name` of single speeches, beside the weights and other adapters.

        Args:
            name: what calls it.
            path: a folder that `higgs-native train` or PEFT wrote; safetensors alone is read.

        Raises:
            ParameterError, CheckpointError, ConfigError: see `LanguageModel.load_adapter`.
        """
        self.model.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; speeches that have begun keep it.

        Raises:
            ParameterError: there is no such adapter.
        """
        self.model.unload_adapter(name)

    def voices_with(self, adapter: str | None) -> tuple[str, ...]:
        """Return the names of trained voices: those of the checkpoint, and those of an adapter.

        Raises:
            ParameterError: there is no such adapter.
        """
        own = () if adapter is None else self.model.require_adapter(adapter).speakers
        return tuple(dict.fromkeys((*own, *self.trained_voices)))

    def choose_voices(
        self,
        voice: str | Voice | Sequence[str | Voice] | None = None,
        reference_audio: RecordingLike | None = None,
        reference_text: str | None = None,
        voices_folder: str | Path | None = None,
        adapter: str | None = None,
    ) -> list[Voice]:
        """Return the voices of SPEAKER0, SPEAKER1, ...; the arguments are those of `speak`.

        Raises:
            PromptError, ParameterError: as for `speak`.
        """
        trained = self.voices_with(adapter)
        chosen = choose_voices(voice, reference_audio, reference_text, voices_folder, trained)
        if not chosen and adapter is not None and (speakers := self.model.require_adapter(adapter).speakers):
            return [Voice(profile=speakers[0])]
        return chosen

    def _passages(
        self, text: str, voices: Sequence[Voice], opening: Sequence[Message], adapter: str | None
    ) -> Passages:
        """Cut a prepared text at its pauses and speeds; `opening` begins the prompt of each passage."""
        recorded = bool(voices) and all(voice.reference_audio is not None for voice in voices)
        needs_context = not recorded and not self.voices_with(adapter)
        return Passages.of(
            split_passages(text), opening, needs_context, self.spelling(voices), self.can_read, self.convention
        )

    def speech_messages(self, text: str, voices: Sequence[Voice], scene: str | None) -> list[Message]:
        """Return the conversation in which `text` is spoken (see `higgs_native.prompt.chat.speech_messages`).

        Args:
            text: as for `speak`; it is normalised.
            voices: what `choose_voices` returns.
            scene: as for `speak`.

        Raises:
            ParameterError: a voice is none.
            PromptError: the text is empty, or a text holds special tokens.
        """
        text = normalized_text(text, self.convention)
        scene = drop_invisible("" if scene is None else scene, "scene")
        tokenizer = self.tokenizer
        check_plain_text(text, tokenizer, convention=self.convention)
        check_plain_text(scene, tokenizer, "scene")
        if not isinstance(voices, Sequence):
            raise ParameterError(f"voices must be a list of Voice, got {type(voices).__name__}")
        for voice in voices:
            check_instance("each of voices", voice, Voice)
            for item in voice.recordings:
                check_plain_text(item.reference_text or "", tokenizer, "reference text", self.convention)
            check_plain_text(voice.profile or "", tokenizer, "profile")
        voices = [read_voice(voice) for voice in voices]
        for item in (item for voice in voices for item in voice.recordings):
            if isinstance(item.reference_audio, Recording) and (advice := check_voice(item)):
                message = one_line(f"{item.reference_audio.name}: {'; '.join(advice)}")
                warnings.warn(message, VoiceWarning, stacklevel=3)
        spell = self.spelling(voices)
        voices = [spelled_voice(voice, spell) for voice in voices]
        return speech_messages(spell(text), voices, scene, self.convention)

    def prepare_text(
        self,
        text: str,
        normalize: bool = False,
        strip_markup: bool = False,
        lexicon: LexiconLike | None = None,
    ) -> str:
        """Return a text as `speak` prepares it, with the same arguments; phonemes in it are checked.

        Raises:
            PromptError, ParameterError: as for `higgs_native.manuscript.preparation.prepare_text`.
        """
        if self.phonemes is None:
            return prepare_text(text, normalize, strip_markup, lexicon)
        return self.phonemes.prepared(prepare_text(text, normalize, strip_markup, lexicon, phonemes=True))

    def spelling(self, voices: Sequence[Voice]) -> Callable[[str], str]:
        """Return a function that writes a text as the checkpoint's voices read it: in phonemes, or as it is.

        It raises PromptError for a text without a word that can be read.

        Args:
            voices: of SPEAKER0, SPEAKER1, ...; each may have an accent.
        """
        return _unchanged if self.phonemes is None else partial(self.phonemes.spell, voices=voices)

    def can_read(self, text: str) -> bool:
        """Return whether the checkpoint's voices can read a word of a text, which is normalized."""
        return self.phonemes is None or self.phonemes.can_read(text)

    def unreadable_words(self, text: str) -> list[str]:
        """Return the words that the checkpoint's voices can't read and leave out; none if they read words."""
        if self.phonemes is None:
            return []
        return self.phonemes.unreadable(normalized_text(without_timing(text), self.convention))

    def tagged_text(self, text: str, emotion: str | None = None, style: str | None = None) -> str:
        """Return a text with control tags at the start of each sentence (Higgs TTS 3).

        Args:
            text: as for `speak`.
            emotion: such as `amusement`; None: no tag.
            style: `singing`, `shouting` or `whispering`; None: no tag.

        Raises:
            PromptError: the model knows no such emotion or style.
        """
        return tagged_text(text, self.tokenizer, self.convention, emotion, style)

    def fingerprint(self) -> str:
        """A SHA-256 that tells this engine's checkpoints from others, whichever folder they lie in.

        It covers the configurations, the text tokenizer, and about 1,000 elements of every weight.
        """
        if self._fingerprint is None:
            parts = self.model.config, self.model.quantization, self.audio_tokenizer.config, self.convention.value
            settings = repr(parts) + self.tokenizer.to_str()
            if self.phonemes is not None:
                settings += self.phonemes.fingerprint
            weights = self.model.named_weights() | self.audio_tokenizer.named_weights()
            self._fingerprint = fingerprint(settings, weights)
        return self._fingerprint

    def failures(self, speech: Speech, text: str) -> tuple[Failure, ...]:
        """Return the failures of a speech of `text`, as generated (see `higgs_native.failure_checks`)."""
        levels = frame_levels(speech.audio, self.audio_tokenizer.hop_length)
        return detect_failures(text, levels, speech.codes, self.audio_tokenizer.frame_rate, speech.finish_reason)


def audio_tokenizer_of(folder: Path) -> Path | str:
    """Return the folder that holds the audio tokenizer of a checkpoint, or else the name of the published one."""
    beside = folder / AUDIO_TOKENIZER_FOLDER
    if beside.is_dir():
        return beside
    return folder if has_audio_tokenizer(folder) else AUDIO_TOKENIZER_NAME


def passage_sampling(params: SamplingParams, index: int) -> SamplingParams:
    """Return the sampling parameters of a text's passage, given those of the text, whose seed is set."""
    return replace(params, seed=(params.known_seed + index) % 2**64) if index else params


def _unchanged(text: str) -> str:
    return text


def _report(on_progress: Callable[[float], None], before: float, speed: float, seconds: float) -> None:
    on_progress(before + seconds / speed)


def read_trained_voices(folder: Path) -> tuple[str, ...]:
    """Return the names of the voices that the checkpoint in a folder was trained on.

    Raises:
        ConfigError: the folder has no readable `config.json`, or its list of voices is none.
    """
    voices = read_json_object(folder / "config.json").get(VOICES_KEY, [])
    if not isinstance(voices, list) or not all(isinstance(name, str) and name.strip() for name in voices):
        raise ConfigError(f"{VOICES_KEY} in {folder / 'config.json'} must be a list of names, got {voices!r:.100}")
    return tuple(voices)
