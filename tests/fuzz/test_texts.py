"""Texts: what every interface makes of invisible characters, tags, marks, and letters of all scripts."""

import random
from pathlib import Path

from higgs_native.errors import PromptError
from higgs_native.long_form.chunking import chunk_text
from higgs_native.prompt.normalize import normalize_text
from tests.fuzz import mutations
from tests.fuzz.frame import run_cases


PIECES = (
    *mutations.TEXTS,
    *(
        "[SPEAKER0]",
        "[SPEAKER1] ",
        "[SPEAKER",
        "[laugh]",
        "[music start]",
        "<|eot_id|>",
        "°C",
        "\u200d",
        "\u200c",
        "\ufe0f",
    ),
    *(
        " ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\u2028",
        "\x1c",
        "\u3000",
        ". ",
        "! ",
        "?",
        ",",
        "...",
        "…",
        "。",
        "，",
        "—",
        '"',
        "'",
    ),
    *(
        "«",
        "»",
        "「",
        "」",
        "(",
        ")",
        "（",
        "[",
        "]",
        "<",
        "-",
        "的",
        "哈哈",
        "今天天气",
        "カタ",
        "ひら",
        "한국",
        "می",
        "क्ष",
        "ไทย",
    ),
    *(
        "🇩🇪",
        "🇩",
        "👩\u200d👩",
        "e\u0301",
        "\u0301",
        "Word",
        "don't",
        "Mr.",
        "3.5",
        "1,000",
        "½",
        "ﬁ",
        "\U000e0041",
        "\U0010ffff",
    ),
)


def case(generator: random.Random, folder: Path) -> None:
    pieces = generator.sample(PIECES, generator.randint(1, 6))
    text = "".join(generator.choices(pieces, k=generator.choice((1, 5, 50, 2000))))[:20_000]
    refused = None
    try:
        normalized = normalize_text(text)
    except PromptError as error:
        refused = error
    try:
        chunks = chunk_text(text, generator.choice((2, 20, 30)))
    except PromptError as error:
        assert refused is not None
        raise error from None
    assert refused is None
    assert normalize_text(normalized) == normalized
    assert all(normalize_text(chunk.text) and chunk.text == chunk.text.strip() for chunk in chunks)


def test_texts(tmp_path, record_property):
    run_cases("texts", 0.05, case, tmp_path, record_property)
