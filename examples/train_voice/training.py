"""What the trainings share: a schedule by the clock, averaged weights, and a state on disk to resume from."""

import copy
import math
import time
from pathlib import Path

import torch
from torch import nn


class Training:
    """A training that ends after a given time, however often it is stopped and resumed.

    Args:
        model: what is trained; moved to `device`.
        optimizers: their learning rates are the peaks of the schedule: a linear warm-up over the first 2 % of the
            time, then a cosine down to zero.
        path: where the state is kept.
        minutes: of training in all; pauses are not counted.
        average: how much of the average of the weights is kept at a step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        path: Path,
        minutes: float,
        average: float = 0.999,
    ) -> None:
        self.model, self.optimizers, self.path = model, optimizers, path
        self.seconds, self.elapsed, self.step = 60 * minutes, 0.0, 0
        self.average_kept = average
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.history: list[dict[str, float]] = []
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        if path.exists():
            state = torch.load(path, map_location=next(model.parameters()).device)
            model.load_state_dict(state["model"])
            self.averaged.load_state_dict(state["averaged"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.elapsed, self.step, self.history = state["elapsed"], state["step"], state["history"]
            print(f"resumed at step {self.step}, {self.elapsed / 60:.1f} minutes", flush=True)
        self._clock = time.monotonic()
        self._saved = self._clock

    @property
    def progress(self) -> float:
        """The share of the training that is done, 0 to 1."""
        return min(self.elapsed / self.seconds, 1.0)

    @property
    def done(self) -> bool:
        """Whether the time is up."""
        return self.elapsed >= self.seconds

    def update(self, loss: torch.Tensor, clip: float = 1.0) -> float:
        """Take a step down the gradient of `loss`; return the norm that the gradient had before it was clipped."""
        warm_up = min(1.0, self.progress / 0.02 + 0.01)
        factor = warm_up * 0.5 * (1 + math.cos(math.pi * self.progress))
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # A young average would remember the random start for long.
        kept = min(self.average_kept, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, parameter in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                average.lerp_(parameter, 1 - kept)
        now = time.monotonic()
        self.elapsed += min(now - self._clock, 10.0)  # a pause of the process is no training
        self._clock = now
        return float(norm)

    def log(self, **values: float) -> None:
        """Print a progress line, and keep it for the curves."""
        record = {
            "step": self.step,
            "minutes": round(self.elapsed / 60, 2),
            **{k: float(v) for k, v in values.items()},
        }
        self.history.append(record)
        print("  ".join(f"{name} {value:.4g}" for name, value in record.items()), flush=True)

    def save(self, every: float = 0.0) -> None:
        """Write the state, unless it was written within the last `every` seconds."""
        if time.monotonic() - self._saved < every:
            return
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "elapsed": self.elapsed,
            "step": self.step,
            "history": self.history,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self.path)
        self._saved = time.monotonic()
