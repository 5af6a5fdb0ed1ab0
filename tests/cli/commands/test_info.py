"""The description of the installation by `higgs-native info`."""

import higgs_native
from higgs_native._C import build_info


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
