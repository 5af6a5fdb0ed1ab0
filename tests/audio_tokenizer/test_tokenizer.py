"""The audio tokenizer's interface: inputs, refusals, windows, and the cache of codes."""

import io
import shutil

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.audio.files.reading import read_audio
from higgs_native.audio.resample import resample_soxr
from higgs_native.audio_tokenizer import encoder
from higgs_native.audio_tokenizer import tokenizer as tokenizer_module
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.convention import Convention
from higgs_native.errors import AudioError, CheckpointError, ConfigError, ParameterError
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(path, DEMO_AUDIO_TOKENIZER_CONFIG)
    return path


@pytest.fixture
def tokenizer(folder):
    return HiggsAudioTokenizer.from_pretrained(folder)


def speechlike(seconds: float = 0.5, rate: int = 24000, seed: int = 0) -> np.ndarray:
    """A chord with faint noise: it has little above 4 kHz that resampling would change."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time)) * 1e-3
    return (0.2 * np.sin(2 * np.pi * 220 * time) + 0.1 * np.sin(2 * np.pi * 331 * time) + noise).astype(np.float32)


def random_codes(frames: int) -> torch.Tensor:
    return torch.randint(1024, (8, frames), generator=torch.Generator().manual_seed(frames))


def test_properties(tokenizer):
    assert (tokenizer.sampling_rate, tokenizer.frame_rate, tokenizer.hop_length) == (24000, 25.0, 960)
    assert (tokenizer.num_codebooks, tokenizer.codebook_size, tokenizer.context_frames) == (8, 1024, 10)


def test_types_and_shapes(tokenizer):
    codes = tokenizer.encode(speechlike(), 24000)
    assert (codes.dtype, codes.shape) == (torch.int64, (8, 13))
    audio = tokenizer.decode(codes)
    assert (audio.dtype, audio.shape) == (torch.float32, (13 * 960,))
    # Ordinary tensors, which autograd accepts.
    assert not codes.is_inference()
    assert not audio.is_inference()
    assert (audio * torch.ones(1, requires_grad=True)).requires_grad
    torch.testing.assert_close(tokenizer.decode(codes.numpy().astype(np.int16)), audio)


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_file_is_encoded_like_its_samples(tokenizer, tmp_path, form):
    path = tmp_path / f"voice.{form}"
    soundfile.write(path, speechlike(), 24000)
    samples, rate = soundfile.read(path, dtype="float32")
    codes = tokenizer.encode(path)
    assert torch.equal(codes, tokenizer.encode(samples, rate))
    assert torch.equal(codes, tokenizer.encode(str(path)))
    assert torch.equal(codes, tokenizer.encode(io.BytesIO(path.read_bytes())))


def test_mp3(tokenizer, tmp_path):
    path = tmp_path / "voice.mp3"
    soundfile.write(path, speechlike(1.0, 44100), 44100, format="MP3")
    waveform, rate = read_audio(path)
    assert (waveform.dtype, waveform.ndim, rate) == (np.float32, 1, 44100)
    assert abs(len(waveform) - 44100) < 3000  # the format pads
    assert tokenizer.encode(path).shape[0] == 8


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000])
def test_other_rates_are_resampled(tokenizer, rate):
    at_24_khz = resample_soxr(speechlike(0.5, rate), rate, 24000)
    assert len(at_24_khz) == 12000
    middle = slice(1000, 11000)
    np.testing.assert_allclose(at_24_khz[middle], speechlike(0.5)[middle], atol=0.01)
    assert tokenizer.encode(speechlike(0.5, rate), rate).shape == (8, 13)


def test_channels_are_averaged(tokenizer):
    left, right = speechlike(seed=1), speechlike(seed=2)
    expected = tokenizer.encode((left + right) / 2, 24000)
    assert torch.equal(tokenizer.encode(np.stack([left, right]), 24000), expected)
    assert torch.equal(tokenizer.encode(np.stack([left, right], axis=1), 24000), expected)
    assert torch.equal(tokenizer.encode(torch.from_numpy(np.stack([left, right])), 24000), expected)


def test_stereo_file_is_averaged(tokenizer, tmp_path):
    left, right = speechlike(seed=1), speechlike(seed=2)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 24000, subtype="FLOAT")
    assert torch.equal(tokenizer.encode(tmp_path / "stereo.wav"), tokenizer.encode((left + right) / 2, 24000))


def test_an_interrupt_while_a_file_object_is_read_is_not_dropped():
    class Interrupted(io.BytesIO):
        def read(self, size=-1):
            raise KeyboardInterrupt

        readinto = read

    with pytest.raises(KeyboardInterrupt):
        read_audio(Interrupted())


def test_integer_samples_have_their_full_scale(tokenizer):
    audio = (speechlike() * 2**15).astype(np.int16)
    expected = tokenizer.encode(audio.astype(np.float32) / 2**15, 24000)
    assert torch.equal(tokenizer.encode(audio, 24000), expected)
    assert torch.equal(tokenizer.encode(torch.from_numpy(audio), 24000.0), expected)
    assert torch.equal(tokenizer.encode(audio.astype(np.int32) * 2**16, 24000), expected)
    assert torch.equal(tokenizer.encode(audio.astype(np.float64) / 2**15, np.int64(24000)), expected)


@pytest.mark.parametrize("seconds", [0.1, 0.13])
def test_shortest_audio(tokenizer, seconds):
    for convention in (Convention.BOSON, Convention.TRANSFORMERS):
        assert tokenizer.encode(speechlike(seconds), 24000, convention).shape[1] in (2, 3, 4)


@pytest.mark.parametrize("samples", [2_400, 23_999, 24_000])
def test_higgs_tts_3_pads_audio_to_a_second(tokenizer, samples):
    audio = speechlike(2.0)[:samples]
    padded = np.pad(audio, (0, 24_000 - samples))
    codes = tokenizer.encode(audio, 24000, Convention.HIGGS_TTS_3)
    assert codes.shape[1] == 25
    assert torch.equal(codes, tokenizer.encode(padded, 24000, Convention.TRANSFORMERS))


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (speechlike(), None, "needs its sampling_rate"),
        (speechlike(), 0, "sampling_rate must be an integer from 1000 to 768000 Hz, got 0"),
        (speechlike(), -24000, "got -24000"),
        (speechlike(), 24000.5, "got 24000.5"),
        (speechlike(), "24k", "got '24k'"),
        (speechlike(), 10**9, "got 1000000000"),
        (np.zeros(0, np.float32), 24000, "audio must hold samples, got"),
        (np.zeros((2, 0), np.float32), 24000, "audio must hold samples, got"),
        (speechlike(0.05), 24000, "the audio must last at least 0.1 s, got 0.05 s"),
        (np.zeros(600 * 8000, np.float32), 8000, "the audio must last at most 120 s, got 600 s"),
        (torch.tensor(1.0), 24000, r"audio must be \[samples\].* got \[\]"),
        (np.zeros((2, 2, 3000), np.float32), 24000, r"got \[2, 2, 3000\]"),
        (np.zeros((3000, 3000), np.float32), 24000, r"at most 8 channels, got \[3000, 3000\]"),
        (np.array([0.0, np.nan] * 3000), 24000, "must be finite, got NaN or infinity"),
        (np.array([0.0, np.inf] * 3000, np.float32), 24000, "must be finite, got NaN or infinity"),
        (torch.full((3000,), -torch.inf), 24000, "must be finite, got NaN or infinity"),
        (np.zeros(3000, np.int64), 24000, "must be floating, or integers of 8, 16 or 32 bits, got int64"),
        (np.zeros(3000, complex), 24000, "got complex128"),
    ],
)
def test_samples_that_can_not_be_encoded(tokenizer, audio, rate, message):
    with pytest.raises(AudioError, match=message) as error:
        tokenizer.encode(audio, rate)
    assert "\n" not in str(error.value)


def write(path, data: bytes | None = None, audio: np.ndarray | None = None, rate: int = 24000):
    if data is not None:
        path.write_bytes(data)
    else:
        soundfile.write(path, audio, rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.wav", "audio must be an existing file .*missing.wav"),
        (lambda folder: folder, "must be an existing file"),
        (lambda folder: write(folder / "a.wav", b""), "a.wav can't be read as audio"),
        (lambda folder: write(folder / "a.wav", b"RIFF\x00\x00\x00\x00WAVE"), "a.wav can't be read as audio"),
        (lambda folder: write(folder / "a.txt", b"no sound at all"), "a.txt can't be read as audio"),
        (lambda folder: write(folder / "a.wav", audio=np.zeros(0)), "a.wav must last at least 0.1 s, got 0 s"),
        (lambda folder: write(folder / "a.wav", audio=speechlike(0.05)), "a.wav must last at least 0.1 s, got 0.05 s"),
        (
            lambda folder: write(folder / "a.wav", audio=np.zeros(1000 * 600), rate=1000),
            "must last at most 120 s, got 600 s",
        ),
        (lambda folder: write(folder / "a.wav", audio=np.full(9000, np.nan)), "must be finite, got NaN or infinity"),
        (lambda folder: io.BytesIO(b"no sound at all"), "the audio file can't be read"),
        (lambda folder: [0.0] * 9000, r"audio must be a file's path, .*\(samples, sampling rate\) .*, got list"),
        (lambda folder: None, "audio must be a file's path, .*, got NoneType"),
    ],
)
def test_files_that_can_not_be_encoded(tokenizer, tmp_path, make, message):
    with pytest.raises(AudioError, match=message) as error:
        tokenizer.encode(make(tmp_path))
    assert "\n" not in str(error.value)


def test_unknown_convention_is_refused(tokenizer):
    with pytest.raises(
        ParameterError, match="convention must be 'boson', 'transformers' or 'higgs_tts_3', got 'other'"
    ):
        tokenizer.encode(speechlike(), 24000, convention="other")


def test_codes_are_cached(tokenizer, monkeypatch):
    calls = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda *arguments: calls.append(1) or encode(*arguments))
    monkeypatch.setattr(tokenizer_module, "_CACHED_AUDIOS", 2)
    one, two, three = (speechlike(0.1, seed=seed) for seed in range(3))
    codes = tokenizer.encode(one, 24000)
    tokenizer.encode(two, 24000)
    expected = codes.clone()
    codes.zero_()  # the caller's codes are a copy
    assert torch.equal(tokenizer.encode(one, 24000), expected)
    assert len(calls) == 2
    tokenizer.encode(three, 24000)  # replaces the least recently used, two
    tokenizer.encode(one, 24000)
    assert len(calls) == 3
    tokenizer.encode(two, 24000)
    assert len(calls) == 4
    tokenizer.encode(two, 24000, convention="transformers")
    assert len(calls) == 5


@pytest.mark.parametrize("window", [1, 7, 40])
def test_windows_make_no_difference(tokenizer, monkeypatch, window):
    codes = random_codes(57)
    whole = tokenizer.decode(codes)
    monkeypatch.setattr(tokenizer_module, "DECODE_WINDOW", window)
    assert torch.equal(tokenizer.decode(codes), whole)


def test_context_is_as_short_as_possible(folder):
    """With one frame less on either side, the samples change."""
    tokenizer = HiggsAudioTokenizer.from_pretrained(folder)
    codes = random_codes(41)
    whole = tokenizer.decode(codes)[20 * 960 : 21 * 960]
    peak = tokenizer.decode(codes).abs().max()
    for first, last, exact in ((10, 31, True), (11, 31, False), (10, 30, False)):
        part = tokenizer.decode(codes[:, first:last])[(20 - first) * 960 : (21 - first) * 960]
        assert ((part - whole).abs().max() < 1e-6 * peak) == exact


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(8, 0, dtype=torch.int64), r"codes must hold at least one frame, got \[8, 0\]"),
        (torch.zeros(7, 3, dtype=torch.int64), r"codes must be \[8, frames\].* got \[7, 3\]"),
        (torch.zeros(1, 8, 3, dtype=torch.int64), r"got \[1, 8, 3\]"),
        (torch.zeros(8, 3), "codes must be integers in a tensor or an array, got torch.float32"),
        (torch.zeros(8, 3, dtype=torch.bool), "codes must be integers in a tensor or an array, got torch.bool"),
        (torch.full((8, 3), 1024), r"codes must be between 0 and 1023, got 1024"),
        (torch.full((8, 3), -1), r"got -1"),
        (torch.full((8, 3), 2**40), r"got 1099511627776"),
    ],
)
def test_codes_that_can_not_be_decoded(tokenizer, codes, message):
    with pytest.raises(AudioError, match=message):
        tokenizer.decode(codes)


def test_loading_refuses_other_folders(folder, tmp_path):
    with pytest.raises(ParameterError, match=r"device must be .*, got cuda:99"):
        HiggsAudioTokenizer.from_pretrained(folder, device="cuda:99")
    with pytest.raises(CheckpointError, match=r"audio tokenizer .* does not exist"):
        HiggsAudioTokenizer.from_pretrained(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"config\.json"):
        HiggsAudioTokenizer.from_pretrained(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors or model\.pth, got neither"):
        HiggsAudioTokenizer.from_pretrained(tmp_path)
