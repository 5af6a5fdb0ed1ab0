"""The weight formats of the language model's parts."""

from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import Self

from higgs_native.errors import ParameterError, short_repr
from higgs_native.ops.formats import WEIGHT_FORMATS


@dataclass(frozen=True)
class Quantization:
    """The format of each part's weights: one of `WEIGHT_FORMATS`, or None for the model's dtype.

    fp8 (e4m3) and int8 have one float32 scale per output; int4 has one float16 scale per 128 inputs of an output.
    Embeddings and norms are never quantized.

    Attributes:
        attention: the query, key, value and output projections.
        text_ffn, audio_ffn: the two feed-forward paths. A layer with one path takes `text_ffn`.
        heads: the audio head and the text head.
        clip: choose the scales of int8 and int4 for the min squared error, instead of keeping the max of each group.

    Raises:
        ParameterError: a format is none of `WEIGHT_FORMATS`.
    """

    attention: str | None = None
    text_ffn: str | None = None
    audio_ffn: str | None = None
    heads: str | None = None
    clip: bool = True

    def __post_init__(self) -> None:
        for part in PARTS:
            format = getattr(self, part)
            if format is not None and format not in WEIGHT_FORMATS:
                raise ParameterError(
                    f"quantization: {part} must be one of {', '.join(WEIGHT_FORMATS)}, got {short_repr(format)}"
                )

    def __str__(self) -> str:
        return ", ".join(f"{part}={getattr(self, part) or 'as stored'}" for part in PARTS)

    @classmethod
    def parse(cls, text: "str | Quantization | None") -> Self:
        """Read a format for all parts, formats by part, or both: `int4`, `attention=int8`, `int4,heads=int8`.

        Raises:
            ParameterError: a part or format is unknown, or given twice.
        """
        if isinstance(text, cls):
            return text
        if text is None:
            return cls()
        if not isinstance(text, str):
            raise ParameterError(f"quantization must be a string such as 'int8', got {short_repr(text)}")
        chosen: dict[str, str] = {}
        for item in text.split(","):
            part, equals, format = (word.strip() for word in item.partition("="))
            if not equals:
                part, format = _ALL, part
            if part not in (*PARTS, _ALL):
                raise ParameterError(f"quantization: a part must be one of {', '.join(PARTS)}, got {short_repr(part)}")
            if part in chosen:
                name = "the format of all parts" if part == _ALL else part
                raise ParameterError(f"quantization: {name} must be given once, got {short_repr(text)}")
            chosen[part] = format
        for_all = chosen.pop(_ALL, None)
        return cls(**(dict.fromkeys(PARTS, for_all) | chosen))

    def same_formats(self, other: "Quantization") -> bool:
        """Whether every part has the same format."""
        return all(getattr(self, part) == getattr(other, part) for part in PARTS)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


PARTS = ("attention", "text_ffn", "audio_ffn", "heads")
_ALL = ""  # the key of a format without a part
