"""The audio tokenizer's tensors, read from either layout of its checkpoint."""

import re
import zipfile
from pathlib import Path

import torch

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.weights import tensor_shapes
from higgs_native.checkpoint.files import WEIGHT_FILES, TensorFiles, listed
from higgs_native.checkpoint.language_model import BUNDLED_AUDIO_TOKENIZER
from higgs_native.checkpoint.other_kinds import kind_of_folder, kind_of_tensors
from higgs_native.errors import CheckpointError
from higgs_native.ops.formats import STORED_DTYPES
from higgs_native.utils.tensors import is_finite


# Tensors of training: the semantic decoder, a linear layer, HuBERT's mask and the quantizer's statistics.
_UNUSED = re.compile(
    r"decoder_semantic\.|fc1\.|fc_post1\.|semantic_model\.masked_spec_embed$"
    r"|quantizer\..*\.(codebook|_codebook)\.(inited|cluster_size|embed_avg)$"
)
_STORED_DTYPES = (*STORED_DTYPES.values(), torch.float64)
_WEIGHT_NORM = {
    ".weight_g": "gain",
    ".weight_v": "direction",
    ".parametrizations.weight.original0": "gain",
    ".parametrizations.weight.original1": "direction",
}


def load_tensors(folder: Path, config: HiggsAudioTokenizerConfig) -> dict[str, torch.Tensor]:
    """Read the tensors that encoding and decoding need.

    Args:
        folder: holds `model.safetensors` (or shards) or `model.pth`; names of either layout in either kind of file. Of
            a folder with a whole Higgs TTS 3, only the audio tokenizer is read.
        config: decides the names and shapes.

    Returns:
        The tensors of `folded_shapes`, float32, on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors are missing, unknown, of another shape or kind, or
            not finite.
    """
    return convert(_read(folder), config, f"audio tokenizer {folder}")


def convert(
    stored: dict[str, torch.Tensor], config: HiggsAudioTokenizerConfig, source: str = "the audio tokenizer"
) -> dict[str, torch.Tensor]:
    """Convert stored tensors of either layout: rename, widen, and fold the weight norm.

    Args:
        stored: by their stored names, of any floating dtype.
        config: decides the names and shapes.
        source: what holds them, for error messages.

    Returns:
        The tensors of `folded_shapes`, float32.

    Raises:
        CheckpointError: tensors are missing, unknown, of another shape or kind, or not finite.
    """
    original = any(name.startswith("decoder_2.") for name in stored)
    tensors: dict[str, torch.Tensor] = {}
    norms: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in stored.items():
        if _UNUSED.match(name):
            continue
        _check_plain(source, name, tensor)
        ending = next((ending for ending in _WEIGHT_NORM if name.endswith(ending)), None)
        if ending is None:
            tensors[name] = tensor
        else:
            weight = name.removesuffix(ending) + ".weight"
            norms.setdefault(weight, {})[_WEIGHT_NORM[ending]] = tensor
    for name, parts in norms.items():
        if len(parts) < 2:
            raise CheckpointError(f"{source} must hold gain and direction of {name}, got only {next(iter(parts))}")
        gain, direction = parts["gain"], parts["direction"]
        if gain.dim() != direction.dim() or any(
            g not in (1, d) for g, d in zip(gain.shape, direction.shape, strict=True)
        ):
            raise CheckpointError(
                f"{source}: the gain of {name} must be 1 or the direction's size in each dimension, "
                f"got {list(gain.shape)} for {list(direction.shape)}"
            )
        tensors[name] = direction

    # All names and shapes are checked before any tensor is widened.
    expected = folded_shapes(config)
    name_of = {original_name(name, config) if original else name: name for name in expected}
    _check(source, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected, name_of)
    converted = {}
    for name, tensor in tensors.items():
        norm = norms.get(name)
        folded = tensor.float() if norm is None else fold_weight_norm(norm["gain"].float(), norm["direction"].float())
        if not is_finite(folded):
            raise CheckpointError(f"{source}: {name} must be finite in float32, got NaN or infinity")
        converted[name_of[name]] = folded
    return converted


def _check_plain(source: str, name: str, tensor: torch.Tensor) -> None:
    """Raise CheckpointError unless a tensor holds values that can be widened to float32."""
    is_plain = tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type != "meta"
    if not is_plain or tensor.dtype not in _STORED_DTYPES:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in _STORED_DTYPES)
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise CheckpointError(
            f"{source}: {name} must be a plain tensor of {dtypes}, "
            f"got a {kind} one of {str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type}"
        )
    # Values that share memory, as those of an expanded tensor do, take far more once they are widened.
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
        raise CheckpointError(f"{source}: {name} must hold all its values, got a view that repeats some")


def fold_weight_norm(gain: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Return gain * direction / |direction|; the norm is over the dimensions in which `gain` has size 1."""
    dims = [dim for dim, size in enumerate(gain.shape) if size == 1]
    return direction * (gain / torch.linalg.vector_norm(direction, dim=dims, keepdim=True))


def original_name(name: str, config: HiggsAudioTokenizerConfig) -> str:
    """Return the original layout's name of a tensor of `folded_shapes`."""
    for side, prefix, ratios in (
        ("acoustic_encoder", "encoder.block", config.downsampling_ratios),
        ("acoustic_decoder", "decoder_2.model", config.upsampling_ratios),
    ):
        if not name.startswith(side + "."):
            continue
        ends = {"conv1": 0, "snake1": len(ratios) + 1, "conv2": len(ratios) + 2}
        decoder = side == "acoustic_decoder"
        first_unit = 2 if decoder else 0
        inner = {"snake1": 0, "conv_t1": 1} if decoder else {"snake1": 3, "conv1": 4}
        units = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
        match name.split(".")[1:]:
            case ["block", block, unit, layer, leaf]:
                index = int(unit.removeprefix("res_unit")) - 1 + first_unit
                return f"{prefix}.{int(block) + 1}.block.{index}.block.{units[layer]}.{leaf}"
            case ["block", block, layer, leaf]:
                return f"{prefix}.{int(block) + 1}.block.{inner[layer]}.{leaf}"
            case [layer, leaf]:
                return f"{prefix}.{ends[layer]}.{leaf}"
    if name.startswith("encoder_semantic."):
        return re.sub(r"\.(conv|conv1)\.(weight|bias)$", r".\1.conv.\2", name)
    name = name.replace("quantizer.quantizers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
    return re.sub(r"^fc\.", "fc_prior.", re.sub(r"^fc2\.", "fc_post2.", name))


def folded_shapes(config: HiggsAudioTokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that `load_tensors` returns: `tensor_shapes` with weight norm folded."""
    folded = {}
    for name, shape in tensor_shapes(config).items():
        if name.endswith(".original1"):
            folded[name.replace(".parametrizations.weight.original1", ".weight")] = shape
        elif not name.endswith(".original0"):
            folded[name] = shape
    return folded


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors in `folder`, by their stored names."""
    pickled = folder / "model.pth"
    if _has_tensors(folder):
        files = TensorFiles(folder)
        prefix = BUNDLED_AUDIO_TOKENIZER if _is_bundled(files.names()) else ""
        stored = {name.removeprefix(prefix): name for name in files.names() if name.startswith(prefix)}
        return {name: files.get(source) for name, source in stored.items() if not _UNUSED.match(name)}
    if not pickled.is_file():
        got = kind_of_folder(folder) or "neither"
        raise CheckpointError(f"audio tokenizer {folder} must hold model.safetensors or model.pth, got {got}")
    try:
        _check_uncompressed(pickled)
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # of any type: torch.load passes on those of the zip reader and of the unpickler
        reason = _first_line(error)
        raise CheckpointError(f"{pickled} is damaged or incomplete: {reason}") from None
    is_state = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    )
    if not is_state:
        raise CheckpointError(f"{pickled} must hold a dict of tensors by name, got another object")
    return state


def has_audio_tokenizer(folder: Path) -> bool:
    """Return whether a language model's files hold an audio tokenizer too, as those of Higgs TTS 3 do."""
    return _has_tensors(folder) and _is_bundled(TensorFiles(folder).names())


def _has_tensors(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHT_FILES)


def _is_bundled(names: list[str]) -> bool:
    return any(name.startswith(BUNDLED_AUDIO_TOKENIZER) for name in names)


def _check_uncompressed(path: Path) -> None:
    """Raise CheckpointError for a compressed archive, which may unpack to any size; torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path} must be as torch.save writes it, got a compressed archive")


def _first_line(error: Exception) -> str:
    """Return the first line of torch's message, without the colors in which it warns of pickles."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _check(
    source: str,
    found: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]],
    name_of: dict[str, str],
) -> None:
    """Raise CheckpointError if the stored tensors, by `name_of`, are not the expected ones; name all differences."""
    problems = [
        ("missing", [name for name in name_of if name not in found]),
        ("unknown", [name for name in found if name not in name_of]),
        (
            "of another shape",
            [
                f"{name} {list(shape)} for {list(expected[name_of[name]])}"
                for name, shape in found.items()
                if name in name_of and shape != expected[name_of[name]]
            ],
        ),
    ]
    texts = [listed(kind, names) for kind, names in problems if names]
    if texts:
        got = kind_of_tensors(found) or "; ".join(texts)
        raise CheckpointError(f"{source} must fit its config.json, got {got}")
