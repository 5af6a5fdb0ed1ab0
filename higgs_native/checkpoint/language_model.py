"""The language model's tensors: their names in each layout, their shapes, and how they are read from files."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import TensorFiles, listed
from higgs_native.checkpoint.other_kinds import kind_of_tensors
from higgs_native.errors import CheckpointError, one_line
from higgs_native.ops.formats import STORED_DTYPES
from higgs_native.utils.memory import release_mapped
from higgs_native.utils.tensors import fingerprint, is_finite


_FINGERPRINT_VALUES = 64
"""Values of each tensor that its fingerprint covers."""
AUDIO_TABLE = "audio_codebook_embeddings.weight"
AUDIO_LM_HEAD = "audio_decoder_proj.audio_lm_head.weight"
TEXT_LM_HEAD = "audio_decoder_proj.text_lm_head.weight"

_TRANSFORMERS_NAMES = {
    "audio_lm_head.weight": AUDIO_LM_HEAD,
    "text_lm_head.weight": TEXT_LM_HEAD,
    "model.embed_audio_tokens.embed_audio_tokens.weight": AUDIO_TABLE,
}
_HIGGS_TTS_3_NAMES = {
    "tied.embedding.text_embedding.weight": "embed_tokens.weight",
    "tied.embedding.modality_embeddings.0.embedding.weight": AUDIO_TABLE,
}
# Files of Higgs TTS 3 hold the tables again as heads: the audio head is tied, the text head is not needed.
_COPIES = {
    "tied.head.text_head.weight": "embed_tokens.weight",
    "tied.head.modality_heads.0.weight": AUDIO_TABLE,
}
_ORIGINAL_NAMES = _TRANSFORMERS_NAMES | _HIGGS_TTS_3_NAMES | _COPIES
BUNDLED_AUDIO_TOKENIZER = "tied.embedding.modality_embeddings.0.model."
"""The prefix of the audio tokenizer's tensors in a file of Higgs TTS 3."""
BUNDLED_CONFIG_FILE = "codec_config.json"
"""The configuration of an audio tokenizer in a checkpoint of Higgs TTS 3, if its shapes are not the published ones."""
_STORED_NAMES = {original: stored for stored, original in _TRANSFORMERS_NAMES.items()}
_HIGGS_TTS_3_STORED_NAMES = {original: stored for stored, original in _HIGGS_TTS_3_NAMES.items()}
# A partly trained table is stored in two parts: its frozen rows, then its trainable rows.
_SPLIT_PARTS = {"embedding_frozen": 0, "embedding_trainable": 1, "linear_frozen": 0, "linear_trainable": 1}


def transformers_name(name: str) -> str:
    """Return a tensor's name in the transformers layout, given its name in the original layout."""
    return _STORED_NAMES.get(name, f"model.{name}")


def higgs_tts_3_name(name: str) -> str:
    """Return a tensor's name in a file of Higgs TTS 3, given its name in the original layout."""
    return _HIGGS_TTS_3_STORED_NAMES.get(name, f"body.{name}")


def _is_extra(stored: str) -> bool:
    """Whether a stored tensor is a copy of another one, or belongs to the audio tokenizer."""
    return stored in _COPIES or stored.startswith(BUNDLED_AUDIO_TOKENIZER)


def original_name(stored: str) -> str:
    """Return a tensor's name in the original layout, given its name in any."""
    return _name_and_part(stored)[0]


def _name_and_part(stored: str) -> tuple[str, int | None]:
    """Return a tensor's name in the original layout, and its part of a split tensor; None if it is whole."""
    name = _ORIGINAL_NAMES.get(stored, stored.removeprefix("model.").removeprefix("body."))
    for suffix, part in _SPLIT_PARTS.items():
        for ending in (f".{suffix}", f".{suffix}.weight"):
            if name.endswith(ending):
                return name.removesuffix(ending) + ".weight", part
    return name, None


def expected_tensors(config: HiggsAudioConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a language model by its name in the original layout.

    A checkpoint may lack the text head.
    """
    hidden, intermediate, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, key_value = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    audio_rows = config.num_codebooks * config.codebook_size
    tensors: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, hidden),
        AUDIO_TABLE: (audio_rows, hidden),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": (query, hidden),
            prefix + "self_attn.k_proj.weight": (key_value, hidden),
            prefix + "self_attn.v_proj.weight": (key_value, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, query),
        }
        if config.head_norms:
            tensors |= {prefix + f"self_attn.{name}_norm.weight": (head_dim,) for name in "qk"}
        for path in ("", "audio_") if config.is_dual(layer) else ("",):
            tensors |= {
                prefix + f"{path}input_layernorm.weight": (hidden,),
                prefix + f"{path}post_attention_layernorm.weight": (hidden,),
                prefix + f"{path}mlp.gate_proj.weight": (intermediate, hidden),
                prefix + f"{path}mlp.up_proj.weight": (intermediate, hidden),
                prefix + f"{path}mlp.down_proj.weight": (hidden, intermediate),
            }
    tensors["norm.weight"] = (hidden,)
    if config.tied_audio_head:
        return tensors
    return tensors | {AUDIO_LM_HEAD: (audio_rows, hidden), TEXT_LM_HEAD: (config.vocab_size, hidden)}


class LanguageModelFiles:
    """A language model's tensors from a checkpoint of any layout, by their names in the original layout.

    Split tensors are joined; copies of tied ones and a bundled audio tokenizer are left out. Every name, shape and
    dtype is checked against the configuration.

    Raises:
        CheckpointError: tensors are missing, unknown, stored twice, or of a wrong shape or dtype.
    """

    def __init__(self, folder: Path, config: HiggsAudioConfig) -> None:
        self._files = TensorFiles(folder)
        names = [name for name in self._files.names() if not _is_extra(name)]
        parts_of: dict[str, dict[int | None, str]] = {}
        for stored in names:
            name, part = _name_and_part(stored)
            parts = parts_of.setdefault(name, {})
            if part in parts or (parts and None in (part, *parts)):
                other = one_line(next(iter(parts.values())), 80)
                raise CheckpointError(
                    f"{folder} must hold {one_line(name, 80)} once, got it as {other} and as {one_line(stored, 80)}"
                )
            parts[part] = stored
        self._sources = {
            name: [parts[part] for part in (None, 0, 1) if part in parts] for name, parts in parts_of.items()
        }
        halves = {name for name, parts in parts_of.items() if None not in parts and len(parts) < 2}
        expected = expected_tensors(config)
        missing = [name for name in expected if name not in self._sources or name in halves]
        missing = [name for name in missing if name != TEXT_LM_HEAD or name in self._sources]
        unknown = [stored for name, sources in self._sources.items() if name not in expected for stored in sources]
        unknown = [name for name in unknown if not name.endswith("rotary_emb.inv_freq")]
        problems = [listed(kind, names) for kind, names in (("missing", missing), ("unknown", unknown)) if names]
        if problems:
            got = kind_of_tensors(unknown) or ", ".join(problems)
            raise CheckpointError(f"the tensors of {folder} must fit its config.json, got {got}")
        for stored in names:
            if self._files.dtype(stored) not in STORED_DTYPES:
                raise CheckpointError(
                    f"{folder}: {stored} must be {', '.join(STORED_DTYPES)}, got {self._files.dtype(stored)}"
                )
        for name, shape in expected.items():
            if name in self and not self._fits(name, shape):
                got = " and ".join(str(list(self._files.shape(stored))) for stored in self._sources[name])
                raise CheckpointError(f"{self.description(name)} must have shape {list(shape)}, got {got}")

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether the parts of a tensor, joined along the first dimension, have a shape."""
        parts = [self._files.shape(stored) for stored in self._sources[name]]
        if any(len(part) != len(shape) or part[1:] != shape[1:] for part in parts):
            return False
        return sum(part[0] for part in parts) == shape[0]

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def description(self, name: str) -> str:
        """Return the folder and the stored name of a tensor, or the names of its parts, for error messages."""
        return f"{self._files.folder}: {' and '.join(self._sources[name])}"

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor with its parts joined."""
        first, *others = (self._files.shape(stored) for stored in self._sources[name])
        return (first[0] + others[0][0], *first[1:]) if others else first

    @property
    def matrix_dtype(self) -> torch.dtype:
        """The most common dtype of the layers' matrices; tables and norms may have another."""
        matrices = (name for name in self._sources if name.startswith("layers.") and len(self.shape(name)) == 2)
        ((dtype, _),) = Counter(self._files.dtype(self._sources[name][0]) for name in matrices).most_common(1)
        return STORED_DTYPES[dtype]

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Copy tensor `name` into `target`, of the same shape and any dtype, one part at a time."""
        row = 0
        for stored in self._sources[name]:
            part = self._files.get(stored)
            target[row : row + part.shape[0]].copy_(part)
            row += part.shape[0]
            release_mapped(part)

    def check_finite(self, name: str, tensor: torch.Tensor) -> None:
        """Raise CheckpointError if `tensor`, read as `name`, holds NaN or infinity: maybe one too large for its dtype.

        It would spread to all states, and show as noise or as a failure of the sampler.
        """
        if not is_finite(tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{self.description(name)} must be finite in {dtype}, got NaN or infinity")

    @contextmanager
    def opened(self, name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield tensor `name` in `dtype`, read-only; it may be the mapped file, which is released after the block."""
        parts = [self._files.get(stored) for stored in self._sources[name]]
        yield (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)
        for part in parts:
            release_mapped(part)

    def fingerprint(self) -> str:
        """Return a SHA-256 that tells the weights from others, in either layout and any dtype.

        It covers the names, the shapes and the first values of all tensors.
        """
        heads = {}
        for name in sorted(self._sources):
            first = self._files.get(self._sources[name][0])
            values = first.flatten()[:_FINGERPRINT_VALUES].to(torch.bfloat16, copy=True)
            heads[f"{name} {list(self.shape(name))}"] = values
            release_mapped(first)
        return fingerprint("", heads)

    def changed(
        self, stored: str, tensor: torch.Tensor, change: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Return a stored tensor as `change` makes it, which gets the whole tensor that it is a part of."""
        name = original_name(stored)
        sources = self._sources.get(name, [])
        if len(sources) < 2:
            return change(name, tensor)
        parts = [self._files.get(source) for source in sources]
        begin = len(parts[0]) if stored == sources[1] else 0
        return change(name, torch.cat(parts))[begin : begin + len(tensor)].contiguous()
