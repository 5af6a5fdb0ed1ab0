"""The audio tokenizer's configuration, read from either layout of `config.json`."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from higgs_native.audio.samples import MIN_SECONDS
from higgs_native.checkpoint.language_model import BUNDLED_CONFIG_FILE
from higgs_native.checkpoint.other_kinds import read_config
from higgs_native.errors import ConfigError, short_repr
from higgs_native.utils.fields import MAX_INTEGER, Fields
from higgs_native.utils.files import read_json_object


DILATIONS = (1, 3, 9)
"""Dilations of an acoustic block's three residual units."""

SEMANTIC_PADDING = 160
"""Samples of silence before HuBERT's input, and after it."""

_SOURCE = "the audio tokenizer's config.json"
# Far above those of any audio tokenizer: what is built before the tensors are compared with the configuration, and
# what a frame takes, stays small.
_MAX_LAYERS = 1024
_MAX_CODEBOOKS = 64
_MAX_LIST = 16
_MAX_RATE = 768_000
_MAX_RATE_RATIO = 1000


@dataclasses.dataclass(frozen=True)
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


@dataclasses.dataclass(frozen=True)
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
        fields = Fields(raw, _SOURCE)
        return _read_boson(fields) if "n_q" in fields or "ratios" in fields else _read_transformers(fields)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HiggsAudioTokenizerConfig":
        """Read `config.json` in `folder`.

        That of Higgs TTS 3 says nothing about its audio tokenizer, which has the published shapes, or those in
        `codec_config.json`.

        Raises:
            ConfigError: the file is missing, holds no JSON object, or can't be used; see `from_dict`.
            CheckpointError: the folder holds a checkpoint of another kind; see `higgs_native.checkpoint.other_kinds`.
        """
        raw = read_config(Path(folder))
        if raw.get("model_type") == "higgs_multimodal_qwen3":
            bundled = Path(folder) / BUNDLED_CONFIG_FILE
            return cls.from_dict(read_json_object(bundled)) if bundled.is_file() else cls()
        return cls.from_dict(raw)

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
                    for field in dataclasses.fields(HubertConfig)
                },
            },
        }

    def _check(self) -> None:
        for holder in (self, self.hubert):
            for field in dataclasses.fields(holder):
                value = getattr(holder, field.name)
                if not isinstance(value, HubertConfig | bool):
                    values = value if isinstance(value, tuple) else (value,)
                    _require(len(values) > 0 and min(values) > 0, field.name, "positive", value)
                    _require(max(values) <= MAX_INTEGER, field.name, f"at most {MAX_INTEGER}", value)
                    _require(len(values) <= _MAX_LIST, field.name, f"a list of at most {_MAX_LIST}", value)
        codebooks = self.num_codebooks
        _require(codebooks <= _MAX_CODEBOOKS, "num_codebooks", f"at most {_MAX_CODEBOOKS}", codebooks)
        self._check_rates()
        self._check_acoustic()
        self._check_semantic()

    def _check_rates(self) -> None:
        rates = self.sampling_rate, self.semantic_sampling_rate
        for name, rate in zip(("sampling_rate", "semantic_sampling_rate"), rates, strict=True):
            _require(rate <= _MAX_RATE, name, f"at most {_MAX_RATE}", rate)
        # The filter between the two rates has as many phases and taps as the reduced ratio has steps.
        steps = max(rates) // math.gcd(*rates)
        _require(
            steps <= _MAX_RATE_RATIO,
            "semantic_sampling_rate",
            f"in a ratio of numbers up to {_MAX_RATE_RATIO} to sampling_rate {self.sampling_rate}",
            self.semantic_sampling_rate,
        )
        ratios = "the product of downsampling_ratios"
        _require(self.hop_length <= self.sampling_rate, ratios, f"at most {self.sampling_rate} (1 s)", self.hop_length)

    def _check_acoustic(self) -> None:
        ratios, halvings = self.upsampling_ratios, len(self.upsampling_ratios)
        _require(
            math.prod(ratios) == self.hop_length,
            "upsampling_ratios",
            f"ratios with the product of downsampling_ratios, {self.hop_length}",
            ratios,
        )
        _require(min(ratios) >= 2, "upsampling_ratios", "at least 2 each", ratios)
        _require(
            self.decoder_hidden_size % 2**halvings == 0,
            "decoder_hidden_size",
            f"a multiple of {2**halvings} (each of the {halvings} upsampling_ratios halves it)",
            self.decoder_hidden_size,
        )

    def _check_semantic(self) -> None:
        hubert, ratios, layers = self.hubert, self.channel_ratios, self.hubert.num_hidden_layers
        _require(layers <= _MAX_LAYERS, "HuBERT's num_hidden_layers", f"at most {_MAX_LAYERS}", layers)
        as_many = f"as many as channel_ratios, {len(ratios)}"
        _require(len(self.strides) == len(ratios), "strides", as_many, self.strides)
        _require(hubert.hidden_size == int(hubert.hidden_size * ratios[-1]), "channel_ratios", "1 at the end", ratios)
        _require(self.unit_kernel_size % 2 == 1, "unit_kernel_size", "odd", self.unit_kernel_size)
        lengths = len(hubert.conv_dim), len(hubert.conv_kernel), len(hubert.conv_stride)
        _require(len(set(lengths)) == 1, "conv_dim, conv_kernel and conv_stride", "of the same length", lengths)
        _require(
            self.min_samples <= MIN_SECONDS * self.sampling_rate,
            "conv_kernel and conv_stride",
            f"small enough for {MIN_SECONDS} s of audio",
            (hubert.conv_kernel, hubert.conv_stride),
        )
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            divisor = getattr(hubert, name)
            _require(
                hubert.hidden_size % divisor == 0,
                "HuBERT's hidden_size",
                f"a multiple of its {name}, {divisor}",
                hubert.hidden_size,
            )


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{_SOURCE}: {name} must be {expected}, got {short_repr(value)}")


def _read_transformers(fields: Fields) -> HiggsAudioTokenizerConfig:
    model_type = fields.value("model_type", None)
    _require(model_type == "higgs_audio_v2_tokenizer", "model_type", "'higgs_audio_v2_tokenizer'", model_type)
    default = HiggsAudioTokenizerConfig()
    acoustic = fields.nested("acoustic_model_config")
    downsampling = acoustic.integers("downsampling_ratios", default.downsampling_ratios)
    sampling_rate = fields.integer("sample_rate", default.sampling_rate)
    codebook_size = fields.integer("codebook_size", default.codebook_size)
    # Without bandwidths, 8 codebooks: the class default of transformers 5.23, 16, is no published checkpoint's.
    bandwidth = max(fields.numbers("target_bandwidths", ())[-1:], default=2.0)
    _require(math.prod(downsampling) > 0, "the product of downsampling_ratios", "positive", downsampling)
    _require(codebook_size >= 2, "codebook_size", "at least 2", codebook_size)
    frame_rate = max(math.ceil(sampling_rate / math.prod(downsampling)), 1)
    return HiggsAudioTokenizerConfig(
        sampling_rate=sampling_rate,
        semantic_sampling_rate=fields.integer("semantic_sample_rate", default.semantic_sampling_rate),
        num_codebooks=int(1000 * bandwidth // (frame_rate * math.ceil(math.log2(codebook_size)))),
        codebook_size=codebook_size,
        codebook_dim=fields.integer("codebook_dim", default.codebook_dim),
        encoder_hidden_size=acoustic.integer("encoder_hidden_size", default.encoder_hidden_size),
        decoder_hidden_size=acoustic.integer("decoder_hidden_size", default.decoder_hidden_size),
        acoustic_hidden_size=acoustic.integer("hidden_size", default.acoustic_hidden_size),
        downsampling_ratios=downsampling,
        upsampling_ratios=acoustic.integers("upsampling_ratios", downsampling),
        kernel_size=fields.integer("kernel_size", default.kernel_size),
        unit_kernel_size=fields.integer("unit_kernel_size", default.unit_kernel_size),
        channel_ratios=fields.numbers("channel_ratios", default.channel_ratios),
        strides=fields.integers("strides", default.strides),
        block_dilations=fields.integers("block_dilations", default.block_dilations),
        downsample_factor=fields.integer("downsample_factor", default.downsample_factor),
        hubert=_read_hubert(fields.nested("semantic_model_config")),
    )


def _read_hubert(fields: Fields) -> HubertConfig:
    for name, expected in _HUBERT_FIXED.items():
        value = fields.value(name, expected)
        fields.require(name, value == expected, repr(expected), value)
    readers: dict[type, Callable[..., Any]] = {
        bool: fields.flag,
        int: fields.integer,
        float: fields.number,
        tuple: fields.integers,
    }
    hubert = dataclasses.fields(HubertConfig)
    return HubertConfig(**{field.name: readers[type(field.default)](field.name, field.default) for field in hubert})


def _read_boson(fields: Fields) -> HiggsAudioTokenizerConfig:
    teacher = fields.value("semantic_techer", "hubert_base_general")
    known = teacher in ("hubert_base", "hubert_base_general")
    _require(known, "semantic_techer", "'hubert_base' or 'hubert_base_general'", teacher)
    mode = fields.value("downsample_mode", "step_down")
    _require(mode == "step_down", "downsample_mode", "'step_down'", mode)
    ratios = fields.integers("ratios")
    return HiggsAudioTokenizerConfig(
        sampling_rate=fields.integer("sample_rate"),
        semantic_sampling_rate=fields.integer("semantic_sample_rate", 16000),
        num_codebooks=fields.integer("n_q"),
        codebook_size=fields.integer("bins"),
        codebook_dim=fields.integer("codebook_dim"),
        encoder_hidden_size=_BOSON_ENCODER_HIDDEN_SIZE,
        decoder_hidden_size=_BOSON_DECODER_HIDDEN_SIZE,
        acoustic_hidden_size=fields.integer("D"),
        downsampling_ratios=ratios,
        upsampling_ratios=ratios,
    )
