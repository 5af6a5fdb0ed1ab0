"""The language model in a form that can be trained: parameters are named as in the transformers layout.

A batch comes as segments, text and audio in turn, each padded by itself; so text and audio rows lie together, and each
kind goes through its own norms and feed-forward network without any gathering. What many prompts begin with alike is
computed once.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from higgs_native.checkpoint.config import HiggsAudioConfig


@dataclass
class Segment:
    """A stretch of text or audio of every sequence of a batch.

    Attributes:
        ids: int64, [batch, length] token ids, or [batch, length, codebooks] delayed codes.
        valid: bool [batch, length]: False where it is padding.
    """

    ids: torch.Tensor
    valid: torch.Tensor

    @property
    def is_audio(self) -> bool:
        return self.ids.dim() == 3


@dataclass
class Prefixes:
    """The different beginnings of a batch's prompts.

    Attributes:
        segment: of text, a row for each beginning.
        chosen: int64 [batch], which one each sequence has.
    """

    segment: Segment
    chosen: torch.Tensor


KeysValues = tuple[torch.Tensor, torch.Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.dropout(F.silu(self.gate_proj(x)) * self.up_proj(x), self.dropout, self.training))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: HiggsAudioConfig, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.head_dim = config.head_dim
        query, key_value = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_value, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_value, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        queries: int,
        before: KeysValues | None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """Attend from the last `queries` rows of x [batch, length, width] to what is `before` them and to all of x."""
        q = self.q_proj(x[:, -queries:]).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        k, v = (p(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for p in (self.k_proj, self.v_proj))
        cos, sin = rotary
        q = _rotate(q, cos[:, :, -queries:], sin[:, :, -queries:])
        k = _rotate(k, cos, sin)
        own = k, v
        if before is not None:
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        # Written out: on a CPU the fused attention's backward pass is slower at these lengths. The queries of a group
        # stand one after another, so that keys and values are not repeated.
        groups = q.shape[1] // k.shape[1]
        grouped = q.unflatten(1, (-1, groups)).flatten(2, 3)
        scores = (grouped @ k.mT * self.head_dim**-0.5).unflatten(2, (groups, queries)) + mask[:, :, None, -queries:]
        weights = scores.softmax(-1).flatten(2, 3)
        mixed = (weights @ v).unflatten(2, (groups, queries)).flatten(1, 2)
        return self.o_proj(F.dropout(mixed.transpose(1, 2).flatten(2), self.dropout, self.training)), own


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Layer(nn.Module):
    """A dual layer: attention is shared, norms and feed-forward networks are not."""

    def __init__(self, config: HiggsAudioConfig, dropout: float) -> None:
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        self.self_attn = Attention(config, dropout)
        self.mlp, self.audio_mlp = FeedForward(width, inner, dropout), FeedForward(width, inner, dropout)
        self.input_layernorm, self.audio_input_layernorm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.post_attention_layernorm, self.audio_post_attention_layernorm = RMSNorm(width, eps), RMSNorm(width, eps)

    def forward(
        self,
        x: torch.Tensor,
        kinds: list[tuple[bool, int]],
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        last: bool,
        before: KeysValues | None = None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """Run the layer; where `last`, only the rows of the last segment come out."""
        lengths = [length for _, length in kinds]
        normed = [
            (self.audio_input_layernorm if is_audio else self.input_layernorm)(part)
            for (is_audio, _), part in zip(kinds, x.split(lengths, 1), strict=True)
        ]
        queries = lengths[-1] if last else x.shape[1]
        mixed, own = self.self_attn(torch.cat(normed, 1), rotary, mask, queries, before)
        x = x[:, -queries:] + mixed
        kinds = kinds[-1:] if last else kinds
        added = [
            self.audio_mlp(self.audio_post_attention_layernorm(part))
            if is_audio
            else self.mlp(self.post_attention_layernorm(part))
            for (is_audio, _), part in zip(kinds, x.split([length for _, length in kinds], 1), strict=True)
        ]
        return x + torch.cat(added, 1), own


class AudioEmbedding(nn.Module):
    """The sum of a frame's codebook rows."""

    def __init__(self, config: HiggsAudioConfig) -> None:
        super().__init__()
        self.embed_audio_tokens = nn.Embedding(config.num_codebooks * config.codebook_size, config.hidden_size)
        self.register_buffer("offsets", torch.arange(config.num_codebooks) * config.codebook_size, persistent=False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        rows = (codes + self.offsets).flatten(0, 1)
        return F.embedding_bag(rows, self.embed_audio_tokens.weight, mode="sum").unflatten(0, codes.shape[:2])


class Transformer(nn.Module):
    """Everything below the heads."""

    def __init__(self, config: HiggsAudioConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_audio_tokens = AudioEmbedding(config)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LanguageModel(nn.Module):
    """Codes' logits for a batch of segments.

    Weights start small in the way of GPT-2: what adds to the residual stream is scaled by the depth.

    Args:
        config: the shapes.
        dropout: in training, the share of what comes out of attention, and of gates, that becomes 0.
    """

    def __init__(self, config: HiggsAudioConfig, dropout: float = 0.0) -> None:
        super().__init__()
        assert config.rope_scaling is None, "rotary frequencies are not scaled here"
        self.config = config
        self.dropout = dropout
        self.model = Transformer(config, dropout)
        self.audio_lm_head = nn.Linear(config.hidden_size, config.num_codebooks * config.codebook_size, bias=False)
        frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 if "embed" not in name else 0.05
                nn.init.normal_(parameter, std=std)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.data /= (2 * config.num_hidden_layers) ** 0.5

    def forward(self, prefixes: Prefixes, segments: list[Segment]) -> torch.Tensor:
        """Return the hidden states after the final norm of the last segment: [batch, length, width]."""
        dtype = torch.bfloat16 if torch.is_autocast_enabled(prefixes.chosen.device.type) else torch.float32
        shared = self.model.embed_tokens(prefixes.segment.ids).to(dtype)
        shared_valid = prefixes.segment.valid
        shared_rotary = self._rotary(shared_valid.cumsum(1) - 1, dtype)
        shared_mask = _bias(shared_valid, shared.shape[1], dtype)
        x = torch.cat([self._embed(segment) for segment in segments], 1).to(dtype)
        valid = torch.cat([segment.valid for segment in segments], 1)
        starts = shared_valid.sum(1)[prefixes.chosen]
        rotary = self._rotary(starts[:, None] + valid.cumsum(1) - 1, dtype)
        mask = _bias(torch.cat([shared_valid[prefixes.chosen], valid], 1), x.shape[1], dtype)
        kinds = [(segment.is_audio, segment.ids.shape[1]) for segment in segments]
        for index, layer in enumerate(self.model.layers):
            last = index == len(self.model.layers) - 1
            shared, (keys, values) = layer(shared, [(False, shared.shape[1])], shared_rotary, shared_mask, False)
            before = keys[prefixes.chosen], values[prefixes.chosen]
            x, _ = layer(x, kinds, rotary, mask, last, before)
        return self.model.norm(x)

    def _embed(self, segment: Segment) -> torch.Tensor:
        return (self.model.embed_audio_tokens if segment.is_audio else self.model.embed_tokens)(segment.ids)

    def _rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[:, None, :, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _bias(valid: torch.Tensor, queries: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores of the last `queries` positions: [batch, 1, queries, length], 0 or -inf."""
    length = valid.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    # A row of padding sees itself, or its softmax would be over nothing.
    seen = (causal & valid[:, None, None]) | torch.eye(length, dtype=torch.bool, device=valid.device)
    return torch.zeros(seen.shape, dtype=dtype, device=valid.device).masked_fill_(~seen, float("-inf"))[
        :, :, -queries:
    ]
