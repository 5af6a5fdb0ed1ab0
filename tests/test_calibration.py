"""Weights quantized for the inputs that they meet: the same size, and outputs that err less."""

from importlib import import_module

import pytest
import torch
from safetensors import safe_open

from higgs_native import HiggsAudioModel, calibration, ops, reference
from higgs_native.calibration import DEFAULT_TEXTS, States, calibrated_model, speak, text_prompt
from higgs_native.checkpoint.language_model import AUDIO_LM_HEAD, TEXT_LM_HEAD
from higgs_native.checkpoint.packed import PACKED_FILE
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.cli import main
from higgs_native.errors import CheckpointError
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.layers import Layer
from higgs_native.model.rope import rope_table
from higgs_native.model.transformer import LanguageModel
from higgs_native.model.weights import CheckpointWeights
from higgs_native.ops.formats import QUANTIZED_FORMATS, WEIGHT_FORMATS
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.testing.random_checkpoint import write_language_model
from tests.helpers.devices import DEVICES
from tests.model.test_transformer import config
from tests.ops.tensors import random


CPU = torch.device("cpu")
TEXTS = ("We walk home along the river.", "Seven people are waiting.", "The water is cold and clear.")
HELD_OUT = (
    "Good morning, how are you today?",
    "The sun rises in the east.",
    "My brother has two dogs and a cat.",
    "Close the window, it is cold outside.",
)


def correlated_inputs(rows: int, k: int) -> torch.Tensor:
    """[rows, k]: sums of a few directions, and some noise."""
    return random((rows, k // 4)) @ random((k // 4, k), seed=1) + 0.3 * random((rows, k), seed=2)


def feedback_of(x: torch.Tensor, count: int | None = None) -> ops.ErrorFeedback:
    """For inputs x [rows, k], as if they were `count`."""
    return ops.error_feedback(ops.Moments(x.T @ x / len(x), count or len(x)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("format", QUANTIZED_FORMATS)
@pytest.mark.parametrize("shape", [(40, 300), (2100, 128), (7, 129)])
def test_outputs_err_less(format, shape, device):
    n, k = shape
    weight, x = random((n, k), seed=3), correlated_inputs(4 * k, k)
    feedback = feedback_of(x.to(device))
    errors = []
    for way in (None, feedback):
        values, scales = (tensor.cpu().float() for tensor in ops.quantize_linear(weight.to(device), format, True, way))
        columns = scales[:, None] if format != "int4" else scales.repeat_interleave(128, 1)[:, :k]
        errors.append((x @ (values * columns - weight).T).square().mean())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("format", QUANTIZED_FORMATS)
def test_values_and_scales_are_those_of_the_format(format):
    weight, x = random((40, 300)), correlated_inputs(600, 300)
    plain = ops.quantize_linear(weight, format)
    values, scales = ops.quantize_linear(weight, format, True, feedback_of(x))
    assert torch.equal(scales, plain[1])
    assert values.dtype == plain[0].dtype
    least, most = WEIGHT_FORMATS[format].limits
    assert least <= values.float().min() < 0 < values.float().max() <= most
    assert not torch.equal(values.float(), plain[0].float())


@pytest.mark.parametrize("format", QUANTIZED_FORMATS)
def test_inputs_that_say_nothing_change_nothing(format):
    """Uncorrelated inputs of one size, or none at all."""
    weight = random((40, 300))
    plain = ops.quantize_linear(weight, format)[0].float()
    for moments in (torch.eye(300), torch.zeros(300, 300)):
        values = ops.quantize_linear(weight, format, True, ops.error_feedback(ops.Moments(moments, 300)))[0].float()
        # Ties may fall to either side: here a weight is multiplied by the inverse of its scale.
        assert (values != plain).float().mean() < 0.001


def test_rows_of_zeros_stay_zeros():
    weight, x = random((3, 256)), correlated_inputs(600, 256)
    weight[1] = 0
    weight[2, :128] = 0
    values, scales = ops.quantize_linear(weight, "int4", True, feedback_of(x))
    product = values.float() * scales.float().repeat_interleave(128, 1)
    assert not product[1].any()
    assert not product[2, :128].any()
    assert product.isfinite().all()


def test_few_inputs_change_less():
    """What a few inputs say about others is trusted less."""
    weight, x = random((40, 300)), correlated_inputs(600, 300)
    plain = ops.quantize_linear(weight, "int4")[0]
    changed = []
    for count in (3000, 300, 30):
        values = ops.quantize_linear(weight, "int4", True, feedback_of(x, count))[0]
        changed.append(float((values != plain).float().mean()))
    assert changed[0] > changed[1] > changed[2] > 0


def test_moments_that_are_not_finite():
    with pytest.raises(RuntimeError, match="error_feedback: moments must be finite, got NaN or infinity"):
        ops.error_feedback(ops.Moments(torch.full((4, 4), torch.nan), 9))


def divergence(model: HiggsAudioModel, truth: HiggsAudioModel, spoken) -> float:
    """The mean divergence from `truth` over the frames of what was spoken."""
    total = []
    for ids, frames in spoken:
        rows = Batch.text_then_audio([(ids, frames)], model.device)
        ours, theirs = (
            m.audio_logits(m.forward(rows, m.new_cache(1, len(rows.slots)))[len(ids) :].contiguous()).log_softmax(-1)
            for m in (model, truth)
        )
        total.append((theirs.exp() * (theirs - ours)).sum(-1).mean())
    return float(torch.stack(total).mean())


@pytest.fixture(scope="module", params=DEVICES)
def truth(request):
    """The embedded voice in float32, and what it says that it was not calibrated with."""
    model = HiggsAudioModel.from_pretrained(EMBEDDED_VOICE, request.param, dtype="float32")
    return model, speak(model, [text_prompt(text, model.tokenizer, model.config) for text in HELD_OUT])


@pytest.mark.parametrize(
    ("quantization", "share"), [("fp8", 0.7), ("int8", 0.95), ("int4", 0.7), ("int4,heads=int8", 0.7)]
)
def test_the_embedded_voice_loses_less(quantization, share, truth):
    truth, spoken = truth
    plain = HiggsAudioModel.from_pretrained(EMBEDDED_VOICE, truth.device, quantization=quantization)
    texts = DEFAULT_TEXTS.read_text(encoding="utf-8").splitlines()[::2]
    calibrated = calibrated_model(EMBEDDED_VOICE, Quantization.parse(quantization), texts, truth.device)
    assert calibrated.nbytes == plain.nbytes
    assert calibrated.quantization == plain.quantization
    assert divergence(calibrated, truth, spoken) < share * divergence(plain, truth, spoken)


def recorded_inputs(monkeypatch, layer: Layer, states: torch.Tensor, rows: Batch, cfg) -> list[torch.Tensor]:
    """The inputs of a layer's linear operators, by operators in plain PyTorch: qkv, o, and gate_up and down, of text
    rows and of audio rows.
    """
    inputs = []

    def recorded(x, weight, factors=None):
        inputs.append(x.clone())
        return plain_linear(x, weight, factors)

    plain_linear = reference.packed_linear
    for module in ("attention", "dual_ffn", "linear"):
        monkeypatch.setattr(import_module(f"higgs_native.reference.{module}"), "packed_linear", recorded)
    num_text = len(rows.token_ids)
    n = num_text if layer.skips_audio else len(states)
    x, slots, positions = states[:n], rows.slots[:n], rows.positions[:n]
    places = rows.text_positions if layer.skips_audio else positions
    sequences, length = int(rows.slots.max()) + 1, int(rows.positions.max()) + 1
    cache = KVCache.with_own_pages(cfg, sequences, length, torch.float32, states.device)
    caches = cache.keys[0], cache.values[0]
    query, after = torch.empty(n, cfg.num_attention_heads * cfg.head_dim), torch.empty(x.shape)
    reference.qkv_rope_cache(
        query, *caches, x, layer.text.input_norm, layer.audio.input_norm, cfg.rms_norm_eps, layer.qkv,
        rope_table(cfg, cache.length), cache.page_table, slots, positions, places, num_text,
    )  # fmt: skip
    attended = torch.empty(query.shape)
    reference.attention(attended, query, *caches, cache.page_table, slots, places, cfg.head_dim**-0.5)
    reference.linear(after, attended, layer.o, x)
    paths = [(ffn.post_attention_norm, ffn.gate_up, ffn.down) for ffn in (layer.text, layer.audio)]
    reference.dual_ffn(torch.empty(x.shape), after, *paths[0], *paths[1], cfg.rms_norm_eps, num_text)
    monkeypatch.undo()
    return inputs


@pytest.mark.parametrize(
    ("adapter", "dual"), [("dual_ffn", (0, 1, 2, 3)), ("dual_ffn_fast_forward", (1, 3)), ("stack", ())]
)
def test_moments_are_those_of_what_linear_operators_take(tmp_path, monkeypatch, adapter, dual):
    cfg = config(audio_adapter_type=adapter, audio_dual_ffn_layers=dual)
    write_language_model(tmp_path / "model", cfg, layout="original")
    weights = CheckpointWeights(tmp_path / "model", cfg, torch.float32, Quantization(), CPU)
    model = LanguageModel(cfg, weights, None, CPU, 64)
    spoken = [
        (list(range(9)), torch.randint(0, 12, (4, 13), generator=torch.Generator().manual_seed(0))),
        (list(range(40, 52)), torch.randint(0, 12, (4, 5), generator=torch.Generator().manual_seed(1))),
    ]
    rows = Batch.text_then_audio(spoken)
    states = States(cfg, weights, spoken, CPU)
    for layer in model.layers:
        qkv, o, *ffn = recorded_inputs(monkeypatch, layer, states.states, rows, cfg)
        expected = [qkv, o, *ffn]
        if layer.skips_audio:
            expected = [qkv, o, *ffn[:2]]
        elif layer.audio is layer.text:
            expected = [qkv, o, torch.cat(ffn[::2]), torch.cat(ffn[1::2])]
        moments = states.layer_moments(layer)
        assert len(moments) == len(expected) == (6 if layer.audio is not layer.text else 4)
        for ours, x in zip(moments.values(), expected, strict=True):
            k = len(ours.mean)
            assert ours.num_inputs == len(x)
            torch.testing.assert_close(ours.mean, x[:, :k].T @ x[:, :k] / len(x), rtol=1e-4, atol=1e-6)
        states.advance(layer)
    torch.testing.assert_close(states.states, model.forward(rows, model.new_cache(2, 32)), rtol=0, atol=0)
    moments = states.head_moments(model.norm)
    for name, theirs in ((TEXT_LM_HEAD, states.states[:21]), (AUDIO_LM_HEAD, states.states[21:])):
        x = reference.rms_norm(theirs, model.norm, cfg.rms_norm_eps)
        torch.testing.assert_close(moments[name].mean, x.T @ x / len(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("adapter", "dual"), [("dual_ffn", (0, 1, 2, 3)), ("dual_ffn_fast_forward", (1, 3)), ("stack", ())]
)
@pytest.mark.parametrize("formats", ["int4", "int4,text_ffn=bfloat16", "text_ffn=int4"])
def test_every_matrix_is_calibrated(tmp_path, adapter, dual, formats):
    """A matrix of a layer and a head that is quantized differs from what rounding to the nearest gives."""
    cfg = config(audio_adapter_type=adapter, audio_dual_ffn_layers=dual)
    write_language_model(tmp_path / "model", cfg, layout="original")
    quantization = Quantization.parse(formats)
    plain = LanguageModel.from_pretrained(tmp_path / "model", quantization=quantization).named_weights()
    calibrated = calibrated_model(tmp_path / "model", quantization, TEXTS, CPU).named_weights()
    assert list(calibrated) == list(plain)
    for name, tensor in calibrated.items():
        assert torch.equal(tensor, plain[name]) == (tensor.dtype != torch.uint8), name


def run_command(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


def test_the_command(tmp_path, capsys, monkeypatch):
    (tmp_path / "texts").write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    (tmp_path / "some").write_text("".join(DEFAULT_TEXTS.open(encoding="utf-8").readlines()[:16]), encoding="utf-8")
    monkeypatch.setattr(calibration, "DEFAULT_TEXTS", tmp_path / "some")
    for target, options in (("own", ["--texts", tmp_path / "texts"]), ("default", []), ("plain", None)):
        options = [] if options is None else ["--calibrate", *options]
        code, _, err = run_command(capsys, "quantize", EMBEDDED_VOICE, tmp_path / target, "--format", "int4", *options)
        assert (code, err) == (0, "")
        with safe_open(tmp_path / target / PACKED_FILE, framework="pt") as packed:
            assert packed.metadata()["calibrated"] == ("false" if target == "plain" else "true")
    models = {target: HiggsAudioModel.from_pretrained(tmp_path / target) for target in ("own", "default", "plain")}
    expected = calibrated_model(EMBEDDED_VOICE, Quantization.parse("int4"), TEXTS, CPU).audio_head.data
    # Sums of torch's matrix operators may differ in their last bits from run to run, and then a few values.
    differing = {name: float((model.audio_head.data != expected).float().mean()) for name, model in models.items()}
    assert differing["own"] < 0.01 < 0.05 < min(differing["default"], differing["plain"]), differing
    # A copy is calibrated as it was.
    assert run_command(capsys, "quantize", tmp_path / "own", tmp_path / "copy", "--format", "int4")[0] == 0
    with safe_open(tmp_path / "copy" / PACKED_FILE, framework="pt") as packed:
        assert packed.metadata()["calibrated"] == "true"


def test_speaking_ends_where_memory_would(monkeypatch):
    monkeypatch.setattr(calibration, "_MAX_ROWS", 300)
    model = HiggsAudioModel.from_pretrained(EMBEDDED_VOICE)
    prompts = [text_prompt(text, model.tokenizer, model.config) for text in TEXTS * 3]
    spoken = speak(model, prompts)
    counts = [len(ids) + frames.shape[1] for ids, frames in spoken]
    assert 1 < len(spoken) < len(prompts)
    assert 300 - max(counts) < sum(counts) <= 300
    assert all(ids == prompt[0].tolist() for (ids, _), prompt in zip(spoken, prompts, strict=False))
    monkeypatch.setattr(calibration, "_MAX_ROWS", 1)
    assert len(speak(model, prompts)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{voice}", "{new}", "--texts", "{texts}"], "--texts must be given with --calibrate, got "),
        (["{voice}", "{new}", "--calibrate", "--texts", "{none}"], "can't be read: No such file"),
        (
            ["{voice}", "{new}", "--calibrate", "--texts", "{empty}"],
            "texts must hold at least one sentence per line, got none",
        ),
        (["{voice}", "{new}", "--calibrate", "--texts", "{special}"], "special token"),
        (["{voice}", "{new}", "--calibrate", "--texts", "{silent}"], "text must hold something to say, got"),
        (["{voice}", "{new}", "--calibrate", "--texts", "{long}"], "a text must have at most 7942 tokens, got "),
        (
            ["{voice}", "{new}", "--calibrate", "--format", "float16"],
            "calibration must be for fp8, int8, int4 in some part, got ",
        ),
        (["{packed}", "{new}", "--calibrate"], "must not be packed; calibration takes the checkpoint"),
        (["{voice}", "{new}", "--device", "gpu"], "gpu"),
    ],
)
def test_the_command_refuses_bad_input(tmp_path, capsys, arguments, message):
    texts = {
        "texts": TEXTS[0],
        "empty": "\n \n",
        "special": "Hello <|eot_id|>",
        "silent": "Hello.\n()",
        "long": "word " * 9000,
    }
    places = {"voice": EMBEDDED_VOICE, **{name: tmp_path / name for name in ("new", "none", "packed", *texts)}}
    for name, text in texts.items():
        places[name].write_text(text, encoding="utf-8")
    if "{packed}" in arguments:
        assert run_command(capsys, "quantize", EMBEDDED_VOICE, places["packed"])[0] == 0
    code, _, err = run_command(capsys, "quantize", *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not places["new"].exists()


def test_a_model_without_a_tokenizer(tmp_path):
    write_language_model(tmp_path / "model", config(audio_delay_token_id=270))
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="model has no tokenizer"):
        calibrated_model(tmp_path / "model", Quantization.parse("int4"), TEXTS, CPU)
