"""The pages of a KV cache, and that a forward pass finds them wherever they are."""

import resource

import pytest
import torch

from higgs_native.generation.engine import HiggsAudioModel
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from higgs_native.testing.configs import REAL_SIZE_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from tests.model.test_transformer import config


CPU = torch.device("cpu")


@pytest.mark.parametrize(("length", "pages"), [(1, 1), (PAGE_SIZE, 1), (PAGE_SIZE + 1, 2), (8192, 8192 // PAGE_SIZE)])
def test_pages_for_a_length(length, pages):
    assert pages_for(length) == pages


def test_shapes():
    cfg = config()
    cache = KVCache(cfg, 5, 3, 2 * PAGE_SIZE + 1, torch.bfloat16, CPU)
    for tensors in (cache.keys, cache.values):
        assert len(tensors) == cfg.num_hidden_layers
        assert {tensor.shape for tensor in tensors} == {(5, cfg.num_key_value_heads, PAGE_SIZE, cfg.head_dim)}
        assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert (cache.num_pages, cache.slots, cache.length) == (5, 3, 2 * PAGE_SIZE + 1)
    assert torch.equal(cache.page_table, torch.zeros(3, 3, dtype=torch.int32))


def test_slots_with_own_pages():
    cache = KVCache.with_own_pages(config(), 2, PAGE_SIZE + 1, torch.float32, CPU)
    assert cache.num_pages == 4
    assert torch.equal(cache.page_table, torch.tensor([[0, 1], [2, 3]], dtype=torch.int32))


def test_unused_pages_take_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = KVCache.with_own_pages(REAL_SIZE_CONFIG, 4, 8192, torch.bfloat16, CPU)
    num_bytes = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < num_bytes / 100


@pytest.mark.parametrize(
    "adapter",
    [{}, {"audio_adapter_type": "dual_ffn_fast_forward", "audio_dual_ffn_layers": (0, 2)}],
    ids=["dual_ffn", "fast_forward"],
)
def test_the_order_of_pages_changes_no_bit(tmp_path, adapter):
    """Also in layers that audio rows skip, whose text positions use the same pages."""
    write_language_model(tmp_path / "model", config(**adapter), layout="original", dtype=torch.float32)
    model = HiggsAudioModel.from_pretrained(tmp_path / "model")
    frames = torch.arange(2 * PAGE_SIZE * model.config.num_codebooks, dtype=torch.int32).remainder(9)
    frames = frames.view(model.config.num_codebooks, -1)
    batch = Batch.text_then_audio([(list(range(1, PAGE_SIZE + 4)), frames), ([5, 6], frames[:, :7])])
    in_order = model.new_cache(2, 4 * PAGE_SIZE)
    shuffled = KVCache(model.config, 9, 2, 4 * PAGE_SIZE, model.dtype, model.device)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))[:8].int()
    shuffled.page_table.copy_(order.view(2, 4))
    assert torch.equal(model.forward(batch, shuffled), model.forward(batch, in_order))
