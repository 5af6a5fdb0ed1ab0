"""The audio tokenizer's configuration, read from either layout of `config.json`."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from higgs_native.errors import ConfigError
from higgs_native.utils.files import read_json_object


DILATIONS = (1, 3, 9)
"""Dilations of an acoustic block's three residual units."""

SEMANTIC_PADDING = 160
"""Samples of silence before HuBERT's input, and after it."""

_SOURCE = "the audio tokenizer's config.json"


@dataclass(frozen=True)
class HubertConfig:
    """Shapes of the HuBERT model; the defaults are HuBERT base's, as in the published checkpoint.

    Attributes:
        conv_dim, conv_kernel, conv_stride: output channels, kernel size and stride of the feature extractor's
            convolutions, in order.
        num_conv_pos_embeddings: kernel size of the positional convolution.
        num_conv_pos_embedding_groups: groups of the positional convolution.
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


# The only variant of HuBERT that is implemented: no published audio tokenizer uses another one.
_HUBERT_FIXED = {
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "do_stable_layer_norm": False,
    "conv_pos_batch_norm": False,
}
# Boson's config.json has neither: its code fixes both.
_BOSON_ENCODER_HIDDEN_SIZE = 64
_BOSON_DECODER_HIDDEN_SIZE = 1024


@dataclass(frozen=True)
class HiggsAudioTokenizerConfig:
    """Shapes of the audio tokenizer; the defaults are the published checkpoint's.

    Attributes:
        sampling_rate, semantic_sampling_rate: of the audio and of HuBERT's input, in Hz.
        num_codebooks, codebook_size, codebook_dim: the residual quantizer's levels, entries per level, and their
            width.
        encoder_hidden_size: channels of the acoustic encoder's first convolution; each stride doubles them.
        decoder_hidden_size: channels of the acoustic decoder's first convolution; each stride halves them.
        acoustic_hidden_size: channels between the acoustic encoder and decoder.
        downsampling_ratios, upsampling_ratios: the strides of the acoustic encoder and decoder, in order.
        kernel_size, unit_kernel_size: kernel sizes of the semantic encoder (the convolutions after HuBERT): of its
            first convolution and of its residual units.
        channel_ratios, strides: relative width and stride of each block of the semantic encoder.
        block_dilations: dilations of the residual units in each of these blocks.
        downsample_factor: samples per HuBERT frame, at `semantic_sampling_rate`.
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
        """Samples per frame."""
        return math.prod(self.downsampling_ratios)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def hidden_size(self) -> int:
        """Width of the quantizer's input: acoustic and semantic features, concatenated."""
        return self.acoustic_hidden_size + self.hubert.hidden_size

    @property
    def semantic_downsample_factor(self) -> int:
        """HuBERT frames per frame; at least 1, though a frame may be shorter than HuBERT's."""
        return max(1, int(self.hop_length * self.semantic_sampling_rate / self.sampling_rate / self.downsample_factor))

    @property
    def min_samples(self) -> int:
        """The fewest samples that can be encoded: HuBERT's convolutions need a window, the padding included."""
        window = 1
        for kernel, stride in zip(reversed(self.hubert.conv_kernel), reversed(self.hubert.conv_stride), strict=True):
            window = (window - 1) * stride + kernel
        resampled = window - 2 * SEMANTIC_PADDING
        return max(1, (resampled - 1) * self.sampling_rate // self.semantic_sampling_rate + 1)

    @property
    def min_acoustic_samples(self) -> int:
        """The fewest samples that the acoustic encoder makes a frame of."""
        samples = 1
        for stride in reversed(self.downsampling_ratios):
            samples = (samples - 1) * stride + 2 * stride - 2 * math.ceil(stride / 2)
        return max(1, samples)

    @property
    def decoder_context(self) -> int:
        """The decoder's receptive field: frames on each side that a frame's samples depend on."""
        # The columns that one frame's samples depend on, layer by layer from the last one back.
        first, last = -3, self.hop_length - 1 + 3
        for stride in reversed(self.upsampling_ratios):
            units = 3 * sum(DILATIONS)
            padding = math.ceil(stride / 2)
            first = math.ceil((first - units + padding - 2 * stride + 1) / stride)
            last = (last + units + padding) // stride
        return max(3 - first, last + 3)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "HiggsAudioTokenizerConfig":
        """Read the contents of a `config.json` in the layout of transformers (nested) or of Boson (flat).

        Raises:
            ConfigError: it describes another model, or a value is missing, out of range, or contradicts another one.
        """
        try:
            return _read_boson(raw) if "n_q" in raw or "ratios" in raw else _read_transformers(raw)
        except ConfigError:
            raise
        except KeyError as error:
            raise ConfigError(f"{_SOURCE} has no {error}") from None
        except (TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
            raise ConfigError(f"{_SOURCE}: {error}") from None

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HiggsAudioTokenizerConfig":
        """Read `config.json` in `folder`.

        Raises:
            ConfigError: the file is missing, holds no JSON object, or can't be used; see `from_dict`.
        """
        return cls.from_dict(read_json_object(Path(folder) / "config.json"))

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of a `config.json` in the layout of transformers."""
        bits = math.ceil(math.log2(self.codebook_size))
        # transformers derives the number of codebooks from the highest bandwidth, in kbit/s.
        bits_per_second = self.num_codebooks * math.ceil(self.frame_rate) * bits
        bandwidth = bits_per_second / 1000
        if 1000 * bandwidth < bits_per_second:  # reading rounds down
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
        hubert = self.hubert
        for holder in (self, hubert):
            for field in fields(holder):
                value = getattr(holder, field.name)
                values = value if isinstance(value, tuple) else (value,)
                if field.name not in ("hubert", "conv_bias", "feat_proj_layer_norm") and (
                    not values or min(values) <= 0
                ):
                    raise ConfigError(f"{_SOURCE}: {field.name} must be positive, got {value}")
        if math.prod(self.upsampling_ratios) != self.hop_length:
            raise ConfigError(
                f"{_SOURCE}: upsampling_ratios must have the product of downsampling_ratios, {self.hop_length}, "
                f"got {self.upsampling_ratios}"
            )
        if min(self.upsampling_ratios) < 2:
            raise ConfigError(f"{_SOURCE}: upsampling_ratios must be at least 2 each, got {self.upsampling_ratios}")
        halvings = len(self.upsampling_ratios)
        if self.decoder_hidden_size % 2**halvings:
            raise ConfigError(
                f"{_SOURCE}: decoder_hidden_size must be a multiple of {2**halvings} (each of the {halvings} "
                f"upsampling_ratios halves it), got {self.decoder_hidden_size}"
            )
        if len(self.strides) != len(self.channel_ratios):
            raise ConfigError(
                f"{_SOURCE}: strides must have the length of channel_ratios, {len(self.channel_ratios)}, "
                f"got {len(self.strides)}"
            )
        if hubert.hidden_size != int(hubert.hidden_size * self.channel_ratios[-1]):
            raise ConfigError(f"{_SOURCE}: channel_ratios must end with 1, got {self.channel_ratios}")
        if not len(hubert.conv_dim) == len(hubert.conv_kernel) == len(hubert.conv_stride):
            raise ConfigError(
                f"{_SOURCE}: conv_dim, conv_kernel and conv_stride must have the same length, got "
                f"{len(hubert.conv_dim)}, {len(hubert.conv_kernel)} and {len(hubert.conv_stride)}"
            )
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if hubert.hidden_size % getattr(hubert, name):
                raise ConfigError(
                    f"{_SOURCE}: HuBERT's hidden_size must be a multiple of its {name}, {getattr(hubert, name)}, "
                    f"got {hubert.hidden_size}"
                )


def _read_transformers(raw: dict[str, Any]) -> HiggsAudioTokenizerConfig:
    model_type = raw.get("model_type")
    if model_type != "higgs_audio_v2_tokenizer":
        raise ConfigError(f"{_SOURCE}: model_type must be 'higgs_audio_v2_tokenizer', got {model_type!r}")
    default = HiggsAudioTokenizerConfig()
    acoustic = raw.get("acoustic_model_config") or {}
    downsampling = tuple(acoustic.get("downsampling_ratios", default.downsampling_ratios))
    sampling_rate = int(raw.get("sample_rate", default.sampling_rate))
    codebook_size = int(raw.get("codebook_size", default.codebook_size))
    # Without bandwidths, 8 codebooks: the class default of transformers 5.23, 16, is no published checkpoint's.
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
            raise ConfigError(f"{_SOURCE}: HuBERT's {name} must be {expected!r}, got {raw[name]!r}")
    values = {field.name: raw[field.name] for field in fields(HubertConfig) if field.name in raw}
    return HubertConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _read_boson(raw: dict[str, Any]) -> HiggsAudioTokenizerConfig:
    teacher = raw.get("semantic_techer", "hubert_base_general")
    if teacher not in ("hubert_base", "hubert_base_general"):
        raise ConfigError(
            f"{_SOURCE}: semantic_techer must be 'hubert_base' or 'hubert_base_general', got {teacher!r}"
        )
    mode = raw.get("downsample_mode", "step_down")
    if mode != "step_down":
        raise ConfigError(f"{_SOURCE}: downsample_mode must be 'step_down', got {mode!r}")
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
