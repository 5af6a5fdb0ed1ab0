"""The audio tokenizer's configuration, read from either layout of `config.json`, and the tensors that it asks for."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from higgs_native.errors import ConfigError
from higgs_native.utils.files import read_json_object


@dataclass(frozen=True)
class HubertConfig:
    """The shapes of the HuBERT model; the defaults are HuBERT base's, as in the real checkpoint.

    Attributes:
        conv_dim, conv_kernel, conv_stride: the feature extractor's convolutions, in order.
        num_conv_pos_embeddings: the kernel size of the positional convolution.
        num_conv_pos_embedding_groups: the groups of the positional convolution.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    feat_proj_layer_norm: bool = True
    layer_norm_eps: float = 1e-5


# What the networks here compute; HuBERT has variants that the audio tokenizer never used.
_HUBERT_FIXED = {
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "do_stable_layer_norm": False,
    "conv_pos_batch_norm": False,
}
# Boson's configuration fixes these two in code.
_BOSON_ENCODER_HIDDEN_SIZE = 64
_BOSON_DECODER_HIDDEN_SIZE = 1024


@dataclass(frozen=True)
class HiggsAudioTokenizerConfig:
    """The shapes of the audio tokenizer; the defaults are the real checkpoint's.

    Attributes:
        sampling_rate, semantic_sampling_rate: of the audio, and of what HuBERT hears, in Hz.
        num_codebooks, codebook_size, codebook_dim: the residual quantizer's levels, entries a level, and their width.
        encoder_hidden_size: channels of the acoustic encoder's first convolution; each stride doubles them.
        decoder_hidden_size: channels of the acoustic decoder's first convolution; each stride halves them.
        acoustic_hidden_size: channels between the acoustic encoder and decoder.
        downsampling_ratios, upsampling_ratios: the strides of the acoustic encoder and decoder, in order.
        kernel_size, unit_kernel_size, channel_ratios, strides, block_dilations: the small convolution encoder behind
            HuBERT: its first kernel, its residual units' kernel, and, a block each, width, stride, and dilations.
        downsample_factor: samples of `semantic_sampling_rate` a HuBERT frame.
        hubert: the semantic model.
    """

    sampling_rate: int = 24000
    semantic_sampling_rate: int = 16000
    num_codebooks: int = 8
    codebook_size: int = 1024
    codebook_dim: int = 64
    encoder_hidden_size: int = 64
    decoder_hidden_size: int = 1024
    acoustic_hidden_size: int = 256
    downsampling_ratios: tuple[int, ...] = (8, 5, 4, 2, 3)
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2, 3)
    kernel_size: int = 3
    unit_kernel_size: int = 3
    channel_ratios: tuple[float, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 1)
    block_dilations: tuple[int, ...] = (1, 1)
    downsample_factor: int = 320
    hubert: HubertConfig = HubertConfig()

    def __post_init__(self) -> None:
        self._check()

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.downsampling_ratios)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sampling_rate / self.hop_length

    @property
    def hidden_size(self) -> int:
        """Width of what is quantized: acoustic and semantic features side by side."""
        return self.acoustic_hidden_size + self.hubert.hidden_size

    @property
    def semantic_downsample_factor(self) -> int:
        """HuBERT frames a frame."""
        return int(self.hop_length * self.semantic_sampling_rate / self.sampling_rate / self.downsample_factor)

    @property
    def decoder_context(self) -> int:
        """Frames on each side that a frame's samples depend on: the decoder's receptive field."""
        # From the samples of one frame back through the decoder, as an interval of positions.
        first, last = -3, self.hop_length - 1 + 3
        for stride in reversed(self.upsampling_ratios):
            units = 3 * sum(DILATIONS)
            padding = math.ceil(stride / 2)
            first = math.ceil((first - units + padding - 2 * stride + 1) / stride)
            last = (last + units + padding) // stride
        return max(3 - first, last + 3)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "HiggsAudioTokenizerConfig":
        """Read the contents of a `config.json`: of transformers (nested model configurations), or Boson's (flat).

        Raises:
            ConfigError: the codec is another one, or a value is missing or contradicts another.
        """
        try:
            return _read_boson(raw) if "n_q" in raw or "ratios" in raw else _read_transformers(raw)
        except ConfigError:
            raise
        except KeyError as error:
            raise ConfigError(f"the audio tokenizer's config.json has no {error}") from None
        except (TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
            raise ConfigError(f"the audio tokenizer's config.json: {error}") from None

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HiggsAudioTokenizerConfig":
        """Read `config.json` in `folder`.

        Raises:
            ConfigError: the file is missing, is no JSON object, or does not describe this codec.
        """
        return cls.from_dict(read_json_object(Path(folder) / "config.json"))

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `config.json` as transformers writes and reads it."""
        bits = math.ceil(math.log2(self.codebook_size))
        # transformers derives the number of codebooks from the highest bandwidth, in kbit/s.
        bits_a_second = self.num_codebooks * math.ceil(self.frame_rate) * bits
        bandwidth = bits_a_second / 1000
        if 1000 * bandwidth < bits_a_second:  # it is rounded down when it is read
            bandwidth = math.nextafter(bandwidth, math.inf)
        return {
            "model_type": "higgs_audio_v2_tokenizer",
            "architectures": ["HiggsAudioV2TokenizerModel"],
            "sample_rate": self.sampling_rate,
            "semantic_sample_rate": self.semantic_sampling_rate,
            "target_bandwidths": [bandwidth],
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
            "kernel_size": self.kernel_size,
            "unit_kernel_size": self.unit_kernel_size,
            "channel_ratios": list(self.channel_ratios),
            "strides": list(self.strides),
            "block_dilations": list(self.block_dilations),
            "downsample_factor": self.downsample_factor,
            "acoustic_model_config": {
                "model_type": "dac",
                "sampling_rate": self.sampling_rate,
                "encoder_hidden_size": self.encoder_hidden_size,
                "decoder_hidden_size": self.decoder_hidden_size,
                "hidden_size": self.acoustic_hidden_size,
                "downsampling_ratios": list(self.downsampling_ratios),
                "upsampling_ratios": list(self.upsampling_ratios),
            },
            "semantic_model_config": {
                "model_type": "hubert",
                "mask_time_prob": 0.0,
                **_HUBERT_FIXED,
                **{
                    field.name: list(value) if isinstance(value := getattr(self.hubert, field.name), tuple) else value
                    for field in fields(HubertConfig)
                },
            },
        }

    def _check(self) -> None:
        where = "the audio tokenizer's config.json"
        hubert = self.hubert
        for holder in (self, hubert):
            for field in fields(holder):
                value = getattr(holder, field.name)
                values = value if isinstance(value, tuple) else (value,)
                if field.name not in ("hubert", "conv_bias", "feat_proj_layer_norm") and (
                    not values or min(values) <= 0
                ):
                    raise ConfigError(f"{where}: {field.name} is {value}; expected positive numbers")
        if math.prod(self.upsampling_ratios) != self.hop_length:
            raise ConfigError(
                f"{where}: upsampling_ratios {self.upsampling_ratios} and downsampling_ratios "
                f"{self.downsampling_ratios} differ in their products"
            )
        if min(self.upsampling_ratios) < 2:
            raise ConfigError(f"{where}: upsampling_ratios is {self.upsampling_ratios}; expected at least 2 each")
        if self.decoder_hidden_size % 2 ** len(self.upsampling_ratios):
            raise ConfigError(
                f"{where}: decoder_hidden_size {self.decoder_hidden_size} can't be halved "
                f"{len(self.upsampling_ratios)} times"
            )
        if self.semantic_downsample_factor < 1:
            raise ConfigError(f"{where}: a frame of {self.hop_length} samples is shorter than a HuBERT frame")
        if len(self.strides) != len(self.channel_ratios):
            raise ConfigError(f"{where}: strides and channel_ratios differ in length")
        if hubert.hidden_size != int(hubert.hidden_size * self.channel_ratios[-1]):
            raise ConfigError(f"{where}: channel_ratios must end at 1, got {self.channel_ratios}")
        if not len(hubert.conv_dim) == len(hubert.conv_kernel) == len(hubert.conv_stride):
            raise ConfigError(f"{where}: conv_dim, conv_kernel and conv_stride differ in length")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if hubert.hidden_size % getattr(hubert, name):
                raise ConfigError(
                    f"{where}: HuBERT's hidden_size {hubert.hidden_size} is no multiple of its {name}, "
                    f"{getattr(hubert, name)}"
                )


DILATIONS = (1, 3, 9)
"""Dilations of the three residual units of an acoustic block."""


def tensor_shapes(config: HiggsAudioTokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Name (as transformers writes it) and shape of every tensor that encoding and decoding need."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight_shape: int, bias: int | None = None) -> None:
        shapes[f"{name}.weight"] = weight_shape
        if bias is not None:
            shapes[f"{name}.bias"] = (bias,)

    def snake(name: str, channels: int) -> None:
        shapes[f"{name}.alpha"] = (1, channels, 1)

    def residual_units(name: str, channels: int) -> None:
        for unit in range(1, len(DILATIONS) + 1):
            snake(f"{name}.res_unit{unit}.snake1", channels)
            layer(f"{name}.res_unit{unit}.conv1", channels, channels, 7, bias=channels)
            snake(f"{name}.res_unit{unit}.snake2", channels)
            layer(f"{name}.res_unit{unit}.conv2", channels, channels, 1, bias=channels)

    channels = config.encoder_hidden_size
    layer("acoustic_encoder.conv1", channels, 1, 7, bias=channels)
    for i, stride in enumerate(config.downsampling_ratios):
        block = f"acoustic_encoder.block.{i}"
        residual_units(block, channels)
        snake(f"{block}.snake1", channels)
        layer(f"{block}.conv1", 2 * channels, channels, 2 * stride, bias=2 * channels)
        channels *= 2
    snake("acoustic_encoder.snake1", channels)
    layer("acoustic_encoder.conv2", config.acoustic_hidden_size, channels, 3, bias=config.acoustic_hidden_size)

    channels = config.decoder_hidden_size
    layer("acoustic_decoder.conv1", channels, config.acoustic_hidden_size, 7, bias=channels)
    for i, stride in enumerate(config.upsampling_ratios):
        block = f"acoustic_decoder.block.{i}"
        snake(f"{block}.snake1", channels)
        # A transposed convolution's weight has the input channels first.
        layer(f"{block}.conv_t1", channels, channels // 2, 2 * stride, bias=channels // 2)
        channels //= 2
        residual_units(block, channels)
    snake("acoustic_decoder.snake1", channels)
    layer("acoustic_decoder.conv2", 1, channels, 7, bias=1)

    _hubert_shapes(config.hubert, layer, shapes)

    width = config.hubert.hidden_size
    layer("encoder_semantic.conv", width, width, config.kernel_size)
    for i, (ratio, stride) in enumerate(zip(config.channel_ratios, config.strides, strict=True)):
        block = f"encoder_semantic.conv_blocks.{i}"
        for j in range(len(config.block_dilations)):
            layer(f"{block}.res_units.{j}.conv1", width, width, config.unit_kernel_size)
            layer(f"{block}.res_units.{j}.conv2", width, width, 1)
        out = int(config.hubert.hidden_size * ratio)
        layer(f"{block}.conv", out, width, 3 if stride == 1 else 2 * stride, bias=out)
        width = out

    hidden, entry = config.hidden_size, config.codebook_dim
    for i in range(config.num_codebooks):
        level = f"quantizer.quantizers.{i}"
        layer(f"{level}.project_in", entry, hidden, bias=entry)
        layer(f"{level}.project_out", hidden, entry, bias=hidden)
        shapes[f"{level}.codebook.embed"] = (config.codebook_size, entry)
    layer("fc", hidden, hidden, bias=hidden)
    layer("fc2", config.acoustic_hidden_size, hidden, bias=config.acoustic_hidden_size)
    return shapes


def _hubert_shapes(hubert: HubertConfig, layer: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    channels = 1
    for i, (out, kernel) in enumerate(zip(hubert.conv_dim, hubert.conv_kernel, strict=True)):
        name = f"semantic_model.feature_extractor.conv_layers.{i}"
        layer(f"{name}.conv", out, channels, kernel, bias=out if hubert.conv_bias else None)
        if i == 0:
            layer(f"{name}.layer_norm", out, bias=out)
        channels = out
    width = hubert.hidden_size
    if hubert.feat_proj_layer_norm:
        layer("semantic_model.feature_projection.layer_norm", channels, bias=channels)
    layer("semantic_model.feature_projection.projection", width, channels, bias=width)
    # The positional convolution is stored with its weight norm: the gain of each tap, and the direction.
    position, taps = "semantic_model.encoder.pos_conv_embed.conv", hubert.num_conv_pos_embeddings
    shapes[f"{position}.bias"] = (width,)
    shapes[f"{position}.parametrizations.weight.original0"] = (1, 1, taps)
    shapes[f"{position}.parametrizations.weight.original1"] = (
        width,
        width // hubert.num_conv_pos_embedding_groups,
        taps,
    )
    layer("semantic_model.encoder.layer_norm", width, bias=width)
    for i in range(hubert.num_hidden_layers):
        block = f"semantic_model.encoder.layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(f"{block}.attention.{projection}", width, width, bias=width)
        layer(f"{block}.layer_norm", width, bias=width)
        layer(
            f"{block}.feed_forward.intermediate_dense", hubert.intermediate_size, width, bias=hubert.intermediate_size
        )
        layer(f"{block}.feed_forward.output_dense", width, hubert.intermediate_size, bias=width)
        layer(f"{block}.final_layer_norm", width, bias=width)


def _read_transformers(raw: dict[str, Any]) -> HiggsAudioTokenizerConfig:
    model_type = raw.get("model_type")
    if model_type != "higgs_audio_v2_tokenizer":
        raise ConfigError(f"the audio tokenizer's model_type is {model_type!r}; expected 'higgs_audio_v2_tokenizer'")
    default = HiggsAudioTokenizerConfig()
    acoustic = raw.get("acoustic_model_config") or {}
    downsampling = tuple(acoustic.get("downsampling_ratios", default.downsampling_ratios))
    sampling_rate = int(raw.get("sample_rate", default.sampling_rate))
    codebook_size = int(raw.get("codebook_size", default.codebook_size))
    # Where the bandwidths are not given, 8 codebooks: the class default of transformers 5.23 is no checkpoint's.
    bandwidths = raw.get("target_bandwidths") or (0.5, 1, 1.5, 2)
    frame_rate = math.ceil(sampling_rate / math.prod(downsampling))
    return HiggsAudioTokenizerConfig(
        sampling_rate=sampling_rate,
        semantic_sampling_rate=int(raw.get("semantic_sample_rate", default.semantic_sampling_rate)),
        num_codebooks=int(1000 * bandwidths[-1] // (frame_rate * math.ceil(math.log2(codebook_size)))),
        codebook_size=codebook_size,
        codebook_dim=int(raw.get("codebook_dim", default.codebook_dim)),
        encoder_hidden_size=int(acoustic.get("encoder_hidden_size", default.encoder_hidden_size)),
        decoder_hidden_size=int(acoustic.get("decoder_hidden_size", default.decoder_hidden_size)),
        acoustic_hidden_size=int(acoustic.get("hidden_size", default.acoustic_hidden_size)),
        downsampling_ratios=downsampling,
        upsampling_ratios=tuple(acoustic.get("upsampling_ratios", downsampling)),
        kernel_size=int(raw.get("kernel_size", default.kernel_size)),
        unit_kernel_size=int(raw.get("unit_kernel_size", default.unit_kernel_size)),
        channel_ratios=tuple(raw.get("channel_ratios", default.channel_ratios)),
        strides=tuple(raw.get("strides", default.strides)),
        block_dilations=tuple(raw.get("block_dilations", default.block_dilations)),
        downsample_factor=int(raw.get("downsample_factor", default.downsample_factor)),
        hubert=_read_hubert(raw.get("semantic_model_config") or {}),
    )


def _read_hubert(raw: dict[str, Any]) -> HubertConfig:
    for name, expected in _HUBERT_FIXED.items():
        if raw.get(name, expected) != expected:
            raise ConfigError(f"the audio tokenizer's HuBERT has {name} {raw[name]!r}; supported is {expected!r}")
    values = {field.name: raw[field.name] for field in fields(HubertConfig) if field.name in raw}
    return HubertConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _read_boson(raw: dict[str, Any]) -> HiggsAudioTokenizerConfig:
    teacher = raw.get("semantic_techer", "hubert_base_general")
    if teacher not in ("hubert_base", "hubert_base_general"):
        raise ConfigError(
            f"the audio tokenizer's semantic_techer is {teacher!r}; expected 'hubert_base' or 'hubert_base_general'"
        )
    mode = raw.get("downsample_mode", "step_down")
    if mode != "step_down":
        raise ConfigError(f"the audio tokenizer's downsample_mode is {mode!r}; expected 'step_down'")
    ratios = tuple(raw["ratios"])
    return HiggsAudioTokenizerConfig(
        sampling_rate=int(raw["sample_rate"]),
        semantic_sampling_rate=int(raw.get("semantic_sample_rate", 16000)),
        num_codebooks=int(raw["n_q"]),
        codebook_size=int(raw["bins"]),
        codebook_dim=int(raw["codebook_dim"]),
        encoder_hidden_size=_BOSON_ENCODER_HIDDEN_SIZE,
        decoder_hidden_size=_BOSON_DECODER_HIDDEN_SIZE,
        acoustic_hidden_size=int(raw["D"]),
        downsampling_ratios=ratios,
        upsampling_ratios=ratios,
    )
