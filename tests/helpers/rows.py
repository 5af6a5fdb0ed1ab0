"""Forward passes over a whole prompt, for tests that compare logits."""

from collections.abc import Sequence

import torch

from higgs_native.generation.delay_pattern import build_delay_pattern
from higgs_native.model.batch import Batch
from higgs_native.model.transformer import LanguageModel


def prompt_rows(
    model: LanguageModel, input_ids: Sequence[int], reference_codes: Sequence[torch.Tensor] = ()
) -> list[int | torch.Tensor]:
    """The rows of a prompt: token ids, and the delayed frames of its placeholders."""
    references = iter(reference_codes)
    rows: list[int | torch.Tensor] = []
    for token in input_ids:
        if token in (model.config.audio_in_token_id, model.config.audio_out_token_id):
            rows += build_delay_pattern(next(references), model.config).unbind(0)
        else:
            rows.append(token)
    return rows


@torch.inference_mode()
def forward(
    model: LanguageModel, rows: Sequence[int | torch.Tensor], chunks: Sequence[int] | None = None
) -> torch.Tensor:
    """Return the states [rows, hidden] of one sequence, in the order of `rows`.

    Args:
        chunks: rows per forward pass; None: all in one.
    """
    cache = model.new_cache(1, len(rows))
    states = torch.empty(len(rows), model.config.hidden_size, device=model.device)
    begin = text_before = 0
    for count in chunks or [len(rows)]:
        chunk = range(begin, begin + count)
        text = [at for at in chunk if isinstance(rows[at], int)]
        audio = [at for at in chunk if not isinstance(rows[at], int)]
        frames = torch.stack([rows[at] for at in audio]) if audio else torch.empty(0, model.config.num_codebooks)
        int32 = {"dtype": torch.int32, "device": model.device}
        batch = Batch(
            token_ids=torch.tensor([rows[at] for at in text], **int32),
            codes=frames.to(**int32),
            slots=torch.zeros(count, **int32),
            positions=torch.tensor(text + audio, **int32),
            text_positions=torch.arange(text_before, text_before + len(text), **int32),
        )
        states[torch.tensor(text + audio, device=model.device)] = model.forward(batch, cache)
        begin += count
        text_before += len(text)
    return states
