"""Checkpoint folders, on disk or fetched from the Hub, and their tensors, read lazily from safetensors."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from typing_extensions import Unpack

from higgs_native.checkpoint.hub import HubOptions, check_hub_options, fetch_snapshot
from higgs_native.checkpoint.other_kinds import kind_of_files, kind_of_folder
from higgs_native.errors import CheckpointError, ConfigError, ParameterError, one_line, short_repr
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import read_json_object, read_small_file


AUDIO_TOKENIZER_FOLDER = "audio_tokenizer"
"""The folder of an audio tokenizer within a language model's checkpoint."""
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
"""The files of a folder's tensors, or their index; the first one has priority."""
_MAX_TOKENIZER_FILE = 128 << 20
"""Maximum size of `tokenizer.json` in bytes; the published one has 17 MB."""


def resolve_folder(path_or_name: str | os.PathLike, kind: str = "model", **hub: Unpack[HubOptions]) -> Path:
    """Return the local folder of a checkpoint, after fetching it if `path_or_name` is a Hub name.

    Args:
        path_or_name: a folder, or a Hub name such as `bosonai/higgs-audio-v2-generation-3B-base`, optionally with
            `@revision`.
        kind: the name of the argument in error messages.
        hub: see `HubOptions`.

    Raises:
        CheckpointError: the folder does not exist, and the Hub has no such repository or can't be reached.
        ParameterError: `path_or_name` is neither a string nor a path, an option is unknown, or it names two revisions.
    """
    check_hub_options(hub)
    written = expanded_path(kind, path_or_name)
    if os.path.isdir(written):  # unlike Path.is_dir, it takes names of any length
        return Path(written)
    name, _, revision = str(path_or_name).partition("@")
    if os.path.exists(written):
        raise CheckpointError(
            f"{kind} must be the folder that holds config.json, got "
            f"{kind_of_files([os.path.basename(written)]) or 'the file'} ({written})"
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{kind} must be a folder or a Hub name such as owner/name, got {written}, which does not exist"
        )
    if revision:
        if hub.get("revision") is not None:
            raise ParameterError(
                f"revision must be None for the name {path_or_name}, got {short_repr(hub['revision'])}"
            )
        hub["revision"] = revision
    return fetch_snapshot(name, kind, **hub)


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Read `tokenizer.json` in `folder`; return None if there is none.

    Raises:
        CheckpointError: the file is damaged, is no regular file, or is larger than `_MAX_TOKENIZER_FILE`.
    """
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_buffer(read_small_file(path, _MAX_TOKENIZER_FILE))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{path} is damaged: {error}") from None


READER_FILES = ("pronunciations.tsv.xz", "guesser.safetensors")
"""Files that turn text into phonemes, in the folder of a voice that reads them. Copies of a checkpoint have them."""


class TensorFiles:
    """The tensors of a folder's safetensors files, memory-mapped and read one at a time.

    Args:
        folder: the folder, whose `weight_files` are read.

    Raises:
        CheckpointError: as for `weight_files`, or a file is damaged, or two hold a tensor of the same name.
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
                if name in self._file_of:
                    raise CheckpointError(f"{folder} must hold {one_line(name, 80)} once, got it in two files")
                self._file_of[name] = opened

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the safetensors name of a tensor's dtype (`F32`, `BF16`, ...) without reading the tensor."""
        return self._file_of[name].get_slice(name).get_dtype()

    def get(self, name: str) -> torch.Tensor:
        """Map a tensor into memory, and return it."""
        return self._file_of[name].get_tensor(name)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold a folder's tensors.

    `model.safetensors` has priority over the shards of `model.safetensors.index.json`, as in transformers. The
    published folder has both, and its `config.json` describes the single file.

    Raises:
        CheckpointError: the folder has neither, the index is damaged, or a shard is missing.
    """
    single, index = (folder / name for name in WEIGHT_FILES)
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(
            f"{folder} must hold {single.name} or {index.name}, got {kind_of_folder(folder) or 'neither'}"
        )
    shards = _shards(index)
    for name in shards:
        if not (folder / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is missing")
    return [folder / name for name in shards]


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index lists; all lie in its folder."""
    try:
        weight_map = read_json_object(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(f"{index} is damaged: {error}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is damaged: weight_map must name a file for each tensor")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(
                f"{index} is damaged: {one_line(name, 80)} must lie in a file of this folder, got {short_repr(file)}"
            )
    return sorted(set(weight_map.values()))


def listed(kind: str, names: list[str]) -> str:
    """Return the number of tensors of a kind, such as `unknown`, and the first of their names."""
    shown = ", ".join(one_line(name, 80) for name in sorted(names)[:5])
    return f"{len(names)} {kind} ({shown}{', ...' if len(names) > 5 else ''})"
