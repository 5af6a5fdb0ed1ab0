"""Generation with Higgs TTS 3: audio alone, from the prompt's last position to the end of codebook 0.

Neither a segment nor a reference has whole frames of BOS or EOS: codebook k of T frames is k times BOS, its T codes,
then EOS in the rest of the T + codebooks - 1 rows. The first row is drawn from the state of the prompt's last
position. Only an EOS of codebook 0 ends a segment, and only after the first rows, in which delays open; codebooks - 2
rows follow it. What a codebook draws past its end is fed back unchanged. BOS and EOS among the codes are decoded as
code 0.
"""

from collections.abc import Sequence

import torch

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.generation.conventions.behavior import Behavior, GenerationMode
from higgs_native.generation.sampling_params import HIGGS_TTS_3_SAMPLING
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.sampling import StateField


class HiggsTts3Behavior(Behavior):
    """Generation in the convention of Higgs TTS 3."""

    convention = Convention.HIGGS_TTS_3
    default_sampling = HIGGS_TTS_3_SAMPLING
    recording_convention = Convention.HIGGS_TTS_3
    has_bos_frame = False

    def placeholders(self, model: LanguageModel) -> tuple[int | None, ...]:
        """See `Behavior.placeholders`."""
        return (model.config.audio_out_token_id,)

    def frame_placeholders(self, config: HiggsAudioConfig) -> tuple[int | None, ...]:
        """See `Behavior.frame_placeholders`."""
        return (config.audio_out_token_id,)

    def first_mode(self, model: LanguageModel, ids: Sequence[int], resumes: bool) -> GenerationMode:
        """See `Behavior.first_mode`."""
        return GenerationMode.AUDIO_IN_PROGRESS

    def state(
        self, prompt_ids: Sequence[int], begun: Sequence[Sequence[int]], config: HiggsAudioConfig
    ) -> dict[StateField, int]:
        """See `Behavior.state`."""
        num_codebooks = config.num_codebooks
        ends = [row for row in range(num_codebooks, len(begun)) if begun[row][0] == config.audio_stream_eos_id]
        remaining = -1 if not ends else max(num_codebooks - 2, 0) - (len(begun) - 1 - ends[0])
        if ends and remaining <= 0:
            raise PromptError(f"partial_audio must not have ended, got EOS of codebook 0 in frame {ends[0]}")
        return {
            StateField.ACTIVE: 1,
            StateField.HIGGS_TTS_3_OPENED: min(len(begun), num_codebooks),
            StateField.HIGGS_TTS_3_REMAINING: remaining,
        }

    def decodable(self, codes: torch.Tensor, num_codes: int) -> torch.Tensor:
        """See `Behavior.decodable`."""
        return codes.masked_fill(codes >= num_codes, 0)
