"""Generation as in `transformers`: audio alone, with counters that start from the prompt's last ids."""

from collections.abc import Sequence

import torch

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.generation.conventions.behavior import Behavior, GenerationMode, completes_stop_string
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.sampling import StateField


class TransformersBehavior(Behavior):
    """Generation in the convention of `transformers`."""

    convention = Convention.TRANSFORMERS

    def placeholders(self, model: LanguageModel) -> tuple[int | None, ...]:
        """See `Behavior.placeholders`."""
        return model.config.audio_in_token_id, model.config.audio_out_token_id

    def frame_placeholders(self, config: HiggsAudioConfig) -> tuple[int | None, ...]:
        """See `Behavior.frame_placeholders`: the processor marks the frames that close a delay pattern."""
        return config.audio_out_token_id, config.audio_delay_token_id

    def ids_of_frames(self, placeholder: int, count: int, config: HiggsAudioConfig) -> list[int]:
        """See `Behavior.ids_of_frames`."""
        delay = config.audio_delay_token_id
        if delay is None:
            return [placeholder] * count
        closing = config.num_codebooks - 1
        return [placeholder] * (count - closing) + [delay] * closing

    def first_mode(self, model: LanguageModel, ids: Sequence[int], resumes: bool) -> GenerationMode:
        """See `Behavior.first_mode`."""
        if ids[-1] != model.config.audio_out_bos_token_id:
            raise PromptError(
                f"input_ids must end in <|audio_out_bos|> in the convention 'transformers', got {ids[-1]}"
            )
        return GenerationMode.AUDIO_IN_PROGRESS

    def state(
        self, prompt_ids: Sequence[int], begun: Sequence[Sequence[int]], config: HiggsAudioConfig
    ) -> dict[StateField, int]:
        """See `Behavior.state`.

        Codebook k's counters start at k + 1, minus the distance from `<|audio_out_bos|>` (or the first delay token) to
        the end. The distance is measured in a window of as many ids as codebooks, even if the prompt is shorter.
        """
        num_codebooks, delay = config.num_codebooks, config.audio_delay_token_id
        window = list(prompt_ids[-num_codebooks:])
        bos_base, bos_step, eos_base = 0, 0, 1
        if config.audio_out_bos_token_id in window:
            bos_base = 1 - (num_codebooks - window.index(config.audio_out_bos_token_id))
            bos_step = 1
        if delay in window:
            eos_base = 1 - (num_codebooks - window.index(delay))
        is_ending = int(bool(window) and window[-1] == delay)
        for frame in begun:
            bos_base -= 1
            eos_base -= is_ending
            is_ending = int(is_ending or config.audio_stream_eos_id in frame)
        return {
            StateField.ACTIVE: 1,
            StateField.TRANSFORMERS_BOS_BASE: bos_base,
            StateField.TRANSFORMERS_BOS_STEP: bos_step,
            StateField.TRANSFORMERS_EOS_BASE: eos_base,
            StateField.TRANSFORMERS_ENDING: is_ending,
        }

    def is_end(self, frames: torch.Tensor, config: HiggsAudioConfig) -> torch.Tensor:
        """See `Behavior.is_end`: a frame of EOS in all codebooks."""
        return (frames == config.audio_stream_eos_id).all(dim=0)

    def ends_reply(self, model: LanguageModel, ids: Sequence[int], stop_strings: Sequence[str] | None) -> bool:
        """See `Behavior.ends_reply`."""
        return completes_stop_string(model.tokenizer, ids, stop_strings or ())
