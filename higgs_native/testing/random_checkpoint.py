"""Checkpoints with random weights, of any size and in any layout, for tests and benchmarks.

A checkpoint has the files, names, shapes and dtypes of a trained one, and sounds like noise. Weights keep activations
near one at any size, and depend on the seed and on the tensor's name alone. Tensors are written in pieces of one block
of normals, so memory stays small and the disk limits the speed.
"""

import functools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.weights import tensor_shapes
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import (
    AUDIO_LM_HEAD,
    AUDIO_TABLE,
    BUNDLED_AUDIO_TOKENIZER,
    BUNDLED_CONFIG_FILE,
    expected_tensors,
    higgs_tts_3_name,
    transformers_name,
)
from higgs_native.errors import CheckpointError, ConfigError
from higgs_native.ops.formats import STORED_DTYPES
from higgs_native.testing.byte_tokenizer import build_tokenizer
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG, TOKENIZER_CONFIG, config_json
from higgs_native.utils.files import replacing


_SAFETENSORS_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
_STORED_NAMES: dict[str, Callable[[str], str]] = {
    "original": str,
    "transformers": transformers_name,
    "higgs_tts_3": higgs_tts_3_name,
}
_SHARD_BYTES = 5_000_000_000
_BLOCK_SIZE = 4_194_301
"""Normals that all tensors are drawn from. A prime, so that rows of a matrix repeat each other late."""


class RandomTensor(NamedTuple):
    """How a tensor is drawn.

    Attributes:
        source: the name that its values depend on, beside the seed.
        shape: its shape.
        std, mean: the standard deviation and the mean of its values.
        zero_rows: rows that are zero.
    """

    source: str
    shape: tuple[int, ...]
    std: float
    mean: float
    zero_rows: range = range(0)

    @property
    def num_values(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    def pieces(self, seed: int) -> Iterator[torch.Tensor]:
        """Yield the values in order, flat, float32, in pieces of at most one block of normals."""
        start, width = 0, math.prod(self.shape[1:])
        for normals in _normals(self.source, self.num_values, seed):
            piece = normals * self.std + self.mean
            for row in self.zero_rows:
                piece[max(0, row * width - start) : max(0, (row + 1) * width - start)] = 0
            start += piece.numel()
            yield piece


def write_language_model(
    folder: str | Path,
    config: HiggsAudioConfig,
    layout: str = "transformers",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    shard_bytes: int = _SHARD_BYTES,
    endless: bool = False,
    audio_tokenizer: HiggsAudioTokenizerConfig | None = None,
) -> None:
    """Write a language model with random weights: configurations, tokenizer and safetensors, maybe sharded.

    Args:
        folder: the target; created if missing. It must not hold a model yet.
        config: shapes and special ids; ids that `layout` does not name may be None.
        layout: one of `CHECKPOINT_LAYOUTS`.
        dtype: the dtype of all tensors: float32, bfloat16 or float16.
        seed: the seed of the weights.
        shard_bytes: the max size of a file, unless it holds a single tensor.
        endless: make EOS unlikely by zeros in its rows of the audio head. Audio then runs to the limit with top-k or
            greedy sampling. Otherwise it ends after about codebook size / codebooks frames, with Higgs TTS 3 after
            about codebook size.
        audio_tokenizer: shapes of one that is bundled, as Higgs TTS 3 has it; None: none is.

    Raises:
        ConfigError: an audio tokenizer is bundled in another layout, the layout can't express the configuration, or
            the vocabulary is too small.
        CheckpointError: `folder` already holds a model.
    """
    folder = Path(folder)
    described = config_json(config, layout, dtype)
    tokenizer = build_tokenizer(config)
    _claim(folder)
    if audio_tokenizer is not None and layout != "higgs_tts_3":
        raise ConfigError(f"layout must be 'higgs_tts_3' to bundle an audio tokenizer, got {layout!r}")
    head = AUDIO_TABLE if config.tied_audio_head else AUDIO_LM_HEAD
    tensors = {}
    for name, shape in expected_tensors(config).items():
        zero_rows = range(0)
        if endless and name == head:
            zero_rows = range(config.audio_stream_eos_id, shape[0], config.codebook_size)
        stored = _STORED_NAMES[layout](name)
        tensors[stored] = RandomTensor(name, shape, *_language_model_distribution(name, shape, config), zero_rows)
    if audio_tokenizer is not None:
        tensors |= {
            BUNDLED_AUDIO_TOKENIZER + name: tensor
            for name, tensor in _audio_tokenizer_tensors(audio_tokenizer).items()
        }
        _write_json(folder / BUNDLED_CONFIG_FILE, audio_tokenizer.to_dict())
    _write_safetensors(folder, tensors, dtype, seed, shard_bytes)
    with replacing(folder / "tokenizer.json") as path:
        tokenizer.save(str(path))
    _write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    _write_json(folder / "config.json", described)


def write_audio_tokenizer(folder: str | Path, config: HiggsAudioTokenizerConfig, seed: int = 0) -> None:
    """Write an audio tokenizer with random float32 weights, in the transformers layout.

    Args:
        folder: the target; created if missing. It must not hold a model yet.
        config: shapes; `HiggsAudioTokenizerConfig()` has the published ones.
        seed: the seed of the weights.

    Raises:
        CheckpointError: `folder` already holds a model.
    """
    folder = Path(folder)
    _claim(folder)
    _write_safetensors(folder, _audio_tokenizer_tensors(config), torch.float32, seed)
    _write_json(folder / "config.json", config.to_dict())


def _audio_tokenizer_tensors(config: HiggsAudioTokenizerConfig) -> dict[str, RandomTensor]:
    return {
        name: RandomTensor(name, shape, *_audio_tokenizer_distribution(name, shape))
        for name, shape in tensor_shapes(config).items()
    }


def write_demo_checkpoint(folder: str | Path) -> None:
    """Write a model that speaks noise, a few megabytes: a language model and its audio tokenizer.

    Its speech is endless: `max_new_tokens` sets the length.

    Raises:
        CheckpointError: `folder` already holds a model.
    """
    folder = Path(folder)
    write_language_model(folder, DEMO_CONFIG, endless=True)
    write_audio_tokenizer(folder / "audio_tokenizer", DEMO_AUDIO_TOKENIZER_CONFIG)


def _normals(name: str, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield `count` standard normals, float32, in pieces that depend on the name and the seed alone."""
    block = _normal_block(seed)
    start = zlib.crc32(name.encode()) % _BLOCK_SIZE
    while count > 0:
        piece = block[start : start + count]
        yield piece
        count -= piece.numel()
        start = 0


@functools.lru_cache(maxsize=1)
def _normal_block(seed: int) -> torch.Tensor:
    generator = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(generator.standard_normal(_BLOCK_SIZE, dtype=np.float32))


def _language_model_distribution(name: str, shape: tuple[int, ...], config: HiggsAudioConfig) -> tuple[float, float]:
    """Return the standard deviation and the mean of a tensor's values."""
    if len(shape) == 1:
        return 0.1, 1.0
    if name == "embed_tokens.weight":
        return 1.0, 0.0
    if name == "audio_codebook_embeddings.weight":
        return config.num_codebooks**-0.5, 0.0
    return shape[1] ** -0.5, 0.0


def _audio_tokenizer_distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the standard deviation and the mean of a tensor's values."""
    if name.endswith(".bias"):
        return 0.02, 0.0
    # Snake's slope, a norm's weight, the gain of a weight-normalized convolution.
    if name.endswith((".alpha", ".original0")) or len(shape) == 1:
        return 0.1, 1.0
    if name.endswith(".codebook.embed"):
        return 1.0, 0.0
    if ".conv_t1." in name:  # [in, out, 2 * stride]: each output sample sums two taps
        return (2 * shape[0]) ** -0.5, 0.0
    deviation = math.prod(shape[1:]) ** -0.5
    if name.startswith("acoustic_decoder.conv2"):  # keeps the sound well below full scale
        return 0.02 * deviation, 0.0
    if ".res_unit" in name and ".conv2." in name:  # keeps the residual small beside the skip connection
        return 0.3 * deviation, 0.0
    return deviation, 0.0


def _claim(folder: Path) -> None:
    if folder.is_dir() and any(folder.glob("model*")):
        raise CheckpointError(f"folder must not hold a model, got {folder}")
    folder.mkdir(parents=True, exist_ok=True)


def _write_safetensors(
    folder: Path,
    tensors: Mapping[str, RandomTensor],
    dtype: torch.dtype,
    seed: int,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Draw `tensors`, by their stored names, into `model.safetensors`, or into shards and an index."""
    shards: list[dict[str, RandomTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.num_values * dtype.itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        with replacing(folder / file) as path, path.open("wb") as output:
            output.write(_safetensors_header(shard, dtype))
            for tensor in shard.values():
                for piece in tensor.pieces(seed):
                    output.write(piece.to(dtype).view(torch.uint8).numpy().data)
    if len(shards) > 1:
        total = dtype.itemsize * sum(tensor.num_values for tensor in tensors.values())
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _safetensors_header(tensors: Mapping[str, RandomTensor], dtype: torch.dtype) -> bytes:
    """Return the head of a safetensors file: the header's length in 8 bytes, and a JSON header padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.num_values * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
