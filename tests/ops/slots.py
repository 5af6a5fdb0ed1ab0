"""The slots of a sampler, for tests of its operators."""

import torch

from higgs_native import ops
from higgs_native.convention import Convention
from higgs_native.ops.sampling import NUM_STATE_FIELDS, StateField
from tests.ops.tensors import random


class Slots:
    """The arguments of `sample_audio_frame`, with the same parameters for every slot until they are changed."""

    def __init__(
        self,
        num_slots: int = 1,
        num_codebooks: int = 8,
        vocabulary: int = 34,
        convention: Convention = Convention.BOSON,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        ras_win_len: int = 0,
        ras_win_max_num_repeat: int = 2,
        history_length: int = 8,
    ) -> None:
        self.bos_id, self.eos_id = vocabulary - 2, vocabulary - 1
        self.codes = torch.full((num_slots, num_codebooks), -7, dtype=torch.int32)
        self.active = torch.full((num_slots,), -7, dtype=torch.int32)
        self.positions = torch.arange(num_slots, dtype=torch.int32) * 10
        self.state = torch.zeros(num_slots, NUM_STATE_FIELDS, dtype=torch.int32)
        self.history = torch.full((num_slots, history_length, num_codebooks), -9, dtype=torch.int32)
        self.logits = random((num_slots, num_codebooks, vocabulary))
        self.slots = torch.arange(num_slots, dtype=torch.int32)
        self.temperature = torch.full((num_slots,), float(temperature))
        self.top_k = torch.full((num_slots,), top_k, dtype=torch.int32)
        self.top_p = torch.full((num_slots,), top_p)
        self.ras_win_len = torch.full((num_slots,), ras_win_len, dtype=torch.int32)
        self.ras_win_max_num_repeat = torch.full((num_slots,), ras_win_max_num_repeat, dtype=torch.int32)
        self.seed = torch.arange(num_slots)
        self.state[:, StateField.ACTIVE] = 1
        self.state[:, StateField.CONVENTION] = convention.state_value
        if convention == Convention.TRANSFORMERS:
            self.state[:, StateField.TRANSFORMERS_BOS_STEP] = 1
            self.state[:, StateField.TRANSFORMERS_EOS_BASE] = 1
        else:
            self.state[:, StateField.BOSON_REMAINING] = -1

    def arguments(self) -> tuple:
        return (
            self.codes,
            self.active,
            self.positions,
            self.state,
            self.history,
            self.logits,
            self.slots,
            self.temperature,
            self.top_k,
            self.top_p,
            self.ras_win_len,
            self.ras_win_max_num_repeat,
            self.seed,
            self.bos_id,
            self.eos_id,
        )

    def to(self, device: str) -> "Slots":
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        return self

    def all_open(self) -> "Slots":
        """Past the first frames: every codebook is drawn."""
        num_codebooks, convention = self.codes.shape[1], self.state[0, StateField.CONVENTION].item()
        if convention == Convention.TRANSFORMERS.state_value:
            self.state[:, StateField.TRANSFORMERS_BOS_BASE] = -num_codebooks
        else:
            has_bos_frame = convention == Convention.BOSON.state_value
            self.state[:, StateField.BOSON_OPENED] = num_codebooks - has_bos_frame
        return self

    def append(self, frame: torch.Tensor) -> None:
        """Put a frame [C] into every slot's history."""
        count = self.state[:, StateField.HISTORY_COUNT]
        self.history[torch.arange(len(self.state)), count.long() % self.history.shape[1]] = frame
        count += 1

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        self.logits = logits
        ops.sample_audio_frame(*self.arguments())
        return self.codes.clone()


def peaked(codes: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Logits [..., V] whose highest is at `codes` [...]."""
    return torch.nn.functional.one_hot(codes.long(), vocabulary) * 20.0
