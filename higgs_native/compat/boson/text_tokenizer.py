"""A text tokenizer with the methods of transformers' that programs for Boson's package call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from typing_extensions import Never

from higgs_native.errors import ParameterError
from higgs_native.prompt.normalize import check_unicode
from higgs_native.utils.checks import check_flag, check_integer, check_strings
from higgs_native.utils.tensors import integer_tensor


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
        """Return the ids of a text.

        Raises:
            PromptError: it is no text, or not valid Unicode.
            ParameterError: `add_special_tokens` is neither True nor False.
        """
        check_unicode(text, "text")
        check_flag("add_special_tokens", add_special_tokens)
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(
        self, token_ids: int | Sequence[int] | np.ndarray | torch.Tensor, skip_special_tokens: bool = False, **_: Any
    ) -> str:
        """Return the text of ids; other options of transformers have no effect.

        Raises:
            ParameterError: an id is no integer from 0 to 2**32 - 1, or `skip_special_tokens` neither True nor False.
        """
        check_flag("skip_special_tokens", skip_special_tokens)
        if isinstance(token_ids, torch.Tensor | np.ndarray):
            ids = integer_tensor("token_ids", token_ids).flatten().tolist()
        else:
            ids = list(token_ids) if isinstance(token_ids, Sequence) else [token_ids]
        for token_id in ids:
            check_integer("each of token_ids", token_id)
            if not 0 <= token_id < 2**32:
                raise ParameterError(f"each of token_ids must be between 0 and 2**32 - 1, got {token_id}")
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        """Return the id of a token, or those of several; None for one that is unknown.

        Raises:
            ParameterError, PromptError: a token is no string, or not valid Unicode.
        """
        names = [tokens] if isinstance(tokens, str) else tokens
        check_strings("tokens", names)
        for name in names:
            check_unicode(name, "each of tokens")
        ids = [self.backend_tokenizer.token_to_id(name) for name in names]
        return ids[0] if isinstance(tokens, str) else ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text, without special tokens around it, by any tokenizer.

    Raises:
        ParameterError: `tokenizer` has no method `encode`, or is a string.
    """
    if isinstance(tokenizer, str) or not hasattr(tokenizer, "encode"):
        raise ParameterError(f"tokenizer must be a text tokenizer with encode, got {type(tokenizer).__name__}")
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids.ids if isinstance(tokenizer, Tokenizer) else list(ids)
