"""Generation as in `boson_multimodal`: text and audio in turn, with a frame of BOS before each segment."""

from collections.abc import Sequence

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.generation.conventions.behavior import Behavior, GenerationMode, completes_stop_string
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.sampling import StateField


class BosonBehavior(Behavior):
    """Generation in the convention of `boson_multimodal`."""

    convention = Convention.BOSON
    drops_last_codes = True

    def placeholders(self, model: LanguageModel) -> tuple[int | None, ...]:
        """See `Behavior.placeholders`: one in a system or user message, another in an assistant message."""
        audio_in = model.config.audio_in_token_id
        # The configuration of the transformers layout leaves this token to the tokenizer.
        if audio_in is None and model.tokenizer is not None:
            audio_in = model.tokenizer.token_to_id("<|AUDIO|>")
        return audio_in, model.config.audio_out_token_id

    def counts_repetitions(self, placeholder: int, config: HiggsAudioConfig) -> bool:
        """See `Behavior.counts_repetitions`: the assistant's audio alone."""
        return placeholder == config.audio_out_token_id

    def first_mode(self, model: LanguageModel, ids: Sequence[int], resumes: bool) -> GenerationMode:
        """See `Behavior.first_mode`."""
        if ids[-1] == model.config.audio_out_bos_token_id:
            return GenerationMode.AUDIO_INIT
        if resumes:
            raise PromptError(f"input_ids must end in <|audio_out_bos|> with partial_audio, got {ids[-1]}")
        model.require_text_head()
        return GenerationMode.TEXT

    def state(
        self, prompt_ids: Sequence[int], begun: Sequence[Sequence[int]], config: HiggsAudioConfig
    ) -> dict[StateField, int]:
        """See `Behavior.state`."""
        opened, remaining = _resumed(begun, config) if begun else (0, -1)
        return {
            StateField.ACTIVE: int(bool(begun)),
            StateField.BOSON_OPENED: opened,
            StateField.BOSON_REMAINING: remaining,
        }

    def text_after_audio(self, model: LanguageModel) -> int | None:
        """See `Behavior.text_after_audio`."""
        if model.text_head is None:
            return None
        # The configuration of the transformers layout leaves this token to the tokenizer.
        if model.config.audio_eos_token_id is None and model.tokenizer is not None:
            return model.tokenizer.token_to_id("<|audio_eos|>")
        return model.config.audio_eos_token_id

    def ends_reply(self, model: LanguageModel, ids: Sequence[int], stop_strings: Sequence[str] | None) -> bool:
        """See `Behavior.ends_reply`: an end token, or the end of a stop string."""
        if ids[-1] in (model.config.end_token_ids or ()):
            return True
        return completes_stop_string(model.tokenizer, ids, stop_strings or ())


def _resumed(begun: Sequence[Sequence[int]], config: HiggsAudioConfig) -> tuple[int, int]:
    """Return the delays opened, and the codebooks that EOS has not reached (-1: it has reached none)."""
    num_codebooks, eos = config.num_codebooks, config.audio_stream_eos_id
    opened = min(len(begun), num_codebooks) - 1
    # EOS reaches codebooks 0 to k in the first frame that has it, the same ones in the next frame, then one more per
    # frame. Other codebooks may have drawn EOS too, so the smallest count over all frames is right.
    closed = [next(k for k, code in enumerate([*frame, None]) if code != eos) for frame in begun if eos in frame]
    if not closed:
        return opened, -1
    first_closed = min(count - max(0, after - 1) for after, count in enumerate(closed))
    remaining = num_codebooks - first_closed - (len(closed) - 1)
    if remaining <= 0:
        raise PromptError("partial_audio must not have ended, got EOS in its last codebook")
    return opened, remaining
