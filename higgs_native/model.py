"""The language model: its weights, packed for the kernels, and one forward pass over rows of several sequences."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from typing_extensions import Self

from higgs_native import ops
from higgs_native.checkpoint import TEXT_LM_HEAD, LanguageModelFiles, resolve_folder
from higgs_native.config import HiggsAudioConfig
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.kv_cache import KVCache
from higgs_native.memory import empty_weight
from higgs_native.ops import PackedWeight


DEFAULT_CACHE_LENGTH = 8192
# float16 has no kernels on the CPU; float32 holds its numbers exactly.
_STORED_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float32}


@dataclass
class FeedForward:
    """The weights that text or audio rows have for themselves in a layer.

    Attributes:
        input_norm, post_attention_norm: [hidden].
        gate_up: gate and up, both [intermediate, hidden], packed together.
        down: [hidden, intermediate], packed.
    """

    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    gate_up: PackedWeight
    down: PackedWeight


@dataclass
class Layer:
    """A layer's weights. `audio` is `text` itself where the layer is not dual.

    Attributes:
        qkv: [(query heads + 2 * KV heads) * head_dim, hidden], packed.
        o: [hidden, query heads * head_dim], packed.
        skips_audio: audio rows pass this layer by.
    """

    qkv: PackedWeight
    o: PackedWeight
    text: FeedForward
    audio: FeedForward
    skips_audio: bool


@dataclass
class Rows:
    """The positions that one forward pass computes, of any number of sequences: text rows first, then audio rows.

    Attributes:
        token_ids: [T], int32.
        codes: [A, codebooks], int32, delayed.
        slots: [T + A], int32: the sequence of the cache.
        positions: [T + A], int32: the position in that sequence.
        text_positions: [T], int32: how many text rows come before it in its sequence. Layers that audio passes by keep
            their cache at these places.
    """

    token_ids: torch.Tensor
    codes: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    text_positions: torch.Tensor


class LanguageModel:
    """The transformer of Higgs Audio V2: `forward` and its two heads. `HiggsAudioModel` adds generation.

    Attributes:
        config: shapes and special ids.
        tokenizer: the text tokenizer, or None where the folder has no tokenizer.json.
        dtype: of weights and cache: float32 or bfloat16. Activations are float32.
        device: where it runs.
        max_cache_length: positions a sequence may have, prompt included.
    """

    def __init__(
        self,
        config: HiggsAudioConfig,
        files: LanguageModelFiles,
        tokenizer: Tokenizer | None,
        dtype: torch.dtype,
        device: torch.device,
        max_cache_length: int,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.device = device
        self.max_cache_length = max_cache_length

        def read(name: str) -> torch.Tensor:
            tensor = empty_weight(files.shape(name), dtype, device)
            files.copy_into(tensor, name)
            return tensor

        def pack(*names: str) -> PackedWeight:
            """Pack the matrices `names` below each other."""
            with ExitStack() as stack:
                return ops.pack_linear(*(stack.enter_context(files.opened(name, dtype)) for name in names))

        def pack_gate_up(prefix: str) -> PackedWeight:
            with (
                files.opened(prefix + "gate_proj.weight", dtype) as gate,
                files.opened(prefix + "up_proj.weight", dtype) as up,
            ):
                return ops.pack_gate_up(gate, up)

        def feed_forward(prefix: str) -> FeedForward:
            return FeedForward(
                input_norm=read(prefix + "input_layernorm.weight"),
                post_attention_norm=read(prefix + "post_attention_layernorm.weight"),
                gate_up=pack_gate_up(prefix + "mlp."),
                down=pack(prefix + "mlp.down_proj.weight"),
            )

        self.text_table = read("embed_tokens.weight")
        self.audio_table = read("audio_codebook_embeddings.weight")
        self.layers = []
        for index in range(config.num_hidden_layers):
            prefix = f"layers.{index}."
            text = feed_forward(prefix)
            self.layers.append(
                Layer(
                    qkv=pack(*(f"{prefix}self_attn.{part}_proj.weight" for part in "qkv")),
                    o=pack(prefix + "self_attn.o_proj.weight"),
                    text=text,
                    audio=feed_forward(prefix + "audio_") if config.is_dual(index) else text,
                    skips_audio=config.skips_audio(index),
                )
            )
        self.norm = read("norm.weight")
        self.audio_head = pack("audio_decoder_proj.audio_lm_head.weight")
        self.text_head = pack(TEXT_LM_HEAD) if TEXT_LM_HEAD in files else None
        self.rope_table = rope_table(config, max_cache_length).to(device)

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
        max_cache_length: int = DEFAULT_CACHE_LENGTH,
    ) -> Self:
        """Load a checkpoint of either layout.

        Args:
            path_or_name: a folder, or a Hub name.
            device: "cpu".
            dtype: torch.float32, torch.bfloat16, their names, or "auto": as stored (float16 becomes float32).
            max_cache_length: positions a sequence may have, prompt included. A position costs 114,688 bytes of cache
                at real size in bfloat16, once it is used.

        Raises:
            CheckpointError: the files are missing or damaged, or don't fit the configuration.
            ConfigError: the configuration is missing or describes another model.
            ParameterError: the device, the dtype or the length can't be used.
        """
        device = torch.device(device)
        if device.type != "cpu":
            raise ParameterError(f"device {device} can't run this model yet; use device='cpu'")
        if max_cache_length < 1:
            raise ParameterError(f"max_cache_length must be at least 1, got {max_cache_length}")
        chosen = checked_dtype(dtype)
        folder = resolve_folder(path_or_name)
        config = HiggsAudioConfig.from_pretrained(folder)
        files = LanguageModelFiles(folder, config)
        stored = files.dtype("embed_tokens.weight")
        return cls(config, files, load_tokenizer(folder), chosen or _STORED_DTYPES[stored], device, max_cache_length)

    def new_cache(self, slots: int, length: int) -> KVCache:
        """Allocate a cache for `slots` sequences of up to `length` positions."""
        return KVCache(self.config, slots, length, self.dtype, self.device)

    def forward(self, rows: Rows, cache: KVCache) -> torch.Tensor:
        """Compute `rows`, writing their keys and values into `cache`; return their states [rows, hidden], float32.

        A row attends to the positions of its sequence up to its own; those before it must be in the cache or among
        `rows`. The final norm is not applied: the heads do that.
        """
        config = self.config
        num_text, count = len(rows.token_ids), len(rows.slots)
        width = config.num_attention_heads * config.head_dim
        x = torch.empty(count, config.hidden_size, device=self.device)
        query = torch.empty(count, width, device=self.device)
        attended = torch.empty(count, width, device=self.device)
        ops.embed(x, rows.token_ids, rows.codes, self.text_table, self.audio_table)
        scale = config.head_dim**-0.5
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            n = num_text if layer.skips_audio else count
            if n == 0:
                continue
            places = rows.text_positions if layer.skips_audio else rows.positions
            ops.qkv_rope_cache(
                query[:n],
                keys,
                values,
                x[:n],
                layer.text.input_norm,
                layer.audio.input_norm,
                config.rms_norm_eps,
                layer.qkv,
                self.rope_table,
                rows.slots[:n],
                rows.positions[:n],
                places,
                num_text,
            )
            ops.attention(attended[:n], query[:n], keys, values, rows.slots[:n], places, scale)
            ops.linear(x[:n], attended[:n], layer.o, x[:n])
            ops.dual_ffn(
                x[:n],
                x[:n],
                layer.text.post_attention_norm,
                layer.text.gate_up,
                layer.text.down,
                layer.audio.post_attention_norm,
                layer.audio.gate_up,
                layer.audio.down,
                config.rms_norm_eps,
                num_text,
            )
        return x

    def audio_logits(self, states: torch.Tensor) -> torch.Tensor:
        """The audio head: states [rows, hidden] -> [rows, codebooks, codebook_size], float32."""
        shape = (self.config.num_codebooks, self.config.codebook_size)
        return self._head(states, self.audio_head, shape[0] * shape[1]).view(len(states), *shape)

    def text_logits(self, states: torch.Tensor) -> torch.Tensor:
        """The text head: states [rows, hidden] -> [rows, vocabulary], float32.

        Raises:
            CheckpointError: the checkpoint has no text head.
        """
        self.require_text_head()
        return self._head(states, self.text_head, self.config.vocab_size)

    def require_text_head(self) -> None:
        """Raise CheckpointError where the checkpoint has no text head."""
        if self.text_head is None:
            raise CheckpointError("this checkpoint has no text head (text_lm_head.weight), so it can't generate text")

    def _head(self, states: torch.Tensor, weight: PackedWeight, size: int) -> torch.Tensor:
        logits = torch.empty(len(states), size, device=self.device)
        ops.rms_norm_linear(logits, states, self.norm, self.config.rms_norm_eps, weight)
        return logits


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype of that name; None for "auto". Raises ParameterError for any other."""
    names = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype in names.values() and dtype is not None:
        return dtype
    if isinstance(dtype, str) and dtype in names:
        return names[dtype]
    raise ParameterError(f"dtype must be one of {', '.join(names)}, got {dtype}")


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Read `tokenizer.json` in `folder`; None where there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{path} is no tokenizer: {error}") from None


def rope_table(config: HiggsAudioConfig, length: int) -> torch.Tensor:
    """Cosines, then sines, of the rotary angles: [length, head_dim], float32.

    With llama3 scaling, frequencies whose wave is longer than the original context / low_freq_factor are divided by
    `factor`, those shorter than the original context / high_freq_factor are kept, and those between are interpolated
    (Llama 3.1; the same arithmetic, in float32, as transformers' `rope_type: llama3`).
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is not None:
        context = scaling.original_max_position_embeddings
        waves = 2 * math.pi / frequencies
        low, high = context / scaling.low_freq_factor, context / scaling.high_freq_factor
        smooth = (context / waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        between = (1 - smooth) * (frequencies / scaling.factor) + smooth * frequencies
        frequencies = torch.where(
            waves > low, frequencies / scaling.factor, torch.where(waves < high, frequencies, between)
        )
    angles = torch.arange(length).float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
