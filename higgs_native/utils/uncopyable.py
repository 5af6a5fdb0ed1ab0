"""Objects that hold weights, locks or threads, and so can't be copied."""

from typing import ClassVar, NoReturn

from higgs_native.errors import ParameterError


class Uncopyable:
    """Base of objects whose copying and pickling raise ParameterError, which says what to do instead."""

    _instead: ClassVar[str]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        name = type(self).__name__
        article = "an" if name[0] in "AEIOU" else "a"
        raise ParameterError(f"{article} {name} can't be copied or pickled{self._instead}")


class Shareable(Uncopyable):
    """Base of what is loaded from a checkpoint."""

    _instead = ": threads can share it, and other processes can load their own with from_pretrained"
