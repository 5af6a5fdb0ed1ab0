"""How codes and text tokens are drawn."""

from dataclasses import dataclass

from higgs_native.errors import ParameterError
from higgs_native.utils.checks import check_integer, check_number


_MAX_RAS_WINDOW = 10_000


@dataclass(frozen=True)
class SamplingParams:
    """How codes and text tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest.
        top_k: draw among the k likeliest; None or 0 for all.
        top_p: draw among the likeliest that make up this share; 1 for all.
        ras_win_len: repetition-aware sampling looks at so many of the last frames; None or 0 turns it off.
        ras_win_max_num_repeat: a code that stands there so often is drawn again from the unprocessed distribution.
        seed: the same seed gives the same output for the same logits, whatever else is in the batch; None for a new
            one each time.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    ras_win_len: int | None = 7
    ras_win_max_num_repeat: int = 2
    seed: int | None = None


def check_parameters(sampling: SamplingParams, max_new_tokens: int) -> None:
    """Raise ParameterError where a parameter of generation is of a wrong type, or lies outside its range."""
    check_number("temperature", sampling.temperature)
    check_number("top_p", sampling.top_p, optional=True)
    for name in ("top_k", "ras_win_len", "seed"):
        check_integer(name, getattr(sampling, name), optional=True)
    check_integer("ras_win_max_num_repeat", sampling.ras_win_max_num_repeat)
    check_integer("max_new_tokens", max_new_tokens)
    # The kernels take float32 and int32; below 1e-3 a logit over the temperature could overflow.
    if sampling.temperature != 0 and not 1e-3 <= sampling.temperature <= 1e3:
        raise ParameterError(f"temperature must be 0 (greedy) or between 0.001 and 1000, got {sampling.temperature}")
    if sampling.top_k is not None and not 0 <= sampling.top_k < 2**31:
        raise ParameterError(f"top_k must be at least 1, or 0 or None for no limit, got {sampling.top_k}")
    if sampling.top_p is not None and not 1e-6 <= sampling.top_p <= 1:
        raise ParameterError(f"top_p must be above 0 and at most 1, got {sampling.top_p}")
    if sampling.ras_win_len is not None and sampling.ras_win_len > _MAX_RAS_WINDOW:
        raise ParameterError(f"ras_win_len must be at most {_MAX_RAS_WINDOW}, got {sampling.ras_win_len}")
    if not 1 <= sampling.ras_win_max_num_repeat < 2**31:
        raise ParameterError(f"ras_win_max_num_repeat must be at least 1, got {sampling.ras_win_max_num_repeat}")
    _check_seed(sampling.seed)
    if max_new_tokens < 1:
        raise ParameterError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def _check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**63:
        raise ParameterError(f"seed must be between 0 and 2**63 - 1, got {seed}")
