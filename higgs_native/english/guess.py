"""The pronunciation of words that no dictionary has: a small network from letters to phonemes."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn


LETTERS = "abcdefghijklmnopqrstuvwxyz'"
PHONEMES = "AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻɐbdfhjklmnpstvwzðŋɡɹɾʃʒʔʤʧθᵊˈˌː"

_WIDEST = 3
"""Maximum phonemes and stress marks of a letter: x is ks."""
_LONGEST = 40
_ACCENTS = 2
_MAX_SIZE = 4096
"""Maximum width and number of layers in a file: what is built before the tensors are compared stays small."""


class _Embedding(nn.Embedding):
    """Draws no initial values on the meta device: that would import torch's compiler, which takes a second."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Guesser(nn.Module):
    """Letters to phonemes by connectionist temporal classification: every letter has three outputs for phonemes.

    Args:
        width, inner, layers: of the transformer over the outputs.
    """

    def __init__(self, width: int = 128, inner: int = 384, layers: int = 4) -> None:
        super().__init__()
        self.shape = {"width": width, "inner": inner, "layers": layers}
        self.letters = _Embedding(len(LETTERS) + 1, width)
        self.positions = _Embedding(_WIDEST * _LONGEST, width)
        self.accents = _Embedding(_ACCENTS, width)
        layer = nn.TransformerEncoderLayer(width, width // 32, inner, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, len(PHONEMES) + 1)

    def forward(self, letters: torch.Tensor, accents: torch.Tensor) -> torch.Tensor:
        """Logits of the blank and the phonemes at each output.

        Args:
            letters: int64 [batch, length], 0 behind a word's end; else 1 + the index in `LETTERS`.
            accents: int64 [batch], 0 American, 1 British.

        Returns:
            [batch, 3 * length, phonemes + 1]
        """
        ids = letters.repeat_interleave(_WIDEST, 1)
        x = self.letters(ids) + self.positions.weight[: ids.shape[1]] + self.accents(accents)[:, None]
        return self.head(self.encoder(x, src_key_padding_mask=ids == 0))

    @torch.inference_mode()
    def guess(self, word: str, british: bool = False) -> str:
        """The phonemes of a word in lower case; letters that are not English are left out."""
        ids = encode_letters(word)
        if not ids:
            return ""
        letters = torch.tensor([ids], dtype=torch.int64, device="cpu")
        accents = torch.tensor([int(british)], dtype=torch.int64, device="cpu")
        logits = self(letters, accents)
        return decode_outputs(logits[0].argmax(-1).tolist())

    @classmethod
    def load(cls, path: Path) -> "Guesser":
        """Read what `recipe.train_guesser` wrote.

        The weights are float64, which autocast and torch's precision of matrix operators leave as it is.

        Raises:
            OSError, SafetensorError, ValueError, TypeError, RuntimeError: the file is damaged.
        """
        with safe_open(path, "pt") as file:
            shape = {name: int(value) for name, value in (file.metadata() or {}).items()}
            if not all(0 < size <= _MAX_SIZE for size in shape.values()) or shape.get("width", 32) % 32:
                raise ValueError(f"{path.name} must have sizes up to {_MAX_SIZE}, a width of 32 times n, got {shape}")
            with torch.device("meta"):  # whatever the default device is
                model = cls(**shape)
            names = file.keys()
            model.load_state_dict({name: file.get_tensor(name).double() for name in names}, assign=True)
        for name, weight in model.state_dict().items():
            if not weight.isfinite().all():
                raise ValueError(f"{path.name}: {name} must be finite, got NaN or infinity")
        return model.eval()


def encode_letters(word: str) -> list[int]:
    """Indices of letters; those of a word that is too long are cut off."""
    return [LETTERS.index(letter) + 1 for letter in word.lower() if letter in LETTERS][:_LONGEST]


def decode_outputs(outputs: list[int]) -> str:
    """Phonemes of the best class of each output: of equals in a row one counts, and blanks part them."""
    kept = [output for output, before in zip(outputs, [0, *outputs], strict=False) if output and output != before]
    return "".join(PHONEMES[output - 1] for output in kept)
