"""The language model as torch modules, whose parameters have the names of the transformers layout.

Text rows and audio rows of a pass lie in two segments, so each goes through its own norms and feed-forward network
without a mask. Attention puts the rows into the order of their samples, and attends within each sample.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import (
    TEXT_LM_HEAD,
    LanguageModelFiles,
    expected_tensors,
    transformers_name,
)
from higgs_native.model.rope import rope_table
from higgs_native.training.data.rows import PackedRows
from higgs_native.training.loss import Losses, LossWeights, TargetCounts, losses_of


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in the dtype of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


class Reorder(torch.autograd.Function):
    """x[order] for a permutation of the rows. Its gradient is a gather too, where that of an index adds up rows."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: HiggsAudioConfig, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.dropout(F.silu(self.gate_proj(x)) * self.up_proj(x), self.dropout, self.training))


class Attention(nn.Module):
    """Causal attention within each sample; the weights are shared by text rows and audio rows."""

    def __init__(self, config: HiggsAudioConfig, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.head_dim = config.head_dim
        query, key_value = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_value, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_value, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, angles: torch.Tensor, rows: PackedRows, text_only: bool) -> torch.Tensor:
        """Attend; `o_proj` is left to the caller, who may need fewer rows of it.

        Args:
            x: [rows, hidden], normalized.
            angles: [rows, head_dim]: cosines, then sines.
            rows: of the pass.
            text_only: `x` holds the text rows alone, which are in order.
        """
        query, key, value = (
            projection(x).unflatten(1, (-1, self.head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, angles), rotate(key, angles)
        if text_only:
            attended = attend(query, key, value, rows.text_lengths).flatten(1)
        else:
            query, key, value = (Reorder.apply(states, rows.by_sample, rows.by_kind) for states in (query, key, value))
            attended = attend(query, key, value, rows.lengths).flatten(1)
            attended = Reorder.apply(attended, rows.by_kind, rows.by_sample)
        return F.dropout(attended, self.dropout, self.training)


def rotate(states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Apply rotary embeddings to states [rows, heads, head_dim], given cosines, then sines [rows, head_dim]."""
    cosines, sines = angles.to(states.dtype)[:, None].chunk(2, dim=2)
    first, second = states.chunk(2, dim=2)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=2)


# A loop over samples: on a CPU, at real width, it was faster than one call with a mask of all rows, and nested tensors
# have no causal attention there. Its lengths would make torch.compile compile every pass anew.
@torch.compiler.disable
def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Return causal attention within samples of the given lengths; all [rows, heads, head_dim]."""
    by_sample = (states.transpose(0, 1)[None].split(lengths, dim=2) for states in (query, key, value))
    attended = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0]
        for q, k, v in zip(*by_sample, strict=True)
    ]
    return torch.cat(attended, dim=1).transpose(0, 1)


class Layer(nn.Module):
    """A layer. Text rows and audio rows have separate norms and feed-forward networks if it is dual."""

    mlp: "FeedForward"
    input_layernorm: "RMSNorm"
    audio_input_layernorm: "RMSNorm"
    post_attention_layernorm: "RMSNorm"

    def __init__(self, config: HiggsAudioConfig, index: int, dropout: float) -> None:
        super().__init__()
        self.is_dual, self.skips_audio = config.is_dual(index), config.skips_audio(index)
        self.self_attn = Attention(config, dropout)
        paths = ("", "audio_") if self.is_dual else ("",)
        for path in paths:
            setattr(self, f"{path}mlp", FeedForward(config, dropout))
        for name in ("input", "post_attention"):
            for path in paths:
                setattr(self, f"{path}{name}_layernorm", RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(
        self, text: torch.Tensor, audio: torch.Tensor, angles: torch.Tensor, rows: PackedRows, is_last: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of text rows and of audio rows after the layer.

        Args:
            text, audio: [rows, hidden].
            angles: of all rows; see `Attention`.
            rows: of the pass.
            is_last: return the kept rows alone. All others have served as keys and values.
        """
        num_text = len(text)
        normalized = self.input_layernorm(text)
        if self.skips_audio:
            attended, audio_attended = self.self_attn(normalized, angles[:num_text], rows, True), None
        else:
            norm = self.audio_input_layernorm if self.is_dual else self.input_layernorm
            attended, audio_attended = self.self_attn(
                torch.cat([normalized, norm(audio)]), angles, rows, False
            ).tensor_split([num_text])
        if is_last:
            text, attended = text[rows.kept_text], attended[rows.kept_text]
            audio = audio[rows.kept_audio]
            audio_attended = None if audio_attended is None else audio_attended[rows.kept_audio]
        text = text + self.self_attn.o_proj(attended)
        text = text + self.mlp(self.post_attention_layernorm(text))
        if audio_attended is not None:
            audio = audio + self.self_attn.o_proj(audio_attended)
            path = "audio_" if self.is_dual else ""
            norm, mlp = getattr(self, f"{path}post_attention_layernorm"), getattr(self, f"{path}mlp")
            audio = audio + mlp(norm(audio))
        return text, audio


class AudioEmbeddings(nn.Module):
    """Sums the rows of a frame's codes; the codebooks follow each other in one table."""

    def __init__(self, config: HiggsAudioConfig) -> None:
        super().__init__()
        self.embed_audio_tokens = nn.Embedding(config.num_codebooks * config.codebook_size, config.hidden_size)
        self.codebook_size = config.codebook_size

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        offsets = torch.arange(codes.shape[1], device=codes.device) * self.codebook_size
        return self.embed_audio_tokens(codes + offsets).sum(dim=1)


class Decoder(nn.Module):
    """The embeddings, the layers and the final norm."""

    def __init__(self, config: HiggsAudioConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_audio_tokens = AudioEmbeddings(config)
        self.layers = nn.ModuleList(Layer(config, index, dropout) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class TrainableModel(nn.Module):
    """The language model with gradients.

    Attributes:
        config: shapes and special ids.
        checkpoints_gradients: whether a layer's activations are computed again in the backward pass, which takes the
            memory of one layer instead of all, and a third more time.

    Args:
        config: shapes and special ids.
        text_head: whether there is a head for text.
        dropout: in training, the share of attention's output and of the inner activations that becomes 0.
    """

    def __init__(self, config: HiggsAudioConfig, text_head: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.checkpoints_gradients = False
        self.model = Decoder(config, dropout)
        audio_rows = config.num_codebooks * config.codebook_size
        self.audio_lm_head = nn.Linear(config.hidden_size, audio_rows, bias=False)
        self.text_lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if text_head else None
        self._angles = torch.empty(0, config.head_dim)

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype, device: torch.device, dropout: float = 0.0) -> Self:
        """Load a checkpoint of either layout.

        Raises:
            ConfigError, CheckpointError: files are missing or damaged, or describe another model, or a weight is NaN
                or infinite.
        """
        config = HiggsAudioConfig.from_pretrained(folder)
        files = LanguageModelFiles(folder, config)
        with torch.device("meta"):
            model = cls(config, TEXT_LM_HEAD in files, dropout)
        model.to(dtype).to_empty(device=device)
        model._angles = torch.empty(0, config.head_dim)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in expected_tensors(config):
                if name in files:
                    parameter = parameters[transformers_name(name)]
                    files.copy_into(parameter, name)
                    files.check_finite(name, parameter)
        return model

    def forward(self, rows: PackedRows, weights: LossWeights, counts: TargetCounts) -> Losses:
        """Return the losses of a pass (see `losses_of`)."""
        return losses_of(self.states(rows), rows, self.audio_lm_head, self.text_lm_head, weights, counts)

    def states(self, rows: PackedRows) -> torch.Tensor:
        """Return the states of the kept rows [rows, hidden], after the final norm: text rows, then audio rows."""
        text = self.model.embed_tokens(rows.token_ids)
        audio = self.model.embed_audio_tokens(rows.codes)
        angles = self._rope_angles(max(rows.lengths))[rows.positions]
        for layer in self.model.layers:
            is_last = layer is self.model.layers[-1]
            if self.checkpoints_gradients and torch.is_grad_enabled():
                text, audio = checkpoint(layer, text, audio, angles, rows, is_last, use_reentrant=False)
            else:
                text, audio = layer(text, audio, angles, rows, is_last)
        return self.model.norm(torch.cat([text, audio]))

    def _rope_angles(self, length: int) -> torch.Tensor:
        device = self.audio_lm_head.weight.device
        if len(self._angles) < length or self._angles.device != device:
            self._angles = rope_table(self.config, length).to(device)
        return self._angles
