"""From a conversation to the reply: prompt, model and audio tokenizer in one object."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer
from typing_extensions import Unpack

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.config import AUDIO_PLACEHOLDER
from higgs_native.convention import Convention
from higgs_native.errors import CheckpointError, PromptError
from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.delay_pattern import segment_codes
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import (
    GenerationOutput,
    GenerationRequest,
    OnFrame,
    OnToken,
    Playback,
    WantsItems,
)
from higgs_native.generation.sampling_params import SamplingOptions, SamplingParams
from higgs_native.prompt.chat import build_prompt
from higgs_native.prompt.messages import ChatMLSample, Message
from higgs_native.prompt.recordings import Recording, read_recording
from higgs_native.speech import Speech
from higgs_native.utils.checks import check_callable, check_flag, check_instance
from higgs_native.utils.tensors import integer_tensor


class ReplyGenerator:
    """Generates replies to conversations.

    Args:
        model: the language model.
        audio_tokenizer: encodes recordings into codes, and decodes codes into audio.
        convention: `boson`, `transformers`, `higgs_tts_3`, or None: that of the checkpoint.

    Attributes:
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
        check_instance("model", model, HiggsAudioModel)
        check_instance("audio_tokenizer", audio_tokenizer, HiggsAudioTokenizer)
        model.require_tokenizer()
        codebooks = model.config.num_codebooks, model.config.codebook_size - 2
        if codebooks != (audio_tokenizer.num_codebooks, audio_tokenizer.codebook_size):
            raise CheckpointError(
                f"the model has {codebooks[0]} codebooks of {codebooks[1]} codes, but the audio tokenizer has "
                f"{audio_tokenizer.num_codebooks} of {audio_tokenizer.codebook_size}"
            )
        self.model = model
        self.audio_tokenizer = audio_tokenizer
        if model.device.type == "cuda":
            model.engine.prepare()
        chosen = model.config.convention if convention is None else Convention.parse(convention)
        self.convention = model.config.convention_of(chosen)
        self.name: str | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tokenizer of the model."""
        return self.model.require_tokenizer()

    @property
    def default_sampling(self) -> SamplingParams:
        """The sampling parameters where a caller gives none."""
        return behavior_of(self.convention).default_sampling

    def generate(
        self,
        conversation: ChatMLSample | Sequence[Message],
        force_audio_gen: bool = False,
        on_progress: Callable[[float], None] | None = None,
        sampling: SamplingParams | None = None,
        adapter: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Speech:
        """Generate the assistant's reply to a conversation, in audio, text or both.

        Args:
            conversation: the messages (see `prompt.chat`); special tokens in their texts stay special tokens.
            force_audio_gen: begin with audio.
            on_progress, sampling, adapter, options: as for `HiggsAudio.speak`.

        Raises:
            PromptError, AudioError, ParameterError: as for `HiggsAudio.speak`.
            CheckpointError: the checkpoint has no text head, and `force_audio_gen` is not set.
        """
        check_callable("on_progress", on_progress, optional=True)
        params = SamplingParams.of(sampling, options, self.default_sampling).with_seed()
        generate = self.prepare(conversation, force_audio_gen, params, adapter=adapter)
        output = generate(None if on_progress is None else self.frame_counter(on_progress))
        return replace(self.speech(output), seed=params.seed, model=self.name)

    def prepare(
        self,
        conversation: ChatMLSample | Sequence[Message],
        force_audio_gen: bool,
        sampling: SamplingParams,
        adapter: str | None = None,
    ) -> Callable[..., GenerationOutput]:
        """Check all that can be checked, and read the recordings, before anything is generated.

        Args:
            conversation, force_audio_gen: as for `generate`.
            sampling: how to draw, and when to stop.
            adapter: see `GenerationRequest`.

        Returns:
            A function that generates the reply, given the callbacks and the playback of `GenerationRequest`, or none.

        Raises:
            PromptError, AudioError, ParameterError, CheckpointError: as for `generate`.
        """
        make_request = self.prepare_request(conversation, force_audio_gen, sampling, adapter)

        def generate(
            on_frame: OnFrame | None = None,
            on_token: OnToken | None = None,
            wants_items: WantsItems | None = None,
            playback: Playback | None = None,
        ) -> GenerationOutput:
            return generate_batch(self.model, [make_request(on_frame, on_token, wants_items, playback)])[0]

        return generate

    def prepare_request(
        self,
        conversation: ChatMLSample | Sequence[Message],
        force_audio_gen: bool,
        sampling: SamplingParams,
        adapter: str | None = None,
    ) -> Callable[..., GenerationRequest]:
        """Check and read what `prepare` does; return a function that encodes the recordings and makes the request.

        `model.engine.add` takes the request, and `speech` decodes its output.
        """
        check_flag("force_audio_gen", force_audio_gen)
        if adapter is not None:
            self.model.require_adapter(adapter)
        if not force_audio_gen and self.convention == Convention.TRANSFORMERS:
            raise PromptError("force_audio_gen must be True in the convention 'transformers', got False")
        if not force_audio_gen and self.model.text_head is None:
            raise CheckpointError(
                "this checkpoint has no text head (text_lm_head.weight), so it can't generate text; "
                "with force_audio_gen=True it speaks"
            )
        prompt = build_prompt(conversation, self.tokenizer, self.convention, force_audio_gen)
        recordings = [
            read_recording(item) if item.codes is None else integer_tensor("codes", item.codes, PromptError)
            for item in prompt.audio
        ]

        def make_request(
            on_frame: OnFrame | None = None,
            on_token: OnToken | None = None,
            wants_items: WantsItems | None = None,
            playback: Playback | None = None,
        ) -> GenerationRequest:
            return GenerationRequest(
                prompt.input_ids,
                [item if isinstance(item, torch.Tensor) else self.encode_recording(item) for item in recordings],
                self.convention,
                sampling,
                on_frame=on_frame,
                on_token=on_token,
                wants_items=wants_items,
                adapter=adapter,
                playback=playback,
            )

        return make_request

    def encode_recording(self, recording: Recording) -> torch.Tensor:
        """Return the codes [codebooks, frames] of a reference, as the model was trained with them."""
        convention = behavior_of(self.convention).recording_convention
        return self.audio_tokenizer.encode(recording.samples, recording.sampling_rate, convention)

    def frame_counter(self, on_progress: Callable[[float], None]) -> Callable[[torch.Tensor], None]:
        """Return a callback for the frames of one request that reports seconds of audio.

        A frame is complete when its last codebook is drawn.
        """
        # A frame of BOS sets the count back by the delay; without one, it begins there.
        complete = 0 if behavior_of(self.convention).has_bos_frame else 1 - self.model.config.num_codebooks

        def on_frame(codes: torch.Tensor) -> None:
            nonlocal complete
            begins = bool((codes == self.model.config.audio_stream_bos_id).all())
            complete += 1 - self.model.config.num_codebooks if begins else 1
            on_progress(max(0, complete) / self.audio_tokenizer.frame_rate)

        return on_frame

    def speech(self, output: GenerationOutput) -> Speech:
        """Decode a generated output."""
        segments = [self._codes(segment) for segment in output.audio_segments]
        sounds = [self.audio_tokenizer.decode(codes).cpu().numpy() for codes in segments if codes.shape[1]]
        no_codes = torch.empty(self.model.config.num_codebooks, 0, dtype=torch.int64, device="cpu")
        return Speech(
            audio=np.concatenate([np.zeros(0, dtype=np.float32), *sounds]),
            sampling_rate=self.audio_tokenizer.sampling_rate,
            codes=torch.cat([no_codes, *segments], dim=1),
            text=self._text(output),
            finish_reason=output.finish_reason,
            usage=output.usage,
        )

    def _text(self, output: GenerationOutput) -> str:
        ids = [token for token in output.text_ids if token != AUDIO_PLACEHOLDER]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _codes(self, segment: torch.Tensor) -> torch.Tensor:
        """The codes of a delayed segment, without BOS and EOS: [codebooks, N] -> [codebooks, T]."""
        codes = segment_codes(segment, self.model.config, self.convention)
        return behavior_of(self.convention).decodable(codes, self.audio_tokenizer.codebook_size)
