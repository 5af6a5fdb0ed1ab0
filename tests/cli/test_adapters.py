"""The option --adapter: who speaks, and what is refused."""

from higgs_native.checkpoint.adapter import SPEAKERS_KEY
from higgs_native.testing.configs import DEMO_CONFIG
from tests.model.test_low_rank import write_factors


TEXT = "The sun rises in the east."


def test_an_adapter_speaks_beside_the_weights(run, model):
    write_factors(run.work / "anna", DEMO_CONFIG, **{SPEAKERS_KEY: "anna"})
    write_factors(run.work / "ben", DEMO_CONFIG, seed=1)
    speak = ["speak", TEXT, "--model", model, "--seed", 1, "--max-new-tokens", 12, "--out"]
    adapters = ["--adapter", "anna=anna", "--adapter", "ben=ben"]
    for name, options in {
        "plain": [],
        "only": adapters[:2],
        "voice": [*adapters, "--voice", "anna"],
        "ben": [*adapters, "--voice", "ben"],
    }.items():
        assert run(*speak, f"{name}.wav", *options)[0] == 0
    plain, only, voice, ben = ((run.work / f"{name}.wav").read_bytes() for name in ("plain", "only", "voice", "ben"))
    assert only == voice
    assert len({plain, voice, ben}) == 3
    assert run("read", TEXT, "--model", model, "--seed", 1, "--out", "book.wav", *adapters[:2])[0] == 0
    for options, message in {
        ("anna",): "--adapter must be NAME=FOLDER, got 'anna'",
        ("a=anna", "--adapter", "a=ben"): "--adapter must have a new name each, got 'a' twice",
        ("a=anna", "--adapter", "b=ben"): "--voice must be one of the adapters a, b, got None",
        ("a=none",): "none has no adapter_config.json",
    }.items():
        code, _, err = run(*speak, "out.wav", "--adapter", *options)
        assert (code, err.splitlines()[-1]) == (2, f"error: {message}")
        assert not (run.work / "out.wav").exists()
