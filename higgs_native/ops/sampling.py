"""Sampling of audio codes and text tokens, and the state machine of the delay pattern that decides what is drawn.

A draw depends only on the logits, the parameters, the slot's seed, the step and the codebook: the same seed gives the
same codes in any batch and slot, and on every device for the same logits.

`state`, [slots, NUM_STATE_FIELDS] int32, holds a row of `StateField` per slot; `history`, [slots, length, codebooks]
int32, is a ring of the slot's last frames, frame n at index n % length. `SamplerState` owns both.
"""

from enum import IntEnum

import torch

from higgs_native.ops._library import register_fakes


register_fakes("sample_audio_frame", "sample_text", "process_logits")

NUM_STATE_FIELDS = 8


class StateField(IntEnum):
    """The fields of a slot's row of `state`; those from the fifth on belong to a convention."""

    ACTIVE = 0  # 0: the slot emits frames of EOS and does not change
    CONVENTION = 1  # `Convention.state_value`
    FRAME = 2  # frames emitted in this request; counts the random numbers
    HISTORY_COUNT = 3  # frames of audio so far, prompt included

    BOSON_OPENED = 4  # delays opened so far: the codebooks above it are BOS
    BOSON_REMAINING = 5  # codebooks that EOS has not reached yet; -1 before the first EOS

    HIGGS_TTS_3_OPENED = 4  # delays opened so far: the codebooks above it are BOS
    HIGGS_TTS_3_REMAINING = 5  # frames until the end; -1 before codebook 0 has drawn EOS

    TRANSFORMERS_BOS_BASE = 4  # codebook k is BOS while base + step * k >= 0; base falls by 1 per frame
    TRANSFORMERS_BOS_STEP = 5
    TRANSFORMERS_EOS_BASE = 6  # codebook k is EOS where base + k <= 0
    TRANSFORMERS_ENDING = 7  # 1: a code was EOS, and the EOS base falls by 1 per frame


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
    """Emit one frame of codes for each row, and advance the row's slot.

    Codes that the delay pattern leaves open are drawn from the logits after temperature, top-k and top-p (see
    `process_logits`). Repetition-aware sampling (RAS) then counts the code among those of its codebook in the last
    `ras_win_len` frames; from `ras_win_max_num_repeat` on it is drawn again, from the softmax of the raw logits.
    transformers' convention doesn't count BOS and EOS, the others do. Boson's convention begins after a frame of BOS
    that is not drawn; that of transformers forces that frame here; that of Higgs TTS 3 has none. A slot becomes
    inactive at the end of its segment; the codes of an inactive slot are all EOS, and its logits are not read.

    Args:
        codes: [R, C], int32; written: the frame, delayed.
        active: [R], int32; written: 1 if the slot continues, else 0.
        positions: [R], int32; a row whose slot was active is advanced by 1.
        state: [B, NUM_STATE_FIELDS], int32; the rows in `slots` are advanced.
        history: [B, W, C], int32; the frame is appended to the rows in `slots`.
        logits: [R, C, V], float32; rows of codes that are not drawn are not read.
        slots: [R], int32: the slot of each row, each at most once.
        temperature: [B], float32; 0 takes the highest logit (the first of equals), and ignores top-k and top-p.
        top_k: [B], int32; 0 or less is off.
        top_p: [B], float32, above 0; 1 or more is off.
        ras_win_len: [B], int32, at most W; 0 or less turns RAS off.
        ras_win_max_num_repeat: [B], int32.
        seed: [B], int64.
        bos_id, eos_id: the codes that open and close a codebook's row.

    Raises:
        RuntimeError: a shape or dtype does not fit, or, on the CPU, the value of a parameter does not, or logits hold
            a NaN or +inf or are all -inf. Nothing is written then. On CUDA such values make the code -1; the slot
            continues after bad logits, but not after a bad parameter or slot.
    """
    torch.ops.higgs_native.sample_audio_frame(
        codes,
        active,
        positions,
        state,
        history,
        logits,
        slots,
        temperature,
        top_k,
        top_p,
        ras_win_len,
        ras_win_max_num_repeat,
        seed,
        bos_id,
        eos_id,
    )


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
    """Draw a text token for each row.

    Args:
        tokens: [R], int32; written.
        logits: [R, V], float32.
        slots: [R], int32: the slot whose parameters and seed a row takes.
        steps: [R], int32: the counter of a slot's random numbers; the same step gives the same token again.
        temperature, top_k, top_p, seed: [B], as for `sample_audio_frame`.

    Raises:
        RuntimeError: a shape or dtype does not fit, or, on the CPU, the value of a parameter does not, or logits hold
            a NaN or +inf or are all -inf. Nothing is written then. On CUDA such values make the token -1.
    """
    torch.ops.higgs_native.sample_text(tokens, logits, slots, steps, temperature, top_k, top_p, seed)


def process_logits(
    out: torch.Tensor, logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> None:
    """Write the scores that a draw starts from: `logits / temperature`, and -inf for what top-k and top-p remove.

    Top-k keeps the scores that reach the k-th highest, ties included. Of what is left, top-p keeps a token if the
    tokens of higher scores have less than `top_p` of the probability; the highest is always kept.

    Args:
        out: [R, V], float32; written; may be `logits` itself.
        logits: [R, V], float32.
        temperature: [R], float32, above 0.
        top_k: [R], int32; 0 or less is off.
        top_p: [R], float32, above 0; 1 or more is off.

    Raises:
        RuntimeError: a shape or dtype does not fit, or, on the CPU, the value of a parameter does not, or logits hold
            a NaN or +inf or are all -inf. On CUDA such values make the row NaN.
    """
    torch.ops.higgs_native.process_logits(out, logits, temperature, top_k, top_p)
