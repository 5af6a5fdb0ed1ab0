"""Quantized checkpoints and adapters, uploaded to the Hub with a model card."""

import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from higgs_native.checkpoint.hub import no_endless_requests, reason_of
from higgs_native.checkpoint.packed import PACKED_FILE
from higgs_native.errors import CheckpointError, ParameterError, short_repr
from higgs_native.utils.checks import check_flag, check_string, expanded_path


_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ADAPTER_CONFIG = "adapter_config.json"


def push_to_hub(folder: str | os.PathLike, name: str, private: bool = False, token: str | None = None) -> str:
    """Upload a folder to the Hub: a quantized or merged checkpoint, or an adapter.

    The repository gets a model card, unless it or the folder has one.

    Args:
        folder: what `higgs-native quantize`, `merge` or `train` wrote.
        name: of the repository, `owner/name`; it is made if it is missing.
        private: make it visible to its owner alone; an existing one stays as it is.
        token: of your account, with write access; None: that of `HF_TOKEN` or `hf auth login`.

    Returns:
        The address of the repository.

    Raises:
        CheckpointError: the folder holds no checkpoint, or the Hub refuses it or can't be reached.
        ParameterError: the name is none, or a parameter is of a wrong type.
    """
    folder = Path(expanded_path("folder", folder))
    card = _model_card(folder, name)
    address = make_repository(name, private, token)
    api = _api(token)
    try:
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by higgs-native")
        if not api.file_exists(name, "README.md"):
            api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=name)
    except Exception as error:  # of any type, as when a repository is fetched
        raise CheckpointError(f"{folder} can't be uploaded to {name}: {reason_of(error)}") from None
    return address


def make_repository(name: str, private: bool = False, token: str | None = None) -> str:
    """Make a repository unless it exists, and return its address: what forbids an upload shows before the work.

    Raises:
        CheckpointError, ParameterError: as for `push_to_hub`.
    """
    check_flag("private", private)
    check_string("token", token, optional=True)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ParameterError(f"name must be owner/name, got {short_repr(name)}")
    try:
        with no_endless_requests():
            return str(_api(token).create_repo(name, private=private, exist_ok=True))
    except Exception as error:  # as above
        raise CheckpointError(f"the repository {name} can't be made: {reason_of(error)}") from None


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=token)


def _model_card(folder: Path, name: str) -> str:
    """Return the text of a model card.

    Raises:
        CheckpointError: the folder holds no checkpoint and no adapter.
    """
    relation, base = None, None
    if (folder / _ADAPTER_CONFIG).is_file():
        relation, base = "adapter", _adapter_base(folder)
        program = (
            "```python\nfrom higgs_native import HiggsAudio\nfrom huggingface_hub import snapshot_download\n\n"
            f'engine = HiggsAudio.from_pretrained("{base or "BASE"}", adapter=snapshot_download("{name}"))\n```'
        )
    elif (folder / PACKED_FILE).is_file():
        relation, base = "quantized", _packed_source(folder)
        program = f'```bash\nhiggs-native speak "The sun rises in the east." --model {name}\n```'
    elif (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        program = f'```bash\nhiggs-native speak "The sun rises in the east." --model {name}\n```'
    else:
        raise CheckpointError(f"folder must hold a checkpoint or an adapter, got {folder}")
    lines = ["library_name: higgs-native", "pipeline_tag: text-to-speech"]
    if base is not None and _NAME.fullmatch(base):
        lines += [f"base_model: {base}", f"base_model_relation: {relation}"]
    made = f"Made from {base}, whose license holds. " if base else ""
    return "---\n" + "\n".join(lines) + f"\n---\n# {name}\n{made}With higgs-native:\n{program}\n"


def _packed_source(folder: Path) -> str | None:
    try:
        with safe_open(folder / PACKED_FILE, framework="pt") as file:
            return (file.metadata() or {}).get("source", "").partition("@")[0] or None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / PACKED_FILE} is damaged or incomplete: {error}") from None


def _adapter_base(folder: Path) -> str | None:
    try:
        base = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / _ADAPTER_CONFIG} must be a JSON object, got an error: {error}") from None
    return base if isinstance(base, str) else None
