"""Checkpoints written anew with other values: an adapter merged into them, or trained weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import AUDIO_TOKENIZER_FOLDER, READER_FILES, weight_files
from higgs_native.checkpoint.language_model import LanguageModelFiles
from higgs_native.checkpoint.packed import PACKED_FILE, check_target, regular_files
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.utils.files import replacing


def write_rewritten(source: Path, target: Path, changed: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Write a copy of a checkpoint, in its layout and its files, with changed tensors.

    Args:
        source: the checkpoint.
        target: the folder to write, which must not exist; it appears whole or not at all.
        changed: returns a tensor of the same shape, given its name in the original layout and its values.

    Raises:
        CheckpointError: `source` is damaged, or `target` exists or can't be written.
        ParameterError: `source` is packed.
    """
    check_target(target)
    if (source / PACKED_FILE).is_file():
        raise ParameterError(f"source must be a checkpoint that is not packed, got {source}")
    files = LanguageModelFiles(source, HiggsAudioConfig.from_pretrained(source))
    written = weight_files(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.mkdir()
            for path in written:
                with safe_open(path, framework="pt") as opened:
                    names = list(opened.keys())
                    tensors = {name: files.changed(name, opened.get_tensor(name), changed) for name in names}
                    save_file(tensors, temporary / path.name, opened.metadata())
                (temporary / path.name).chmod(temporary.stat().st_mode & 0o666)
            for path in regular_files(source):
                is_index = path.name.endswith(".safetensors.index.json") and len(written) == 1
                is_kept = path.suffix in (".json", ".txt", ".jinja") or path.name in READER_FILES
                if is_kept and not is_index:
                    shutil.copyfile(path, temporary / path.name)
            if (source / AUDIO_TOKENIZER_FOLDER).is_dir():
                (temporary / AUDIO_TOKENIZER_FOLDER).mkdir()
                for path in regular_files(source / AUDIO_TOKENIZER_FOLDER):
                    shutil.copyfile(path, temporary / AUDIO_TOKENIZER_FOLDER / path.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} can't be written: {' '.join(str(error).split())}") from None
