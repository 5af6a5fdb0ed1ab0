"""A training of so many steps: schedule, averaged weights, curves, and a state on disk to go on from."""

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn


_WARM_UP = 200
"""Steps in which the learning rate rises to its peak, also if a training that had nearly ended gets more steps: at its
peak at once, it diverged, since Adam was used to small gradients."""
_LAST_PART = 0.3
"""The share of the steps, at the end, in which it falls."""
_LEAST = 0.01
"""The lowest share of the peak."""


class Steps:
    """A training that ends after a number of steps, however often it is killed and started again.

    Args:
        models: what is trained and kept, by name.
        optimizers: by name; their learning rates are the peaks of the schedule: a linear warm-up, the peak, and in the
            last part a line down to a hundredth. Until that part begins, a training goes on well with more steps.
        folder: where the state (`NAME.pt`) and the curves (`NAME.jsonl`) are kept.
        name: of the training.
        steps: in all.
        averaged: the model of which an average over the steps is kept, for use.
        average: how much of the average stays at a step.
    """

    def __init__(
        self,
        models: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        folder: Path,
        name: str,
        steps: int,
        averaged: str,
        average: float = 0.999,
    ) -> None:
        self.models, self.optimizers, self.steps, self.name = models, optimizers, steps, name
        self.path, self.curves = folder / f"{name}.pt", folder / f"{name}.jsonl"
        self.step, self.seconds, self._share_before = 0, 0.0, 0.0
        self.averaged = copy.deepcopy(models[averaged]).requires_grad_(False).eval()
        self._followed, self._average = models[averaged], average
        self._peaks = {key: [group["lr"] for group in optimizer.param_groups] for key, optimizer in optimizers.items()}
        self._sums: dict[str, list[float]] = {}
        if self.path.exists():
            device = next(models[averaged].parameters()).device
            state = torch.load(self.path, map_location=device)
            for key, model in models.items():
                model.load_state_dict(state["models"][key])
            for key, optimizer in optimizers.items():
                optimizer.load_state_dict(state["optimizers"][key])
            self.averaged.load_state_dict(state["averaged"])
            self.step, self.seconds, self._share_before = state["step"], state["seconds"], state["share_of_peak"]
            self._drop_later_curves()
            print(f"{name}: goes on at step {self.step} of {steps}", flush=True)
        self._clock = self._saved = time.monotonic()

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    @property
    def progress(self) -> float:
        """The share of the steps that is done."""
        return min(self.step / self.steps, 1.0)

    def update(self, loss: torch.Tensor, *names: str, clip: float = 1.0) -> None:
        """Go down the gradient of `loss` with the optimizers of these names."""
        factor = self._share_of_peak()
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        groups = [(group, peak) for name in names for group, peak in self._groups(name)]
        nn.utils.clip_grad_norm_([parameter for group, _ in groups for parameter in group["params"]], clip)
        for group, peak in groups:
            group["lr"] = peak * factor
        for name in names:
            self.optimizers[name].step()

    def _share_of_peak(self) -> float:
        """The learning rate of this step, as a share of its peak."""
        return min(self._share_before + 1 / _WARM_UP, max((1 - self.progress) / _LAST_PART, _LEAST), 1.0)

    def _groups(self, name: str) -> Iterator[tuple[dict, float]]:
        """The parameter groups of an optimizer, with the peaks of their learning rates."""
        return zip(self.optimizers[name].param_groups, self._peaks[name], strict=True)

    def advance(self) -> None:
        """Count a step, and let the average follow."""
        self._share_before = self._share_of_peak()
        self.step += 1
        # A young average would remember the random start for long.
        kept = min(self._average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, parameter in zip(self.averaged.parameters(), self._followed.parameters(), strict=True):
                average.lerp_(parameter, 1 - kept)
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now

    def note(self, **values: torch.Tensor | float) -> None:
        """Add values of this step to those of the next line of the curves."""
        for key, value in values.items():
            number = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums.setdefault(key, []).append(float(number))

    def log(self, every: int) -> None:
        """At each so manieth step, print a line and append it to the curves: the means of what was noted."""
        if self.step % every or not self._sums:
            return
        record = {"step": self.step, "seconds": round(self.seconds, 1)}
        record |= {key: float(f"{sum(values) / len(values):.6g}") for key, values in self._sums.items()}
        self._sums.clear()
        with self.curves.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        left = (self.steps - self.step) * self.seconds / max(self.step, 1) / 3600
        values = "  ".join(f"{key} {value:.4g}" for key, value in record.items() if key not in ("step", "seconds"))
        print(
            f"{time.strftime('%H:%M:%S')} {self.name}: step {self.step} of {self.steps}  {values}  {left:.1f} h to go",
            flush=True,
        )

    def save(self, every: float = 0.0) -> None:
        """Write the state, unless it was written within the last `every` seconds."""
        if time.monotonic() - self._saved < every:
            return
        state = {
            "models": {key: model.state_dict() for key, model in self.models.items()},
            "averaged": self.averaged.state_dict(),
            "optimizers": {key: optimizer.state_dict() for key, optimizer in self.optimizers.items()},
            "step": self.step,
            "seconds": self.seconds,
            "share_of_peak": self._share_before,
        }
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.path)
        self._saved = time.monotonic()

    def _drop_later_curves(self) -> None:
        """Forget lines of steps that will be taken again."""
        if self.curves.exists():
            lines = self.curves.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
            self.curves.write_text("".join(kept), encoding="utf-8")


def choose_device(name: str | None) -> torch.device:
    """The device of this name, or else a GPU where there is one; on a GPU with fast float32 products."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return device


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a training."""
    return torch.load(path, map_location="cpu")["averaged"]
