"""The delay pattern in plain PyTorch. Arguments and formulas: `higgs_native.ops.delay_pattern`."""

import torch


def delay_pattern_build(out: torch.Tensor, codes: torch.Tensor, bos_id: int, eos_id: int) -> None:
    """Enclose each codebook's codes in BOS and EOS, so that it begins one column after the codebook before it."""
    num_codebooks = len(codes)
    for k in range(num_codebooks):
        before = codes.new_full((k + 1,), bos_id)
        after = codes.new_full((num_codebooks - k,), eos_id)
        out[k] = torch.cat([before, codes[k], after])


def delay_pattern_revert(out: torch.Tensor, delayed: torch.Tensor) -> None:
    """Read row k from column k on."""
    for k, row in enumerate(delayed):
        out[k] = row[k : k + out.shape[1]]
