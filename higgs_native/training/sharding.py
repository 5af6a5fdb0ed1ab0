"""The weights shared out over processes (FSDP): each layer is gathered where it is used."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from higgs_native.training.model import Layer


def shard(model: nn.Module, device: torch.device, num_processes: int) -> None:
    """Leave each process its share of every parameter; gradients are averaged as without sharding."""
    mesh = init_device_mesh(device.type, (num_processes,))
    for module in [*(module for module in model.modules() if isinstance(module, Layer)), model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def synchronize_gradients(model: nn.Module, is_last: bool) -> None:
    """Say whether the next backward pass of a sharded model is the last one of a step, after which gradients meet."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(is_last)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor gathered from all processes, which all call this; one that is not shared out, as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return this process's share of a whole tensor, as that of a parameter of the same shape."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
