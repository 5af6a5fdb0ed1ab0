"""Counts of what must happen once: a file is opened, sampling parameters are built and unpacked."""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.steps.sampler import SamplerState


@contextmanager
def counting_opens(path: Path) -> Iterator[Callable[[], int]]:
    """Count how often any library of any process opens a file, by Linux' inotify.

    Inotify merges equal events in a row, so that accesses and closes are watched, too.
    """
    in_access, in_close, in_open = 0x1, 0x18, 0x20
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    try:
        if libc.inotify_add_watch(descriptor, os.fsencode(path), in_access | in_close | in_open) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

        def count() -> int:
            opens = 0
            try:
                while events := os.read(descriptor, 4096):
                    while events:
                        mask, length = struct.unpack_from("=4xI4xI", events)
                        opens += bool(mask & in_open)
                        events = events[16 + length :]
            except BlockingIOError:
                return opens

        yield count
    finally:
        os.close(descriptor)


def recorded_sampling(monkeypatch: pytest.MonkeyPatch) -> tuple[list[SamplingParams], list[SamplingParams]]:
    """Return two lists: of parameters that are built from now on, and of those unpacked into a sampler's tensors."""
    built: list[SamplingParams] = []
    unpacked: list[SamplingParams] = []
    check, reset_slot = SamplingParams.__post_init__, SamplerState.reset_slot

    def recorded_check(params):
        built.append(params)
        check(params)

    def recorded_reset(sampler, slot, convention, sampling, *arguments, **keywords):
        unpacked.append(sampling)
        reset_slot(sampler, slot, convention, sampling, *arguments, **keywords)

    monkeypatch.setattr(SamplingParams, "__post_init__", recorded_check)
    monkeypatch.setattr(SamplerState, "reset_slot", recorded_reset)
    return built, unpacked
