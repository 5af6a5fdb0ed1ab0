"""The audio tokenizer's decoder, a few frames at a time, with weights of small and of the published size."""

import itertools
import random

import pytest
import torch

from higgs_native.audio_tokenizer.decoder import StreamingDecoder
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.errors import AudioError, ParameterError
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.audio_tokenizer.test_encoder import config, weights  # noqa: F401 (fixtures: the published size)


HOP = 960


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(folder, DEMO_AUDIO_TOKENIZER_CONFIG)
    return HiggsAudioTokenizer.from_pretrained(folder)


def random_codes(frames: int) -> torch.Tensor:
    return torch.randint(1024, (8, frames), generator=torch.Generator().manual_seed(frames))


def pieces(decoder: StreamingDecoder, codes: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """Decode consecutive pieces of these sizes, the last of which ends the audio; return the audio of each."""
    parts = codes.split(sizes, dim=1)
    return [decoder.decode(part, is_last=index == len(parts) - 1) for index, part in enumerate(parts)]


def random_sizes(total: int, generator: random.Random) -> list[int]:
    sizes = []
    while sum(sizes) < total:
        sizes.append(min(generator.choice((0, 1, 1, 2, 3, 7, 12, 30)), total - sum(sizes)))
    return [*sizes, *([0] if generator.random() < 0.5 else [])]


def test_random_pieces_have_the_bits_of_the_whole(tokenizer):
    codes = random_codes(75)
    whole = tokenizer.decode(codes)
    for seed in range(30):
        sizes = random_sizes(75, random.Random(seed))
        audio = pieces(tokenizer.streaming_decoder(), codes, sizes)
        # A frame is returned as soon as 10 frames follow it; the last piece returns the rest.
        frames_in = list(itertools.accumulate(sizes))
        returned = list(itertools.accumulate(map(len, audio)))
        assert returned == [max(count - 10, 0) * HOP for count in frames_in[:-1]] + [75 * HOP]
        assert torch.equal(torch.cat(audio), whole)


def test_pieces_have_the_bits_of_the_whole_at_the_published_size(weights, config):  # noqa: F811 (fixtures)
    codes = random_codes(24)
    whole = StreamingDecoder(weights, config).decode(codes, is_last=True)
    for sizes in ([1] * 24, [11, 13], [3, 20, 1, 0]):
        assert torch.equal(torch.cat(pieces(StreamingDecoder(weights, config), codes, sizes)), whole)


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_audio_shorter_than_the_lookahead(tokenizer, frames):
    codes = random_codes(frames)
    audio = pieces(tokenizer.streaming_decoder(), codes, [1] * frames)
    assert [len(piece) for piece in audio] == [0] * (frames - 1) + [frames * HOP]
    assert torch.equal(torch.cat(audio), tokenizer.decode(codes))


def test_no_frames_give_no_audio(tokenizer):
    decoder = tokenizer.streaming_decoder()
    assert decoder.decode(random_codes(0)).shape == (0,)
    assert decoder.decode(random_codes(0), is_last=True).shape == (0,)


def test_the_lookahead_is_exactly_the_receptive_field(tokenizer):
    """The tenth frame after a frame changes its samples, the eleventh does not."""
    codes, frame = random_codes(41), slice(20 * HOP, 21 * HOP)
    whole = tokenizer.decode(codes)[frame]
    for distance, equal in ((tokenizer.context_frames, False), (tokenizer.context_frames + 1, True)):
        changed = codes.clone()
        changed[:, 20 + distance] = (changed[:, 20 + distance] + 1) % 1024
        assert torch.equal(tokenizer.decode(changed)[frame], whole) == equal


@pytest.mark.parametrize("lookahead", [0, 3, 8])
def test_less_lookahead_gives_frames_earlier_at_an_error_that_does_not_grow(tokenizer, lookahead):
    codes = random_codes(60)
    whole = tokenizer.decode(codes)
    audio = pieces(tokenizer.streaming_decoder(lookahead), codes, [12] * 5)
    assert list(itertools.accumulate(map(len, audio))) == [
        (12 * (index + 1) - lookahead * (index < 4)) * HOP for index in range(5)
    ]
    error = (torch.cat(audio) - whole).abs().view(60, HOP).amax(dim=1)
    # Frames are exact if all that they depend on came in time, and at the end of the audio.
    for index in range(60):
        following = 12 * (index // 12 + 1 + (index % 12 >= 12 - lookahead)) - index - 1
        assert (error[index] == 0) == (following >= 10 or following + index >= 59), index


def test_less_lookahead_with_pieces_of_one_frame(tokenizer):
    codes = random_codes(30)
    for lookahead in (0, 4):
        audio = pieces(tokenizer.streaming_decoder(lookahead), codes, [1] * 30)
        assert [len(piece) for piece in audio] == [0] * lookahead + [HOP] * (29 - lookahead) + [(1 + lookahead) * HOP]


@pytest.mark.parametrize("lookahead", [-1, 11])
def test_lookahead_out_of_range_is_refused(tokenizer, lookahead):
    with pytest.raises(ParameterError, match=rf"lookahead must be between 0 and 10 frames, got {lookahead}"):
        tokenizer.streaming_decoder(lookahead)


def test_codes_that_can_not_be_decoded(tokenizer):
    decoder = tokenizer.streaming_decoder()
    with pytest.raises(AudioError, match=r"codes must be \[8, frames\], got \[7, 3\]"):
        decoder.decode(torch.zeros(7, 3, dtype=torch.int64))
    decoder.decode(random_codes(3), is_last=True)
    with pytest.raises(ParameterError, match="a new audio needs a new decoder"):
        decoder.decode(random_codes(3))
