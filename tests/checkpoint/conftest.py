"""Fixtures of the tests of checkpoints."""

import pytest

from higgs_native.testing.random_checkpoint import write_language_model
from tests.model.test_transformer import config


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    write_language_model(folder, config(hidden_size=144, intermediate_size=200, audio_delay_token_id=270))
    return folder
