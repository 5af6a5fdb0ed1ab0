"""A text tokenizer with the methods of transformers' that programs for Boson's package call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from typing_extensions import Never


class TextTokenizer:
    """A text tokenizer.

    Attributes:
        backend_tokenizer: the tokenizer of the model.
    """

    def __init__(self, backend_tokenizer: Tokenizer) -> None:
        self.backend_tokenizer = backend_tokenizer

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __getattr__(self, name: str) -> Never:
        raise AttributeError(
            f"the engine's tokenizer has no {name}; transformers' AutoTokenizer.from_pretrained(model) may have it"
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(
        self, token_ids: int | Sequence[int] | np.ndarray | torch.Tensor, skip_special_tokens: bool = False, **_: Any
    ) -> str:
        """Return the text of ids; other options of transformers have no effect."""
        ids = torch.as_tensor(token_ids, dtype=torch.int64, device="cpu").flatten().tolist()
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        """Return the id of a token, or those of several; None for one that is unknown."""
        if isinstance(tokens, str):
            return self.backend_tokenizer.token_to_id(tokens)
        return [self.backend_tokenizer.token_to_id(token) for token in tokens]


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text, without special tokens around it, by any tokenizer."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids.ids if isinstance(tokenizer, Tokenizer) else list(ids)
