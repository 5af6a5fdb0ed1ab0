"""The conventions of the two public implementations: how a prompt is written, and how its reply is generated."""

import enum

from higgs_native.errors import ParameterError, short_repr


class Convention(str, enum.Enum):
    """Whose conventions a checkpoint follows. A member equals its name, so the name is accepted in its place.

    | | `boson` | `transformers` | its place |
    |---|---|---|---|
    | prompt | parts are tokenized one by one | the text is tokenized whole | `prompt.chat` |
    | delay pattern | opens a delay per frame | counts from the prompt's end | `generation.sampler` |
    | codes of a segment | all but the first and last column | up to the frame of EOS | `generation.delay_pattern` |
    | end | a stop string, or the end of audio | a frame of EOS in all codebooks | `generation.stop` |
    | recording's length | padded per HuBERT frame | padded by half a frame | `audio_tokenizer.encoder` |
    """

    BOSON = "boson"
    TRANSFORMERS = "transformers"

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
            raise ParameterError(f"{name} must be {' or '.join(map(repr, names))}, got {short_repr(value)}")
        return cls(value)
