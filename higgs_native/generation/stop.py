"""When a reply ends: stop strings, end tokens, and what follows an audio segment."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from higgs_native.convention import Convention
from higgs_native.model.transformer import LanguageModel


def ends_reply(
    model: LanguageModel, convention: Convention, ids: Sequence[int], stop_strings: Sequence[str] | None
) -> bool:
    """Return whether the last of the text tokens `ids` ends the reply: an end token, or the end of a stop string."""
    if convention == Convention.BOSON and ids[-1] in (model.config.end_token_ids or ()):
        return True
    return _completes_stop_string(model.tokenizer, ids, stop_strings or ())


def _completes_stop_string(tokenizer: Tokenizer | None, ids: Sequence[int], stop_strings: Sequence[str]) -> bool:
    """Return whether the last of the text tokens `ids` completes a stop string."""
    if tokenizer is None:
        return False
    # A stop string of n bytes spans at most n tokens; the last token may also hold text after it.
    for stop in stop_strings:
        tail = ids[-len(stop.encode()) :]
        with_last = tokenizer.decode(tail, skip_special_tokens=False)
        without_last = tokenizer.decode(tail[:-1], skip_special_tokens=False)
        if stop in with_last and stop not in without_last:
            return True
    return False


def text_after_audio(model: LanguageModel, convention: Convention) -> int | None:
    """Return the text token that follows an audio segment; None if the reply ends with its audio."""
    if convention == Convention.TRANSFORMERS or model.text_head is None:
        return None
    # The configuration of the transformers layout leaves this token to the tokenizer.
    if model.config.audio_eos_token_id is None and model.tokenizer is not None:
        return model.tokenizer.token_to_id("<|audio_eos|>")
    return model.config.audio_eos_token_id
