"""The audio tokenizer's decoder by windows against the streaming decoder: the same bits.

On the CPU the windows are computed without graphs, on a GPU with them.
"""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from higgs_native.audio_tokenizer.decoder import StreamingDecoder
from higgs_native.audio_tokenizer.graph_decoder import SIZES, DecoderWindows, WindowedDecoder
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.errors import AudioError, ParameterError
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.audio_tokenizer.test_decoder import HOP, pieces, random_codes, random_sizes
from tests.helpers.devices import DEVICES, NEEDS_CUDA


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(path, DEMO_AUDIO_TOKENIZER_CONFIG)
    return path


@pytest.fixture(scope="module", params=DEVICES)
def tokenizer(request, folder):
    return HiggsAudioTokenizer.from_pretrained(folder, request.param)


@pytest.fixture(scope="module")
def windows(tokenizer):
    """Few and small windows, so that a long audio needs several."""
    return DecoderWindows(tokenizer.named_weights(), tokenizer.config, sizes=(5, 16, 24, 40))


def eager(tokenizer, lookahead=None) -> StreamingDecoder:
    return StreamingDecoder(tokenizer.named_weights(), tokenizer.config, lookahead)


@pytest.mark.parametrize("lookahead", [None, 0, 3, 9])
def test_random_pieces_have_the_bits_of_the_streaming_decoder(tokenizer, windows, lookahead):
    codes = random_codes(61)
    for seed in range(5):
        sizes = random_sizes(61, random.Random(seed))
        expected = pieces(eager(tokenizer, lookahead), codes, sizes)
        given = pieces(WindowedDecoder(windows, lookahead), codes, sizes)
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True)), sizes


# The emulation is slow: it gets a short window, a long one, and one after it.
@pytest.mark.parametrize("frames", [4, 16, 41] if EMULATES_CUDA else [1, 4, 5, 6, 16, 17, 39, 40, 41, 60, 61])
def test_audio_that_ends_within_a_window_and_at_its_end(tokenizer, windows, frames):
    codes = random_codes(frames)
    audio = WindowedDecoder(windows).decode(codes, is_last=True)
    assert audio.shape == (frames * HOP,)
    assert torch.equal(audio, eager(tokenizer).decode(codes, is_last=True))


def test_windows_do_not_mix_audios(tokenizer, windows):
    """A window's tensors are used again, also by a shorter audio."""
    for frames in (24, 2, 17):
        codes = random_codes(frames)
        expected = eager(tokenizer).decode(codes, is_last=True)
        assert torch.equal(WindowedDecoder(windows).decode(codes, is_last=True), expected)


def test_streams_of_several_threads_share_the_windows(tokenizer, windows):
    def decode(frames: int) -> torch.Tensor:
        return torch.cat(
            pieces(WindowedDecoder(windows), random_codes(frames), random_sizes(frames, random.Random(frames)))
        )

    counts = [21, 33, 48, 26]
    expected = [eager(tokenizer).decode(random_codes(frames), is_last=True) for frames in counts]
    with ThreadPoolExecutor(len(counts)) as threads:
        for audio, whole in zip(threads.map(decode, counts), expected, strict=True):
            assert torch.equal(audio, whole)


class HeldWindows(DecoderWindows):
    """Windows of a size that begin to decode once `all_wait` is set; `together` counts the audios of each graph."""

    def __init__(self, tokenizer) -> None:
        super().__init__(tokenizer.named_weights(), tokenizer.config, sizes=(8, 40))
        self.all_wait, self.together = threading.Event(), []

    def _decode_together(self, requests) -> None:
        assert self.all_wait.wait(30)
        self.together.append(len(requests))
        super()._decode_together(requests)

    def decode_by_threads(self, codes) -> list:
        """Decode each codes by a thread, while the first one waits for all others; the audios or errors."""
        with ThreadPoolExecutor(len(codes)) as threads:
            futures = []
            for of_one in codes:
                futures.append(threads.submit(self.decode, of_one, 0, of_one.shape[1]))
                deadline = time.monotonic() + 30
                while not self._is_taken or len(self._waiting) < len(futures) - 1:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
            self.all_wait.set()
            return [future.exception() or future.result() for future in futures]


def test_windows_that_wait_are_decoded_together(tokenizer):
    """Six of one size: the first one alone, then four of the others, whose audios end at different frames, and one."""
    windows = HeldWindows(tokenizer)
    codes = [random_codes(frames) for frames in (8, 3, 8, 5, 1, 7)]
    audios = windows.decode_by_threads(codes)
    assert windows.together == [1, 4, 1]
    for audio, of_one in zip(audios, codes, strict=True):
        assert torch.equal(audio, eager(tokenizer).decode(of_one, is_last=True))


def test_windows_of_other_sizes_wait_for_their_turn(tokenizer):
    windows = HeldWindows(tokenizer)
    codes = [random_codes(frames) for frames in (8, 3, 20, 8)]
    audios = windows.decode_by_threads(codes)
    assert sorted(windows.together) == [1, 1, 2]
    for audio, of_one in zip(audios, codes, strict=True):
        assert torch.equal(audio, eager(tokenizer).decode(of_one, is_last=True))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_windows_that_fail_together_have_a_turn_each(tokenizer, monkeypatch, error):
    """A graph of two fails once. Its thread decodes alone, unless it is interrupted; the other one has its turn."""
    windows = HeldWindows(tokenizer)
    errors, compute = [error], windows._windows[8][1].run
    monkeypatch.setattr(windows._windows[8][1], "run", lambda: raised(errors.pop()) if errors else compute())
    audios = windows.decode_by_threads([random_codes(4)] * 3)
    expected = eager(tokenizer).decode(random_codes(4), is_last=True)
    interrupted = [audio for audio in audios if not isinstance(audio, torch.Tensor)]
    assert interrupted == ([error] if isinstance(error, KeyboardInterrupt) else [])
    assert all(torch.equal(audio, expected) for audio in audios if isinstance(audio, torch.Tensor))
    assert windows.together == ([1, 2, 1] if interrupted else [1, 2, 1, 1])
    assert not windows._waiting
    assert torch.equal(windows.decode(random_codes(4), 0, 4), expected)


def test_a_window_that_can_not_be_decoded_raises(tokenizer, monkeypatch):
    windows = DecoderWindows(tokenizer.named_weights(), tokenizer.config, sizes=(8, 40))
    with monkeypatch.context() as patch:
        patch.setattr(windows._windows[8][0], "run", lambda: raised(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            windows.decode(random_codes(4), 0, 4)
    assert torch.equal(windows.decode(random_codes(4), 0, 4), eager(tokenizer).decode(random_codes(4), is_last=True))


def raised(error: BaseException) -> None:
    raise error


def test_no_frames_give_no_audio(windows):
    decoder = WindowedDecoder(windows)
    assert decoder.decode(random_codes(0)).shape == (0,)
    assert decoder.decode(random_codes(0), is_last=True).shape == (0,)


def test_audio_is_an_ordinary_tensor_even_if_windows_were_made_in_inference_mode(tokenizer):
    with torch.inference_mode():
        windows = DecoderWindows(tokenizer.named_weights(), tokenizer.config, sizes=(24,))
        WindowedDecoder(windows).decode(random_codes(3), is_last=True)
    audio = WindowedDecoder(windows).decode(random_codes(3), is_last=True)
    assert not audio.is_inference()
    assert audio.device.type == "cpu"


@pytest.mark.parametrize("lookahead", [-1, 11])
def test_lookahead_out_of_range_is_refused(windows, lookahead):
    with pytest.raises(ParameterError, match=rf"lookahead must be between 0 and 10 frames, got {lookahead}"):
        WindowedDecoder(windows, lookahead)


def test_codes_that_can_not_be_decoded(windows):
    decoder = WindowedDecoder(windows)
    with pytest.raises(AudioError, match=r"codes must be \[8, frames\], got \[7, 3\]"):
        decoder.decode(torch.zeros(7, 3, dtype=torch.int64))
    with pytest.raises(AudioError, match=r"codes must be between 0 and 1023, got -1"):
        decoder.decode(torch.full((8, 3), -1))
    expected = WindowedDecoder(windows).decode(random_codes(3), is_last=True)
    assert torch.equal(decoder.decode(random_codes(3), is_last=True), expected)
    with pytest.raises(ParameterError, match="a new audio needs a new decoder"):
        decoder.decode(random_codes(3))


def test_tokenizer_on_the_cpu_uses_the_streaming_decoder(folder):
    assert isinstance(HiggsAudioTokenizer.from_pretrained(folder).streaming_decoder(), StreamingDecoder)


@NEEDS_CUDA
def test_tokenizer_on_a_gpu_decodes_by_graphs(folder):
    """Every window, full and one frame short, new and used, and audio of several windows."""
    tokenizer = HiggsAudioTokenizer.from_pretrained(folder, "cuda")
    assert isinstance(tokenizer.streaming_decoder(), WindowedDecoder)
    for frames in (1, *SIZES, *(size - 1 for size in SIZES), 500, 531):
        codes = random_codes(frames)
        assert torch.equal(tokenizer.decode(codes), eager(tokenizer).decode(codes, is_last=True)), frames


@NEEDS_CUDA
def test_window_does_not_wait_for_other_work_of_the_gpu(folder):
    tokenizer = HiggsAudioTokenizer.from_pretrained(folder, "cuda")
    codes, other = random_codes(20), torch.cuda.Event()
    expected = tokenizer.decode(codes)
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    other.record()
    audio = tokenizer.decode(codes)
    is_done = other.query()
    other.synchronize()
    assert not is_done
    assert torch.equal(audio, expected)
