"""The codes of a segment that is read while it is generated."""

import pytest
import torch

from higgs_native.convention import Convention
from higgs_native.generation.delay_pattern import SegmentReader, segment_codes
from higgs_native.testing.configs import DEMO_CONFIG, DEMO_TTS_3_CONFIG


CONFIGS = {"boson": DEMO_CONFIG, "transformers": DEMO_CONFIG, "higgs_tts_3": DEMO_TTS_3_CONFIG}


@pytest.mark.parametrize("piece", [1, 3, 50])
@pytest.mark.parametrize("convention", CONFIGS)
def test_a_segment_read_in_pieces_is_the_segment_read_whole(convention, piece):
    config, convention = CONFIGS[convention], Convention(convention)
    generator = torch.Generator().manual_seed(0)
    for frames in [*range(13), 40]:
        segment = torch.randint(config.codebook_size, (8, frames), generator=generator)
        if convention is not Convention.BOSON and frames % 2:
            segment[:, frames * 2 // 3 :] = config.audio_stream_eos_id
        reader = SegmentReader(config, convention)
        codes = torch.cat([reader.read(frames) for frames in segment.split(piece, dim=1)], dim=1)
        assert torch.equal(codes, segment_codes(segment, config, convention)), frames


@pytest.mark.parametrize("convention", CONFIGS)
def test_codes_come_after_the_delay(convention):
    reader = SegmentReader(CONFIGS[convention], Convention(convention))
    frame = torch.arange(8)[:, None]
    counts = [reader.read(frame).shape[1] for _ in range(reader.delay + 3)]
    assert counts == [0] * reader.delay + [1] * 3
