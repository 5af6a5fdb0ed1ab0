"""The description of the installation by `higgs-native info`."""

import re

import torch

import higgs_native
from higgs_native._C import build_info
from higgs_native.checkpoint.adapter import SPEAKERS_KEY
from higgs_native.model.transformer import LanguageModel
from higgs_native.testing.configs import DEMO_CONFIG
from tests.checkpoint.test_adapter import write_adapter
from tests.model.test_low_rank import write_factors


def test_info(run):
    code, out, _ = run("info")
    assert code == 0
    info = higgs_native._C.build_info()
    for text in (higgs_native.__version__, info["torch_built_against"], info["cpu_instruction_set"]):
        assert text in out
    for name in ("CPU kernels built in", "CUDA kernels built in", "this CPU runs", "GPUs", "will be used"):
        assert name in out


def test_an_unknown_instruction_set_is_one_line_too(run_python):
    process = run_python("from higgs_native.cli import main; main(['info'])", HIGGS_NATIVE_ISA="sse9")
    assert process.returncode == 2
    sets = " or ".join(", ".join(build_info()["cpu_instruction_sets"]).rsplit(", ", 1))
    assert process.stderr == f"error: HIGGS_NATIVE_ISA must be {sets}, got sse9\n"


def test_an_adapter_and_the_memory_that_it_takes(run, model, tmp_path):
    folder = write_factors(tmp_path / "anna", DEMO_CONFIG, ("self_attn.", "audio_mlp."), **{SPEAKERS_KEY: "anna\nben"})
    code, out, _ = run("info", folder, "--model", model)
    assert code == 0
    rows = dict(re.split(r": +", line, maxsplit=1) for line in out.splitlines())
    assert (rows["adapter"], rows["base"], rows["rank"]) == (str(folder), str(model), "3")
    assert rows["speakers"] == "anna, ben"
    dual = len(DEMO_CONFIG.audio_dual_ffn_layers)
    matrices = 4 * DEMO_CONFIG.num_hidden_layers + 3 * dual
    names = [f"audio_mlp.{name}_proj" for name in ("down", "gate", "up")]
    names += [f"self_attn.{name}_proj" for name in "koqv"]
    assert rows["targets"] == f"{', '.join(names)} ({matrices} matrices)"
    packed = LanguageModel.from_pretrained(model, dtype=torch.bfloat16).load_adapter("anna", folder)
    assert rows["in memory"] == f"{packed.nbytes / 1e3:.2f} kB in bfloat16"


def test_an_adapter_names_its_base(run, model, tmp_path):
    folder = write_adapter(tmp_path / "here", base_model_name_or_path=str(model))
    out = run("info", folder)[1]
    assert f"base:                  {model}\n" in out
    assert re.search(r"in memory: +\d+\.\d\d kB in bfloat16\n", out)
    folder = write_adapter(tmp_path / "elsewhere", base_model_name_or_path="owner/name")
    code, out, _ = run("info", folder)
    assert code == 0
    assert "base:                  owner/name\n" in out
    assert "in memory:             depends on the base: give --model\n" in out


def test_what_is_no_adapter_is_refused(run, model, tmp_path):
    code, _, errors = run("info", tmp_path)
    assert code == 2
    assert "adapter_config.json" in errors
