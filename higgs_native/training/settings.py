"""The settings of a training run, read from YAML."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import Self

from higgs_native.convention import Convention
from higgs_native.errors import ConfigError, ParameterError, short_repr
from higgs_native.utils.fields import Fields
from higgs_native.utils.files import read_small_file


METHODS = ("lora", "full")
DTYPES = ("bfloat16", "float32")
MAX_CUTS = 40
"""A cut for each millisecond of a frame."""
PARTS = {
    "attention": tuple(f"self_attn.{name}_proj" for name in "qkvo"),
    "text_ffn": tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    "audio_ffn": tuple(f"audio_mlp.{name}_proj" for name in ("gate", "up", "down")),
    "heads": ("audio_lm_head", "text_lm_head"),
    "embeddings": ("embed_tokens", "embed_audio_tokens.embed_audio_tokens"),
    "norms": (
        "norm",
        *(f"{path}{name}_layernorm" for path in ("", "audio_") for name in ("input", "post_attention")),
    ),
}
"""The parts of the model, by the ends of the names of their modules."""


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a run.

    Attributes:
        data: the manifest of recordings (see `training.data.manifest`).
        output: the folder of the run. If it holds an interrupted run of the same settings, that one goes on.
        model: the base: a folder, or a name on the Hub; None: the embedded voice.
        audio_tokenizer: as for `HiggsAudio.from_pretrained`.
        convention: `boson`, `transformers`, or None: that of the checkpoint.
        held_out: the manifest of samples that are evaluated and not learned; None: a share of `data`.
        held_out_share: that share.
        method: `lora`: factors of low rank, in PEFT's format; `full`: the parts themselves.
        parts: what is trained: attention, text_ffn, audio_ffn, heads, embeddings, and with `full` norms.
        rank, alpha: of LoRA.
        dropout: of the inputs of LoRA's factors, or with `full` of attention's output and of the inner activations.
        adapter: an adapter of the same parts and rank to begin with.
        dtype: of frozen weights and of activations, `bfloat16` or `float32`. Trained weights are float32.
        int8_base: whether the frozen matrices of the layers are rounded to int8, for LoRA: half their memory.
        int4_base: the same with int4: a quarter of their memory, and a base that speaks a little worse.
        steps: how many times the weights change.
        max_rows: rows of a pass: text tokens and frames of 40 ms of all samples that are packed into it.
        accumulate: passes of a step.
        learning_rate: after the warmup; it falls to a tenth by a half cosine.
        warmup_steps: steps in which the learning rate rises.
        weight_decay, max_grad_norm: of AdamW, and of the gradients of all parameters together.
        code_noise: the largest share of the heard codes that random ones replace, drawn for each pass; targets stay.
            A model that hears nothing but clean recordings attends to them instead of the text.
        cuts: how many times each recording is learned, each time cut into frames at another place: the k-th time it
            begins k / cuts of a frame late, and has other codes. Few recordings are then not learned by heart so soon.
        codebook_weights: the weights of the losses of the codebooks; empty: all 1.
        text_weight: the weight of the loss of the assistant's text; 0: it is not learned.
        checkpoint_gradients: compute activations again in the backward pass, which saves memory.
        compile: compile the model with torch.compile.
        shard: with several processes, each keeps a share of all weights (FSDP).
        evaluate_every: steps between evaluations.
        speech_samples: held-out texts that are spoken at each evaluation.
        speech_device: where they are spoken.
        save_every: steps between states from which the run resumes.
        seed: of the split, the order and dropout.
        device: `auto`: a GPU if there is one; or `cpu`.

    Raises:
        ParameterError: a value is outside its range.
    """

    data: str
    output: str
    model: str | None = None
    audio_tokenizer: str | None = None
    convention: str | None = None
    held_out: str | None = None
    held_out_share: float = 0.05
    method: str = "lora"
    parts: tuple[str, ...] = ("attention", "audio_ffn")
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    adapter: str | None = None
    dtype: str = "bfloat16"
    int8_base: bool = False
    int4_base: bool = False
    steps: int = 1000
    max_rows: int = 4096
    accumulate: int = 1
    learning_rate: float = 2e-4
    warmup_steps: int = 20
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    code_noise: float = 0.0
    cuts: int = 1
    codebook_weights: tuple[float, ...] = ()
    text_weight: float = 0.0
    checkpoint_gradients: bool = True
    compile: bool = False
    shard: bool = False
    evaluate_every: int = 100
    speech_samples: int = 2
    speech_device: str = "cpu"
    save_every: int = 100
    seed: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("dtype", DTYPES), ("device", ("auto", "cpu"))):
            self._require(name, getattr(self, name) in choices, " or ".join(choices))
        if self.convention is not None:
            Convention.parse(self.convention)
        known = [part for part in PARTS if part != "norms" or self.method == "full"]
        self._require("parts", bool(self.parts) and set(self.parts) <= set(known), f"some of {', '.join(known)}")
        for name in ("rank", "steps", "max_rows", "accumulate", "evaluate_every", "save_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("cuts", 1 <= self.cuts <= MAX_CUTS, f"1 to {MAX_CUTS}")
        for name in ("warmup_steps", "speech_samples", "seed", "weight_decay", "text_weight"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("learning_rate", "max_grad_norm", "alpha"):
            self._require(name, getattr(self, name) > 0, "above 0")
        self._require("learning_rate", self.learning_rate <= 1, "at most 1")
        for name in ("held_out_share", "dropout", "code_noise"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._require("codebook_weights", all(weight >= 0 for weight in self.codebook_weights), "at least 0 each")
        for name in ("int8_base", "int4_base"):
            self._require(name, not getattr(self, name) or self.method == "lora", "false unless method is lora")
        self._require("int4_base", not (self.int4_base and self.int8_base), "false with int8_base")
        others = self.int8_base or self.int4_base or self.compile
        self._require("shard", not (self.shard and others), "false with int8_base, int4_base or compile")
        self._require("adapter", self.adapter is None or self.method == "lora", "left out unless method is lora")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ParameterError(f"{name} must be {expected}, got {short_repr(getattr(self, name))}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name, as JSON knows them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file. Names of files and folders in it are relative to the current folder.

        Raises:
            ConfigError: the file can't be read, or has an unknown setting, or one of another kind.
            ParameterError: a value is outside its range.
        """
        try:
            raw = yaml.safe_load(read_small_file(path).decode("utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from None
        except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
            raise ConfigError(f"{path} can't be read as YAML: {' '.join(str(error).split())}") from None
        settings = Fields(raw, str(path))
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(str(name) for name in raw if name not in known)
        if unknown:
            raise ConfigError(f"{path}: a setting must be one of {', '.join(known)}, got {', '.join(unknown)}")
        for required in ("data", "output"):
            settings.text(required)
        return cls(**{name: _value(settings, name, known[name].default, raw[name]) for name in raw})


def _value(settings: Fields, name: str, default: Any, raw: Any) -> Any:
    """Return a setting, of the kind of its default."""
    if raw is None:
        settings.require(name, default is None, "given", raw)
        return None
    match default:
        case bool():
            return settings.flag(name, default)
        case int():
            return settings.integer(name)
        case float():
            return _number(settings, name, raw)
        case tuple() if name == "codebook_weights":
            settings.require(name, isinstance(raw, list), "a list of numbers", raw)
            return settings.numbers(name)
        case tuple():
            is_list = isinstance(raw, list) and all(isinstance(item, str) for item in raw)
            settings.require(name, is_list, "a list of names", raw)
            return tuple(raw)
        case _:
            return settings.text(name)


def _number(settings: Fields, name: str, raw: Any) -> float:
    """Return a number. YAML 1.1 takes 2e-4 for a text, because it has no point."""
    if isinstance(raw, str):
        try:
            raw = float(raw)
        except ValueError:
            settings.require(name, False, "a number", raw)
    return Fields({name: raw}, name).number(name)
