"""The language model: packed weights, the forward pass over a batch of rows, and the two heads."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from typing_extensions import Self, Unpack

from higgs_native import ops
from higgs_native.checkpoint.adapter import Adapter
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import load_tokenizer, resolve_folder
from higgs_native.checkpoint.hub import HubOptions
from higgs_native.checkpoint.language_model import AUDIO_LM_HEAD, AUDIO_TABLE, TEXT_LM_HEAD
from higgs_native.checkpoint.packed import PackedWeights, named_tensors
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.errors import CheckpointError, ParameterError, one_line, short_repr
from higgs_native.model.batch import Batch, Buffers
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.layers import Layer, read_layer
from higgs_native.model.low_rank import MAX_ADAPTERS, PackedAdapter, RowAdapters
from higgs_native.model.rope import rope_table
from higgs_native.model.weights import Weights, open_weights
from higgs_native.ops import PackedWeight
from higgs_native.ops.device import checked_device
from higgs_native.ops.formats import WEIGHT_FORMATS
from higgs_native.utils.background_check import BackgroundCheck
from higgs_native.utils.checks import check_integer, check_string
from higgs_native.utils.exact_arithmetic import no_autocast
from higgs_native.utils.memory import release_freed
from higgs_native.utils.progress import with_bar
from higgs_native.utils.uncopyable import Shareable


DEFAULT_CACHE_LENGTH = 8192
MAX_CACHE_LENGTH = 1 << 20
"""Its table of rotary angles takes half a gigabyte. The model was trained on 131,072 positions at most."""

_LOGGER = logging.getLogger(__name__)


class LanguageModel(Shareable):
    """The transformer of Higgs Audio V2 or of Higgs TTS 3. `HiggsAudioModel` adds generation.

    Attributes:
        config: shapes and special ids.
        tokenizer: the text tokenizer, or None if the folder has no tokenizer.json.
        dtype: the dtype of the cache, the tables, the norms and the unquantized matrices: float32, bfloat16 or
            float16. Activations are float32.
        quantization: the format of each part's matrices.
        device: the device of the weights and of all work.
        max_cache_length: the max number of positions of a sequence, prompt included.
        folder: the checkpoint's; None if an adapter is merged into the weights, or it was not loaded from a folder.
        adapters: those of single requests, by name; see `load_adapter`.

    Args:
        weights: the source of the weights.
        layers: the weights of all layers, iterated before the norm and the heads are read; None reads them from
            `weights`.
    """

    @no_autocast()  # which refuses to concatenate float16 on a CPU
    def __init__(
        self,
        config: HiggsAudioConfig,
        weights: Weights,
        tokenizer: Tokenizer | None,
        device: torch.device,
        max_cache_length: int,
        layers: Iterable[Layer] | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.dtype = weights.dtype
        self.quantization = weights.quantization
        self.device = device
        self.max_cache_length = max_cache_length
        self.folder: Path | None = None
        self.adapters: dict[str, PackedAdapter] = {}
        self._check: BackgroundCheck | None = None
        self.text_table = weights.tensor("embed_tokens.weight")
        self.audio_table = weights.tensor(AUDIO_TABLE)
        if layers is None:
            count = config.num_hidden_layers
            layers = with_bar(
                (read_layer(weights, config, index) for index in range(count)), "loading", count, "layer"
            )
        self.layers = list(layers)
        self._layer_weights = [weight for layer in self.layers for weight in layer.flat()]
        self._skips_audio = [int(layer.skips_audio) for layer in self.layers]
        self.norm = weights.tensor("norm.weight")
        # A tied head is packed, and the table kept as it is for the embedding: 42 MB at real size.
        self.audio_head = weights.linear(
            "heads", AUDIO_LM_HEAD, AUDIO_TABLE if config.tied_audio_head else AUDIO_LM_HEAD
        )
        self.text_head = weights.linear("heads", TEXT_LM_HEAD) if TEXT_LM_HEAD in weights else None
        self.rope_table = rope_table(config, max_cache_length).to(device)
        release_freed()
        if device.type == "cuda":
            # Kernels prefetch weights, so packing and copies must be complete.
            torch.cuda.synchronize(device)

    def verify(self) -> None:
        """Wait until the weights of a packed checkpoint are known to be those that were written; else return at once.

        They are compared with their checksums while the first frames are computed. What is generated completely has
        been computed with sound weights.

        Raises:
            CheckpointError: they are not.
        """
        if self._check is not None:
            self._check.wait()

    def named_weights(self) -> dict[str, torch.Tensor]:
        """Return all tensors by their names in a packed file.

        Raises:
            CheckpointError: as for `verify`.
        """
        self.verify()
        return self._named_weights()

    def _named_weights(self) -> dict[str, torch.Tensor]:
        named: dict[str, torch.Tensor | PackedWeight | None] = {
            "embed_tokens.weight": self.text_table,
            AUDIO_TABLE: self.audio_table,
            "norm.weight": self.norm,
            AUDIO_LM_HEAD: self.audio_head,
            TEXT_LM_HEAD: self.text_head,
        }
        for index, layer in enumerate(self.layers):
            prefix = f"layers.{index}."
            named |= {
                prefix + "self_attn.qkv": layer.qkv,
                prefix + "self_attn.o_proj.weight": layer.o,
                prefix + "self_attn.q_norm.weight": layer.query_norm,
                prefix + "self_attn.k_norm.weight": layer.key_norm,
            }
            for path, weights in (("", layer.text), ("audio_", layer.audio)):
                if path and weights is layer.text:
                    continue
                named |= {
                    f"{prefix}{path}input_layernorm.weight": weights.input_norm,
                    f"{prefix}{path}post_attention_layernorm.weight": weights.post_attention_norm,
                    f"{prefix}{path}mlp.gate_up": weights.gate_up,
                    f"{prefix}{path}mlp.down_proj.weight": weights.down,
                }
        return named_tensors(named)

    @property
    def nbytes(self) -> int:
        """The bytes of all weights."""
        return sum(tensor.nbytes for tensor in self._named_weights().values())

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
        max_cache_length: int = DEFAULT_CACHE_LENGTH,
        quantization: str | Quantization | None = None,
        adapter: str | Path | Adapter | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load a checkpoint of any layout, packed or not.

        Args:
            path_or_name: a folder, or a Hub name.
            device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU if there is one, else the CPU.
            dtype: torch.float32, torch.bfloat16, torch.float16, or their names. "auto" takes the dtype that
                config.json names, or else that of the stored matrices.
            max_cache_length: the max number of positions of a sequence, prompt included. A used position takes
                114,688 bytes of cache at real size in bfloat16, 147,456 with Higgs TTS 3.
            quantization: `fp8`, `int8`, `int4`, or formats by part; see `Quantization`. None keeps the stored format.
            adapter: a folder in PEFT's format (LoRA), which is merged into the weights as they are read.
            hub: how a Hub name is fetched; see `HubOptions`.

        Raises:
            CheckpointError: files are missing or damaged, or don't fit the configuration, or the adapter is of another
                base.
            ConfigError: a configuration is missing or describes another model, or an adapter of another kind.
            ParameterError: the device, the dtype, the length or the quantization can't be used, or HIGGS_NATIVE_ISA
                names no instruction set of this machine.
        """
        device = checked_device(device)
        check_cache_length(max_cache_length)
        chosen = checked_dtype(dtype)
        if quantization is not None:
            quantization = Quantization.parse(quantization)
        folder = resolve_folder(path_or_name, **hub)
        begin = time.perf_counter()
        config = HiggsAudioConfig.from_pretrained(folder)
        if adapter is not None and not isinstance(adapter, Adapter):
            adapter = Adapter.from_pretrained(adapter)
        weights = open_weights(folder, config, chosen, quantization, device, adapter)
        model = cls(config, weights, load_tokenizer(folder), device, max_cache_length)
        if isinstance(weights, PackedWeights):
            model._check = weights.check()
        if adapter is None:
            model.folder = folder
        _LOGGER.info(
            "language model: %d layers, %s (%s), on %s, from %s in %.2f s",
            len(model.layers),
            model.dtype,
            model.quantization,
            device,
            one_line(str(folder)),
            time.perf_counter() - begin,
        )
        return model

    def load_adapter(self, name: str, path: str | Path | Adapter) -> PackedAdapter:
        """Load an adapter in PEFT's format (LoRA) for requests that name it; the weights stay as they are.

        Its factors have the dtype of the model's unquantized weights. Rows of requests with other adapters, and with
        none, share the steps. Running requests are not disturbed.

        Args:
            name: what requests call it.
            path: its folder.

        Raises:
            ParameterError: the name is taken, the model has `MAX_ADAPTERS` already, or one is merged into its weights.
            CheckpointError, ConfigError: the adapter is damaged, of another kind, or of another base.
        """
        check_string("name of an adapter", name)
        if not name.strip() or "," in name:
            raise ParameterError(f"name of an adapter must be a word without a comma, got {short_repr(name)}")
        if name in self.adapters:
            raise ParameterError(f"name of an adapter must be new, got {short_repr(name)}, which is loaded")
        if len(self.adapters) == MAX_ADAPTERS:
            raise ParameterError(f"adapters must be at most {MAX_ADAPTERS}, got one more: {short_repr(name)}")
        if self.folder is None:
            raise ParameterError(
                f"adapter {short_repr(name)} must be loaded beside a checkpoint's own weights, got a model with "
                "another adapter merged into them, or without a folder"
            )
        adapter = path if isinstance(path, Adapter) else Adapter.from_pretrained(path)
        open_weights(self.folder, self.config, None, None, self.device).check_adapter(adapter)
        packed = PackedAdapter.pack(name, adapter, self.config, self.dtype, self.device)
        self.adapters[name] = packed
        shown = one_line(name), packed.nbytes / 1e6, one_line(str(adapter.folder))
        _LOGGER.info("adapter %s: %.1f MB, from %s", *shown)
        return packed

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Requests that have begun keep it until they end.

        Raises:
            ParameterError: there is no such adapter.
        """
        self.require_adapter(name)
        self.adapters.pop(name, None)

    def require_adapter(self, name: str) -> PackedAdapter:
        """Return the adapter that requests call `name`; raise ParameterError if there is none."""
        check_string("adapter", name)
        adapter = self.adapters.get(name)
        if adapter is None:
            loaded = ", ".join(self.adapters) or "none"
            raise ParameterError(f"adapter must be one that is loaded ({loaded:.300}), got {short_repr(name)}")
        return adapter

    def new_cache(self, slots: int, length: int) -> KVCache:
        """Allocate a cache for `slots` sequences of up to `length` positions, each with its own pages."""
        return KVCache.with_own_pages(self.config, slots, length, self.dtype, self.device)

    def forward(self, batch: Batch, cache: KVCache, buffers: Buffers | None = None) -> torch.Tensor:
        """Compute the rows of a batch, and write their keys and values into the cache.

        A row attends to the positions of its sequence up to its own. Earlier positions must be in the cache or in the
        batch.

        Args:
            batch: the rows.
            cache: the cache of their sequences.
            buffers: tensors for this many rows, to be reused by later passes; None allocates them.

        Returns:
            The states [rows, hidden], float32, before the final norm, which the heads apply. Those of rows that the
            batch does not keep are unspecified.

        Raises:
            CheckpointError: the weights have been found to be damaged (see `verify`).
        """
        if self._check is not None:
            self._check.raise_error()
        if buffers is None:
            buffers = Buffers.allocate(self.config, len(batch.slots), self.device)
        ops.embed(buffers.states, batch.token_ids, batch.codes, self.text_table, self.audio_table)
        adapters = batch.adapters
        if adapters is not None:
            adapters.add_embeddings(buffers.states, batch.token_ids, batch.codes)
        kept = range(len(batch.slots)) if batch.kept_rows is None else batch.kept_rows
        ops.decoder_layers(
            buffers.states,
            buffers.query,
            buffers.attended,
            cache.keys,
            cache.values,
            self._layer_weights,
            self._skips_audio,
            self.config.rms_norm_eps,
            self.rope_table,
            cache.page_table,
            batch.slots,
            batch.positions,
            batch.text_positions,
            batch.token_ids.shape[0],
            None if adapters is None else adapters.indices,
            () if adapters is None else adapters.layers,
            kept.start,
            len(kept),
            (self.audio_head if batch.codes.shape[0] or self.text_head is None else self.text_head).data,
        )
        return buffers.states

    def audio_logits(
        self, states: torch.Tensor, out: torch.Tensor | None = None, adapters: RowAdapters | None = None
    ) -> torch.Tensor:
        """Apply the audio head to states [rows, hidden]; return [rows, codebooks, codebook_size], float32.

        `out`, if given, is written and returned. `adapters` are those of the rows.
        """
        if out is None:
            shape = len(states), self.config.num_codebooks, self.config.codebook_size
            out = torch.empty(shape, dtype=torch.float32, device=self.device)
        self._head(out.flatten(1), states, self.audio_head)
        if adapters is not None:
            adapters.add_logits(out.flatten(1), states, self.norm, self.config.rms_norm_eps, "audio_head")
        return out

    def text_logits(self, states: torch.Tensor, adapters: RowAdapters | None = None) -> torch.Tensor:
        """Apply the text head to states [rows, hidden]; return [rows, vocabulary], float32.

        `adapters` are those of the rows.

        Raises:
            CheckpointError: the checkpoint has no text head.
        """
        head = self.require_text_head()
        logits = torch.empty(len(states), self.config.vocab_size, dtype=torch.float32, device=self.device)
        self._head(logits, states, head)
        if adapters is not None:
            adapters.add_logits(logits, states, self.norm, self.config.rms_norm_eps, "text_head")
        return logits

    def require_text_head(self) -> PackedWeight:
        """Return the text head; raise CheckpointError if the checkpoint has none."""
        if self.text_head is None:
            raise CheckpointError("this checkpoint has no text head (text_lm_head.weight), so it can't generate text")
        return self.text_head

    def require_tokenizer(self) -> Tokenizer:
        """Return the text tokenizer; raise CheckpointError if the checkpoint has none."""
        if self.tokenizer is None:
            raise CheckpointError("the model's folder has no tokenizer.json")
        return self.tokenizer

    def _head(self, logits: torch.Tensor, states: torch.Tensor, weight: PackedWeight) -> None:
        ops.rms_norm_linear(logits, states, self.norm, self.config.rms_norm_eps, weight)


def check_cache_length(length: int, name: str = "max_cache_length") -> None:
    """Raise ParameterError unless a cache's length is an integer from 1 to `MAX_CACHE_LENGTH`."""
    check_integer(name, length)
    if not 1 <= length <= MAX_CACHE_LENGTH:
        raise ParameterError(f"{name} must be between 1 and {MAX_CACHE_LENGTH}, got {length}")


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return the dtype of that name, or None for "auto".

    Raises:
        ParameterError: no model can have that dtype.
    """
    names = {"auto": None} | {
        format.name: format.dtype for format in WEIGHT_FORMATS.values() if not format.is_quantized
    }
    if isinstance(dtype, torch.dtype) and dtype in names.values():
        return dtype
    if isinstance(dtype, str) and dtype in names:
        return names[dtype]
    raise ParameterError(f"dtype must be one of {', '.join(names)}, got {short_repr(dtype)}")
