"""Samples in memory: their values, and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from higgs_native.audio.samples import MAX_MAGNITUDE, check_duration, checked_rate, mono_samples, part_range
from higgs_native.errors import AudioError


RATE = 1000


def second(pattern: np.ndarray | torch.Tensor, axis: int = -1) -> np.ndarray | torch.Tensor:
    """Repeat a pattern of samples to 1.2 seconds along `axis`."""
    repeats = 1200 // pattern.shape[axis]
    if isinstance(pattern, torch.Tensor):
        return torch.cat([pattern] * repeats, dim=axis)
    return np.concatenate([pattern] * repeats, axis=axis)


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (second(np.array([0.5, -1.0, 2.0])), [0.5, -1.0, 2.0]),
        (second(np.array([0.5, -1.0], dtype=np.float16)), [0.5, -1.0]),
        (second(np.array([0.5, -1.0], dtype=">f4")), [0.5, -1.0]),
        (second(np.array([0.5, -1.0], dtype=np.longdouble)), [0.5, -1.0]),
        (second(np.array([64, -128], dtype=np.int8)), [0.5, -1.0]),
        (second(np.array([16384, -32768], dtype=np.int16)), [0.5, -1.0]),
        (second(np.array([16384, -32768], dtype=">i2")), [0.5, -1.0]),
        (second(np.array([2**30, -(2**31)], dtype=np.int32)), [0.5, -1.0]),
        (second(np.array([2**30, -(2**31)], dtype=">i4")), [0.5, -1.0]),
        (second(np.array([192, 128, 0], dtype=np.uint8)), [0.5, 0.0, -1.0]),
        (second(np.array([49152, 32768, 0], dtype=np.uint16)), [0.5, 0.0, -1.0]),
        (second(np.array([3 * 2**30, 2**31, 0], dtype=np.uint32)), [0.5, 0.0, -1.0]),
        (second(np.array([[1.0, 0.0, 0.5], [0.0, 0.0, -0.5]])), [0.5, 0.0, 0.0]),  # [channels, samples]
        (second(np.array([[1.0, 0.0], [0.0, 0.0], [0.5, -0.5]]), 0), [0.5, 0.0, 0.0]),  # [samples, channels]
        (second(np.array([[[1.0, 0.0, 0.5], [0.0, 0.0, -0.5]]])), [0.5, 0.0, 0.0]),  # [1, channels, samples]
        (second(torch.tensor([[[1.0, 0.0, 0.5], [0.0, 0.0, -0.5]]])), [0.5, 0.0, 0.0]),
        (second(np.array([[192, 64]], dtype=np.uint8)), [0.5, -0.5]),
        (second(torch.tensor([0.5, -0.25], dtype=torch.bfloat16)), [0.5, -0.25]),
        (second(torch.tensor([16384, -32768], dtype=torch.int16)), [0.5, -1.0]),
        (second(torch.tensor([192, 128, 0], dtype=torch.uint8)), [0.5, 0.0, -1.0]),
        (second(torch.tensor([0.5, -0.25])).requires_grad_(), [0.5, -0.25]),
        (second(torch.tensor([0.5 + 1j, -0.25 + 1j])).conj().imag, [-1.0, -1.0]),  # a view that is not negated yet
        (second(np.arange(6, dtype=np.float32))[::2], [0.0, 2.0, 4.0]),
        (second(np.arange(4, dtype=np.float32))[::-1], [3.0, 2.0, 1.0, 0.0]),
        (np.ma.masked_array(second(np.array([0.5, -1.0]))), [0.5, -1.0]),
    ],
)  # fmt: skip
def test_mono_samples(audio, expected):
    samples, rate = mono_samples(audio, RATE)
    assert rate == RATE
    assert samples.dtype == np.float32
    assert type(samples) is np.ndarray
    assert samples.flags.c_contiguous
    assert samples[: len(expected)].tolist() == expected
    assert len(samples) == max(audio.shape)


def test_long_audio_is_converted_as_a_whole():
    audio = np.random.default_rng(0).standard_normal((2, 700_001)).astype(np.float32)
    np.testing.assert_array_equal(mono_samples(audio, 24000)[0], audio.mean(axis=0))
    np.testing.assert_array_equal(mono_samples(audio.T, 24000, 1, 20)[0], audio.mean(axis=0)[24000 : 21 * 24000])


@pytest.mark.parametrize(
    ("audio", "error"),
    [
        ([0.0] * RATE, "samples must be an array or a tensor, got list"),
        (np.zeros((2, 0)), r"audio must hold samples, got the shape \[2, 0\]"),
        (np.zeros(()), r"audio must be \[samples\].*, got \[\]"),
        (np.zeros((2, 1, RATE)), r"or \[1, channels, samples\] with at most 8 channels, got \[2, 1, 1000\]"),
        (np.zeros((1, 1, 1, RATE)), r"got \[1, 1, 1, 1000\]"),
        (np.zeros((9, RATE)), r"at most 8 channels, got \[9, 1000\]"),
        (np.zeros(RATE, np.int64), "audio must be floating, or integers of 8, 16 or 32 bits, got int64"),
        (np.zeros(RATE, np.uint64), "got uint64"),
        (np.zeros(RATE, bool), "got bool"),
        (np.zeros(RATE, complex), "got complex128"),
        (np.zeros(RATE, object), "got object"),
        (np.array(["a"] * RATE), "got <U1"),
        (np.zeros(RATE, [("left", "f4")]), "got "),
        (torch.zeros(RATE, dtype=torch.int64), "got int64"),
        (torch.zeros(RATE).to(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
        (torch.zeros(RATE).to_sparse(), "samples must be a dense tensor"),
        (torch.zeros(RATE, device="meta"), "samples must be a dense tensor"),
        (torch.nested.nested_tensor([torch.zeros(RATE)], layout=torch.jagged), "samples must be a dense tensor"),
        (np.full(RATE, np.nan), "audio must be finite, got NaN or infinity"),
        (np.full(RATE, 1e39), "audio must be finite, got NaN or infinity"),  # infinite as float32
        (np.full((2, RATE), 3e38, dtype=np.float32), "audio must be finite, got NaN or infinity"),  # its sum is
        (np.full(RATE, -2 * MAX_MAGNITUDE), r"floating audio must have full scale 1, got samples up to 4\.29497e\+09"),
        (np.broadcast_to(np.float32(0), 10**15), r"the audio must last at most 120 s, got 1e\+12 s"),
        (torch.zeros(1).expand(10**15), r"the audio must last at most 120 s, got 1e\+12 s"),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_is_no_audio(audio, error):
    with pytest.raises(AudioError, match=error):
        mono_samples(audio, RATE)


@pytest.mark.parametrize(
    ("offset", "duration", "expected"),
    [
        (0, None, (0, 1000)),
        (0.25, None, (250, 750)),
        (0.25, 0.5, (250, 500)),
        (0.75, 0.5, (750, 250)),
        (0, 9, (0, 1000)),
    ],
)
def test_the_range_of_a_part(offset, duration, expected):
    assert part_range(1000, 1000, offset, duration) == expected


@pytest.mark.parametrize("seconds", [-0.5, float("nan"), float("inf"), "1", [1], 10**5000], ids=range(6))
def test_what_is_no_number_of_seconds(seconds):
    with pytest.raises(AudioError, match="offset must be a number of seconds, at least 0, got "):
        part_range(1000, 1000, seconds, None)
    with pytest.raises(AudioError, match="duration must be a number of seconds, at least 0, got "):
        part_range(1000, 1000, 0, seconds)


def test_numbers_of_seconds_are_of_any_type():
    for quarter in (np.float32(0.25), Fraction(1, 4), 0.25):
        assert part_range(1000, 1000, quarter, quarter) == (250, 250)
    assert part_range(1000, 1000, 0, 10**300) == (0, 1000)
    with pytest.raises(AudioError, match=r"duration must be at least 0\.1 s of the audio, got 0 s"):
        part_range(1000, 1000, 0, Fraction(0))


def test_an_empty_part_is_refused():
    with pytest.raises(AudioError, match=r"offset must be less than 1 s, the length of a\.wav, got 2 s"):
        part_range(1000, 1000, 2, None, "a.wav")
    with pytest.raises(AudioError, match=r"duration must be at least 0\.1 s of a.wav, got 0 s"):
        part_range(1000, 1000, 0, 0, "a.wav")


@pytest.mark.parametrize(
    "rate", [1000, 24000.0, np.int32(44100), np.float32(24000), np.array(24000), torch.tensor(24000), 768_000]
)
def test_sampling_rates(rate):
    assert checked_rate(rate) == rate
    assert isinstance(checked_rate(rate), int)


@pytest.mark.parametrize(
    ("rate", "got"),
    [
        (999, "999"),
        (768_001, "768001"),
        (10**5000, f"{hex(10**5000)[:12]}..."),
        (24000.5, "24000.5"),
        (float("nan"), "nan"),
        (np.float32("inf"), r"np.float32\(inf\)"),
        ("24000", "'24000'"),
        (None, "NoneType"),
        (np.zeros(2), "ndarray"),
        (torch.zeros(24000), "Tensor"),
        (torch.zeros((), dtype=torch.int64, device="meta"), "Tensor"),
    ],
    ids=range(11),
)
def test_what_is_no_sampling_rate(rate, got):
    with pytest.raises(AudioError, match=f"sampling_rate must be an integer from 1000 to 768000 Hz, got {got}$"):
        checked_rate(rate)


def test_durations_at_the_limits():
    for num_samples in (100, 120_000):
        check_duration(num_samples, 1000)
    for num_samples, error in ((0, "at least 0.1 s, got 0 s"), (99, "got 0.099 s"), (120_001, "at most 120 s")):
        with pytest.raises(AudioError, match=f"a.wav must last .*{error}"):
            check_duration(num_samples, 1000, "a.wav")
