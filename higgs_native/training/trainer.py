"""The loop over steps: losses, evaluations, and states from which an interrupted run goes on to the bit."""

import itertools
import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.adapter import Adapter
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import load_tokenizer, resolve_folder
from higgs_native.checkpoint.language_model import LanguageModelFiles, transformers_name
from higgs_native.checkpoint.packed import PACKED_FILE
from higgs_native.checkpoint.rewriting import write_rewritten
from higgs_native.convention import Convention
from higgs_native.errors import CheckpointError, ParameterError, PromptError
from higgs_native.manuscript.phonemes import PhonemeReader
from higgs_native.pipeline import EMBEDDED_VOICE, HiggsAudio, audio_tokenizer_of
from higgs_native.prompt.messages import AudioContent, Content
from higgs_native.training.data.batches import held_out, pack_by_length, packs
from higgs_native.training.data.codes import CodesCache
from higgs_native.training.data.manifest import Entry, read_manifest
from higgs_native.training.data.rows import PackedRows, Sample
from higgs_native.training.data.samples import build_sample
from higgs_native.training.lora import add_lora, load_adapter, save_adapter, train_parts
from higgs_native.training.loss import Losses, LossWeights, TargetCounts
from higgs_native.training.model import TrainableModel
from higgs_native.training.quantized_base import quantize_layers
from higgs_native.training.records import Records
from higgs_native.training.settings import TrainingSettings
from higgs_native.training.sharding import shard, share_of, synchronize_gradients, whole
from higgs_native.utils.files import locked, replacing
from higgs_native.utils.progress import bars_hidden


_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
STATE_FILE = "state.pt"
MAX_SPEECH_FRAMES = 500
"""20 seconds; a sample of speech that is longer has lost its end."""
MAX_ADVICE = 20
"""Lines of advice on poor recordings that are shown."""


class Trainer:
    """A training run: everything is read and checked when it is made, before weights are loaded.

    Args:
        settings: of the run.
        notice: shows a line.

    Raises:
        HiggsNativeError: an input can't be used; the message names the line of the manifest if it is one.
    """

    def __init__(self, settings: TrainingSettings, notice: Callable[[str], None]) -> None:
        self.settings = settings
        self._notice = notice
        self.output = Path(settings.output)
        self.folder = EMBEDDED_VOICE if settings.model is None else resolve_folder(settings.model)
        if (self.folder / PACKED_FILE).is_file():
            raise ParameterError(f"model must be a checkpoint that is not packed, got {self.folder}")
        self.config = HiggsAudioConfig.from_pretrained(self.folder)
        if self.config.convention is Convention.HIGGS_TTS_3:
            raise ParameterError(f"model must be of Higgs Audio V2, got Higgs TTS 3 in {self.folder}")
        self.convention = Convention.parse(settings.convention or self.config.convention)
        tokenizer = load_tokenizer(self.folder)
        if tokenizer is None:
            raise CheckpointError(f"{self.folder} must hold tokenizer.json, got none")
        files = LanguageModelFiles(self.folder, self.config)
        self.base = files.fingerprint()
        if settings.adapter is not None:
            Adapter.from_pretrained(settings.adapter).check_base(files, self.config)
        weights = settings.codebook_weights or (1.0,) * self.config.num_codebooks
        if len(weights) != self.config.num_codebooks:
            raise ParameterError(f"codebook_weights must be {self.config.num_codebooks} numbers, got {len(weights)}")
        self.weights = LossWeights(weights, settings.text_weight)

        self.accelerator = Accelerator(cpu=settings.device == "cpu")
        self.device = self.accelerator.device
        self.is_sharded = settings.shard and self.accelerator.num_processes > 1
        self.learned, self.evaluated = self._read_data(tokenizer)
        self.learned_samples = [sample for _, sample in self.learned]
        self.speakers = sorted({entry.speaker for entry, _ in self.learned if entry.speaker})
        self._begin_run()

    def _read_data(self, tokenizer: Tokenizer) -> tuple[list[tuple[Entry, Sample]], list[tuple[Entry, Sample]]]:
        """Return what is learned, and what is held out."""
        settings = self.settings
        name = settings.audio_tokenizer or audio_tokenizer_of(self.folder)
        self.audio_tokenizer_name = name
        audio_tokenizer = HiggsAudioTokenizer.from_pretrained(name, self.device)
        if audio_tokenizer.num_codebooks != self.config.num_codebooks or (
            audio_tokenizer.codebook_size != self.config.codebook_size - 2
        ):
            raise CheckpointError(f"audio_tokenizer must have the codebooks of the model, got others in {name}")
        path = Path(settings.data)
        phonemes = PhonemeReader.from_folder(self.folder)
        entries = read_manifest(path, tokenizer, self.convention, phonemes)
        if settings.held_out is None:
            learned, evaluated = held_out(len(entries), settings.held_out_share, settings.seed)
        else:
            others = read_manifest(Path(settings.held_out), tokenizer, self.convention, phonemes)
            learned, evaluated = list(range(len(entries))), list(range(len(entries), len(entries) + len(others)))
            entries += others
        for index in learned if settings.cuts > 1 else []:
            if any(clip.codes is not None for clip in entries[index].clips()):
                raise ParameterError(f"{entries[index].location}: cuts must be 1 with codes, got {settings.cuts}")
        self.cache = CodesCache(audio_tokenizer, path.parent)
        advice: list[str] = []
        self.cache.check(entries, advice.append)
        if len(advice) > MAX_ADVICE:
            advice[MAX_ADVICE:] = [f"and {len(advice) - MAX_ADVICE} more of this kind"]
        for line in advice:
            self._say(f"warning: {line}")
        wanted = [(entries[index], cut / settings.cuts) for cut in range(settings.cuts) for index in learned]
        num_learned = len(wanted)
        wanted += [(entries[index], 0.0) for index in evaluated]
        learns_text, samples = settings.text_weight > 0, []
        with self.accelerator.main_process_first():  # the others find its codes in the cache
            for entry, offset in tqdm(wanted, desc="codes", disable=self._bars_hidden()):
                sample = build_sample(entry, self.cache, tokenizer, self.config, self.convention, learns_text, offset)
                if len(sample) > settings.max_rows:
                    raise PromptError(
                        f"{entry.location}: a sample must take at most {settings.max_rows} rows (max_rows), "
                        f"got {len(sample)}"
                    )
                samples.append((entry, sample))
        return samples[:num_learned], samples[num_learned:]

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            self._notice(line)

    def _bars_hidden(self) -> bool | None:
        return bars_hidden() if self.accelerator.is_main_process else True

    def _begin_run(self) -> None:
        """Write the settings into the folder of the run, or compare them with those of the interrupted one."""
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / "settings.json"
        described = {"base": self.base, **self.settings.to_dict()}
        described |= {"samples": len(self.learned), "rows": sum(map(len, self.learned_samples))}
        written = json.dumps(described, indent=2) + "\n"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(written)
        elif path.read_text() != written:
            raise ParameterError(f"output must be a new folder or hold the same run, got {self.output} with another")

    def run(self) -> None:
        """Train until the last step.

        Raises:
            ParameterError: another process trains in the folder, or gradients are no longer finite. The states that
                were written stay.
        """
        with locked(self.output) if self.accelerator.is_main_process else nullcontext():
            self._train()

    def _train(self) -> None:
        settings, accelerator = self.settings, self.accelerator
        model = self._load_model()
        if self.is_sharded:
            shard(model, self.device, accelerator.num_processes)
        parameters = list(trained_parameters(model).values())
        trained = sum(parameter.numel() for parameter in parameters)
        self._say(
            f"{len(self.learned)} samples to learn, {len(self.evaluated)} held out; {trained:,} parameters are trained"
        )
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
        )
        first = self._resume(model, optimizer)
        prepared = model
        if not self.is_sharded:
            prepared, optimizer = accelerator.prepare(torch.compile(model) if settings.compile else model, optimizer)
        records = Records(self.output, first, accelerator.is_main_process)
        bar = tqdm(total=settings.steps, initial=first, desc="steps", disable=self._bars_hidden())
        for step, passes in itertools.islice(enumerate(self._steps()), first, settings.steps):
            losses = self._step(prepared, optimizer, parameters, step, passes)
            records.write("train", step, losses)
            bar.set_postfix(loss=f"{losses['total']:.3f}")
            bar.update()
            done = step + 1
            # Before the state is written: a run that ends in between evaluates again.
            if done % settings.evaluate_every == 0 or done == settings.steps:
                self._evaluate(model, records, step)
            if done % settings.save_every == 0 or done == settings.steps:
                self._save(model, optimizer, done)
        bar.close()
        records.close()
        self._write_result(model)
        self._say(f"the {'adapter' if settings.method == 'lora' else 'checkpoint'} is in {self.result}")

    def _load_model(self) -> torch.nn.Module:
        settings = self.settings
        torch.manual_seed(settings.seed)
        # The whole matrices of a quantized base never lie on a GPU.
        bits = 8 if settings.int8_base else 4 if settings.int4_base else None
        loaded_on = torch.device("cpu") if bits else self.device
        dropout = settings.dropout if settings.method == "full" else 0.0  # with LoRA it is that of the factors
        model = TrainableModel.from_pretrained(self.folder, _DTYPES[settings.dtype], loaded_on, dropout)
        if settings.text_weight and model.text_lm_head is None:
            raise CheckpointError("text_weight must be 0 for a checkpoint without a text head, got another value")
        if not settings.text_weight:
            model.text_lm_head = None
        model.checkpoints_gradients = settings.checkpoint_gradients
        if bits is not None:
            quantize_layers(model.model.layers, bits)
            model.to(self.device)
        if settings.method == "full":
            train_parts(model, settings.parts)
            return model
        base = settings.model or str(self.folder)
        adapted = add_lora(model, settings.parts, settings.rank, settings.alpha, settings.dropout, base)
        if settings.adapter is not None:
            load_adapter(adapted, Path(settings.adapter))
        return adapted

    def _steps(self) -> Iterator[list[list[Sample]]]:
        """Yield the packs of each step, endlessly. Those of an epoch depend on the seed and the epoch alone."""
        lengths = [len(sample) for sample in self.learned_samples]
        orders = (packs(lengths, self.settings.max_rows, self.settings.seed, epoch) for epoch in itertools.count())
        endless = itertools.chain.from_iterable(orders)
        count = self.settings.accumulate * self.accelerator.num_processes
        while True:
            yield [[self.learned_samples[index] for index in next(endless)] for _ in range(count)]

    def _step(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        step: int,
        passes: list[list[Sample]],
    ) -> dict[str, Any]:
        """Change the weights once; return the losses before the change."""
        accelerator = self.accelerator
        seed_step(self.settings.seed, step, accelerator.process_index)
        rate = learning_rate(self.settings, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        packed = [PackedRows.pack(samples) for samples in passes]
        counts = TargetCounts.of(*packed)
        own = packed[accelerator.process_index :: accelerator.num_processes]
        sums: list[Losses] = []
        for rows in own:
            is_last = rows is own[-1]
            if self.is_sharded:
                synchronize_gradients(model, is_last)
            with nullcontext() if is_last or self.is_sharded else accelerator.no_sync(model):
                sums.append(self._backward(model, self._noisy(rows), counts))
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)).item()
        if not math.isfinite(norm):
            raise ParameterError(
                f"learning_rate must keep gradients finite, got {rate:g}: those of step {step + 1} are not"
            )
        optimizer.step()
        optimizer.zero_grad()
        losses = accelerator.reduce(add_losses(sums), "sum")
        return {**by_name(losses), "learning_rate": rate, "grad_norm": norm}

    def _noisy(self, rows: PackedRows) -> PackedRows:
        most = self.settings.code_noise
        if most == 0:  # draws no random numbers
            return rows
        return rows.with_noise(most * torch.rand(()).item(), self.config.codebook_size - 2)

    def _backward(self, model: torch.nn.Module, rows: PackedRows, counts: TargetCounts) -> Losses:
        losses = self._losses(model, rows, counts)
        # Gradients of several processes are averaged, but the means are over the targets of all.
        self.accelerator.backward(losses.total * self.accelerator.num_processes)
        return losses

    def _losses(self, model: torch.nn.Module, rows: PackedRows, counts: TargetCounts) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
            return model(rows.to(self.device), self.weights, counts)

    @torch.no_grad()
    def _evaluate(self, model: torch.nn.Module, records: Records, step: int) -> None:
        """Record the losses of the held-out samples, and speak some of them."""
        is_main = self.accelerator.is_main_process
        if not (is_main or self.is_sharded):
            return
        model.eval()
        samples = [sample for _, sample in self.evaluated]
        lengths = [len(sample) for sample in samples]
        packed = [
            PackedRows.pack([samples[index] for index in pack])
            for pack in pack_by_length(range(len(samples)), lengths, self.settings.max_rows)
        ]
        if packed:
            counts = TargetCounts.of(*packed)
            losses = by_name(add_losses([self._losses(model, rows, counts) for rows in packed]))
            records.write("held out", step, losses)
        spoken = [entry for entry, _ in self.evaluated or self.learned][: self.settings.speech_samples]
        if spoken:
            self._write_result(model)
        if spoken and is_main:
            folder = self.output / "samples" / f"{step + 1:06}"
            self._speak(spoken, folder)
            records.sounds(step, sorted(folder.glob("*.wav")))
        if is_main:
            records.draw()

    def _speak(self, entries: Sequence[Entry], folder: Path) -> None:
        """Speak the replies of conversations with what was trained so far."""
        adapter, model = (self.result, self.folder) if self.settings.method == "lora" else (None, self.result)
        engine = HiggsAudio.from_pretrained(
            model, self.settings.speech_device, audio_tokenizer=self.audio_tokenizer_name, adapter=adapter
        )
        engine.convention = self.convention
        folder.mkdir(parents=True, exist_ok=True)
        for index, entry in enumerate(entries):
            messages = []
            for message in entry.messages[: entry.last_reply]:
                contents: list[str | Content] = [
                    AudioContent(codes=self.cache.codes(item.raw_audio)) if isinstance(item, AudioContent) else item
                    for item in message.contents()
                ]
                messages.append(replace(message, content=contents))
            speech = engine.generate(messages, True, seed=self.settings.seed, max_new_tokens=MAX_SPEECH_FRAMES)
            if speech.audio.size:
                speech.save(folder / f"{index}.wav")
            if speech.finish_reason != "stop":
                self._say(f"warning: {entry.location}: its text was spoken without an end")

    def _save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, done: int) -> None:
        """Write the state from which the run goes on after `done` steps; it appears whole or not at all."""
        if not (self.accelerator.is_main_process or self.is_sharded):
            return
        state = {
            "step": done,
            "parameters": {name: whole(parameter.detach()) for name, parameter in trained_parameters(model).items()},
            "optimizer": tree_map_only(torch.Tensor, whole, optimizer.state_dict()),
        }
        if not self.accelerator.is_main_process:
            return
        with replacing(self.output / STATE_FILE) as path:
            torch.save(state, path)

    def _resume(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the state of an interrupted run, if there is one; return the number of steps that it made."""
        path = self.output / STATE_FILE
        if not path.is_file():
            return 0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            parameters = trained_parameters(model)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(share_of(state["parameters"][name], parameter))
            moments, trained = state["optimizer"]["state"], list(parameters.values())
            for index, values in moments.items():
                moments[index] = {name: share_of(value, trained[index]) for name, value in values.items()}
            optimizer.load_state_dict(state["optimizer"])
        # torch raises several kinds for a damaged file.
        except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
        self._say(f"resuming after step {state['step']} of {self.settings.steps}")
        return state["step"]

    def _write_result(self, model: torch.nn.Module) -> None:
        """Write the adapter, or the whole checkpoint in the layout of the base; all processes call this."""
        is_main = self.accelerator.is_main_process
        if self.settings.method == "lora":
            save_adapter(model, self.result, self.base, self.speakers, is_main)
            return
        trained = {name: whole(parameter.detach()) for name, parameter in trained_parameters(model).items()}
        if not is_main:
            return

        def changed(name: str, tensor: torch.Tensor) -> torch.Tensor:
            parameter = trained.get(transformers_name(name))
            return tensor if parameter is None else parameter.to("cpu", tensor.dtype)

        written = self.output / "model.new"
        for old in (written, self.result):
            shutil.rmtree(old, ignore_errors=True)
        write_rewritten(self.folder, written, changed)
        written.rename(self.result)

    @property
    def result(self) -> Path:
        """The folder of the adapter, or of the trained checkpoint."""
        return self.output / ("adapter" if self.settings.method == "lora" else "model")


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Return the learning rate of a step: a linear warmup, then half a cosine down to a tenth."""
    warmup = min(settings.warmup_steps, settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(settings.steps - warmup, 1)
    return settings.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed the random numbers of a step, so that a resumed run draws the same ones."""
    torch.manual_seed((seed * 1_000_003 + step) * 1009 + process)


def add_losses(losses: Sequence[Losses]) -> Losses:
    """Return the sums of the losses of several passes, without gradients."""
    return Losses(*(torch.stack(values).sum(dim=0).detach() for values in zip(*losses, strict=True)))


def by_name(losses: Losses) -> dict[str, Any]:
    """Return losses as JSON knows them."""
    return {"total": losses.total.item(), "codebooks": losses.codebooks.tolist(), "text": losses.text.item()}
