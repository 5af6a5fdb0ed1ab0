"""Fingerprints: digests that tell weights from others without reading all of them."""

import hashlib
from collections.abc import Mapping

import torch


SAMPLED = 1000
"""About this many elements of each tensor are read."""


def fingerprint(settings: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 of settings and of the names, dtypes, shapes and some elements of tensors."""
    digest = hashlib.sha256(settings.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        sampled = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
