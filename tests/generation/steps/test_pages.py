"""Prompts that begin alike share pages, and nothing comes out differently."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from higgs_native.generation.engine import DEFAULT_PREFIX_BYTES, Engine
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationOutput, GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.steps.pages import PagePool, page_keys
from higgs_native.model.kv_cache import PAGE_SIZE
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.testing.random_checkpoint import write_language_model
from tests.model.test_transformer import config


ADAPTERS = {
    "dual_ffn": {},
    "fast_forward": {"audio_adapter_type": "dual_ffn_fast_forward", "audio_dual_ffn_layers": (0, 2)},
    "stack": {"audio_adapter_type": "stack", "audio_dual_ffn_layers": ()},
}
SAMPLING = SamplingParams(temperature=1.0, top_k=None, top_p=None, max_new_tokens=12)
REFERENCE = torch.randint(0, 10, (4, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=ADAPTERS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    # Wide enough for a group of quantized weights.
    cfg = config(hidden_size=128, intermediate_size=128, **ADAPTERS[request.param])
    write_language_model(folder, cfg, layout="original", dtype=torch.float32, endless=True)
    return folder


@pytest.fixture
def model(folder):
    return HiggsAudioModel.from_pretrained(folder)


def request(
    model: HiggsAudioModel, text: str, reference: torch.Tensor = REFERENCE, before: str = ""
) -> GenerationRequest:
    """A prompt that begins as all others do, and ends in `text`."""
    prompt = f"{before}<|begin_of_text|>Its words.<|AUDIO_OUT|> {text}<|audio_out_bos|>"
    ids = torch.tensor([model.tokenizer.encode(prompt, add_special_tokens=False).ids])
    return GenerationRequest(ids, [reference], sampling=replace(SAMPLING, seed=len(text)))


def generate(model: HiggsAudioModel, *requests: GenerationRequest) -> list[GenerationOutput]:
    return generate_batch(model, requests, output_logits=True)


def assert_equal(one: GenerationOutput, other: GenerationOutput) -> None:
    assert torch.equal(one.audio_segments[0], other.audio_segments[0])
    assert torch.equal(one.audio_logits, other.audio_logits)
    assert (one.text_ids, one.prompt_tokens) == (other.text_ids, other.prompt_tokens)


@pytest.mark.parametrize("format", ["float32", "bfloat16", "float16", "fp8", "int8", "int4"])
def test_the_output_is_the_same_to_the_bit(folder, format):
    quantized = format in QUANTIZED_FORMATS
    model = HiggsAudioModel.from_pretrained(
        folder, dtype="auto" if quantized else format, quantization=format if quantized else None
    )
    texts = ("One.", "Another one, which is longer than a block.", "One.", "O" * 60)
    model.engine.prefix_bytes = 0
    expected = [generate(model, request(model, text))[0] for text in texts]
    assert [output.cached_tokens for output in expected] == [0] * 4
    model.engine.prefix_bytes = DEFAULT_PREFIX_BYTES
    outputs = [generate(model, request(model, text))[0] for text in texts]
    shares = not any(map(model.config.skips_audio, range(model.config.num_hidden_layers)))
    assert outputs[0].cached_tokens == 0
    # 48 positions of 11 tokens, 45 frames, and the text; layers that audio rows skip share nothing.
    assert all(output.cached_tokens == 48 * shares for output in outputs[1:])
    for one, other in zip(outputs, expected, strict=True):
        assert_equal(one, other)
    # In a batch, beside one that has nothing in common with them.
    batch = generate(model, *(request(model, text) for text in texts), request(model, "One.", before="No. "))
    assert [output.cached_tokens for output in batch] == [position * shares for position in (48, 96, 48, 112, 0)]
    for one, other in zip(batch[:4], expected, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("folder", ["dual_ffn", "stack"], indirect=True)
def test_the_longest_common_beginning_is_taken(model):
    generate(model, request(model, "a" * 40))
    for text, cached in (("a" * 40, 96), ("a" * 30 + "b" * 10, 80), ("b", 48), ("a" * 60, 96)):
        (output,) = generate(model, request(model, text))
        assert output.cached_tokens == cached
        assert output.prompt_tokens == 58 + len(text)


@pytest.mark.parametrize("folder", ["dual_ffn"], indirect=True)
def test_other_codes_and_other_tokens_are_another_beginning(model):
    generate(model, request(model, "One."))
    changed = REFERENCE.clone()
    changed[3, 20] = (changed[3, 20] + 1) % 10
    (output,) = generate(model, request(model, "One.", changed))
    assert output.cached_tokens == 32  # 11 tokens, and 23 frames before the delayed code
    (output,) = generate(model, request(model, "One.", before=" "))
    assert output.cached_tokens == 0
    # A frame is not the token ids of the same numbers.
    assert page_keys([(1, 2, 3, 4)] * PAGE_SIZE) != page_keys([1, 2, 3, 4] * (PAGE_SIZE // 4))


@pytest.mark.parametrize("folder", ["dual_ffn"], indirect=True)
def test_the_last_row_is_always_computed(model):
    """A prompt of whole blocks alone, generated again."""
    for _ in range(2):
        (output,) = generate(model, request(model, "a" * 38))
    assert output.prompt_tokens == 96
    assert output.cached_tokens == 80


def test_pages_are_free_held_or_unused():
    pool = PagePool(4, max_unused=2)
    first = pool.take(3)
    assert (pool.available, pool.held) == (1, 3)
    for key, page in zip((b"a", b"b", b"c"), first, strict=True):
        pool.know(key, page)
    assert pool.num_known([b"a", b"b", b"x", b"c"]) == 2
    assert pool.share([b"a", b"b"]) == first[:2]
    pool.release(first)
    assert (pool.available, pool.held) == (2, 2)  # the shared pages are held still
    pool.release(first[:2])
    assert (pool.available, pool.held) == (4, 0)
    # At most two are kept, and the end of a prefix is forgotten before its beginning.
    assert pool.num_known([b"a", b"b", b"c"]) == 2
    assert pool.num_unused([b"a", b"b"]) == 2
    assert set(pool.take(3)) == {0, 1, 2, 3} - {first[0]}
    assert pool.num_known([b"a", b"b"]) == 1
    pool.max_unused = 0
    assert pool.num_known([b"a"]) == 0
    assert pool.available == 1


def test_a_page_that_came_second_is_not_known():
    pool = PagePool(2, max_unused=2)
    first, second = pool.take(2)
    pool.know(b"a", first)
    pool.know(b"a", second)
    pool.release([second])
    pool.release([first])
    assert pool.share([b"a"]) == [first]
    pool.release([first])
    pool.forget()
    assert pool.num_known([b"a"]) == 0
    assert sorted(pool.take(2)) == [0, 1]


def test_threads_that_share_it_get_what_each_gets_alone(model):
    texts = [f"{index}, and so on and on." for index in range(6)] * 3
    model.engine.prefix_bytes = 0
    expected = [generate(model, request(model, text))[0] for text in texts]
    # Room for little more than one prompt, so that pages come and go.
    model.engine = Engine(model, 4, prefix_bytes=6 * model.engine._page_bytes)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda text: generate(model, request(model, text))[0], texts))
    for one, other in zip(outputs, expected, strict=True):
        assert_equal(one, other)
