"""When a sequence stops."""

from collections.abc import Sequence

from higgs_native.errors import ParameterError
from higgs_native.model.transformer import LanguageModel


DEFAULT_STOP_STRINGS = ("<|end_of_text|>", "<|eot_id|>")


def check_stop_strings(stop_strings: Sequence[str] | None) -> None:
    """Raise ParameterError where `stop_strings` is neither None nor a sequence of strings; one string is none."""
    if isinstance(stop_strings, str):
        raise ParameterError(f"stop_strings must be a list of strings, got the string {stop_strings!r}")
    if stop_strings is None:
        return
    if not isinstance(stop_strings, Sequence) or not all(isinstance(stop, str) for stop in stop_strings):
        raise ParameterError(f"stop_strings must be a list of strings, got {stop_strings!r}")


def _stops(model: LanguageModel, ids: list[int], stop_strings: tuple[str, ...]) -> bool:
    """Whether the last token completes a stop string."""
    if model.tokenizer is None:
        return False
    # A stop string of n bytes spans at most n tokens; the last token may also hold text after it.
    for stop in stop_strings:
        tail = ids[-len(stop.encode()) :]
        whole = model.tokenizer.decode(tail, skip_special_tokens=False)
        before = model.tokenizer.decode(tail[:-1], skip_special_tokens=False)
        if stop in whole and stop not in before:
            return True
    return False
