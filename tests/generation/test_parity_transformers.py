"""The engine against transformers' implementation: logits, greedy codes, scores; float32, bfloat16 and float16."""

from dataclasses import replace

import pytest
import torch

from higgs_native import ops
from higgs_native.convention import Convention
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.ops._library import EMULATES_CUDA
from tests.helpers import transformers_reference as reference
from tests.helpers.devices import DEVICES
from tests.helpers.rows import forward, prompt_rows


CONFIGURATIONS = [
    {},
    {"hidden": 60, "heads": 6, "kv_heads": 2, "head_dim": 20, "layers": 3, "ffn": 100},
    {"heads": 4, "kv_heads": 4, "codebooks": 4, "codebook_size": 66},
    {"hidden": 96, "heads": 6, "kv_heads": 1, "head_dim": 16, "layers": 4, "rope": reference.PLAIN_ROPE},
    {"hidden": 128, "heads": 2, "kv_heads": 2, "head_dim": 64, "codebooks": 12, "codebook_size": 1026},
    {"hidden": 72, "heads": 9, "kv_heads": 3, "head_dim": 8, "layers": 1, "vocab": 1000},
]
GREEDY = SamplingParams(temperature=0, ras_win_len=None, stop_strings=None)


# The emulation of CUDA is slow: it gets two configurations, one list of references, and few frames.
REFERENCES = [(5, 11)] if EMULATES_CUDA else [(), (7,), (5, 11)]
FRAMES = 12 if EMULATES_CUDA else 200


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module", params=range(2 if EMULATES_CUDA else len(CONFIGURATIONS)))
def models(request, device, tmp_path_factory):
    theirs = reference.tiny_model(request.param, endless=True, **CONFIGURATIONS[request.param])
    folder = reference.save(theirs, tmp_path_factory.mktemp("model"))
    return theirs, HiggsAudioModel.from_pretrained(folder, device), folder


def forced_logits(model: HiggsAudioModel, prompt: reference.Prompt, frames: torch.Tensor) -> torch.Tensor:
    rows = prompt_rows(model, prompt.input_ids[0].tolist(), prompt.reference_codes)
    states = forward(model, [*rows, *frames.T])
    with torch.inference_mode():
        return model.audio_logits(states[len(rows) - 1 :]).cpu()


def random_frames(config, count: int) -> torch.Tensor:
    return torch.randint(0, config.codebook_size, (config.num_codebooks, count), generator=torch.manual_seed(3))


@pytest.mark.parametrize("references", REFERENCES)
def test_teacher_forced_logits_in_float32(models, references):
    theirs, ours, _ = models
    prompt = reference.random_prompt(theirs.config, 1, 30, references)
    frames = random_frames(theirs.config, 60)
    expected = reference.forced_logits(theirs, prompt, frames)
    torch.testing.assert_close(forced_logits(ours, prompt, frames), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("references", REFERENCES)
def test_teacher_forced_logits_in_16_bits(models, device, references, dtype):
    """No further from float32 than 1.5 times transformers' own error, on the mean and at the largest."""
    theirs, _, folder = models
    prompt = reference.random_prompt(theirs.config, 2, 30, references)
    frames = random_frames(theirs.config, 60)
    exact = reference.forced_logits(theirs, prompt, frames)
    their_error = (reference.forced_logits(reference.load(folder, dtype), prompt, frames) - exact).abs()
    our_error = (forced_logits(HiggsAudioModel.from_pretrained(folder, device, dtype), prompt, frames) - exact).abs()
    assert our_error.mean() <= 1.5 * their_error.mean()
    assert our_error.max() <= 1.5 * their_error.max()


def compare_greedy(models, prompts: list[reference.Prompt], frames: int) -> None:
    theirs, ours, _ = models
    expected = reference.generate(theirs, prompts, frames)
    outputs = generate_batch(
        ours,
        [
            GenerationRequest(
                prompt.input_ids,
                prompt.reference_codes,
                Convention.TRANSFORMERS,
                replace(GREEDY, max_new_tokens=frames),
            )
            for prompt in prompts
        ],
        output_logits=True,
    )
    eos = theirs.config.audio_stream_eos_id
    for row, output in enumerate(outputs):
        (segment,) = output.audio_segments
        length = segment.shape[1]
        assert torch.equal(segment, expected.codes[row][:, :length])
        # What transformers adds to a row that has ended is padding.
        assert (expected.codes[row][:, length:] == eos).all()
        assert output.finish_reason == ("stop" if (segment[:, -1] == eos).all() else "length")
        torch.testing.assert_close(output.audio_logits.cpu(), expected.logits[:length, row], rtol=0, atol=2e-4)


@pytest.mark.parametrize("references", REFERENCES)
def test_greedy_codes_of_200_frames(models, references):
    compare_greedy(models, [reference.random_prompt(models[0].config, 4, 30, references)], FRAMES)


def test_greedy_codes_of_a_batch_of_different_lengths(models):
    config = models[0].config
    prompts = [
        reference.random_prompt(config, 5, 40, (6,)),
        reference.random_prompt(config, 6, 22, (9,)),
        reference.random_prompt(config, 7, 31, (3, 4)),
    ]
    compare_greedy(models, prompts, FRAMES)
    prompts = [reference.random_prompt(config, seed, length) for seed, length in ((8, 40), (9, 12), (10, 27))]
    compare_greedy(models, prompts, FRAMES)


def test_bosons_rule_on_the_transformers_layout(tmp_path):
    """Text goes on after `<|audio_eos|>`, which that layout's configuration does not name."""
    theirs = reference.tiny_model(1, codebook_size=12, text_head=True)
    model = HiggsAudioModel.from_pretrained(reference.save(theirs, tmp_path))
    prompt = reference.random_prompt(theirs.config, 1)
    output = model.generate(prompt.input_ids, convention="boson", temperature=0, ras_win_len=None, max_new_tokens=60)
    audio_eos = model.tokenizer.token_to_id("<|audio_eos|>")
    assert output.text_ids[:2] == [model.config.audio_out_token_id, audio_eos]
    assert len(output.text_ids) > 2


@pytest.mark.parametrize("tail", range(1, 5))
def test_a_reference_right_before_the_end(models, tail):
    """Its delay tokens, among as many ids as there are codebooks before the end, shift transformers' end counters."""
    config = models[0].config
    prompt = reference.random_prompt(config, 12, 30, (6,))
    ids = prompt.input_ids[0].tolist()
    at = ids.index(config.audio_token_id)
    short = reference.Prompt(torch.tensor([[*ids[: at + 1], *ids[-tail:]]]), prompt.reference_codes)
    compare_greedy(models, [short], min(FRAMES, 30))


def test_rows_that_end_by_themselves(tmp_path):
    """Models that do draw EOS: each row of the batch ends where transformers ends it."""
    for seed in range(3):
        theirs = reference.tiny_model(seed, codebook_size=12)
        ours = HiggsAudioModel.from_pretrained(reference.save(theirs, tmp_path / str(seed)))
        prompts = [reference.random_prompt(theirs.config, 20 * seed + i, 15 + 6 * i) for i in range(3)]
        compare_greedy((theirs, ours, None), prompts, 120)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, None, None), (1.0, 5, None), (1.3, None, 0.8), (0.6, 20, 0.9)]
)
def test_processed_scores(models, device, temperature, top_k, top_p):
    """transformers' scores at each step of a sampled run: masks, temperature, top-k, top-p over its own logits."""
    theirs, _, _ = models
    config = theirs.config
    prompt = reference.random_prompt(config, 11, 25)
    options = {"temperature": temperature, "top_k": top_k or 0, "top_p": 1.0 if top_p is None else top_p}
    torch.manual_seed(0)
    run = reference.generate(theirs, [prompt], 40, do_sample=True, **options)
    logits = run.logits.reshape(-1, config.codebook_size)
    expected = run.scores.reshape(-1, config.codebook_size)
    # The delay pattern's masks leave one special code; the other rows are what the processors make of the logits.
    special = expected[:, [config.audio_stream_bos_id, config.audio_stream_eos_id]]
    masked = (expected.isfinite().sum(dim=1) == 1) & special.isfinite().any(dim=1)
    logits, expected = logits[~masked], expected[~masked]
    assert len(logits) > 10
    scores = torch.empty_like(logits, device=device)
    rows = len(logits)
    parameters = (
        torch.full((rows,), temperature),
        torch.full((rows,), top_k or 0, dtype=torch.int32),
        torch.full((rows,), options["top_p"]),
    )
    ops.process_logits(scores, logits.to(device), *(parameter.to(device) for parameter in parameters))
    scores = scores.cpu()
    assert torch.equal(scores.isneginf(), expected.isneginf())
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)
