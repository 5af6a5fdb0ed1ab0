"""From text to speech: prompt, model and audio tokenizer in one object."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from higgs_native.audio.quality import VoiceWarning
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.errors import CheckpointError, ParameterError, PromptError
from higgs_native.generation.delay_pattern import Rule, revert_delay_pattern
from higgs_native.generation.engine import HiggsAudioModel
from higgs_native.generation.sampling_params import SamplingParams, check_parameters
from higgs_native.generation.sequence import GenerationOutput, OnFrame, OnToken
from higgs_native.generation.stop import DEFAULT_STOP_STRINGS, check_stop_strings
from higgs_native.model.checkpoint import resolve_folder
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.model.packed_checkpoint import AUDIO_TOKENIZER_FOLDER
from higgs_native.model.quantization import Quantization
from higgs_native.model.transformer import checked_dtype
from higgs_native.model.weights import open_weights
from higgs_native.ops.device import checked_device
from higgs_native.prompt.chat import (
    ChatMLSample,
    Message,
    build_prompt,
    check_plain_text,
    speech_messages,
)
from higgs_native.prompt.normalize import normalize_text
from higgs_native.prompt.recordings import check_voice, read_recording, read_voice
from higgs_native.prompt.voices import Voice, choose_voices
from higgs_native.speech import Speech
from higgs_native.streaming import ChunkSizes, SpeechStream
from higgs_native.utils.checks import check_integer, integer_tensor
from higgs_native.utils.files import read_json_object


AUDIO_TOKENIZER_NAME = "bosonai/higgs-audio-v2-tokenizer"
EMBEDDED_VOICE = Path(__file__).with_name("embedded_voice")
"""The folder of the small checkpoint that comes with the package: a demonstration voice."""
EMBEDDED_VOICE_KEY = "higgs_native_embedded_voice"
"""True in the `config.json` of that checkpoint, and so of its quantized copies."""


class HiggsAudio:
    """A text-to-speech engine.

        engine = HiggsAudio.from_pretrained("bosonai/higgs-audio-v2-generation-3B-base")
        speech = engine.speak("The sun rises in the east.", reference_audio="voice.wav", reference_text="Hello there.")
        speech.save("out.wav")

    A checkpoint of the original layout is prompted and sampled as Boson's implementation does it, one of the
    transformers layout as transformers does it.

    Args:
        model: the language model.
        audio_tokenizer: turns recordings into codes, and codes into sound.
        layout: whose prompts and rule of generation: `boson`, `transformers`, or None: as the checkpoint's layout.

    Attributes:
        is_embedded_voice: it was loaded from `EMBEDDED_VOICE`, or a copy of it, quantized or not.

    Raises:
        CheckpointError: the two differ in their codebooks, or the model came without its text tokenizer.
    """

    def __init__(
        self, model: HiggsAudioModel, audio_tokenizer: HiggsAudioTokenizer, layout: Rule | None = None
    ) -> None:
        if model.tokenizer is None:
            raise CheckpointError("the model's folder has no tokenizer.json")
        codebooks = model.config.num_codebooks, model.config.codebook_size - 2
        if codebooks != (audio_tokenizer.num_codebooks, audio_tokenizer.codebook_size):
            raise CheckpointError(
                f"the model has {codebooks[0]} codebooks of {codebooks[1]} codes, but the audio tokenizer has "
                f"{audio_tokenizer.num_codebooks} of {audio_tokenizer.codebook_size}"
            )
        self.model = model
        self.audio_tokenizer = audio_tokenizer
        if model.device.type == "cuda":
            # What most calls of `speak` need: a prompt of up to 1024 positions, and as many frames.
            model.runner_pool.prepare(model, 1, 2048)
        self.layout = layout or model.config.layout
        self.is_embedded_voice = False

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        audio_tokenizer: str | Path | HiggsAudioTokenizer | None = None,
        quantization: str | Quantization | None = None,
    ) -> "HiggsAudio":
        """Load a checkpoint of either layout, or a packed one.

        Args:
            path_or_name: its folder, or its name on the Hub; None: the embedded voice, which knows a list of words.
            device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU where there is one. Both networks run there.
            dtype: of the weights: `float32`, `bfloat16`, `float16`, or `auto`, as they are stored.
            audio_tokenizer: its folder, its name on the Hub, or a loaded one. By default the folder `audio_tokenizer`
                within the checkpoint, or else `bosonai/higgs-audio-v2-tokenizer` from the Hub.
            quantization: of the language model's matrices: `fp8`, `int8`, `int4`, or a format for each part
                (`int4,heads=int8`; see `higgs_native.model.quantization`); None: as stored.

        Raises:
            CheckpointError, ConfigError: a checkpoint is missing, damaged, or not one of this model.
            ParameterError: there is no such device, dtype or quantization.
        """
        device = checked_device(device)
        weights_dtype = checked_dtype(dtype)
        if quantization is not None:
            quantization = Quantization.parse(quantization)
        folder = EMBEDDED_VOICE if path_or_name is None else resolve_folder(path_or_name)
        # Headers alone: most of what can be wrong with the model shows before an audio tokenizer is fetched.
        open_weights(folder, HiggsAudioConfig.from_pretrained(folder), weights_dtype, quantization, device)
        if not isinstance(audio_tokenizer, HiggsAudioTokenizer):
            beside = folder / AUDIO_TOKENIZER_FOLDER
            chosen = audio_tokenizer or (beside if beside.is_dir() else AUDIO_TOKENIZER_NAME)
            audio_tokenizer = HiggsAudioTokenizer.from_pretrained(chosen, device)
        model = HiggsAudioModel.from_pretrained(folder, device, dtype, quantization=quantization)
        engine = cls(model, audio_tokenizer)
        engine.is_embedded_voice = read_json_object(folder / "config.json").get(EMBEDDED_VOICE_KEY) is True
        return engine

    def speak(
        self,
        text: str,
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
        max_new_tokens: int = 1024,
        voices_folder: str | Path | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Speech:
        """Speak `text`. For texts longer than half a minute there is `LongSpeech`.

        The defaults of temperature, top-k and top-p are those of the published examples; Boson's engine itself falls
        back to 0.7, none and 0.95.

        Args:
            text: what to say. `[SPEAKER0]`, `[SPEAKER1]`, ... stand before the turns of several speakers. It is
                normalised as `higgs_native.prompt.normalize.normalize_text` says.
            voice: a voice of `voices_folder`, or several, separated by commas or in a list, for SPEAKER0, SPEAKER1,
                ...; or `Voice` objects.
            reference_audio: a recording to clone instead: a file, or `(samples, sampling rate in Hz)`.
            reference_text: the words spoken in it; cloning is closer with them.
            scene: where it is spoken, or how.
            seed: the same seed gives the same speech; None: a new one each time.
            temperature: how freely to draw; 0 takes the most likely code, unless `ras_win_len` draws it anew.
            top_k: draw among so many of the most likely codes; None: among all.
            top_p: draw among the most likely codes that together have this probability; None or 1: among all.
            ras_win_len: a code that stands `ras_win_max_num_repeat` times among the last so many is drawn anew; None
                or 0: never.
            ras_win_max_num_repeat: see `ras_win_len`.
            max_new_tokens: the limit, text and audio together; 25 make a second.
            voices_folder: see `higgs_native.prompt.voices`; by default the one that HIGGS_NATIVE_VOICES names.
            on_progress: called after every frame with the seconds of audio that exist so far.

        Raises:
            PromptError: the text is empty or holds special tokens, the voice is unknown, or the prompt is longer than
                the cache.
            AudioError: the reference audio can't be read or used.
            ParameterError: a parameter is of a wrong type, or outside its range.

        Warns:
            VoiceWarning: the reference audio is poor, or its words are not given (see `higgs_native.audio.quality`).
        """
        voices = choose_voices(voice, reference_audio, reference_text, voices_folder)
        return self.generate(
            self.speech_messages(text, voices, scene),
            force_audio_gen=True,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            ras_win_len=ras_win_len,
            ras_win_max_num_repeat=ras_win_max_num_repeat,
            max_new_tokens=max_new_tokens,
            on_progress=on_progress,
        )

    def stream(
        self,
        text: str,
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
        max_new_tokens: int = 1024,
        voices_folder: str | Path | None = None,
        first_chunk_frames: int = 5,
        chunk_growth: float = 1.5,
        max_chunk_frames: int = 50,
        low_latency: int = 0,
    ) -> SpeechStream:
        """Speak `text` in chunks that come while it is generated: `for` or `async for` over what this returns.

        Joined, the chunks are the audio that `speak` gives for the same seed.

            for chunk in engine.stream("The sun rises in the east.", seed=1):
                play(chunk.samples)

        Args:
            text, voice, reference_audio, reference_text, scene, seed, temperature, top_k, top_p, ras_win_len,
                ras_win_max_num_repeat, max_new_tokens, voices_folder: as for `speak`.
            first_chunk_frames: how long the first chunk is, in frames of 40 ms.
            chunk_growth: how many times as long as the one before it each chunk is, at least 1.
            max_chunk_frames: how long a chunk may be; the end of the audio may be longer by the decoder's lookahead.
            low_latency: by how many frames audio is given out before all is known that it depends on, 0 to 10. The
                chunks are then not quite those of `speak`; `StreamingDecoder` states the error of a lookahead of
                10 - `low_latency` frames. It costs work: what is missing is computed for every chunk.

        Raises:
            PromptError, AudioError, ParameterError: as for `speak`, and where a setting of the stream is outside its
                range. Errors that show later are raised by the iteration.

        Warns:
            VoiceWarning: as for `speak`.
        """
        voices = choose_voices(voice, reference_audio, reference_text, voices_folder)
        sizes = ChunkSizes(first_chunk_frames, chunk_growth, max_chunk_frames)
        context = self.audio_tokenizer.context_frames
        check_integer("low_latency", low_latency)
        if not 0 <= low_latency <= context:
            raise ParameterError(f"low_latency must lie in 0 .. {context} frames, got {low_latency}")
        generate = self.prepare(
            self.speech_messages(text, voices, scene),
            True,
            SamplingParams(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed),
            max_new_tokens,
            DEFAULT_STOP_STRINGS,
        )
        return SpeechStream(
            generate,
            self.model.config,
            self.audio_tokenizer,
            self.layout,
            sizes,
            context - low_latency,
        )

    def generate(
        self,
        conversation: ChatMLSample | Sequence[Message],
        force_audio_gen: bool = False,
        seed: int | None = None,
        temperature: float = 0.3,
        top_k: int | None = 50,
        top_p: float | None = 0.95,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        max_new_tokens: int = 1024,
        stop_strings: Sequence[str] = DEFAULT_STOP_STRINGS,
        on_progress: Callable[[float], None] | None = None,
    ) -> Speech:
        """Generate the assistant's reply to a conversation, in audio, text or both.

        Args:
            conversation: the messages (see `prompt.chat`); special tokens in their texts are taken as such.
            force_audio_gen: begin with audio.
            stop_strings: text that ends the reply.
            seed, temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, max_new_tokens, on_progress: as for
                `speak`.

        Raises:
            PromptError, AudioError, ParameterError: as for `speak`.
            CheckpointError: the checkpoint has no text head, and `force_audio_gen` is not set.
        """
        sampling = SamplingParams(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
        generate = self.prepare(conversation, force_audio_gen, sampling, max_new_tokens, stop_strings)
        return self.speech(generate(None if on_progress is None else self._frame_counter(on_progress)))

    def speech_messages(self, text: str, voices: Sequence[Voice], scene: str | None) -> list[Message]:
        """Return the conversation in which `text` is spoken (see `higgs_native.prompt.chat.speech_messages`).

        Args:
            text: as for `speak`; it is normalised.
            voices: what `choose_voices` returns.
            scene: as for `speak`.

        Raises:
            PromptError: the text is empty, or a text holds special tokens.
        """
        text = normalize_text(text)
        tokenizer = self.model.tokenizer
        check_plain_text(text, tokenizer)
        check_plain_text(scene or "", tokenizer, "scene")
        for voice in voices:
            check_plain_text(voice.reference_text or "", tokenizer, "reference text")
            check_plain_text(voice.profile or "", tokenizer, "profile")
        read = [voice if voice.profile is not None else read_voice(voice) for voice in voices]
        for voice, with_samples in zip(voices, read, strict=True):
            advice = check_voice(with_samples)
            if advice:
                name = "the reference audio" if isinstance(voice.reference_audio, tuple) else voice.reference_audio
                warnings.warn(f"{name}: {'; '.join(advice)}", VoiceWarning, stacklevel=3)
        return speech_messages(text, read, scene, self.layout)

    def prepare(
        self,
        conversation: ChatMLSample | Sequence[Message],
        force_audio_gen: bool,
        sampling: SamplingParams,
        max_new_tokens: int,
        stop_strings: Sequence[str],
    ) -> Callable[..., GenerationOutput]:
        """Check what can be checked, and read the recordings, before anything is generated.

        Args:
            conversation, force_audio_gen, max_new_tokens, stop_strings: as for `generate`.
            sampling: how to draw.

        Returns:
            A function that generates the reply, given `on_frame` and `on_token` (see `GenerationRequest`) or neither.

        Raises:
            PromptError, AudioError, ParameterError, CheckpointError: as for `generate`.
        """
        check_parameters(sampling, max_new_tokens)
        check_stop_strings(stop_strings)
        if not force_audio_gen and self.layout == "transformers":
            raise PromptError("under transformers' rule the reply is audio alone; expected force_audio_gen=True")
        if not force_audio_gen and self.model.text_head is None:
            raise CheckpointError(
                "this checkpoint has no text head (text_lm_head.weight), so it can't generate text; "
                "with force_audio_gen=True it speaks"
            )
        prompt = build_prompt(conversation, self.model.tokenizer, self.layout, force_audio_gen)
        recordings = [
            read_recording(item) if item.codes is None else integer_tensor("codes", item.codes, PromptError)
            for item in prompt.audio
        ]

        def generate(on_frame: OnFrame | None = None, on_token: OnToken | None = None) -> GenerationOutput:
            return self.model.generate(
                prompt.input_ids,
                # Boson's length rule for both layouts: it takes every length, and where both do they agree.
                reference_codes=[
                    recording if isinstance(recording, torch.Tensor) else self.audio_tokenizer.encode(*recording)
                    for recording in recordings
                ],
                rule=self.layout,
                max_new_tokens=max_new_tokens,
                **asdict(sampling),
                stop_strings=stop_strings,
                on_frame=on_frame,
                on_token=on_token,
            )

        return generate

    def fingerprint(self) -> str:
        """A SHA-256 that tells this engine's checkpoints from others, whichever folder they lie in.

        It is taken of the configurations, the text tokenizer, and some 1,000 elements of every weight.
        """
        configurations = self.model.config, self.model.quantization, self.audio_tokenizer.config, self.layout
        digest = hashlib.sha256(repr(configurations).encode())
        digest.update(self.model.tokenizer.to_str().encode())
        for weights in (self.model.named_weights(), self.audio_tokenizer.named_weights()):
            for name, tensor in weights.items():
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                flat = tensor.detach().flatten()
                digest.update(
                    flat[:: max(1, len(flat) // 1000)].cpu().contiguous().view(torch.uint8).numpy().tobytes()
                )
        return digest.hexdigest()

    def _frame_counter(self, on_progress: Callable[[float], None]) -> Callable[[torch.Tensor], None]:
        """A callback for frames that reports seconds: a frame exists when its last codebook, delayed, is drawn."""
        complete = 0

        def on_frame(codes: torch.Tensor) -> None:
            nonlocal complete
            begins = bool((codes == self.model.config.audio_stream_bos_id).all())
            complete += 1 - self.model.config.num_codebooks if begins else 1
            on_progress(max(0, complete) / self.audio_tokenizer.frame_rate)

        return on_frame

    def speech(self, output: GenerationOutput) -> Speech:
        """Decode what was generated."""
        segments = [self._codes(segment) for segment in output.audio_segments]
        sounds = [self.audio_tokenizer.decode(codes).cpu().numpy() for codes in segments if codes.shape[1]]
        return Speech(
            audio=np.concatenate([np.zeros(0, dtype=np.float32), *sounds]),
            sampling_rate=self.audio_tokenizer.sampling_rate,
            codes=torch.cat([torch.zeros(self.model.config.num_codebooks, 0, dtype=torch.int64), *segments], dim=1),
            text=self._text(output),
            finish_reason=output.finish_reason,
            usage=output.usage,
        )

    def _text(self, output: GenerationOutput) -> str:
        return self.model.tokenizer.decode(output.text_ids, skip_special_tokens=True).strip()

    def _codes(self, segment: torch.Tensor) -> torch.Tensor:
        """The codes of a delayed segment that begins with the all-BOS frame: [codebooks, N] -> [codebooks, T]."""
        if self.layout == "boson":
            # The first column is BOS, the last one EOS or, where the end was cut off, given up.
            codes = revert_delay_pattern(segment)[:, 1:-1]
        else:
            ends = (segment == self.model.config.audio_stream_eos_id).all(dim=0).nonzero().flatten().tolist()
            codes = revert_delay_pattern(segment[:, 1 : ends[0] if ends else None])
        return codes.clamp(0, self.audio_tokenizer.codebook_size - 1)
