"""The audio tokenizer's weights: shapes of a checkpoint's tensors, and their packed form."""

import torch
from torch.nn import functional as F

from higgs_native.audio_tokenizer.checkpoint import load_tensors
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.weights import pack_weights, tensor_shapes
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG as CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer


def test_published_shapes():
    shapes = tensor_shapes(HiggsAudioTokenizerConfig())
    assert shapes["acoustic_decoder.block.0.conv_t1.weight"] == (1024, 512, 16)
    assert shapes["quantizer.quantizers.7.codebook.embed"] == (1024, 64)
    assert shapes["semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1"] == (768, 48, 128)


def test_table_holds_entries_after_their_projection_and_linear_layer(tmp_path):
    write_audio_tokenizer(tmp_path, CONFIG)
    tensors = load_tensors(tmp_path, CONFIG)
    weights = pack_weights(tensors, CONFIG)
    codes = torch.randint(CONFIG.codebook_size, (CONFIG.num_codebooks,), generator=torch.Generator().manual_seed(0))
    quantized = torch.zeros(CONFIG.hidden_size)
    for level, code in enumerate(codes):
        name = f"quantizer.quantizers.{level}"
        entry = tensors[f"{name}.codebook.embed"][code]
        quantized += F.linear(entry, tensors[f"{name}.project_out.weight"], tensors[f"{name}.project_out.bias"])
    expected = F.linear(quantized, tensors["fc2.weight"], tensors["fc2.bias"])
    latent = weights["decode.table"][torch.arange(len(codes)), codes].sum(dim=0) + weights["decode.bias"]
    torch.testing.assert_close(latent, expected)
