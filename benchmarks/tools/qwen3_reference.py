"""Higgs TTS 3 with transformers' Qwen3: what the native model's speed is compared with."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.tools.transformers_baseline import import_transformers
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import AUDIO_TABLE, LanguageModelFiles, expected_tensors


class Qwen3Reference(torch.nn.Module):
    """transformers' Qwen3 with the embeddings and the tied head of a Higgs TTS 3; called as its Higgs Audio V2 is.

    Args:
        folder: the checkpoint.
        config: its configuration.
        dtype: of the weights.
    """

    def __init__(self, folder: Path, config: HiggsAudioConfig, dtype: torch.dtype) -> None:
        super().__init__()
        transformers = import_transformers()
        self.config = transformers.Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            dtype=dtype,
        )
        self.config.num_codebooks, self.config.codebook_size = config.num_codebooks, config.codebook_size
        files = LanguageModelFiles(folder, config)
        with torch.device("meta"):
            self.model = transformers.Qwen3Model(self.config)
        tensors = {}
        for name, shape in expected_tensors(config).items():
            tensors[name] = torch.empty(shape, dtype=dtype)
            files.copy_into(tensors[name], name)
        self.register_buffer("table", tensors.pop(AUDIO_TABLE))
        self.model.load_state_dict(tensors, assign=True)
        self.model.rotary_emb = type(self.model.rotary_emb)(self.config)
        self.register_buffer("offsets", torch.arange(config.num_codebooks) * config.codebook_size)

    def forward(
        self, audio_input_ids: torch.Tensor, input_ids: torch.Tensor | None = None, **options: Any
    ) -> SimpleNamespace:
        """Return the logits of the last position; placeholders in `input_ids` are left out."""
        options.pop("logits_to_keep", None)
        states = F.embedding(audio_input_ids + self.offsets, self.table).sum(dim=2)
        if input_ids is not None:
            states = torch.cat([self.model.embed_tokens(input_ids[input_ids >= 0])[None], states], dim=1)
        states = self.model(inputs_embeds=states, **options).last_hidden_state[:, -1:]
        return SimpleNamespace(logits=F.linear(states, self.table))
