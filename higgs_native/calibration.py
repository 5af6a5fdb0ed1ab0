"""Calibration: weights are quantized for the inputs that they multiply when the model speaks.

The model speaks some texts. Then its layers are quantized in order, each for the second moments of the output of the
quantized layers before it (see `ops.gptq`).
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
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import load_tokenizer
from higgs_native.checkpoint.language_model import AUDIO_LM_HEAD, AUDIO_TABLE, TEXT_LM_HEAD
from higgs_native.checkpoint.packed import PACKED_FILE
from higgs_native.checkpoint.quantization import PARTS, Quantization
from higgs_native.errors import CheckpointError, ParameterError, PromptError
from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationRequest
from higgs_native.manuscript.phonemes import PhonemeReader
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.layers import FeedForward, Layer, read_layer
from higgs_native.model.rope import rope_table
from higgs_native.model.transformer import DEFAULT_CACHE_LENGTH, LanguageModel
from higgs_native.model.weights import CheckpointWeights
from higgs_native.ops import Moments
from higgs_native.ops.formats import PANEL, QUANTIZED_FORMATS
from higgs_native.prompt.chat import build_prompt, check_plain_text, normalized_text, speech_messages
from higgs_native.prompt.normalize import normalize_text
from higgs_native.utils.exact_arithmetic import exact_arithmetic


DEFAULT_TEXTS = Path(__file__).with_name("calibration_texts.txt")
"""The texts that are spoken by default, one per line."""
_MAX_FRAMES = 250
"""Maximum number of frames per text."""
_MAX_ROWS = 16384
"""Maximum number of positions of all texts: their states are all in memory."""
_TEXTS_AT_ONCE = 16
_ROWS_AT_ONCE = 1024

Spoken = Sequence[tuple[list[int], torch.Tensor]]
"""Per text the token ids of its prompt, and the delayed frames [codebooks, N] generated after it."""


def check_calibration(quantization: Quantization, texts: Sequence[str]) -> None:
    """Raise an error if weights can't be calibrated.

    Raises:
        ParameterError: there are no texts, or no part has a format with scales.
        PromptError: a text says nothing.
    """
    if not texts:
        raise ParameterError("texts must hold at least one sentence per line, got none")
    if not any(getattr(quantization, part) in QUANTIZED_FORMATS for part in PARTS):
        raise ParameterError(
            f"calibration must be for {', '.join(QUANTIZED_FORMATS)} in some part, got {quantization}"
        )
    for text in texts:
        normalize_text(text)


def calibrated_model(
    folder: Path, quantization: Quantization, texts: Sequence[str], device: torch.device, progress: bool = False
) -> LanguageModel:
    """Load a checkpoint, quantized for the inputs that its weights multiply while the model speaks.

    Memory holds the whole model while it speaks, then one layer and its second moments.

    Args:
        folder: a checkpoint of either layout, not packed.
        quantization: the format of each part.
        texts: what the model speaks, up to 16,384 positions; more texts give a smaller error. Those without a word
            that its voices can read are left out.
        device: where the model is calibrated, and stays.
        progress: show bars on standard error, if that is a terminal.

    Raises:
        CheckpointError, ConfigError: the files are missing or damaged, or don't fit each other.
        ParameterError: as for `check_calibration`, or the checkpoint is packed.
        PromptError: a text can't be spoken.
    """
    check_calibration(quantization, texts)
    if (folder / PACKED_FILE).is_file():
        raise ParameterError(f"{folder} must not be packed; calibration takes the checkpoint that it was made from")
    config, tokenizer = HiggsAudioConfig.from_pretrained(folder), load_tokenizer(folder)
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer.json")
    phonemes = PhonemeReader.from_folder(folder)
    if phonemes is not None:
        texts = [text for text in texts if phonemes.can_read(text)]
        if not texts:
            raise PromptError("texts must hold words that the voice can read, got none")
    prompts = [text_prompt(text, tokenizer, config, phonemes) for text in texts]
    model = HiggsAudioModel.from_pretrained(folder, device)
    spoken = speak(model, prompts, progress)
    del model
    gc.collect()  # on a GPU the model and its runners refer to each other
    weights = CheckpointWeights(folder, config, None, quantization, device)
    with exact_arithmetic():
        layers = tqdm(
            calibrated_layers(folder, config, weights, spoken, device),
            "quantizing",
            config.num_hidden_layers,
            unit="layer",
            leave=False,
            disable=None if progress else True,
        )
        return LanguageModel(config, weights, tokenizer, device, DEFAULT_CACHE_LENGTH, layers)


def text_prompt(
    text: str, tokenizer: Tokenizer, config: HiggsAudioConfig, phonemes: PhonemeReader | None = None
) -> torch.Tensor:
    """The prompt [1, S] after which a text is spoken in a voice that the model chooses.

    Raises:
        PromptError: the text can't be spoken, or is too long.
    """
    text = normalized_text(text, config.convention)
    check_plain_text(text, tokenizer, convention=config.convention)
    messages = speech_messages(phonemes.spell(text) if phonemes else text, convention=config.convention)
    ids = build_prompt(messages, tokenizer, config.convention, force_audio_gen=True).input_ids
    if ids.shape[1] > DEFAULT_CACHE_LENGTH - _MAX_FRAMES:
        raise PromptError(
            f"a text must have at most {DEFAULT_CACHE_LENGTH - _MAX_FRAMES} tokens, got {ids.shape[1]}: {text[:50]!r}"
        )
    return ids


def speak(model: HiggsAudioModel, prompts: Sequence[torch.Tensor], progress: bool = False) -> Spoken:
    """Generate after prompts [1, S], up to 16,384 positions, with the default sampling parameters."""
    default_sampling = behavior_of(model.config.convention).default_sampling
    requests = [
        GenerationRequest(
            prompt,
            convention=model.config.convention,
            sampling=replace(default_sampling, seed=seed, max_new_tokens=_MAX_FRAMES),
        )
        for seed, prompt in enumerate(prompts)
    ]
    spoken: list[tuple[list[int], torch.Tensor]] = []
    rows = 0
    with tqdm(
        desc="speaking", total=len(prompts), unit="text", leave=False, disable=None if progress else True
    ) as bar:
        for first in range(0, len(requests), _TEXTS_AT_ONCE):
            batch = requests[first : first + _TEXTS_AT_ONCE]
            outputs = generate_batch(model, batch)
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
    """Yield the quantized layers in order; after the last, `weights` holds the moments of the heads.

    Args:
        folder, config: the checkpoint.
        weights: of the same checkpoint, with the formats.
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
    """The states of all spoken positions before the next layer.

    Attributes:
        states: [rows, hidden], float32: text rows, then audio rows.

    Args:
        config: of the model.
        weights: of the model; its tables are read.
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
        one_layer = replace(config, num_hidden_layers=1)
        self._cache = KVCache.with_own_pages(one_layer, len(spoken), length, weights.dtype, device)
        self.states = torch.empty(len(rows.slots), config.hidden_size, dtype=torch.float32, device=device)
        text_table = weights.tensor("embed_tokens.weight")
        audio_table = weights.tensor(AUDIO_TABLE)
        ops.embed(self.states, rows.token_ids, rows.codes, text_table, audio_table)
        self._num_text = len(rows.token_ids)

    def advance(self, layer: Layer) -> None:
        """Compute the states after a layer."""
        query, attended = self._head_buffers(len(self.states))
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
            self._cache.page_table,
            self._rows.slots,
            self._rows.positions,
            self._rows.text_positions,
            self._num_text,
        )

    def layer_moments(self, layer: Layer) -> dict[str, Moments]:
        """The second moments of the inputs of a layer's matrices, by the names that `read_layer` packs them under."""
        text, audio = slice(0, self._num_text), slice(self._num_text, None)
        parts = [("", layer.text, text), ("audio_", layer.audio, audio)]
        if layer.skips_audio:
            del parts[1]
        normalized = (self._normalized(self.states[rows], ffn.input_norm) for _, ffn, rows in parts)
        moments = {"self_attn.qkv": _moments(normalized)}
        attended = self._attended(layer)
        moments["self_attn.o_proj.weight"] = _moments([attended])
        after = torch.empty_like(self.states[: len(attended)])
        ops.linear(after, attended, layer.o, self.states[: len(attended)])
        if layer.audio is layer.text:
            parts = [("", layer.text, slice(None))]
        for path, ffn, rows in parts:
            moments[path + "mlp.gate_up"] = _moments([self._normalized(after[rows], ffn.post_attention_norm)])
            moments[path + "mlp.down_proj.weight"] = _moments(self._activated(after[rows], ffn))
        return moments

    def head_moments(self, norm: torch.Tensor) -> dict[str, Moments]:
        """The second moments of the states of all text and audio positions, in place of those that each head reads."""
        text, audio = self.states.split([self._num_text, len(self.states) - self._num_text])
        return {
            TEXT_LM_HEAD: _moments([self._normalized(text, norm)]),
            AUDIO_LM_HEAD: _moments([self._normalized(audio, norm)]),
        }

    def _attended(self, layer: Layer) -> torch.Tensor:
        """The output of a layer's attention for the rows that the layer computes."""
        config, rows = self._config, self._rows
        count, cache_positions = len(self.states), rows.positions
        if layer.skips_audio:
            count, cache_positions = self._num_text, rows.text_positions
        query, attended = self._head_buffers(count)
        caches, page_table = (self._cache.keys[0], self._cache.values[0]), self._cache.page_table
        slots = rows.slots[:count]
        ops.qkv_rope_cache(
            query,
            *caches,
            self.states[:count],
            layer.text.input_norm,
            layer.audio.input_norm,
            config.rms_norm_eps,
            layer.qkv,
            self._rope_table,
            page_table,
            slots,
            rows.positions[:count],
            cache_positions,
            self._num_text,
            layer.query_norm,
            layer.key_norm,
        )
        ops.attention(attended, query, *caches, page_table, slots, cache_positions, config.head_dim**-0.5)
        return attended

    def _head_buffers(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Buffers for the query heads of `count` rows and for the output of their attention."""
        width = self._config.num_attention_heads * self._config.head_dim
        return self.states.new_empty(count, width), self.states.new_empty(count, width)

    def _normalized(self, states: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(states, norm.shape, norm.float(), self._config.rms_norm_eps)

    def _activated(self, states: torch.Tensor, ffn: FeedForward) -> Iterator[torch.Tensor]:
        """The input of the down projection, `_ROWS_AT_ONCE` rows at a time."""
        width, half_panel = self._config.intermediate_size, PANEL // 2
        for part in states.split(_ROWS_AT_ONCE):
            both = part.new_empty(len(part), len(ffn.gate_up.data) * PANEL)
            ops.rms_norm_linear(both, part, ffn.post_attention_norm, self._config.rms_norm_eps, ffn.gate_up)
            gate, up = both.unflatten(1, (-1, 2, half_panel)).unbind(2)
            yield (F.silu(gate) * up).flatten(1)[:, :width]


def _moments(inputs: Iterable[torch.Tensor]) -> Moments:
    """The second moments of all rows of `inputs`, [rows, k] each."""
    total: torch.Tensor | None = None
    count = 0
    for rows in inputs:
        product = rows.T @ rows
        total = product if total is None else total.add_(product)
        count += len(rows)
    assert total is not None  # a layer has inputs
    return Moments(total / max(count, 1), count)
