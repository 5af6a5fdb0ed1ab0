"""Values that hypothesis draws for the parameters of public callables, plausible and odd ones."""

import decimal
import fractions
import inspect
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from higgs_native import AudioContent, HiggsNativeError, Message, Pauses, Recording, SamplingParams, TextContent, Voice
from higgs_native.errors import MAX_MESSAGE, short_repr


CASES = int(os.environ.get("HIGGS_NATIVE_PROPERTY_CASES", "2000"))


def drawn_settings(share: float) -> settings:
    """Settings of a test that runs this share of all cases."""
    return settings(
        max_examples=max(round(CASES * share), 1),
        deadline=None,
        database=None,
        derandomize=CASES <= 2000,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def one_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the values, which hypothesis does not write out: Python refuses to, for some of them."""
    return st.integers(0, len(values) - 1).map(lambda index: values[index])


@dataclass
class Drawn:
    """A drawn value; a report shows the beginning of it."""

    value: Any

    def __repr__(self) -> str:
        return short_repr(self.value)


TEXTS = st.text(st.characters(), max_size=50)
LARGE = (2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**5000, -(10**5000))
INTEGERS = st.one_of(st.integers(-3, 30), st.integers(), one_of(LARGE))
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
TORCH_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)
NUMPY_DTYPES = ("f4", ">f4", "f2", "f8", "i8", ">i2", "u1", "?", "c8", "U3", "O", "M8[s]", "V4")
FILLS = (0, 1, 1024, 2.5, float("nan"), -1)
TENSORS = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    SHAPES,
    st.sampled_from(TORCH_DTYPES),
    st.sampled_from(FILLS),
)
ARRAYS = st.builds(lambda shape, dtype: np.zeros(shape, dtype), SHAPES, st.sampled_from(NUMPY_DTYPES))
ODD = (
    None,
    True,
    ...,
    object(),
    object,
    len,
    Path("missing"),
    1 + 2j,
    decimal.Decimal("NaN"),
    fractions.Fraction(10**5000),
    np.float32(3),
    np.int8(-1),
    np.bool_(True),
    np.datetime64("NaT"),
    torch.device("meta"),
    torch.empty(8, 3, device="meta"),
    torch.zeros(8, 3).to_sparse(),
    torch.zeros(8, 3, dtype=torch.int64).to_sparse(),
    torch.empty(8, 3, dtype=torch.int64, device="meta"),
    torch.empty(1, 1, 4800, device="meta"),
    torch.float32,
    memoryview(b"abc"),
    range(3),
    type("Text", (str,), {})("text"),
    AudioContent(raw_audio="AAAA"),
    AudioContent(codes=torch.zeros(8, 3, dtype=torch.int64)),
    TextContent("Hi."),
    Voice(profile="male"),
    SamplingParams(max_new_tokens=12),
    Pauses(),
)
SAMPLES = (0.1 * np.random.default_rng(0).standard_normal(4800)).astype(np.float32)
PLAUSIBLE = (
    0,
    1,
    7,
    0.5,
    1.0,
    False,
    "",
    "Hi.",
    "Good morning. [SPEAKER1] How are you?",
    ".",
    "auto",
    "cpu",
    "float32",
    "boson",
    "transformers",
    "int8,heads=int4",
    "out.flac",
    [],
    SAMPLES,
    torch.from_numpy(SAMPLES),
    (SAMPLES, 24000),
    Recording(SAMPLES, 16000),
    Voice((SAMPLES, 24000), "Hello."),
    torch.arange(24).reshape(8, 3),
    np.full((8, 4), 1024),
    [torch.arange(24).reshape(8, 3)],
    ["<|eot_id|>"],
    [Message("system", "Speak."), Message("user", ["Hi.", AudioContent(raw_audio=(SAMPLES, 24000))])],
    repr,
)
SCALARS = st.one_of(one_of(ODD), TEXTS, st.binary(max_size=50), INTEGERS, st.floats(), TENSORS, ARRAYS)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(TEXTS, inner, max_size=2),
        st.builds(Message, inner, inner),
        st.builds(AudioContent, inner, inner, inner, inner),
        st.builds(TextContent, inner),
        st.tuples(ARRAYS, inner),
    ),
    max_leaves=4,
)
VALUES = st.one_of(one_of(PLAUSIBLE), ANYTHING).map(Drawn)

UNSET = inspect.Parameter.empty
"""In the place of an argument: values are drawn for it, and it is left out otherwise."""
Faces = dict[str, tuple[Callable[..., Any], dict[str, Any]]]
"""Public callables by name, each with arguments that it takes."""


def with_parameters_of(call: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """The arguments, and `UNSET` for all other parameters of `call`."""
    return dict.fromkeys(_named_parameters(call), UNSET) | arguments


def check_message(message: str) -> None:
    """A message of an error is one short line that can be printed."""
    assert message.isprintable(), repr(message)
    assert 0 < len(message) <= MAX_MESSAGE, repr(message)


def check_calls(faces: Faces, share: float, is_foreign: Callable[[Exception], bool] = lambda error: False) -> None:
    """Call the faces with up to two drawn arguments each: each call works, or is refused in one line.

    Args:
        faces: what to call.
        share: of all cases.
        is_foreign: whether an error is another package's own.
    """
    ends = Counter()

    @drawn_settings(share)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        call, valid = faces[data.draw(st.sampled_from(sorted(faces)), "face")]
        names = sorted({*_named_parameters(call), *valid} - {"max_new_tokens"})  # a large one takes long
        arguments = {name: value for name, value in valid.items() if value is not UNSET}
        for name in data.draw(st.lists(st.sampled_from(names), max_size=2, unique=True), "drawn"):
            arguments[name] = data.draw(VALUES, name).value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call(**arguments)
            except HiggsNativeError as error:
                check_message(str(error))
                ends["refused"] += 1
            except Exception as error:
                if not is_foreign(error):
                    raise
                ends["refused by another package"] += 1
            else:
                ends["accepted"] += 1

    check()
    print(f"\n{ends.total()} calls: {', '.join(f'{count} {end}' for end, count in ends.most_common())}")


def _named_parameters(call: Callable[..., Any]) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
