"""The tokens and tags that structure a prompt, in both conventions."""

import re


SPEAKER_TAG = re.compile(r"\[SPEAKER\d{1,9}\]")
"""Marks the turns of a speaker."""

CONTROL_TAG = re.compile(r"<\|[^|<>]*\|>")
"""Changes how Higgs TTS 3 speaks; nobody says it."""

PAUSE = re.compile(r"\[pause\b[^\[\]]*\]", re.IGNORECASE)
"""A pause, written rightly or wrongly; nobody says it."""

SPEED = re.compile(r"(?<!\[)\[speed\b[^\[\]]*\]", re.IGNORECASE)
"""The speed of what follows, written rightly or wrongly; nobody says it. `[[speed]]` may be phonemes."""

TIMING = re.compile(f"{PAUSE.pattern}|{SPEED.pattern}", re.IGNORECASE)
"""A pause or a speed: a text is cut there."""

AUDIO_IN = "<|audio_bos|><|AUDIO|><|audio_eos|>"
AUDIO_OUT = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
AUDIO_PLACEHOLDERS = ("<|AUDIO|>", "<|AUDIO_OUT|>")
AUDIO_OUT_BOS = "<|audio_out_bos|>"
BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TURN = "<|eot_id|>"
END_OF_MESSAGE = "<|eom_id|>"
RECIPIENT = "<|recipient|>"
SCENE_START, SCENE_END = "<|scene_desc_start|>\n", "\n<|scene_desc_end|>"

# A tokenizer without these turns the structure of a prompt into plain text.
REQUIRED_TOKENS = (
    BEGIN_OF_TEXT,
    "<|start_header_id|>",
    "<|end_header_id|>",
    END_OF_TURN,
    END_OF_MESSAGE,
    RECIPIENT,
    "<|audio_bos|>",
    AUDIO_OUT_BOS,
    "<|audio_eos|>",
    *AUDIO_PLACEHOLDERS,
)


def header(role: str) -> str:
    """Return the beginning of a message."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"
