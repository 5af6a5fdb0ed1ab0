"""The conventions of the public implementations: how a prompt is written, and how its reply is generated."""

import enum

from higgs_native.errors import ParameterError, short_repr


class Convention(str, enum.Enum):
    """The convention that a checkpoint follows. A member equals its name, so the name is accepted in its place.

    Models of Higgs Audio V2 follow `boson` or `transformers`, those of Higgs TTS 3 `higgs_tts_3`. Prompts and
    generation have a module per convention.

    | | `boson` | `transformers` | `higgs_tts_3` | implemented by |
    |---|---|---|---|---|
    | prompt | a chat, tokenized in parts | a chat, tokenized whole | blocks | `prompt` |
    | first frame | BOS in all codebooks | BOS in all codebooks | drawn | `generation.conventions` |
    | delay pattern | opens a delay per frame | counts from the prompt's end | opens a delay per frame | the same |
    | end | EOS in any codebook | EOS in any codebook | EOS in codebook 0 | the same |
    | codes of a segment | without the first and last | up to the frame of EOS | all | the same |
    | recordings | padded per HuBERT frame | padded by half a frame | the same, from 1 s on | `audio_tokenizer` |
    """

    BOSON = "boson"
    TRANSFORMERS = "transformers"
    HIGGS_TTS_3 = "higgs_tts_3"

    @property
    def state_value(self) -> int:
        """The value of `StateField.CONVENTION`, by which the kernels know it (csrc/common/delay_state.h)."""
        return list(Convention).index(self)

    @classmethod
    def parse(cls, value: "str | Convention", name: str = "convention") -> "Convention":
        """Return the convention of that name.

        Raises:
            ParameterError: there is none; the message calls the argument `name`.
        """
        names = [member.value for member in cls]
        if not isinstance(value, str) or value not in names:
            expected = ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"
            raise ParameterError(f"{name} must be {expected}, got {short_repr(value)}")
        return cls(value)
