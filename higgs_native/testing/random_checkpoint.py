"""Checkpoints with random weights, of any size and in either layout: for tests and benchmarks.

A checkpoint written here has the files, names, shapes and dtypes of a trained one, and sounds like noise. Weights are
drawn so that activations stay near one at any size, and depend on the seed and on each tensor's name alone. A tensor
is written in pieces of one block of normals, so a checkpoint of any size takes little memory, and little more time
than its bytes take to reach the disk.
"""

import functools
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig, tensor_shapes
from higgs_native.errors import CheckpointError, ConfigError
from higgs_native.model.checkpoint import AUDIO_LM_HEAD, expected_tensors, transformers_name
from higgs_native.model.config import HiggsAudioConfig, RopeScaling
from higgs_native.ops.formats import STORED_DTYPES
from higgs_native.utils.files import replacing


LAYOUTS = ("transformers", "original")

REAL_SIZE_CONFIG = HiggsAudioConfig(
    vocab_size=128256,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(
        factor=32.0, low_freq_factor=0.125, high_freq_factor=0.5, original_max_position_embeddings=1024
    ),
    max_position_embeddings=131072,
    num_codebooks=8,
    codebook_size=1026,
    audio_stream_bos_id=1024,
    audio_stream_eos_id=1025,
    audio_adapter_type="dual_ffn",
    audio_dual_ffn_layers=tuple(range(28)),
    audio_in_token_id=128015,
    audio_out_token_id=128016,
    audio_out_bos_token_id=128013,
    audio_eos_token_id=128012,
    audio_delay_token_id=128014,
    pad_token_id=128001,
    eos_token_id=128009,
)
"""The published model's: 5.8 G parameters, 11.5 GB in bfloat16."""

DEMO_CONFIG = HiggsAudioConfig(
    vocab_size=288,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=REAL_SIZE_CONFIG.rope_scaling,
    max_position_embeddings=8192,
    num_codebooks=8,
    codebook_size=1026,
    audio_stream_bos_id=1024,
    audio_stream_eos_id=1025,
    audio_adapter_type="dual_ffn",
    audio_dual_ffn_layers=(0, 1),
    audio_in_token_id=271,
    audio_out_token_id=272,
    audio_out_bos_token_id=269,
    audio_eos_token_id=268,
    audio_delay_token_id=270,
    pad_token_id=257,
    eos_token_id=265,
)
"""The published model's in all but size: 2 layers of width 64, and a vocabulary of bytes and special tokens."""

DEMO_AUDIO_TOKENIZER_CONFIG = HiggsAudioTokenizerConfig(
    encoder_hidden_size=4,
    decoder_hidden_size=128,
    acoustic_hidden_size=32,
    hubert=HubertConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
)
"""The published audio tokenizer's rates and codebooks, with narrow networks."""

# Those that no configuration names take the free ids that follow the lowest one that is named.
_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
    "<|recipient|>",
    "<|scene_desc_start|>",
    "<|scene_desc_end|>",
)
_NUM_BYTES = 256
_SAFETENSORS_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
_SHARD_BYTES = 5_000_000_000
# Prime, so that no row of a weight matrix meets the same normals as another one soon.
_BLOCK_SIZE = 4_194_301


class RandomTensor(NamedTuple):
    """What a tensor is drawn from: the name that its values depend on, its shape, and their deviation and mean."""

    source: str
    shape: tuple[int, ...]
    std: float
    mean: float
    zero_rows: range = range(0)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def pieces(self, seed: int) -> Iterator[torch.Tensor]:
        """Yield the values in order, flat, in pieces of at most one block of normals; float32."""
        start, width = 0, math.prod(self.shape[1:])
        for normals in _normals(self.source, self.count, seed):
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
) -> None:
    """Write a language model with random weights: `config.json`, `tokenizer.json` and safetensors, sharded or not.

    Args:
        folder: where to; made if missing. It must not hold a model yet.
        config: its shapes and special ids; those that `layout` does not name may be None.
        layout: `transformers` or `original`.
        dtype: of all tensors; float32, bfloat16 or float16.
        seed: what the weights are drawn from.
        shard_bytes: a file holds no more than this, but always a whole tensor.
        endless: make EOS unlikely: its rows of the audio head are zero. With top-k or greedily, audio then runs to the
            limit; otherwise it ends after about as many frames as a codebook has codes for each codebook.

    Raises:
        ConfigError: the layout can't express the configuration, or the vocabulary is too small.
        CheckpointError: `folder` already holds a model.
    """
    folder = Path(folder)
    described = config_json(config, layout, dtype)
    tokenizer = build_tokenizer(config)
    _claim(folder)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        zero_rows = range(0)
        if endless and name == AUDIO_LM_HEAD:
            zero_rows = range(config.audio_stream_eos_id, shape[0], config.codebook_size)
        stored = transformers_name(name) if layout == "transformers" else name
        tensors[stored] = RandomTensor(name, shape, *_language_model_distribution(name, shape, config), zero_rows)
    _write_safetensors(folder, tensors, dtype, seed, shard_bytes)
    with replacing(folder / "tokenizer.json") as path:
        tokenizer.save(str(path))
    _write_json(folder / "config.json", described)


def write_audio_tokenizer(folder: str | Path, config: HiggsAudioTokenizerConfig, seed: int = 0) -> None:
    """Write an audio tokenizer with random float32 weights, in the transformers layout.

    Args:
        folder: where to; made if missing. It must not hold a model yet.
        config: its shapes; `HiggsAudioTokenizerConfig()` has the published ones.
        seed: what the weights are drawn from.

    Raises:
        CheckpointError: `folder` already holds a model.
    """
    folder = Path(folder)
    _claim(folder)
    tensors = {
        name: RandomTensor(name, shape, *_audio_tokenizer_distribution(name, shape))
        for name, shape in tensor_shapes(config).items()
    }
    _write_safetensors(folder, tensors, torch.float32, seed)
    _write_json(folder / "config.json", config.to_dict())


def write_demo_checkpoint(folder: str | Path) -> None:
    """Write a model that speaks noise, a few megabytes: a language model, and its audio tokenizer beside it.

    It goes on for as long as it may: `max_new_tokens` sets the length of what it says.

    Raises:
        CheckpointError: `folder` already holds a model.
    """
    folder = Path(folder)
    write_language_model(folder, DEMO_CONFIG, endless=True)
    write_audio_tokenizer(folder / "audio_tokenizer", DEMO_AUDIO_TOKENIZER_CONFIG)


def build_tokenizer(config: HiggsAudioConfig) -> Tokenizer:
    """Make a tokenizer of `config.vocab_size` tokens that reads text as bytes and knows every special token.

    The special tokens that the configuration names have its ids.

    Raises:
        ConfigError: the vocabulary has no room for them.
    """
    least = _NUM_BYTES + len(_SPECIAL_TOKENS)
    if config.vocab_size < least:
        raise ConfigError(f"vocab_size is {config.vocab_size}; bytes and special tokens need at least {least}")
    named = {
        "<|AUDIO|>": config.audio_in_token_id,
        "<|AUDIO_OUT|>": config.audio_out_token_id,
        "<|audio_out_bos|>": config.audio_out_bos_token_id,
        "<|audio_eos|>": config.audio_eos_token_id,
        "<|reserved_special_token_6|>": config.audio_delay_token_id,
        "<|end_of_text|>": config.pad_token_id,
    }
    named = {token: token_id for token, token_id in named.items() if token_id is not None}
    # The layouts differ in what eos_token_id names: `<|eot_id|>`, unless another token has that id.
    if config.eos_token_id is not None and config.eos_token_id not in (*named.values(), *range(_NUM_BYTES)):
        named["<|eot_id|>"] = config.eos_token_id
    for token, token_id in named.items():
        if not _NUM_BYTES <= token_id < config.vocab_size:
            raise ConfigError(f"{token} has id {token_id}; expected {_NUM_BYTES} to {config.vocab_size - 1}")
    if len(set(named.values())) < len(named):
        raise ConfigError(f"special tokens share an id: {named}")
    lowest = min(named.values())
    candidates = itertools.chain(range(lowest, config.vocab_size), range(_NUM_BYTES, lowest))
    free = (token_id for token_id in candidates if token_id not in named.values())
    special = dict(named)
    for token in _SPECIAL_TOKENS:
        if token not in special:
            special[token] = next(free)

    token_of = {token_id: token for token, token_id in special.items()}
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {token_of.get(i, f"<|unused_{i}|>"): i for i in range(_NUM_BYTES, config.vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token_of[i], special=True, normalized=False) for i in sorted(token_of)])
    return tokenizer


def _normals(name: str, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield `count` normals (mean 0, deviation 1; float32) in pieces, always the same for a name and a seed."""
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
    """The deviation and the mean of a tensor's values."""
    if len(shape) == 1:
        return 0.1, 1.0
    if name == "embed_tokens.weight":
        return 1.0, 0.0
    if name == "audio_codebook_embeddings.weight":
        return config.num_codebooks**-0.5, 0.0
    return shape[1] ** -0.5, 0.0


def _audio_tokenizer_distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The deviation and the mean of a tensor's values."""
    if name.endswith(".bias"):
        return 0.02, 0.0
    # Snake's slope, a norm's weight, the gain of a normalised convolution.
    if name.endswith((".alpha", ".original0")) or len(shape) == 1:
        return 0.1, 1.0
    if name.endswith(".codebook.embed"):
        return 1.0, 0.0
    if ".conv_t1." in name:  # [in, out, 2 * stride]: each output sample is a sum over two taps
        return (2 * shape[0]) ** -0.5, 0.0
    deviation = math.prod(shape[1:]) ** -0.5
    if name.startswith("acoustic_decoder.conv2"):  # the sound stays well below full scale
        return 0.02 * deviation, 0.0
    if ".res_unit" in name and ".conv2." in name:  # what a residual unit adds is small beside what it passes on
        return 0.3 * deviation, 0.0
    return deviation, 0.0


def _claim(folder: Path) -> None:
    if folder.is_dir() and any(folder.glob("model*")):
        raise CheckpointError(f"{folder} already holds a model; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)


def _write_safetensors(
    folder: Path,
    tensors: Mapping[str, RandomTensor],
    dtype: torch.dtype,
    seed: int,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Draw `tensors` (under the names to store) into `model.safetensors`, or into shards and an index."""
    shards: list[dict[str, RandomTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.count * dtype.itemsize
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
                    output.write(piece.to(dtype).view(torch.uint8).numpy())
    if len(shards) > 1:
        total = dtype.itemsize * sum(tensor.count for tensor in tensors.values())
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _safetensors_header(tensors: Mapping[str, RandomTensor], dtype: torch.dtype) -> bytes:
    """The head of a safetensors file: the header's length (8 bytes), and a JSON header padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.count * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def config_json(config: HiggsAudioConfig, layout: str, dtype: torch.dtype) -> dict[str, Any]:
    """The contents of `config.json` in a layout: what `HiggsAudioConfig.from_dict` reads.

    Raises:
        ConfigError: the layout can't express the configuration.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r}; expected one of {LAYOUTS}")
    if dtype not in _SAFETENSORS_NAMES:
        raise ConfigError(f"dtype is {dtype}; expected float32, bfloat16 or float16")
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    transformer = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": config.eos_token_id,
    }
    audio = {
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
        "pad_token_id": config.pad_token_id,
    }
    dtype_name = str(dtype).removeprefix("torch.")
    if layout == "original":
        described = {
            "architectures": ["HiggsAudioModel"],
            "model_type": "higgs_audio",
            "torch_dtype": dtype_name,
            "audio_adapter_type": config.audio_adapter_type,
            "audio_dual_ffn_layers": list(config.audio_dual_ffn_layers),
            "audio_num_codebooks": config.num_codebooks,
            "audio_codebook_size": config.codebook_size - 2,
            **audio,
            "audio_in_token_idx": config.audio_in_token_id,
            "audio_out_token_idx": config.audio_out_token_id,
            "audio_out_bos_token_id": config.audio_out_bos_token_id,
            "audio_eos_token_id": config.audio_eos_token_id,
            "encode_audio_in_tokens": True,
            "encode_whisper_embed": False,
            "skip_audio_tower": True,
            "use_delay_pattern": True,
            "text_config": {
                **transformer,
                "model_type": "llama",
                "torch_dtype": dtype_name,
                "rope_theta": config.rope_theta,
                "rope_scaling": rope if scaling is not None else None,
            },
        }
    else:
        if not all(map(config.is_dual, range(config.num_hidden_layers))):
            raise ConfigError("the transformers layout has no layers without a path for audio; write the original one")
        described = {
            "architectures": ["HiggsAudioV2ForConditionalGeneration"],
            "model_type": "higgs_audio_v2",
            "dtype": dtype_name,
            **transformer,
            "rope_parameters": {"rope_theta": config.rope_theta, **rope},
            "num_codebooks": config.num_codebooks,
            "codebook_size": config.codebook_size,
            **audio,
            "audio_token_id": config.audio_out_token_id,
            "audio_bos_token_id": config.audio_out_bos_token_id,
            "audio_delay_token_id": config.audio_delay_token_id,
        }
    for name, value in described.items():
        if value is None and name.startswith("audio_"):
            raise ConfigError(f"the {layout} layout names {name}, which the configuration leaves out")
    return described


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
