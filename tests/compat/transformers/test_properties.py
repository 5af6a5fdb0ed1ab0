"""Drawn arguments for the interface of `transformers`; see `tests/test_properties.py`."""

import traceback

import pytest
import torch

from tests.helpers import transformers_reference as reference
from tests.helpers.accelerated import compat
from tests.helpers.drawn_values import UNSET, Faces, check_calls
from tests.helpers.transformers_reference import transformers


TAKEN = ("temperature", "top_k", "top_p", "ras_win_len", "eos_token_id", "position_ids", "do_sample")


@pytest.fixture(scope="module")
def faces(demo_folder) -> Faces:
    model = compat.accelerate(reference.tiny_model(1))
    inputs = reference.model_inputs(model.config, [reference.random_prompt(model.config, 0, 20, (7,))])
    audio_tokenizer = compat.accelerate(
        transformers.HiggsAudioV2TokenizerModel.from_pretrained(demo_folder / "audio_tokenizer").eval()
    )
    return {
        "accelerate": (compat.accelerate, {"model": model}),
        "restore": (compat.restore, {"model": model}),
        "from_pretrained": (compat.from_pretrained, {"pretrained_model_name_or_path": demo_folder}),
        "generate": (
            lambda **arguments: compat.accelerate(model).generate(**arguments),
            dict.fromkeys(TAKEN, UNSET) | {**inputs, "max_new_tokens": 12},
        ),
        "encode": (audio_tokenizer.encode, {"input_values": torch.zeros(1, 1, 4800)}),
        "decode": (audio_tokenizer.decode, {"audio_codes": torch.zeros(1, 8, 3, dtype=torch.int64)}),
    }


def is_of_transformers(error: Exception) -> bool:
    """transformers checks arguments too: an error that its own code raises is not ours."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    inner = [file for file in files if "/higgs_native/" in file or "/transformers/" in file]
    return bool(inner) and "/transformers/" in inner[-1] and "/higgs_native/" not in inner[-1]


@pytest.mark.filterwarnings("ignore")
def test_drawn_arguments(faces, elsewhere):
    check_calls(faces, 0.1, is_of_transformers)
