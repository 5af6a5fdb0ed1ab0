"""`higgs_native.ops.sampling` in plain Python and PyTorch, one row and one codebook at a time.

Random numbers and the weights of a draw are part of the definition, so the operators must give exactly these codes.
"""

import math

import numpy as np
import torch

from higgs_native.convention import Convention
from higgs_native.ops.sampling import StateField


TEXT_STREAM = 0xFFFFFFFF
MAIN_DRAW, REPETITION_DRAW = 0, 1
_WORD = np.uint64(0xFFFFFFFF)


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return four random 32-bit words for a counter of four words and a key of two words (Philox4x32-10)."""
    c0, c1, c2, c3 = (np.uint64(word) for word in counter)
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(10):
        product0, product2 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product2 >> np.uint64(32)) ^ c1 ^ k0,
            product2 & _WORD,
            (product0 >> np.uint64(32)) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _WORD, (k1 + np.uint64(0xBB67AE85)) & _WORD
    return int(c0), int(c1), int(c2), int(c3)


def random_bits(seed: int, step: int, codebook: int, draw: int) -> int:
    """Return 64 random bits for one draw."""
    seed %= 2**64
    words = philox((step % 2**32, step % 2**64 >> 32, codebook, draw), (seed % 2**32, seed >> 32))
    return words[0] | words[1] << 32


def draw_weights(scores: torch.Tensor) -> torch.Tensor:
    """Return the weights of a draw, int64: `2**40 * exp(scores - max)`, with each float32 operation rounded."""
    exponent = (scores - scores.max()) * torch.tensor(1.44269504)
    exponent = exponent.clamp(min=-64)
    whole = exponent.trunc()
    fraction = exponent - whole
    power = torch.full_like(scores, 1.09023221e-4)
    for coefficient in (1.27474824e-3, 9.57918e-3, 5.549076e-2, 2.4022436e-1, 6.9314706e-1, 1.0):
        power = power * fraction
        power = power + torch.tensor(coefficient)
    mantissa = (power * 2**24).to(torch.int64) << 16
    weights = mantissa >> (-whole).to(torch.int64)
    return torch.where(exponent > -41, weights, 0)


def _processed(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    scores = logits / torch.tensor(temperature)
    if 0 < top_k < len(scores):
        scores = scores.masked_fill(scores < scores.sort(descending=True).values[top_k - 1], -torch.inf)
    if top_p < 1:
        weights = draw_weights(scores)
        limit = max(1, math.ceil(top_p * float(int(weights.sum()))))
        values, index = scores.unique(return_inverse=True)  # ascending
        mass = torch.zeros(len(values), dtype=torch.int64).index_add_(0, index, weights)
        above = mass.sum() - mass.cumsum(0)
        scores = scores.masked_fill((above >= limit)[index], -torch.inf)
    return scores


def _draw(scores: torch.Tensor, random: int) -> int:
    cumulative = draw_weights(scores).cumsum(0)
    target = random * int(cumulative[-1]) >> 64
    return int((cumulative > target).nonzero()[0])


def process_logits(
    out: torch.Tensor, logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> None:
    """See `higgs_native.ops.process_logits`."""
    for row, result in enumerate(out):
        result.copy_(_processed(logits[row], temperature[row].item(), int(top_k[row]), top_p[row].item()))


def sample_text(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    slots: torch.Tensor,
    steps: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
) -> None:
    """See `higgs_native.ops.sample_text`."""
    for row, slot in enumerate(slots.tolist()):
        if temperature[slot] == 0:
            tokens[row] = logits[row].argmax()
            continue
        scores = _processed(logits[row], temperature[slot].item(), int(top_k[slot]), top_p[slot].item())
        tokens[row] = _draw(scores, random_bits(int(seed[slot]), int(steps[row]), TEXT_STREAM, MAIN_DRAW))


def sample_audio_frame(
    codes: torch.Tensor,
    active: torch.Tensor,
    positions: torch.Tensor,
    state: torch.Tensor,
    history: torch.Tensor,
    logits: torch.Tensor,
    slots: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    ras_win_len: torch.Tensor,
    ras_win_max_num_repeat: torch.Tensor,
    seed: torch.Tensor,
    bos_id: int,
    eos_id: int,
) -> None:
    """See `higgs_native.ops.sample_audio_frame`."""
    for row, slot in enumerate(slots.tolist()):
        fields = state[slot]
        if not fields[StateField.ACTIVE]:
            codes[row] = eos_id
            active[row] = 0
            continue
        count = int(fields[StateField.HISTORY_COUNT])
        length = history.shape[1]
        past = [history[slot, frame % length].tolist() for frame in range(max(0, count - length), count)]
        window = past[-ras_win_len[slot] :] if ras_win_len[slot] > 0 else []
        frame = _FrameSampler(
            logits=logits[row],
            window=window,
            temperature=temperature[slot].item(),
            top_k=int(top_k[slot]),
            top_p=top_p[slot].item(),
            max_num_repeat=int(ras_win_max_num_repeat[slot]),
            seed=int(seed[slot]),
            step=int(fields[StateField.FRAME]),
        )
        advance = _ADVANCES[int(fields[StateField.CONVENTION])]
        emitted = torch.tensor(advance(fields, frame, bos_id, eos_id), dtype=torch.int32)
        codes[row] = emitted
        history[slot, count % length] = emitted
        fields[StateField.HISTORY_COUNT] += 1
        fields[StateField.FRAME] += 1
        active[row] = fields[StateField.ACTIVE]
        positions[row] += 1


class _FrameSampler:
    """The logits of one frame [C, V], and all parameters of a draw from them."""

    def __init__(
        self,
        logits: torch.Tensor,
        window: list[list[int]],
        temperature: float,
        top_k: int,
        top_p: float,
        max_num_repeat: int,
        seed: int,
        step: int,
    ) -> None:
        self.logits = logits
        self.window = window
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.max_num_repeat = max_num_repeat
        self.seed = seed
        self.step = step

    def draw(self, codebook: int, logits: torch.Tensor) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        scores = _processed(logits, self.temperature, self.top_k, self.top_p)
        return _draw(scores, random_bits(self.seed, self.step, codebook, MAIN_DRAW))

    def replace_repetition(self, codebook: int, code: int, ignored: tuple[int, ...] = ()) -> int:
        repeats = sum(frame[codebook] == code and code not in ignored for frame in self.window)
        if not self.window or repeats < self.max_num_repeat:
            return code
        return _draw(self.logits[codebook], random_bits(self.seed, self.step, codebook, REPETITION_DRAW))


def _advance_boson(fields: torch.Tensor, frame: _FrameSampler, bos_id: int, eos_id: int) -> list[int]:
    num_codebooks = len(frame.logits)
    opened = int(fields[StateField.BOSON_OPENED])
    stored = int(fields[StateField.BOSON_REMAINING])
    remaining = None if stored < 0 else stored

    codes = [frame.draw(k, frame.logits[k]) for k in range(num_codebooks)]
    codes = [frame.replace_repetition(k, code) for k, code in enumerate(codes)]
    if opened + 1 < num_codebooks:
        codes[opened + 1 :] = [bos_id] * (num_codebooks - opened - 1)
        opened += 1
    if remaining is not None:
        codes[: num_codebooks - remaining] = [eos_id] * (num_codebooks - remaining)
        remaining -= 1
    elif eos_id in codes:
        lowest = codes.index(eos_id)
        codes[:lowest] = [eos_id] * lowest
        remaining = num_codebooks - 1 - lowest
    if remaining is not None and remaining <= 0:
        fields[StateField.ACTIVE] = 0
        opened, remaining = 0, None

    fields[StateField.BOSON_OPENED] = opened
    fields[StateField.BOSON_REMAINING] = -1 if remaining is None else remaining
    return codes


def _advance_transformers(fields: torch.Tensor, frame: _FrameSampler, bos_id: int, eos_id: int) -> list[int]:
    num_codebooks, vocabulary = frame.logits.shape
    if fields[StateField.TRANSFORMERS_ENDING]:
        fields[StateField.TRANSFORMERS_EOS_BASE] -= 1
    codes = []
    for k in range(num_codebooks):
        bos_counter = fields[StateField.TRANSFORMERS_BOS_BASE] + k * fields[StateField.TRANSFORMERS_BOS_STEP]
        eos_counter = fields[StateField.TRANSFORMERS_EOS_BASE] + k
        masked = frame.logits[k].clone()
        if bos_counter >= 0:
            masked[torch.arange(vocabulary) != bos_id] = -torch.inf
        if eos_counter <= 0:
            masked[torch.arange(vocabulary) != eos_id] = -torch.inf
        if masked.max() > -torch.inf or frame.temperature == 0:
            code = frame.draw(k, masked)
        else:
            code = eos_id  # both masks together leave no code
        codes.append(frame.replace_repetition(k, code, ignored=(bos_id, eos_id)))
    fields[StateField.TRANSFORMERS_BOS_BASE] -= 1
    if eos_id in codes:
        fields[StateField.TRANSFORMERS_ENDING] = 1
    if codes == [eos_id] * num_codebooks:
        fields[StateField.ACTIVE] = 0
    return codes


def _advance_higgs_tts_3(fields: torch.Tensor, frame: _FrameSampler, bos_id: int, eos_id: int) -> list[int]:
    num_codebooks = len(frame.logits)
    opened = int(fields[StateField.HIGGS_TTS_3_OPENED])
    remaining = int(fields[StateField.HIGGS_TTS_3_REMAINING])
    codes = [frame.draw(k, frame.logits[k]) for k in range(num_codebooks)]
    codes = [frame.replace_repetition(k, code) for k, code in enumerate(codes)]
    codes[opened + 1 :] = [bos_id] * len(codes[opened + 1 :])
    if opened < num_codebooks:
        fields[StateField.HIGGS_TTS_3_OPENED] += 1
        return codes
    if remaining > 0:
        remaining -= 1
    elif codes[0] == eos_id:
        remaining = max(num_codebooks - 2, 0)
    fields[StateField.HIGGS_TTS_3_REMAINING] = remaining
    fields[StateField.ACTIVE] = int(remaining != 0)
    return codes


_ADVANCES = {
    Convention.BOSON.state_value: _advance_boson,
    Convention.TRANSFORMERS.state_value: _advance_transformers,
    Convention.HIGGS_TTS_3.state_value: _advance_higgs_tts_3,
}
