"""Checkpoint folders: found on disk or fetched by their Hub name, and their tensors, read lazily from safetensors."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from higgs_native.errors import CheckpointError, ConfigError
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.ops.formats import STORED_DTYPES
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import read_json_object
from higgs_native.utils.memory import release_mapped


_FETCHED = ("*.json", "*.safetensors", "*.txt", "*.pth")


def resolve_folder(path_or_name: str | Path, kind: str = "model") -> Path:
    """Return the local folder of a checkpoint: `path_or_name` itself, or the Hub repository of that name, fetched.

    Args:
        path_or_name: a folder, or a Hub name such as `bosonai/higgs-audio-v2-generation-3B-base`, optionally followed
            by `@revision`.
        kind: what the checkpoint is, for error messages.

    Raises:
        CheckpointError: there is no such folder, and the Hub has no such repository or can't be reached.
        ParameterError: it is neither a string nor a path.
    """
    written = expanded_path(kind, path_or_name)
    path = Path(written)
    if path.is_dir():
        return path
    name, _, revision = str(path_or_name).partition("@")
    if path.exists():
        raise CheckpointError(f"{kind} {written} is a file; expected the folder that holds config.json")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{kind} {written} does not exist; expected a folder or a Hub name such as owner/name")
    # Imported here: the hub's client is slow to import, and a local folder does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_FETCHED)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{kind} {name} is no local folder and could not be fetched: {reason}") from None


class TensorFiles:
    """The tensors of a folder's safetensors files, memory-mapped and read one at a time.

    Args:
        folder: its files are those of `weight_files`.

    Raises:
        CheckpointError: as for `weight_files`, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, safe_open] = {}
        for path in weight_files(folder):
            try:
                opened = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is damaged or incomplete: {error}") from None
            for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                self._file_of[name] = opened

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        """All tensors' names."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """A tensor's dtype as safetensors names it (`F32`, `BF16`, `F16`, ...), without reading it."""
        return self._file_of[name].get_slice(name).get_dtype()

    def get(self, name: str) -> torch.Tensor:
        """Map a tensor into memory."""
        return self._file_of[name].get_tensor(name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's tensors.

    `model.safetensors` comes before the shards that `model.safetensors.index.json` names, as in transformers: the
    published folder has both, and its `config.json` describes the single file.

    Raises:
        CheckpointError: there is neither, the index is damaged, or a shard is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(f"{folder} has neither {single.name} nor {index.name}")
    shards = _shards(index)
    for name in shards:
        if not (folder / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is missing")
    return [folder / name for name in shards]


def _shards(index: Path) -> list[str]:
    """The names of the files that an index names, all in its own folder."""
    try:
        weight_map = read_json_object(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(f"{index} is damaged: {error}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is damaged: weight_map must name a file for each tensor")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index} is damaged: {name} must lie in a file of this folder, got {file!r}")
    return sorted(set(weight_map.values()))


class LanguageModelFiles:
    """A language model's checkpoint of either layout, under the names of the original one.

    Tensors that the file holds split are joined. On construction every name and shape is checked against the
    configuration.

    Raises:
        CheckpointError: tensors are missing, unknown, or of another shape than the configuration asks for.
    """

    def __init__(self, folder: Path, config: HiggsAudioConfig) -> None:
        self._files = TensorFiles(folder)
        self._sources = {}
        for stored in self._files.names():
            name, part = _original_name(stored)
            if name in self._sources and part is None:
                raise CheckpointError(f"{folder} holds {name} twice, as {self._sources[name][0]} and as {stored}")
            if part is None:
                self._sources[name] = [stored]
            else:
                self._sources.setdefault(name, [None, None])[part] = stored
        expected = expected_tensors(config)
        missing = [name for name in expected if name not in self._sources or None in self._sources[name]]
        missing = [name for name in missing if name != TEXT_LM_HEAD or name in self._sources]
        unknown = [stored for name, sources in self._sources.items() if name not in expected for stored in sources]
        unknown = [name for name in unknown if name is not None and not name.endswith("rotary_emb.inv_freq")]
        faults = [_listed(kind, names) for kind, names in (("missing", missing), ("unknown", unknown)) if names]
        if faults:
            raise CheckpointError(f"the tensors of {folder} don't fit its config.json: {'; '.join(faults)}")
        for stored in self._files.names():
            if self._files.dtype(stored) not in STORED_DTYPES:
                raise CheckpointError(
                    f"{folder}: {stored} is stored as {self._files.dtype(stored)}; expected {', '.join(STORED_DTYPES)}"
                )
        for name, shape in expected.items():
            if name in self and self.shape(name) != shape:
                raise CheckpointError(
                    f"{folder}: {self._sources[name][0]} has shape {list(self.shape(name))}, "
                    f"but config.json asks for {list(shape)}"
                )

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, its parts joined."""
        shapes = [self._files.shape(stored) for stored in self._sources[name]]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    @property
    def matrix_dtype(self) -> torch.dtype:
        """The dtype of the layers' matrices, or of most of them. Tables and norms may be stored in another one."""
        matrices = (name for name in self._sources if name.startswith("layers.") and len(self.shape(name)) == 2)
        ((dtype, _),) = Counter(self._files.dtype(self._sources[name][0]) for name in matrices).most_common(1)
        return STORED_DTYPES[dtype]

    def copy_into(self, target: torch.Tensor, name: str) -> None:
        """Copy tensor `name` into `target` (same shape, any dtype), a part at a time."""
        row = 0
        for stored in self._sources[name]:
            part = self._files.get(stored)
            target[row : row + part.shape[0]].copy_(part)
            row += part.shape[0]
            release_mapped(part)

    @contextmanager
    def opened(self, name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Give tensor `name` in `dtype`, read-only, until the block ends: the mapped file itself where it can be."""
        parts = [self._files.get(stored) for stored in self._sources[name]]
        yield (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)
        for part in parts:
            release_mapped(part)


AUDIO_LM_HEAD = "audio_decoder_proj.audio_lm_head.weight"
TEXT_LM_HEAD = "audio_decoder_proj.text_lm_head.weight"

_TRANSFORMERS_NAMES = {
    "audio_lm_head.weight": AUDIO_LM_HEAD,
    "text_lm_head.weight": TEXT_LM_HEAD,
    "model.embed_audio_tokens.embed_audio_tokens.weight": "audio_codebook_embeddings.weight",
}
_STORED_NAMES = {original: stored for stored, original in _TRANSFORMERS_NAMES.items()}
# A table trained in part is stored as its frozen rows and the trainable rows after them.
_SPLIT_PARTS = {"embedding_frozen": 0, "embedding_trainable": 1, "linear_frozen": 0, "linear_trainable": 1}


def transformers_name(name: str) -> str:
    """The name in the transformers layout of tensor `name` of the original layout."""
    return _STORED_NAMES.get(name, f"model.{name}")


def _original_name(stored: str) -> tuple[str, int | None]:
    """A tensor's name in the original layout, and which part of a split tensor it is (None: the whole)."""
    name = _TRANSFORMERS_NAMES.get(stored, stored.removeprefix("model."))
    for suffix, part in _SPLIT_PARTS.items():
        for ending in (f".{suffix}", f".{suffix}.weight"):
            if name.endswith(ending):
                return name.removesuffix(ending) + ".weight", part
    return name, None


def expected_tensors(config: HiggsAudioConfig) -> dict[str, tuple[int, ...]]:
    """Name (in the original layout) and shape of every tensor of a language model; the text head may be absent."""
    hidden, intermediate, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, key_value = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    audio_rows = config.num_codebooks * config.codebook_size
    tensors: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "audio_codebook_embeddings.weight": (audio_rows, hidden),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": (query, hidden),
            prefix + "self_attn.k_proj.weight": (key_value, hidden),
            prefix + "self_attn.v_proj.weight": (key_value, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, query),
        }
        for path in ("", "audio_") if config.is_dual(layer) else ("",):
            tensors |= {
                prefix + f"{path}input_layernorm.weight": (hidden,),
                prefix + f"{path}post_attention_layernorm.weight": (hidden,),
                prefix + f"{path}mlp.gate_proj.weight": (intermediate, hidden),
                prefix + f"{path}mlp.up_proj.weight": (intermediate, hidden),
                prefix + f"{path}mlp.down_proj.weight": (hidden, intermediate),
            }
    return tensors | {
        "norm.weight": (hidden,),
        AUDIO_LM_HEAD: (audio_rows, hidden),
        TEXT_LM_HEAD: (config.vocab_size, hidden),
    }


def _listed(kind: str, names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return f"{len(names)} {kind} ({shown}{', ...' if len(names) > 5 else ''})"
