"""Embeddings of text tokens and of audio frames; a frame is the sum of its codes' embeddings."""

import torch

from higgs_native.ops._library import register_fakes


register_fakes("embed")


def embed(
    out: torch.Tensor,
    token_ids: torch.Tensor,
    codes: torch.Tensor,
    text_table: torch.Tensor,
    audio_table: torch.Tensor,
) -> None:
    """Embed text rows, then audio rows.

    `out[:T] = text_table[token_ids]`; `out[T:] = sum_k audio_table[k, codes[:, k]]`.

    Args:
        out: [T + A, hidden], float32; written.
        token_ids: [T], int32; T may be 0.
        codes: [A, codebooks], int32; A may be 0.
        text_table: [vocabulary, hidden], float32, bfloat16 or float16.
        audio_table: [codebooks * codebook size, hidden], of the same dtype; the codebooks' tables, concatenated.

    Raises:
        RuntimeError: a shape or dtype does not fit, or, on the CPU, an id or a code lies outside its table. On CUDA
            the row becomes NaN instead.
    """
    torch.ops.higgs_native.embed(out, token_ids, codes, text_table, audio_table)
