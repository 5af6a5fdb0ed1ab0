"""Random samples, and the same as the inputs of transformers."""

from collections.abc import Sequence

import torch

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.training.data.rows import IGNORED, Sample


def random_sample(config: HiggsAudioConfig, runs: Sequence[int], seed: int) -> Sample:
    """A sample of text and audio in turn, of the given numbers of rows; text comes first.

    A third of the targets are left out.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    is_audio = torch.cat([torch.full((count,), bool(index % 2)) for index, count in enumerate(runs)])
    num_audio = int(is_audio.sum())
    token_ids, codes = (
        draw(256, len(is_audio) - num_audio),
        draw(config.codebook_size, num_audio, config.num_codebooks),
    )
    text_targets = torch.full((len(is_audio),), IGNORED)
    audio_targets = torch.full((len(is_audio), config.num_codebooks), IGNORED)
    text_rows, audio_rows = (~is_audio).nonzero().flatten(), is_audio.nonzero().flatten()
    text_targets[text_rows] = token_ids
    audio_targets[audio_rows] = codes
    text_targets[draw(3, len(is_audio)) == 0] = IGNORED
    audio_targets[draw(3, *audio_targets.shape) == 0] = IGNORED
    # Row n predicts row n + 1.
    text_targets = torch.cat([text_targets[1:], torch.tensor([IGNORED])])
    audio_targets = torch.cat([audio_targets[1:], torch.full((1, config.num_codebooks), IGNORED)])
    return Sample(token_ids, codes, is_audio, text_targets, audio_targets)


def transformers_inputs(config: HiggsAudioConfig, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """The inputs and labels of `samples` for transformers, padded on the right."""
    count, length = len(samples), max(map(len, samples))
    frames = max(len(sample.codes) for sample in samples)
    inputs = {
        "input_ids": torch.full((count, length), config.pad_token_id),
        "attention_mask": torch.zeros(count, length, dtype=torch.int64),
        "labels": torch.full((count, length), IGNORED),
        "audio_input_ids": torch.zeros(count, frames, config.num_codebooks, dtype=torch.int64),
        "audio_input_ids_mask": torch.zeros(count, frames, dtype=torch.bool),
        "audio_labels": torch.full((count, frames, config.num_codebooks), IGNORED),
    }
    for index, sample in enumerate(samples):
        ids = torch.full((len(sample),), config.audio_out_token_id)
        ids[~sample.is_audio] = sample.token_ids
        inputs["input_ids"][index, : len(ids)] = ids
        inputs["attention_mask"][index, : len(ids)] = 1
        inputs["labels"][index, 1 : len(ids)] = sample.text_targets[:-1]
        inputs["audio_input_ids"][index, : len(sample.codes)] = sample.codes
        inputs["audio_input_ids_mask"][index, : len(sample.codes)] = True
        before = sample.is_audio.nonzero().flatten() - 1
        inputs["audio_labels"][index, : len(sample.codes)] = sample.audio_targets[before]
    return inputs
