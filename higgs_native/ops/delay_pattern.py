"""The delay pattern of audio codes: each codebook begins one column after the codebook above it.

With C codebooks and T frames, row k of the delayed codes is k + 1 columns of BOS, the T codes, then C - k columns of
EOS. The model predicts one column per step, so codebook k of a frame is drawn after codebook k - 1 of the same frame.
"""

import torch

from higgs_native.ops._library import register_fakes


register_fakes("delay_pattern_build", "delay_pattern_revert")


def delay_pattern_build(out: torch.Tensor, codes: torch.Tensor, bos_id: int, eos_id: int) -> None:
    """Enclose codes in BOS and EOS and delay them: `out[k, n] = [BOS, codes[k], EOS][n - k]`.

    Args:
        out: [C, T + C + 1], int32; written: BOS before a row's codes, EOS after them.
        codes: [C, T], int32; T may be 0.
        bos_id, eos_id: the codes that begin and end a codebook's row.

    Raises:
        RuntimeError: a shape, dtype or device does not fit, or an id is negative or exceeds an int32.
    """
    torch.ops.higgs_native.delay_pattern_build(out, codes, bos_id, eos_id)


def delay_pattern_revert(out: torch.Tensor, delayed: torch.Tensor) -> None:
    """Undo the delay: `out[k, n] = delayed[k, n + k]`.

    The result of `delay_pattern_build` becomes [C, T + 2]: its BOS and EOS columns stay.

    Args:
        out: [C, N - C + 1], int32; written.
        delayed: [C, N], int32, N >= C.

    Raises:
        RuntimeError: a shape, dtype or device does not fit, or `delayed` has fewer columns than codebooks.
    """
    torch.ops.higgs_native.delay_pattern_revert(out, delayed)
