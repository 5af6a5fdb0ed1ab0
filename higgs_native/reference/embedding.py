"""`higgs_native.ops.embedding` in plain PyTorch."""

import torch


def embed(
    out: torch.Tensor,
    token_ids: torch.Tensor,
    codes: torch.Tensor,
    text_table: torch.Tensor,
    audio_table: torch.Tensor,
) -> None:
    """See `higgs_native.ops.embed`."""
    num_text = token_ids.shape[0]
    out[:num_text] = text_table[token_ids.long()].float()
    num_codebooks = codes.shape[1]
    if codes.shape[0]:
        offsets = torch.arange(num_codebooks) * (audio_table.shape[0] // num_codebooks)
        out[num_text:] = audio_table[codes.long() + offsets].float().sum(dim=1)
