"""The audio tokenizer's configuration, read from either layout of `config.json`."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from higgs_native.errors import ConfigError
from higgs_native.utils.files import read_json_object


DILATIONS = (1, 3, 9)
"""Dilations of the three residual units of an acoustic block."""


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
