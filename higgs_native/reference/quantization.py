"""`higgs_native.ops.quantize_linear` in plain PyTorch."""

import torch

from higgs_native.ops.formats import WEIGHT_FORMATS, WeightFormat


_CLIPS = 10
"""Clipping thresholds that are tried, from the max magnitude down to `_MIN_CLIP` of it."""
_MIN_CLIP = 0.55


def quantize_linear(weight: torch.Tensor, format: str, clip: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """See `higgs_native.ops.quantize_linear`."""
    target, (n, k) = WEIGHT_FORMATS[format], weight.shape
    assert target.limits is not None  # of a quantized format
    group = target.scale_group or max(k, 1)
    groups = torch.nn.functional.pad(weight.float(), (0, -k % group)).view(n, -1, group)
    if target.is_integer:
        scales = _scales(groups, target, clip)
        values = _rounded(groups, scales, target).to(target.value_dtype)
    else:
        scales = _stored(groups.abs().amax(-1) / target.limits[1], target)
        scales = torch.where(scales == 0, 1, scales)
        values = (groups / scales[..., None]).to(target.value_dtype)
    values = values.view(n, -1)[:, :k].contiguous()
    return values, scales.view(target.scales_shape(n, k)).to(target.scale_dtype)


def _scales(groups: torch.Tensor, target: WeightFormat, clip: bool) -> torch.Tensor:
    """The scale of each group with the min squared error among the candidates; 1 for groups that round to zero."""
    assert target.limits is not None
    lowest, highest = target.limits
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]
    # 4 bits have one more integer below zero: the extreme value takes it.
    signed = -lowest > highest
    unclipped = extreme / lowest if signed else extreme.abs() / highest
    best = _stored(unclipped, target)
    if clip:
        min_error = _error(groups, best, target)
        for step in range(1, _CLIPS):
            threshold = 1 - (1 - _MIN_CLIP) * step / (_CLIPS - 1)
            for sign in (1, -1) if signed else (1,):
                scale = _stored(unclipped * threshold * sign, target)
                error = _error(groups, scale, target)
                is_better = (error < min_error) & (scale != 0)
                best, min_error = torch.where(is_better, scale, best), torch.where(is_better, error, min_error)
    return torch.where(best == 0, 1, best)


def _stored(scale: torch.Tensor, target: WeightFormat) -> torch.Tensor:
    """The scale as it is stored, at most the largest number; 0 if its reciprocal overflows."""
    assert target.scale_dtype is not None
    limit = torch.finfo(target.scale_dtype).max
    scale = scale.clamp(-limit, limit).to(target.scale_dtype).float()
    return torch.where(scale.reciprocal().isfinite(), scale, 0)


def _rounded(groups: torch.Tensor, scales: torch.Tensor, target: WeightFormat) -> torch.Tensor:
    assert target.limits is not None
    return torch.round(groups * scales.reciprocal()[..., None]).nan_to_num().clamp(*target.limits)


def _error(groups: torch.Tensor, scales: torch.Tensor, target: WeightFormat) -> torch.Tensor:
    return (groups - scales[..., None] * _rounded(groups, scales, target)).square().sum(-1)
