"""The rows of one pass: samples packed without padding, sorted into text rows and audio rows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from typing_extensions import Self


IGNORED = -100
"""The target of a row, or of a codebook, that nothing is learned from."""


@dataclass(frozen=True)
class Sample:
    """A sequence to learn from. Row n predicts row n + 1.

    Attributes:
        token_ids: [T], int64: its text rows, in order.
        codes: [A, codebooks], int64: its audio rows, delayed, in order.
        is_audio: [T + A], bool: the kind of each row.
        text_targets: [T + A], int64: the token id that the row is to predict, or `IGNORED`.
        audio_targets: [T + A, codebooks], int64: the codes that the row is to predict, or `IGNORED`.
    """

    token_ids: torch.Tensor
    codes: torch.Tensor
    is_audio: torch.Tensor
    text_targets: torch.Tensor
    audio_targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.is_audio)


@dataclass(frozen=True)
class PackedRows:
    """The rows of one pass: the text rows of all samples, then their audio rows; each kind in the order of samples.

    Attributes:
        token_ids: [T].
        codes: [A, codebooks], delayed.
        positions: [T + A]: the position of each row in its sample.
        by_sample: [T + A]: the rows in the order of samples and positions.
        by_kind: [T + A]: the inverse permutation.
        lengths, text_lengths: rows and text rows of each sample.
        kept_text, kept_audio: the text rows and the audio rows that predict anything; audio rows count from 0.
        predict_text, predict_audio: what each kept row predicts, as indices into the kept rows, text rows first.
        text_targets: [rows of `predict_text`].
        audio_targets: [rows of `predict_audio`, codebooks].
    """

    token_ids: torch.Tensor
    codes: torch.Tensor
    positions: torch.Tensor
    by_sample: torch.Tensor
    by_kind: torch.Tensor
    lengths: tuple[int, ...]
    text_lengths: tuple[int, ...]
    kept_text: torch.Tensor
    kept_audio: torch.Tensor
    predict_text: torch.Tensor
    predict_audio: torch.Tensor
    text_targets: torch.Tensor
    audio_targets: torch.Tensor

    @classmethod
    def pack(cls, samples: Sequence[Sample]) -> Self:
        """Pack samples, at least one."""
        is_audio = torch.cat([sample.is_audio for sample in samples])
        by_kind = torch.cat([(~is_audio).nonzero().flatten(), is_audio.nonzero().flatten()])
        num_text = int((~is_audio).sum())
        text_targets = torch.cat([sample.text_targets for sample in samples])[by_kind]
        audio_targets = torch.cat([sample.audio_targets for sample in samples])[by_kind]
        predicts_audio = (audio_targets != IGNORED).any(dim=1)
        predicts_text = text_targets != IGNORED
        kept = predicts_audio | predicts_text
        return cls(
            token_ids=torch.cat([sample.token_ids for sample in samples]),
            codes=torch.cat([sample.codes for sample in samples]),
            positions=torch.cat([torch.arange(len(sample)) for sample in samples])[by_kind],
            by_sample=by_kind.argsort(),
            by_kind=by_kind,
            lengths=tuple(len(sample) for sample in samples),
            text_lengths=tuple(len(sample.token_ids) for sample in samples),
            kept_text=kept[:num_text].nonzero().flatten(),
            kept_audio=kept[num_text:].nonzero().flatten(),
            predict_text=predicts_text[kept].nonzero().flatten(),
            predict_audio=predicts_audio[kept].nonzero().flatten(),
            text_targets=text_targets[predicts_text],
            audio_targets=audio_targets[predicts_audio],
        )

    def with_noise(self, share: float, num_codes: int) -> Self:
        """Return the rows with a share of their codes replaced by random ones; the targets are the same.

        Args:
            share: of the codes. BOS and EOS stay.
            num_codes: of a codebook, without BOS and EOS, which come behind them.
        """
        replaced = (torch.rand(self.codes.shape) < share) & (self.codes < num_codes)
        return replace(self, codes=torch.where(replaced, torch.randint(num_codes, self.codes.shape), self.codes))

    def to(self, device: torch.device) -> Self:
        """Return the rows on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return type(self)(**(values | moved))
