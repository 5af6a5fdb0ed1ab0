"""The device that a model runs on."""

import re

import torch

from higgs_native._C import build_info
from higgs_native.errors import ParameterError, short_repr
from higgs_native.ops import check_instruction_set


def checked_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; `auto` is a GPU if there is one that the build has kernels for, else the CPU.

    Raises:
        ParameterError: the device does not exist or can't run the kernels, or HIGGS_NATIVE_ISA names no instruction
            set of this machine.
    """
    check_instruction_set()
    if not isinstance(device, str | int | torch.device):
        raise ParameterError(f"device must be auto, cpu, cuda or cuda:N, got {short_repr(device)}")
    if device == "auto":
        usable = build_info()["cuda"] and torch.cuda.is_available() and _has_kernels(torch.cuda.current_device())
        return torch.device("cuda", torch.cuda.current_device()) if usable else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ParameterError(f"device must be auto, cpu, cuda or cuda:N, got {short_repr(device)}") from None
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type != "cuda":
        raise ParameterError(f"device must be auto, cpu, cuda or cuda:N, got '{device}'")
    if not build_info()["cuda"]:
        raise ParameterError(
            f"device must be cpu, got {device}: higgs_native was built without CUDA; build it with nvcc and "
            "HIGGS_NATIVE_CUDA=ON"
        )
    if not torch.cuda.is_available():
        raise ParameterError(f"device must be cpu, got {device}: torch {torch.__version__} finds no GPU")
    index = torch.cuda.current_device() if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise ParameterError(f"device must be one of {torch.cuda.device_count()} GPUs, got {device}")
    if not _has_kernels(index):
        major, minor = torch.cuda.get_device_capability(index)
        raise ParameterError(
            f"device must be a GPU of architecture {build_info()['cuda_architectures']}, got {device}: "
            f"{torch.cuda.get_device_name(index)} of compute capability {major}.{minor}; build the kernels with "
            f"HIGGS_NATIVE_CUDA_ARCHITECTURES={major}{minor} (min 8.0)"
        )
    return torch.device("cuda", index)


def _has_kernels(index: int) -> bool:
    """Whether the build has machine code or PTX that this GPU runs."""
    return any(
        _runs(architecture, torch.cuda.get_device_capability(index))
        for architecture in build_info()["cuda_architectures"].split(",")
    )


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU runs code built for `architecture`, such as 80-real, 90a-real or 120."""
    match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
    if match is None:
        return True  # `native`, `all`: chosen by whoever built it
    major, minor, specific, kind = int(match[1]), int(match[2]), match[3], match[4]
    if specific:
        return capability == (major, minor)
    machine_code = kind != "-virtual" and capability[0] == major and capability[1] >= minor
    ptx = kind != "-real" and capability >= (major, minor)
    return machine_code or ptx
