"""Notices and progress bars, shown where the package's warnings are."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn, TypeVar


if TYPE_CHECKING:
    from tqdm import tqdm


T = TypeVar("T")
_SECONDS_BEFORE_A_BAR = 1.0


def shows_notices() -> bool:
    """Return whether the logger `higgs_native` lets warnings through; `higgs-native -q` does not."""
    return logging.getLogger("higgs_native").isEnabledFor(logging.WARNING)


def bars_hidden() -> bool | None:
    """Return tqdm's `disable`: None, a bar on a terminal only, where notices are wanted; else True."""
    return None if shows_notices() else True


def with_bar(items: Iterable[T], description: str, total: int, unit: str) -> Iterable[T]:
    """Return `items`, with a bar while they are iterated, if that takes a second or more on a terminal."""
    from tqdm import tqdm

    return tqdm(
        items,
        description,
        total,
        unit=unit,
        leave=False,
        delay=_SECONDS_BEFORE_A_BAR,
        disable=bars_hidden(),
    )


def bar_of_bytes(description: str, total: int) -> "tqdm[NoReturn]":
    """Return a bar of `total` bytes to update, which shows if that takes a second or more on a terminal."""
    from tqdm import tqdm

    return tqdm(
        desc=description,
        total=total,
        unit="B",
        unit_scale=True,
        leave=False,
        delay=_SECONDS_BEFORE_A_BAR,
        disable=bars_hidden(),
    )
