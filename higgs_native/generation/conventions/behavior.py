"""The parts of generation that a convention decides."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from tokenizers import Tokenizer

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.sampling import StateField


class GenerationMode(enum.Enum):
    """The kind of output that a sequence's next step generates.

    TEXT: a text token. AUDIO_INIT: the BOS frame of a segment (Boson's convention only). AUDIO_IN_PROGRESS: a frame
    after it; in the other conventions the first frame too.
    """

    TEXT = "text"
    AUDIO_INIT = "audio_init"
    AUDIO_IN_PROGRESS = "audio_in_progress"


class Behavior(ABC):
    """How prompts are expanded, segments are opened and closed, and replies end, in one convention.

    Attributes:
        convention: the convention.
        default_sampling: the sampling parameters if a caller gives none.
        recording_convention: how recordings are encoded (see `HiggsAudioTokenizer.encode`). Both conventions of V2
            encode as Boson's, which accepts every length. Where transformers' accepts it too, the codes are equal.
        has_bos_frame: whether a segment begins with a frame of BOS in all codebooks. A reference then begins with such
            a frame, and ends with one of EOS.
        drops_last_codes: whether the codes of a segment's last frame are left out.
    """

    convention: ClassVar[Convention]
    default_sampling: ClassVar[SamplingParams] = SamplingParams()
    recording_convention: ClassVar[Convention] = Convention.BOSON
    has_bos_frame: ClassVar[bool] = True
    drops_last_codes: ClassVar[bool] = False

    @abstractmethod
    def placeholders(self, model: LanguageModel) -> tuple[int | None, ...]:
        """Return the ids that are placeholders of recordings in a prompt; None for one that the model lacks."""

    def frame_placeholders(self, config: HiggsAudioConfig) -> tuple[int | None, ...]:
        """Return the ids that are placeholders of single delayed frames in an expanded prompt; () if none are."""
        return ()

    def ids_of_frames(self, placeholder: int, count: int, config: HiggsAudioConfig) -> list[int]:
        """Return the ids of the `count` delayed frames of a recording."""
        return [placeholder] * count

    def counts_repetitions(self, placeholder: int, config: HiggsAudioConfig) -> bool:
        """Return whether repetition-aware sampling counts the codes of a recording with this placeholder."""
        return True

    @abstractmethod
    def first_mode(self, model: LanguageModel, ids: Sequence[int], resumes: bool) -> GenerationMode:
        """Return what is generated first after a prompt.

        Args:
            model: the language model.
            ids: of the prompt.
            resumes: whether an unfinished segment follows the prompt.

        Raises:
            PromptError: the prompt's end does not fit the convention.
            CheckpointError: text is generated, and the checkpoint has no text head.
        """

    @abstractmethod
    def state(
        self, prompt_ids: Sequence[int], begun: Sequence[Sequence[int]], config: HiggsAudioConfig
    ) -> dict[StateField, int]:
        """Return the fields of the delay pattern's state with which a sequence begins.

        Args:
            prompt_ids: of the prompt, one per position.
            begun: the delayed frames of an unfinished segment after the prompt; empty if there is none.
            config: the codebooks and special ids.

        Raises:
            PromptError: the segment has ended.
        """

    def is_end(self, frames: torch.Tensor, config: HiggsAudioConfig) -> torch.Tensor:
        """Return for each delayed frame [codebooks, ...] whether it ends its segment and holds none of the codes."""
        return torch.zeros(frames.shape[1:], dtype=torch.bool, device=frames.device)

    def decodable(self, codes: torch.Tensor, num_codes: int) -> torch.Tensor:
        """Return `codes` with BOS and EOS replaced by codes that can be decoded, 0 to `num_codes` - 1."""
        return codes.clamp(0, num_codes - 1)

    def text_after_audio(self, model: LanguageModel) -> int | None:
        """Return the text token that follows an audio segment; None if the reply ends with its audio."""
        return None

    def ends_reply(self, model: LanguageModel, ids: Sequence[int], stop_strings: Sequence[str] | None) -> bool:
        """Return whether the last of the text tokens `ids` ends the reply."""
        return False


def completes_stop_string(tokenizer: Tokenizer | None, ids: Sequence[int], stop_strings: Sequence[str]) -> bool:
    """Return whether the last of the text tokens `ids` completes a stop string."""
    if tokenizer is None:
        return False
    # A stop string of n bytes spans at most n tokens; the last token may also hold text after it.
    for stop in stop_strings:
        tail = ids[-len(stop.encode()) :]
        with_last = tokenizer.decode(tail, skip_special_tokens=False)
        without_last = tokenizer.decode(tail[:-1], skip_special_tokens=False)
        if stop in with_last and stop not in without_last:
            return True
    return False
