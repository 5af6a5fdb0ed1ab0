"""Where a model runs."""

import torch

from higgs_native._C import build_info
from higgs_native.errors import ParameterError
from higgs_native.ops import check_instruction_set


def checked_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; `auto` is a GPU where there is one that the build has kernels for.

    Raises:
        ParameterError: there is no such device, it can't run the kernels, or HIGGS_NATIVE_ISA names no instruction set
            of this machine.
    """
    check_instruction_set()
    usable = build_info()["cuda"] and torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if usable else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ParameterError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type != "cuda":
        raise ParameterError(f"device must be auto, cpu, cuda or cuda:N, got '{device}'")
    if not build_info()["cuda"]:
        raise ParameterError(
            f"device {device} can't be used: higgs_native was built without CUDA; build it where nvcc is found, "
            "with HIGGS_NATIVE_CUDA=ON"
        )
    if not torch.cuda.is_available():
        raise ParameterError(f"device {device} can't be used: torch {torch.__version__} finds no GPU")
    index = torch.cuda.current_device() if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise ParameterError(f"device {device} can't be used: there are {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)
