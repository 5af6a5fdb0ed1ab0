"""Models whose weights are packed where they were loaded."""

from collections.abc import Callable

import torch

from higgs_native.errors import ParameterError


def check_stays(dtype: torch.dtype, device: torch.device, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Raise ParameterError if `change`, of a model of this dtype on this device, would convert or move its tensors."""
    try:
        asked = change(torch.empty(0, dtype=dtype, device=device))
        wish = f"can't be changed to {asked.dtype} on {asked.device}"
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # torch has no such device or dtype
        asked, wish = None, f"can't be moved ({str(error).splitlines()[0]})"
    if asked is None or (asked.dtype, asked.device) != (dtype, device):
        raise ParameterError(
            f"the model is in {dtype} on {device} and {wish}; "
            "load it as it shall be: from_pretrained(name, dtype=..., device=...)"
        )
