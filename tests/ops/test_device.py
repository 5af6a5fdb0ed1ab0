"""The devices that can be chosen, on a machine with GPUs of any kind."""

import pytest
import torch

from higgs_native.errors import ParameterError
from higgs_native.ops import device
from higgs_native.ops.device import checked_device


BUILT = "80-real,89-real,90a-real,120-real,90-virtual,120-virtual"


@pytest.fixture
def gpus(monkeypatch):
    """Lets the machine have GPUs of these compute capabilities, and the build these architectures."""

    def install(*capabilities: tuple[int, int], built: str = BUILT) -> None:
        monkeypatch.setattr(device, "build_info", lambda: {"cuda": bool(built), "cuda_architectures": built})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")

    return install


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)])
def test_gpus_that_the_build_has_kernels_for(gpus, capability):
    gpus(capability)
    for name in ("auto", "cuda", "cuda:0", torch.device("cuda")):
        assert checked_device(name) == torch.device("cuda", 0)


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_a_gpu_without_kernels_is_refused(gpus, capability):
    gpus(capability)
    assert checked_device("auto") == torch.device("cpu")
    with pytest.raises(
        ParameterError, match=rf"got cuda: a GPU of compute capability {capability[0]}\.{capability[1]}; build"
    ):
        checked_device("cuda")


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [("80", (10, 0), True), ("90-virtual", (8, 9), False), ("100f-real", (10, 0), True), ("all-major", (7, 5), True)],
)
def test_other_builds(gpus, built, capability, runs):
    gpus(capability, built=built)
    assert checked_device("auto").type == ("cuda" if runs else "cpu")


@pytest.mark.parametrize(
    ("capabilities", "built", "name", "message"),
    [
        ([(9, 0)], "", "cuda", "higgs_native was built without CUDA"),
        ([], BUILT, "cuda", "finds no GPU"),
        ([(9, 0)], BUILT, "cuda:1", "device must be one of 1 GPUs, got cuda:1"),
        ([(9, 0)], BUILT, "mps", "device must be auto, cpu, cuda or cuda:N, got 'mps'"),
        ([(9, 0)], BUILT, "gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_what_can_not_be_chosen(gpus, capabilities, built, name, message):
    gpus(*capabilities, built=built)
    with pytest.raises(ParameterError, match=message):
        checked_device(name)


def test_the_gpu_that_is_current_is_the_one_without_a_number(gpus, monkeypatch):
    gpus((7, 5), (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert checked_device("auto") == checked_device("cuda") == torch.device("cuda", 1)
