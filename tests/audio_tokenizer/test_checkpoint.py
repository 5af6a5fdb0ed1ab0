"""The audio tokenizer's checkpoints: both layouts give the same tensors, and errors name what is wrong."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native.audio_tokenizer.checkpoint import folded_shapes, load_tensors, original_name
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.errors import CheckpointError
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG as CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.audio_tokenizer.test_config import RECIPE


POSITION = "semantic_model.encoder.pos_conv_embed.conv"


@pytest.fixture
def folder(tmp_path):
    write_audio_tokenizer(tmp_path, CONFIG)
    return tmp_path


def original_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors as the original stores them: its names, weight norm, and the tensors of training."""
    state = {}
    for name, tensor in tensors.items():
        stored = original_name(name, CONFIG)
        if name.startswith("acoustic") and name.endswith(".weight"):
            norm = tensor.flatten(1).norm(dim=1).view(-1, 1, 1)
            state[f"{stored}_g"], state[f"{stored}_v"] = norm, 3 * tensor
        elif name == f"{POSITION}.weight":
            norm = tensor.flatten(0, 1).norm(dim=0).view(1, 1, -1)
            state[f"{POSITION}.weight_g"], state[f"{POSITION}.weight_v"] = norm, tensor / 2
        else:
            state[stored] = tensor
    for unused in (
        "decoder_semantic.conv1.conv.weight",
        "fc1.bias",
        "fc_post1.weight",
        "semantic_model.masked_spec_embed",
    ):
        state[unused] = torch.zeros(3)
    for unused in ("inited", "cluster_size", "embed_avg"):
        state[f"quantizer.vq.layers.0._codebook.{unused}"] = torch.zeros(1)
    return state


def test_original_layout_gives_the_same_tensors(folder):
    expected = load_tensors(folder, CONFIG)
    (folder / "model.safetensors").unlink()
    torch.save(original_state(expected), folder / "model.pth")
    tensors = load_tensors(folder, CONFIG)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


def test_original_names_are_the_golden_ones():
    """All names of the original implementation, except the linear layer that only its training uses."""
    config = HiggsAudioTokenizerConfig.from_dict(RECIPE["config"])
    config = replace(config, hubert=replace(config.hubert, num_hidden_layers=2))
    names = {original_name(name, config) for name in folded_shapes(config)}
    golden = {
        name.replace(".parametrizations.weight.original1", ".weight").replace(".weight_v", ".weight")
        for name in RECIPE["tensors"]
        if not name.endswith((".weight_g", ".original0")) and not name.startswith("fc_post1.")
    }
    assert names == golden


def test_half_precision_is_widened(folder):
    stored = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in stored.items()}, folder / "model.safetensors")
    assert {tensor.dtype for tensor in load_tensors(folder, CONFIG).values()} == {torch.float32}


def test_all_differences_are_named_at_once(folder):
    stored = load_file(folder / "model.safetensors")
    del stored["fc.weight"]
    stored["surplus"] = torch.zeros(1)
    stored["fc2.bias"] = torch.zeros(3)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_tensors(folder, CONFIG)
    assert str(error.value) == (
        f"audio tokenizer {folder} does not fit its config.json: 1 missing (fc.weight); 1 unknown (surplus); "
        "1 of another shape (fc2.bias [3] for [32])"
    )


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        (None, "must hold gain and direction of .*, got only direction"),
        (torch.ones(2, 1, 1), r"gain of .*, got \[2, 1, 1\] for \["),
        (torch.ones(3), r"gain of .*, got \[3\] for \["),
    ],
)
def test_broken_weight_norm_is_refused(folder, gain, message):
    stored = load_file(folder / "model.safetensors")
    name = f"{POSITION}.parametrizations.weight.original0"
    del stored[name]
    save_file(stored | ({name: gain} if gain is not None else {}), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_tensors(folder, CONFIG)


def test_folder_without_tensors(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor model.pth"):
        load_tensors(tmp_path, CONFIG)


def test_a_single_file_comes_before_shards_and_a_pickle(folder):
    expected = load_tensors(folder, CONFIG)
    stored = load_file(folder / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    save_file({name: tensor + 1 for name, tensor in stored.items()}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(stored, shard)}))
    torch.save({name: tensor + 2 for name, tensor in stored.items()}, folder / "model.pth")
    assert torch.equal(load_tensors(folder, CONFIG)["fc.bias"], expected["fc.bias"])
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_tensors(folder, CONFIG)["fc.bias"], expected["fc.bias"] + 1)
    (folder / "model.safetensors.index.json").unlink()
    assert torch.equal(load_tensors(folder, CONFIG)["fc.bias"], expected["fc.bias"] + 2)


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.99])
def test_truncated_files(folder, file, keep):
    if file == "model.pth":
        torch.save(load_file(folder / "model.safetensors"), folder / file)
        (folder / "model.safetensors").unlink()
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CheckpointError, match=rf"{file} is damaged or incomplete") as error:
        load_tensors(folder, CONFIG)
    assert "\n" not in str(error.value)


class Payload:
    """Unpickles by a call, as a malicious file would."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("state", "message"),
    [(Payload(), "damaged"), ([1], "must hold a dict of tensors"), ({"a": 1}, "must hold a dict of tensors")],
)
def test_pickle_of_another_object(tmp_path, capsys, state, message):
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        load_tensors(tmp_path, CONFIG)
    assert "executed" not in capsys.readouterr().out
