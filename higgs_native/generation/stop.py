"""Stop strings: texts that end a reply."""

from collections.abc import Sequence

from tokenizers import Tokenizer


def completes_stop_string(tokenizer: Tokenizer | None, ids: Sequence[int], stop_strings: Sequence[str]) -> bool:
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
