"""Which weights of the language model are quantized, and to what."""

from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import Self

from higgs_native.errors import ParameterError
from higgs_native.ops.formats import WEIGHT_FORMATS


@dataclass(frozen=True)
class Quantization:
    """The format of each part's weights: one of `bfloat16`, `float16`, `float32`, `fp8`, `int8`, `int4`, or None: the
    model's own dtype.

    fp8 (e4m3) and int8 have one scale for each output; int4 has a float16 scale for each group of 128 inputs of an
    output. Embeddings and norms are never quantized.

    Attributes:
        attention: the query, key, value and output projections.
        text_ffn, audio_ffn: the two feed-forward paths. A layer that has one path takes `text_ffn`.
        heads: the audio head and the text head.
        clip: choose the scales of int8 and int4 for the least squared error, instead of keeping the largest value of
            each group.
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
                    f"quantization: {part} must be one of {', '.join(WEIGHT_FORMATS)}, got {format!r}"
                )

    def __str__(self) -> str:
        return ", ".join(f"{part}={getattr(self, part) or 'as stored'}" for part in PARTS)

    @classmethod
    def parse(cls, text: "str | Quantization | None") -> Self:
        """Read `int4`, or `int4,heads=int8`, or `attention=int8,audio_ffn=int4`: one format for all, and exceptions.

        Raises:
            ParameterError: there is no such part or format, or one is given twice.
        """
        if isinstance(text, cls):
            return text
        if text is None:
            return cls()
        if not isinstance(text, str):
            raise ParameterError(f"quantization must be a text such as 'int8', got {text!r}")
        chosen: dict[str, str] = {}
        for item in text.split(","):
            part, equals, format = (word.strip() for word in item.partition("="))
            if not equals:
                part, format = _ALL, part
            if part not in (*PARTS, _ALL):
                raise ParameterError(f"quantization: {part!r} is no part; expected one of {', '.join(PARTS)}")
            if part in chosen:
                what = "two formats" if part == _ALL else f"{part} twice"
                raise ParameterError(f"quantization {text!r} names {what}")
            chosen[part] = format
        for_all = chosen.pop(_ALL, None)
        return cls(**(dict.fromkeys(PARTS, for_all) | chosen))

    def same_formats(self, other: "Quantization") -> bool:
        """Whether every part has the same format."""
        return all(getattr(self, part) == getattr(other, part) for part in PARTS)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


PARTS = ("attention", "text_ffn", "audio_ffn", "heads")
_ALL = ""  # the key of a format that is given without a part
