"""The sampling parameters of a request, built and checked once, where a caller's arguments enter the package."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import TypedDict

from higgs_native.errors import ParameterError, short_repr
from higgs_native.utils.checks import check_integer, check_number, check_strings


DEFAULT_STOP_STRINGS = ("<|end_of_text|>", "<|eot_id|>")
MAX_RAS_WINDOW = 10_000


@dataclass(frozen=True)
class SamplingParams:
    """How codes and text tokens are drawn, and when to stop.

    The defaults of temperature, top-k and top-p are those of the published examples of Higgs Audio V2; Boson's engine
    itself falls back to 0.7, none and 0.95. Higgs TTS 3 has other defaults (`HIGGS_TTS_3_SAMPLING`).

    Attributes:
        temperature: 0 takes the highest logit (repetition-aware sampling may still redraw); otherwise 0.001 to 1000.
        top_k: draws among the codes of the k highest logits; None or 0: among all.
        top_p: draws among the most likely codes that together have this probability; None or 1: among all.
        ras_win_len: the window, in frames, of repetition-aware sampling; None, 0 or below turns it off.
        ras_win_max_num_repeat: occurrences in the window from which a code is drawn again, from the unprocessed
            distribution.
        seed: 64 bits, as an integer from -2**63 to 2**64 - 1, as torch takes them. The same seed gives the same output
            for the same logits, whatever else is in the batch; None: a new one for each request.
        max_new_tokens: the maximum number of steps, text tokens and frames together; 25 frames are a second.
        stop_strings: text that ends the reply (Boson's convention only); None or () for none.

    Raises:
        ParameterError: a value is of a wrong type, or outside its range.
    """

    temperature: float = 0.3
    top_k: int | None = 50
    top_p: float | None = 0.95
    ras_win_len: int | None = 7
    ras_win_max_num_repeat: int = 2
    seed: int | None = None
    max_new_tokens: int = 1024
    stop_strings: Sequence[str] | None = DEFAULT_STOP_STRINGS

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature)
        check_number("top_p", self.top_p, optional=True)
        for name in ("top_k", "ras_win_len", "seed"):
            check_integer(name, getattr(self, name), optional=True)
        for name in ("ras_win_max_num_repeat", "max_new_tokens"):
            check_integer(name, getattr(self, name))
        # The kernels take float32 and int32. Below 1e-3 a logit divided by the temperature could overflow.
        if self.temperature != 0 and not 1e-3 <= self.temperature <= 1e3:
            raise ParameterError(f"temperature must be 0 (greedy) or between 0.001 and 1000, got {self.temperature}")
        if self.top_k is not None and not 0 <= self.top_k < 2**31:
            raise ParameterError(f"top_k must be between 0 and 2**31 - 1, or None, got {self.top_k}")
        if self.top_p is not None and not 1e-6 <= self.top_p <= 1:
            raise ParameterError(f"top_p must be between 1e-6 and 1, or None, got {self.top_p}")
        if self.ras_win_len is not None and self.ras_win_len > MAX_RAS_WINDOW:
            raise ParameterError(f"ras_win_len must be at most {MAX_RAS_WINDOW}, got {self.ras_win_len}")
        if not 1 <= self.ras_win_max_num_repeat < 2**31:
            raise ParameterError(
                f"ras_win_max_num_repeat must be between 1 and 2**31 - 1, got {self.ras_win_max_num_repeat}"
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ParameterError(f"seed must be between -2**63 and 2**64 - 1, got {self.seed}")
        if self.max_new_tokens < 1:
            raise ParameterError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.stop_strings is not None:
            check_strings("stop_strings", self.stop_strings)

    def with_seed(self) -> "SamplingParams":
        """Return these parameters with a seed: the given one, or a drawn one."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(63))

    @property
    def known_seed(self) -> int:
        """The seed; `with_seed` has set it."""
        assert self.seed is not None
        return int(self.seed)

    @classmethod
    def of(
        cls, sampling: "SamplingParams | None", options: "SamplingOptions", defaults: "SamplingParams | None" = None
    ) -> "SamplingParams":
        """Return `sampling`, or parameters of `options` and `defaults` if it is None.

        Args:
            sampling: the parameters, or None.
            options: attributes by name.
            defaults: the values of the other attributes; None: those of this class.

        Raises:
            ParameterError: both are given, `sampling` is something else, or an option is unknown or outside its range.
        """
        if sampling is None:
            if unknown := options.keys() - SamplingOptions.__annotations__:
                raise ParameterError(
                    f"options must be of {', '.join(SamplingOptions.__annotations__)}, got {short_repr(min(unknown))}"
                )
            return cls(**options) if defaults is None else replace(defaults, **options)
        if not isinstance(sampling, cls):
            raise ParameterError(f"sampling must be SamplingParams or None, got {type(sampling).__name__}")
        if options:
            raise ParameterError(f"sampling must be given alone, got {', '.join(sorted(options))} beside it")
        return sampling


HIGGS_TTS_3_SAMPLING = SamplingParams(
    temperature=0.8, top_k=30, top_p=0.8, ras_win_len=None, max_new_tokens=2048, stop_strings=None
)
"""The defaults of Higgs TTS 3: those of the speech endpoint of sglang-omni, which serves it with Boson's code."""


class SamplingOptions(TypedDict, total=False):
    """The attributes of `SamplingParams` as keyword arguments."""

    temperature: float
    top_k: int | None
    top_p: float | None
    ras_win_len: int | None
    ras_win_max_num_repeat: int
    seed: int | None
    max_new_tokens: int
    stop_strings: Sequence[str] | None
