"""Calibration: weights are quantized for the inputs that they meet when the model speaks.

The model speaks some texts. Then its layers are quantized one after the other, each for the second moments of what it
gets from the quantized layers before it; `higgs_native.ops.gptq` says what is done with them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from higgs_native import ops
from higgs_native.checkpoint import AUDIO_LM_HEAD, TEXT_LM_HEAD
from higgs_native.config import HiggsAudioConfig
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.generation import GenerationRequest, HiggsAudioModel, SamplingParameters, generate_batch
from higgs_native.kv_cache import KVCache
from higgs_native.model import DEFAULT_CACHE_LENGTH, FeedForward, LanguageModel, Layer, Rows, read_layer, rope_table
from higgs_native.ops.linear import PANEL, QUANTIZED
from higgs_native.prompt import build_prompt, check_plain_text, speech_messages
from higgs_native.quantization import PARTS, Quantization
from higgs_native.text import normalize_text
from higgs_native.weights import PACKED_FILE, CheckpointWeights


DEFAULT_TEXTS = Path(__file__).with_name("calibration_texts.txt")
"""What is spoken where no other texts are given, one a line."""
_MAX_FRAMES = 250
"""Of a text."""
_TEXTS_AT_ONCE = 16
_ROWS_AT_ONCE = 1024

Spoken = Sequence[tuple[list[int], torch.Tensor]]
"""For each text the prompt's token ids, and the delayed frames [codebooks, N] that were spoken after it."""


def calibrated_model(
    folder: Path, quantization: Quantization, texts: Sequence[str], device: torch.device, progress: bool = False
) -> LanguageModel:
    """Load a checkpoint, quantized for what the model itself speaks.

    The whole model is in memory while it speaks, and one layer of it thereafter.

    Args:
        folder: a checkpoint of either layout, not packed.
        quantization: the format of each part.
        texts: what it speaks. The more frames come of them the better: some thousands.
        device: where all this is done, and the model stays.
        progress: show bars on standard error, if that is a terminal.

    Raises:
        CheckpointError, ConfigError: the files are missing or damaged, or don't fit each other.
        ParameterError: there are no texts, no part has a format with scales, or the checkpoint is packed.
        PromptError: a text can't be spoken.
    """
    if not texts:
        raise ParameterError("there are no texts to speak; calibration takes some sentences, a line each")
    if not any(getattr(quantization, part) in QUANTIZED for part in PARTS):
        raise ParameterError(f"calibration is for {', '.join(QUANTIZED)}; the formats asked for are {quantization}")
    if (folder / PACKED_FILE).is_file():
        raise ParameterError(f"{folder} is packed already; calibration takes the checkpoint that it was made from")
    texts = [normalize_text(text) for text in texts]
    model = HiggsAudioModel.from_pretrained(folder, device)
    config, tokenizer = model.config, model.tokenizer
    spoken = speak(model, texts, progress)
    del model
    weights = CheckpointWeights(folder, config, None, quantization, device)
    layers = calibrated_layers(folder, config, weights, spoken, device)
    bar = tqdm(
        layers, "quantizing", config.num_hidden_layers, unit="layer", leave=False, disable=None if progress else True
    )
    return LanguageModel(config, weights, tokenizer, device, DEFAULT_CACHE_LENGTH, bar)


def speak(model: HiggsAudioModel, texts: Sequence[str], progress: bool = False) -> Spoken:
    """Speak texts, normalised, each in a voice that the model chooses, sampling as `HiggsAudio.speak` does.

    Raises:
        CheckpointError: the model came without its text tokenizer.
        PromptError: a text holds special tokens.
    """
    if model.tokenizer is None:
        raise CheckpointError("the model's folder has no tokenizer.json")
    layout = model.config.layout
    for text in texts:
        check_plain_text(text, model.tokenizer)
    prompts = [
        build_prompt(speech_messages(text, layout=layout), model.tokenizer, layout, force_audio_gen=True).input_ids
        for text in texts
    ]
    requests = [GenerationRequest(prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    sampling = SamplingParameters(temperature=0.3, top_k=50, top_p=0.95)
    segments: list[torch.Tensor] = []
    with tqdm(desc="speaking", total=len(texts), unit="text", leave=False, disable=None if progress else True) as bar:
        for first in range(0, len(requests), _TEXTS_AT_ONCE):
            outputs = generate_batch(model, requests[first : first + _TEXTS_AT_ONCE], layout, _MAX_FRAMES, sampling)
            segments += [output.audio_segments[0] for output in outputs]
            bar.update(len(outputs))
    return [(prompt.flatten().tolist(), frames) for prompt, frames in zip(prompts, segments, strict=True)]


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
        weights.feedback = {f"layers.{index}.{name}": ops.error_feedback(moment) for name, moment in moments.items()}
        layer = read_layer(weights, config, index)
        states.advance(layer)
        yield layer
    text, audio = states.head_moments(whole.tensor("norm.weight"))
    weights.feedback = {TEXT_LM_HEAD: ops.error_feedback(text), AUDIO_LM_HEAD: ops.error_feedback(audio)}


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
        self._rows = rows = Rows.text_then_audio(spoken, device)
        length = int(rows.positions.max()) + 1
        self._rope_table = rope_table(config, length).to(device)
        self._cache = KVCache(replace(config, num_hidden_layers=1), len(spoken), length, weights.dtype, device)
        self.states = torch.empty(len(rows.slots), config.hidden_size, device=device)
        text_table = weights.tensor("embed_tokens.weight")
        audio_table = weights.tensor("audio_codebook_embeddings.weight")
        ops.embed(self.states, rows.token_ids, rows.codes, text_table, audio_table)
        self._text, self._audio = slice(0, len(rows.token_ids)), slice(len(rows.token_ids), None)

    def advance(self, layer: Layer) -> None:
        """Compute the states after a layer."""
        self._run(layer, self.states)

    def layer_moments(self, layer: Layer) -> dict[str, torch.Tensor]:
        """The second moments of what a layer's products take, by the names that `read_layer` packs these under."""
        attended = self._run(layer, self.states.clone())
        after = torch.empty_like(self.states)
        ops.linear(after, attended, layer.o, self.states)
        parts = [("", layer.text, self._text), ("audio_", layer.audio, self._audio)]
        normalised = [self._normalised(self.states[rows], ffn.input_norm) for _, ffn, rows in parts]
        if layer.skips_audio:
            del parts[1], normalised[1]
            attended = attended[self._text]
        elif layer.audio is layer.text:
            parts = [("", layer.text, slice(None))]
        moments = {
            "self_attn.qkv": _moments(normalised),
            "self_attn.o_proj.weight": _moments([attended]),
        }
        for path, ffn, rows in parts:
            moments[path + "mlp.gate_up"] = _moments([self._normalised(after[rows], ffn.post_attention_norm)])
            moments[path + "mlp.down_proj.weight"] = _moments(self._activated(after[rows], ffn))
        return moments

    def head_moments(self, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The second moments of what the text head and the audio head take."""
        text, audio = (_moments([self._normalised(self.states[rows], norm)]) for rows in (self._text, self._audio))
        return text, audio

    def _run(self, layer: Layer, states: torch.Tensor) -> torch.Tensor:
        """Replace states [rows, hidden] by those after a layer; return what its attention gave."""
        config, rows = self._config, self._rows
        width = config.num_attention_heads * config.head_dim
        if states.is_cuda:
            # Products read weights before they wait for what was launched earlier: what torch has copied too.
            torch.cuda.synchronize(states.device)
        query, attended = (torch.empty(len(states), width, device=states.device) for _ in range(2))
        ops.decoder_layers(
            states,
            query,
            attended,
            self._cache.keys,
            self._cache.values,
            layer.flat(),
            [int(layer.skips_audio)],
            config.rms_norm_eps,
            self._rope_table,
            rows.slots,
            rows.positions,
            rows.text_positions,
            len(rows.token_ids),
        )
        return attended

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


def _moments(inputs: Iterable[torch.Tensor]) -> torch.Tensor:
    """The mean of x x^T over all rows x of inputs [rows, k]."""
    total, count = None, 0
    for rows in inputs:
        product = rows.T @ rows
        total = product if total is None else total.add_(product)
        count += len(rows)
    return total / max(count, 1)
