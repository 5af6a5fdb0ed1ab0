"""The audio tokenizer's checkpoints: both layouts give the same tensors, and errors name what is wrong."""

import json
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native.audio_tokenizer.checkpoint import folded_shapes, load_tensors, original_name
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.weights import pack_weights
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
        f"audio tokenizer {folder} must fit its config.json, got 1 missing (fc.weight); 1 unknown (surplus); "
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fc.weight", torch.nan),
        ("acoustic_decoder.block.0.snake1.alpha", torch.inf),
        ("quantizer.quantizers.3.codebook.embed", -torch.inf),
        ("encoder_semantic.conv.weight", 1e300),  # float32 can't hold it
    ],
)
def test_tensors_that_are_not_finite_are_named(folder, name, value):
    stored = load_file(folder / "model.safetensors")
    stored[name] = stored[name].double()
    stored[name].view(-1)[-1] = value
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_tensors(folder, CONFIG)
    expected = f"audio tokenizer {folder}: {name} must be finite in float32, got NaN or infinity"
    assert str(error.value) == expected


@pytest.mark.parametrize("part", ["_g", "_v"])
def test_parts_of_a_weight_norm_that_are_not_finite_are_named(folder, part):
    state = original_state(load_tensors(folder, CONFIG))
    (folder / "model.safetensors").unlink()
    name = "decoder_2.model.1.block.1.weight"
    state[name + part].view(-1)[0] = torch.nan
    torch.save(state, folder / "model.pth")
    with pytest.raises(CheckpointError, match=r"decoder_2\.model\.1\.block\.1\.weight must be finite in float32"):
        load_tensors(folder, CONFIG)


def test_a_direction_of_zeros_has_no_norm(folder):
    state = original_state(load_tensors(folder, CONFIG))
    name = "decoder_2.model.1.block.1.weight_v"
    state[name][0] = 0
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "model.pth")
    with pytest.raises(CheckpointError, match=r"decoder_2\.model\.1\.block\.1\.weight must be finite in float32"):
        load_tensors(folder, CONFIG)


def test_a_product_that_is_not_finite_is_refused(folder):
    tensors = load_tensors(folder, CONFIG)
    tensors["fc2.weight"][:] = 1e30
    tensors["quantizer.quantizers.3.codebook.embed"][5] = 1e30
    with pytest.raises(CheckpointError, match=r"codebook\.embed, project_out and fc2 must have a finite product"):
        pack_weights(tensors, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to_sparse(), "got a sparse_coo one of float32 on cpu"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "got a strided one of qint8 on cpu"),
        (lambda t: t.to("meta"), "got a strided one of float32 on meta"),
        (lambda t: torch.nested.nested_tensor(list(t)), "got a nested one of float32 on cpu"),
        (lambda t: t.to(torch.complex64), "got a strided one of complex64 on cpu"),
        (lambda t: t.to(torch.int64), "got a strided one of int64 on cpu"),
        (lambda t: t.to(torch.float8_e4m3fn), "got a strided one of float8_e4m3fn on cpu"),
        (lambda t: torch.zeros(1).expand(t.shape), "must hold all its values, got a view that repeats some"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's notes on its prototypes
def test_tensors_of_other_kinds_are_named(folder, change, message):
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**stored, "fc.weight": change(stored["fc.weight"])}, folder / "model.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_tensors(folder, CONFIG)
    assert str(error.value).startswith(f"audio tokenizer {folder}: fc.weight must ")


def test_unused_tensors_may_be_of_any_kind(folder):
    expected = load_tensors(folder, CONFIG)
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    unused = torch.full((1,), 2**40)
    torch.save(
        {**stored, "quantizer.quantizers.0.codebook.inited": unused, "fc1.weight": unused}, folder / "model.pth"
    )
    tensors = load_tensors(folder, CONFIG)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_compressed_pickle_is_refused(folder):
    """A few megabytes may unpack to terabytes."""
    torch.save(load_file(folder / "model.safetensors"), folder / "plain.pth")
    (folder / "model.safetensors").unlink()
    with (
        zipfile.ZipFile(folder / "plain.pth") as plain,
        zipfile.ZipFile(folder / "model.pth", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for entry in plain.infolist():
            compressed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(
        CheckpointError, match=r"model\.pth must be as torch\.save writes it, got a compressed archive"
    ):
        load_tensors(folder, CONFIG)


def test_folder_without_tensors(tmp_path):
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors or model\.pth, got neither"):
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
    [
        (Payload(), "damaged"),
        ([1], "must hold a dict of tensors"),
        ({"a": 1}, "must hold a dict of tensors"),
        ({1: torch.zeros(1)}, "must hold a dict of tensors by name"),
        ({("a", None): torch.zeros(1)}, "must hold a dict of tensors by name"),
    ],
)
def test_pickle_of_another_object(tmp_path, capsys, state, message):
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_tensors(tmp_path, CONFIG)
    assert "[1m" not in str(error.value)  # torch warns of pickles in color
    assert "executed" not in capsys.readouterr().out
