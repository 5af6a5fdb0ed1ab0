"""Calibration: weights are quantized for the inputs that they meet when the model speaks.

The model speaks some texts. Then its layers are quantized one after the other, each for the second moments of what it
gets from the quantized layers before it; `higgs_native.ops.gptq` says what is done with them.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from tqdm import tqdm

from higgs_native import ops
from higgs_native.errors import CheckpointError, ParameterError, PromptError
from higgs_native.generation.engine import HiggsAudioModel, generate_batch
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.sequence import GenerationRequest
from higgs_native.model.batch import Batch
from higgs_native.model.checkpoint import AUDIO_LM_HEAD, TEXT_LM_HEAD
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.layers import FeedForward, Layer, read_layer
from higgs_native.model.packed_checkpoint import PACKED_FILE
from higgs_native.model.quantization import PARTS, Quantization
from higgs_native.model.rope import rope_table
from higgs_native.model.transformer import DEFAULT_CACHE_LENGTH, LanguageModel, load_tokenizer
from higgs_native.model.weights import CheckpointWeights
from higgs_native.ops import Moments
from higgs_native.ops.linear import PANEL, QUANTIZED
from higgs_native.prompt.chat import build_prompt, check_plain_text, speech_messages
from higgs_native.prompt.normalize import normalize_text


DEFAULT_TEXTS = Path(__file__).with_name("calibration_texts.txt")
"""What is spoken where no other texts are given, one a line."""
_MAX_FRAMES = 250
"""Of a text."""
_MAX_ROWS = 16384
"""Positions, beyond which nothing more is spoken: their states are all in memory."""
_TEXTS_AT_ONCE = 16
_ROWS_AT_ONCE = 1024

Spoken = Sequence[tuple[list[int], torch.Tensor]]
"""For each text the prompt's token ids, and the delayed frames [codebooks, N] that were spoken after it."""


def check_calibration(quantization: Quantization, texts: Sequence[str]) -> None:
    """Raise an error where weights can't be calibrated.

    Raises:
        ParameterError: there are no texts, or no part has a format with scales.
        PromptError: a text says nothing.
    """
    if not texts:
        raise ParameterError("there are no texts to speak; calibration takes some sentences, a line each")
    if not any(getattr(quantization, part) in QUANTIZED for part in PARTS):
        raise ParameterError(f"calibration is for {', '.join(QUANTIZED)}; the formats asked for are {quantization}")
    for text in texts:
        normalize_text(text)


def calibrated_model(
    folder: Path, quantization: Quantization, texts: Sequence[str], device: torch.device, progress: bool = False
) -> LanguageModel:
    """Load a checkpoint, quantized for what the model itself speaks.

    The whole model is in memory while it speaks; thereafter one layer of it, and the second moments of that.

    Args:
        folder: a checkpoint of either layout, not packed.
        quantization: the format of each part.
        texts: what it speaks, as far as 16,384 positions go. The more of them the better.
        device: where all this is done, and the model stays.
        progress: show bars on standard error, if that is a terminal.

    Raises:
        CheckpointError, ConfigError: the files are missing or damaged, or don't fit each other.
        ParameterError: as for `check_calibration`, or the checkpoint is packed.
        PromptError: a text can't be spoken.
    """
    check_calibration(quantization, texts)
    if (folder / PACKED_FILE).is_file():
        raise ParameterError(f"{folder} is packed already; calibration takes the checkpoint that it was made from")
    config, tokenizer = HiggsAudioConfig.from_pretrained(folder), load_tokenizer(folder)
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer.json")
    prompts = [text_prompt(text, tokenizer, config) for text in texts]
    model = HiggsAudioModel.from_pretrained(folder, device)
    spoken = speak(model, prompts, progress)
    del model
    gc.collect()  # on a GPU it is kept by its frame loops, and these by it
    weights = CheckpointWeights(folder, config, None, quantization, device)
    layers = calibrated_layers(folder, config, weights, spoken, device)
    bar = tqdm(
        layers, "quantizing", config.num_hidden_layers, unit="layer", leave=False, disable=None if progress else True
    )
    return LanguageModel(config, weights, tokenizer, device, DEFAULT_CACHE_LENGTH, bar)


def text_prompt(text: str, tokenizer: Tokenizer, config: HiggsAudioConfig) -> torch.Tensor:
    """The prompt [1, S] after which a text is spoken in a voice that the model chooses.

    Raises:
        PromptError: the text can't be spoken, or is too long.
    """
    text = normalize_text(text)
    check_plain_text(text, tokenizer)
    messages = speech_messages(text, layout=config.layout)
    ids = build_prompt(messages, tokenizer, config.layout, force_audio_gen=True).input_ids
    if ids.shape[1] > DEFAULT_CACHE_LENGTH - _MAX_FRAMES:
        raise PromptError(f"a text has {ids.shape[1]} tokens; calibration takes sentences, a line each: {text[:50]!r}")
    return ids


def speak(model: HiggsAudioModel, prompts: Sequence[torch.Tensor], progress: bool = False) -> Spoken:
    """Speak what prompts [1, S] ask for, as far as 16,384 positions go, sampling as `HiggsAudio.speak` does."""
    requests = [GenerationRequest(prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    sampling = SamplingParams(temperature=0.3, top_k=50, top_p=0.95)
    spoken: list[tuple[list[int], torch.Tensor]] = []
    rows = 0
    with tqdm(
        desc="speaking", total=len(prompts), unit="text", leave=False, disable=None if progress else True
    ) as bar:
        for first in range(0, len(requests), _TEXTS_AT_ONCE):
            batch = requests[first : first + _TEXTS_AT_ONCE]
            outputs = generate_batch(model, batch, model.config.layout, _MAX_FRAMES, sampling)
            for request, output in zip(batch, outputs, strict=True):
                ids, frames = request.input_ids.flatten().tolist(), output.audio_segments[0]
                rows += len(ids) + frames.shape[1]
                if spoken and rows > _MAX_ROWS:
                    return spoken
                spoken.append((ids, frames))
            bar.update(len(outputs))
    return spoken


def calibrated_layers(
    folder: Path, config: HiggsAudioConfig, weights: CheckpointWeights, spoken: Spoken, device: torch.device
) -> Iterator[Layer]:
    """Give the layers, quantized one after the other; after the last, `weights` is prepared for the heads.

    Args:
        folder, config: the checkpoint.
        weights: of the same checkpoint; knows the formats.
        spoken: what the model spoke.
        device: of the weights.
    """
    whole = CheckpointWeights(folder, config, weights.dtype, Quantization(), device)
    states = States(config, whole, spoken, device)
    for index in range(config.num_hidden_layers):
        moments = states.layer_moments(read_layer(whole, config, index))
        weights.moments = {f"layers.{index}.{name}": moment for name, moment in moments.items()}
        layer = read_layer(weights, config, index)
        states.advance(layer)
        yield layer
    weights.moments = states.head_moments(whole.tensor("norm.weight"))


class States:
    """The states of all positions of what was spoken, before the next layer.

    Attributes:
        states: [rows, hidden], float32: of text, then of audio.

    Args:
        config: the model's.
        weights: hold its tables.
        spoken: what was spoken.
        device: of the weights.
    """

    def __init__(
        self, config: HiggsAudioConfig, weights: CheckpointWeights, spoken: Spoken, device: torch.device
    ) -> None:
        self._config = config
        self._rows = rows = Batch.text_then_audio(spoken, device)
        length = int(rows.positions.max()) + 1
        self._rope_table = rope_table(config, length).to(device)
        self._cache = KVCache(replace(config, num_hidden_layers=1), len(spoken), length, weights.dtype, device)
        self.states = torch.empty(len(rows.slots), config.hidden_size, device=device)
        text_table = weights.tensor("embed_tokens.weight")
        audio_table = weights.tensor("audio_codebook_embeddings.weight")
        ops.embed(self.states, rows.token_ids, rows.codes, text_table, audio_table)
        self._num_text = len(rows.token_ids)

    def advance(self, layer: Layer) -> None:
        """Compute the states after a layer."""
        query, attended = self._head_buffers(len(self.states))
        self._wait_for_weights()
        ops.decoder_layers(
            self.states,
            query,
            attended,
            self._cache.keys,
            self._cache.values,
            layer.flat(),
            [int(layer.skips_audio)],
            self._config.rms_norm_eps,
            self._rope_table,
            self._rows.slots,
            self._rows.positions,
            self._rows.text_positions,
            self._num_text,
        )

    def layer_moments(self, layer: Layer) -> dict[str, Moments]:
        """The second moments of what a layer's products take, by the names that `read_layer` packs these under."""
        text, audio = slice(0, self._num_text), slice(self._num_text, None)
        parts = [("", layer.text, text), ("audio_", layer.audio, audio)]
        if layer.skips_audio:
            del parts[1]
        normalised = (self._normalised(self.states[rows], ffn.input_norm) for _, ffn, rows in parts)
        moments = {"self_attn.qkv": _moments(normalised)}
        attended = self._attended(layer)
        moments["self_attn.o_proj.weight"] = _moments([attended])
        after = torch.empty(len(attended), self._config.hidden_size, device=attended.device)
        ops.linear(after, attended, layer.o, self.states[: len(attended)])
        if layer.audio is layer.text:
            parts = [("", layer.text, slice(None))]
        for path, ffn, rows in parts:
            moments[path + "mlp.gate_up"] = _moments([self._normalised(after[rows], ffn.post_attention_norm)])
            moments[path + "mlp.down_proj.weight"] = _moments(self._activated(after[rows], ffn))
        return moments

    def head_moments(self, norm: torch.Tensor) -> dict[str, Moments]:
        """The second moments of the states of text and of audio, which stand for what the two heads take."""
        text, audio = self.states.split([self._num_text, len(self.states) - self._num_text])
        return {
            TEXT_LM_HEAD: _moments([self._normalised(text, norm)]),
            AUDIO_LM_HEAD: _moments([self._normalised(audio, norm)]),
        }

    def _attended(self, layer: Layer) -> torch.Tensor:
        """What the attention of a layer gives for the rows that it computes."""
        config, rows = self._config, self._rows
        count, places = len(self.states), rows.positions
        if layer.skips_audio:
            count, places = self._num_text, rows.text_positions
        query, attended = self._head_buffers(count)
        keys, values, slots = self._cache.keys[0], self._cache.values[0], rows.slots[:count]
        self._wait_for_weights()
        ops.qkv_rope_cache(
            query,
            keys,
            values,
            self.states[:count],
            layer.text.input_norm,
            layer.audio.input_norm,
            config.rms_norm_eps,
            layer.qkv,
            self._rope_table,
            slots,
            rows.positions[:count],
            places,
            self._num_text,
        )
        ops.attention(attended, query, keys, values, slots, places, config.head_dim**-0.5)
        return attended

    def _head_buffers(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for the query heads of `count` rows, and for what their attention gives."""
        shape = count, self._config.num_attention_heads * self._config.head_dim
        return torch.empty(shape, device=self.states.device), torch.empty(shape, device=self.states.device)

    def _wait_for_weights(self) -> None:
        """On a GPU products read weights before they wait for what was launched earlier: what torch has copied too."""
        if self.states.is_cuda:
            torch.cuda.synchronize(self.states.device)

    def _normalised(self, states: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(states, norm.shape, norm.float(), self._config.rms_norm_eps)

    def _activated(self, states: torch.Tensor, ffn: FeedForward) -> Iterator[torch.Tensor]:
        """What the down projection takes, some rows at a time."""
        width, lanes = self._config.intermediate_size, PANEL // 2
        for part in states.split(_ROWS_AT_ONCE):
            both = torch.empty(len(part), len(ffn.gate_up.data) * PANEL, device=part.device)
            ops.rms_norm_linear(both, part, ffn.post_attention_norm, self._config.rms_norm_eps, ffn.gate_up)
            gate, up = both.unflatten(1, (-1, 2, lanes)).unbind(2)
            yield (F.silu(gate) * up).flatten(1)[:, :width]


def _moments(inputs: Iterable[torch.Tensor]) -> Moments:
    """Of all rows of inputs [rows, k]."""
    total, count = None, 0
    for rows in inputs:
        product = rows.T @ rows
        total = product if total is None else total.add_(product)
        count += len(rows)
    return Moments(total / max(count, 1), count)
