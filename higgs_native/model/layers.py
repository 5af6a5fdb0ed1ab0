"""The weights of one layer, and how they are read."""

from dataclasses import dataclass

import torch

from higgs_native import ops
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.model.weights import Weights
from higgs_native.ops import PackedWeight


@dataclass
class FeedForward:
    """The weights of a layer's text path or audio path.

    Attributes:
        input_norm, post_attention_norm: [hidden].
        gate_up: gate and up, both [intermediate, hidden], packed together.
        down: [hidden, intermediate], packed.
    """

    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    gate_up: PackedWeight
    down: PackedWeight


@dataclass
class Layer:
    """A layer's weights.

    Attributes:
        qkv: [(query heads + 2 * KV heads) * head_dim, hidden], packed.
        o: [hidden, query heads * head_dim], packed.
        query_norm, key_norm: [head_dim], shared by the heads; None if heads have no norm.
        text: the weights of text rows.
        audio: the weights of audio rows; the same object as `text` unless the layer is dual.
        skips_audio: whether audio rows skip this layer.
    """

    qkv: PackedWeight
    o: PackedWeight
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    text: FeedForward
    audio: FeedForward
    skips_audio: bool

    def flat(self) -> list[torch.Tensor]:
        """Return all weights in the order of `ops.decoder_layers`."""
        text, audio = self.text, self.audio
        return ops.layer_weights(
            text.input_norm,
            audio.input_norm,
            self.qkv,
            self.o,
            text.post_attention_norm,
            text.gate_up,
            text.down,
            audio.post_attention_norm,
            audio.gate_up,
            audio.down,
            self.query_norm,
            self.key_norm,
        )


def read_layer(weights: Weights, config: HiggsAudioConfig, index: int) -> Layer:
    """Read the weights of layer `index`."""
    prefix = f"layers.{index}."
    attention = prefix + "self_attn."

    def feed_forward(part: str, prefix: str) -> FeedForward:
        mlp = prefix + "mlp."
        return FeedForward(
            input_norm=weights.tensor(prefix + "input_layernorm.weight"),
            post_attention_norm=weights.tensor(prefix + "post_attention_layernorm.weight"),
            gate_up=weights.gate_up(part, mlp + "gate_up", mlp + "gate_proj.weight", mlp + "up_proj.weight"),
            down=weights.linear(part, mlp + "down_proj.weight"),
        )

    def head_norm(name: str) -> torch.Tensor | None:
        return weights.tensor(f"{attention}{name}_norm.weight") if config.head_norms else None

    text = feed_forward("text_ffn", prefix)
    return Layer(
        qkv=weights.linear("attention", attention + "qkv", *(f"{attention}{name}_proj.weight" for name in "qkv")),
        o=weights.linear("attention", attention + "o_proj.weight"),
        query_norm=head_norm("q"),
        key_norm=head_norm("k"),
        text=text,
        audio=feed_forward("audio_ffn", prefix + "audio_") if config.is_dual(index) else text,
        skips_audio=config.skips_audio(index),
    )
