"""`HiggsAudioModel`, a language model with an engine, and generation for one or several prompts."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from typing_extensions import Unpack

from higgs_native.convention import Convention
from higgs_native.errors import ParameterError
from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.engine import Engine
from higgs_native.generation.handle import RequestHandle
from higgs_native.generation.requests import GenerationOutput, GenerationRequest, OnFrame, OnToken
from higgs_native.generation.sampling_params import SamplingOptions, SamplingParams
from higgs_native.model.transformer import LanguageModel
from higgs_native.utils.checks import check_flag, check_instance


class HiggsAudioModel(LanguageModel):
    """A language model of Higgs Audio V2 or Higgs TTS 3 that generates.

    >>> model = HiggsAudioModel.from_pretrained("bosonai/higgs-audio-v2-generation-3B-base")
    >>> output = model.generate(input_ids, reference_codes=[codes], seed=1)
    >>> codes = segment_codes(output.audio_segments[0], model.config, Convention.BOSON)

    Attributes:
        engine: generates all requests; another `Engine` of this model may be set before the first request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine = Engine(self)

    def generate(
        self,
        input_ids: torch.Tensor,
        reference_codes: Sequence[torch.Tensor] = (),
        convention: str | Convention | None = None,
        on_frame: OnFrame | None = None,
        partial_audio: torch.Tensor | None = None,
        output_logits: bool = False,
        on_token: OnToken | None = None,
        sampling: SamplingParams | None = None,
        delayed_frames: torch.Tensor | None = None,
        adapter: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> GenerationOutput:
        """Generate for one prompt; see `GenerationRequest` and `generate_batch`.

        Args:
            input_ids: [1, S], integers, one placeholder per item of `reference_codes`.
            reference_codes: [codebooks, T] integers each, without BOS, EOS and delay.
            convention, on_frame, partial_audio, on_token, delayed_frames, adapter: see `GenerationRequest`.
            output_logits: keep the logits that each step drew from.
            sampling: how to draw and when to stop, or in its place `options`: the attributes of `SamplingParams`.
        """
        convention = None if convention is None else Convention.parse(convention)
        behavior = behavior_of(self.config.convention_of(convention))
        request = GenerationRequest(
            input_ids,
            reference_codes,
            convention,
            SamplingParams.of(sampling, options, behavior.default_sampling),
            partial_audio,
            delayed_frames,
            on_frame=on_frame,
            on_token=on_token,
            adapter=adapter,
        )
        return generate_batch(self, [request], output_logits)[0]


def generate_batch(
    model: HiggsAudioModel,
    requests: Sequence[GenerationRequest],
    output_logits: bool = False,
) -> list[GenerationOutput]:
    """Generate for several prompts side by side; each result equals that of its request alone.

    Requests of other callers share the steps. Callbacks are called in this thread.

    Args:
        model: the language model.
        requests: the prompts, of any lengths, conventions and sampling parameters.
        output_logits: keep the logits that each step drew from.

    Raises:
        ParameterError: an argument is of a wrong type.
        PromptError: a prompt does not fit the model, its references, or the cache.
        CheckpointError: a request asks for text, and the checkpoint has no text head.
        GenerationError: logits hold a NaN or +inf, exceed float32 when divided by the temperature, or are all -inf.
    """
    check_instance("model", model, HiggsAudioModel)
    if not isinstance(requests, Sequence):
        raise ParameterError(f"requests must be a list of GenerationRequest, got {type(requests).__name__}")
    check_flag("output_logits", output_logits)
    engine = model.engine
    handles: list[RequestHandle] = []
    try:
        for request in requests:
            handles.append(engine.add(request, output_logits))
        with_callbacks = [
            (handle, request)
            for handle, request in zip(handles, requests, strict=True)
            if request.on_frame is not None or request.on_token is not None
        ]
        while with_callbacks:
            engine.drive(partial(_any_is_ready, with_callbacks))
            for handle, request in with_callbacks:
                for item in handle.take():
                    if isinstance(item, torch.Tensor):
                        if request.on_frame is not None:
                            request.on_frame(item)
                    elif request.on_token is not None:
                        request.on_token(item)
            with_callbacks = [entry for entry in with_callbacks if not entry[0].is_exhausted]
        engine.drive(lambda: all(handle.future.done() for handle in handles))
        return [handle.future.result() for handle in handles]
    finally:
        for handle in handles:
            handle.abort()


def _any_is_ready(with_callbacks: Sequence[tuple[RequestHandle, GenerationRequest]]) -> bool:
    return any(
        handle.future.done()
        or (handle.num_items > 0 and (request.wants_items is None or request.wants_items(handle.num_items)))
        for handle, request in with_callbacks
    )
