"""Prompts that begin alike: what is kept of them, and that nothing comes out differently."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from higgs_native.errors import ParameterError
from higgs_native.generation.engine import HiggsAudioModel, generate_batch
from higgs_native.generation.prefix_cache import BLOCK, DEFAULT_MAX_BYTES, PrefixCache, prompt_blocks
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.sequence import GenerationOutput, GenerationRequest
from higgs_native.model.kv_cache import KVCache
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
    model.prefix_cache.max_bytes = 0
    expected = [generate(model, request(model, text))[0] for text in texts]
    assert [output.cached_tokens for output in expected] == [0] * 4
    model.prefix_cache.max_bytes = DEFAULT_MAX_BYTES
    outputs = [generate(model, request(model, text))[0] for text in texts]
    assert outputs[0].cached_tokens == 0
    assert all(output.cached_tokens == 48 for output in outputs[1:])  # of 11 tokens, 45 frames, and the text
    for one, other in zip(outputs, expected, strict=True):
        assert_equal(one, other)
    # In a batch, beside one that has nothing in common with them.
    batch = generate(model, *(request(model, text) for text in texts), request(model, "One.", before="No. "))
    assert [output.cached_tokens for output in batch] == [48, 96, 48, 112, 0]
    for one, other in zip(batch[:4], expected, strict=True):
        assert_equal(one, other)


def test_the_longest_common_beginning_is_taken(model):
    generate(model, request(model, "a" * 40))
    for text, cached in (("a" * 40, 96), ("a" * 30 + "b" * 10, 80), ("b", 48), ("a" * 60, 96)):
        (output,) = generate(model, request(model, text))
        assert output.cached_tokens == cached
        assert output.prompt_tokens == 58 + len(text)


def test_other_codes_and_other_tokens_are_another_beginning(model):
    generate(model, request(model, "One."))
    changed = REFERENCE.clone()
    changed[3, 20] = (changed[3, 20] + 1) % 10
    (output,) = generate(model, request(model, "One.", changed))
    assert output.cached_tokens == 32  # 11 tokens, and 23 frames before the delayed code
    (output,) = generate(model, request(model, "One.", before=" "))
    assert output.cached_tokens == 0
    # A frame is not the token ids of the same numbers.
    frame = torch.tensor([1, 2, 3, 4], dtype=torch.int32)
    assert prompt_blocks([frame] * BLOCK)[0].key != prompt_blocks([1, 2, 3, 4] * (BLOCK // 4))[0].key


def test_the_last_row_is_always_computed(model):
    """A prompt of whole blocks alone, generated again."""
    for _ in range(2):
        (output,) = generate(model, request(model, "a" * 38))
    assert output.prompt_tokens == 96
    assert output.cached_tokens == 80


def test_short_prompts_are_not_kept(model):
    ids = torch.tensor([model.tokenizer.encode("Short.<|audio_out_bos|>", add_special_tokens=False).ids])
    generate(model, GenerationRequest(ids))
    assert model.prefix_cache.nbytes == 0


def filled_cache(length: int) -> KVCache:
    cache = KVCache(config(), 2, length, torch.float32, torch.device("cpu"))
    for seed, tensor in enumerate((*cache.keys, *cache.values)):
        tensor.normal_(generator=torch.Generator().manual_seed(seed))
    return cache


BLOCK_BYTES = 4 * 2 * 2 * 8 * 4 * BLOCK  # layers, keys and values, KV heads, head_dim, float32


def test_the_least_recently_used_goes_first():
    cache = filled_cache(64)
    first, second, third = (prompt_blocks([token] * 32) for token in range(3))
    prefixes = PrefixCache(4 * BLOCK_BYTES)
    prefixes.keep(first, cache, 0)
    prefixes.keep(second, cache, 0)
    assert prefixes.nbytes == 4 * BLOCK_BYTES
    assert prefixes.restore(first, cache, 1) == 2
    prefixes.keep(third, cache, 0)
    assert prefixes.nbytes == 4 * BLOCK_BYTES
    assert [prefixes.restore(blocks, cache, 1) for blocks in (first, second, third)] == [2, 0, 2]
    # The end of a beginning goes before its beginning.
    prefixes.max_bytes = 3 * BLOCK_BYTES
    assert [prefixes.restore(blocks, cache, 1) for blocks in (first, third)] == [1, 2]
    prefixes.max_bytes = 0
    assert prefixes.nbytes == 0
    prefixes.keep(first, cache, 0)
    assert prefixes.nbytes == 0
    with pytest.raises(ParameterError, match="must be at least 0, got -1"):
        prefixes.max_bytes = -1


def test_of_a_prompt_that_is_too_long_the_beginning_is_kept():
    cache = filled_cache(128)
    blocks = prompt_blocks(list(range(128)))
    prefixes = PrefixCache(3 * BLOCK_BYTES + 1)
    for _ in range(2):
        prefixes.keep(blocks, cache, 0)
        assert prefixes.nbytes == 3 * BLOCK_BYTES
        assert prefixes.restore(blocks, cache, 1) == 3
    prefixes.clear()
    assert (prefixes.nbytes, prefixes.restore(blocks, cache, 1)) == (0, 0)


def test_what_is_restored_is_what_was_kept():
    cache, other = filled_cache(64), filled_cache(100)
    for tensor in (*other.keys, *other.values):
        tensor.zero_()
    blocks = prompt_blocks([1] * 70)
    prefixes = PrefixCache()
    prefixes.keep(blocks[:3], cache, 1)
    assert prefixes.restore(blocks, other, 0) == 3
    for kept, restored in zip((*cache.keys, *cache.values), (*other.keys, *other.values), strict=True):
        assert torch.equal(restored[0, :, :48], kept[1, :, :48])
        assert not restored[0, :, 48:].any()
        assert not restored[1].any()


def test_threads_that_share_it_get_what_each_gets_alone(model):
    texts = [f"{index}, and so on and on." for index in range(6)] * 3
    model.prefix_cache.max_bytes = 0
    expected = [generate(model, request(model, text))[0] for text in texts]
    # Room for little more than one prompt, so that blocks come and go.
    model.prefix_cache.max_bytes = DEFAULT_MAX_BYTES
    generate(model, request(model, texts[0]))
    kept = model.prefix_cache.nbytes
    model.prefix_cache.max_bytes = limit = 6 * kept // 5
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda text: generate(model, request(model, text))[0], texts))
    for one, other in zip(outputs, expected, strict=True):
        assert_equal(one, other)
    assert 0 < model.prefix_cache.nbytes <= limit
