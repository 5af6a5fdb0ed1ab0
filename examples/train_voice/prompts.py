"""Training sequences: the prompts that `HiggsAudio.speak` builds, and the delayed codes that should follow them."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from espeak import VOICES
from language_model import Prefixes, Segment
from quantizer import CODEBOOKS, CODES
from text_tokenizer import build_tokenizer
from tokenizers import Tokenizer

from higgs_native.prompt.chat import build_prompt, speech_messages
from higgs_native.prompt.voices import Voice


BOS, EOS = CODES, CODES + 1
IGNORED = -100
LAYOUT = "transformers"

_SCENE_SHARE = 0.04
_REFERENCE_SHARE = 0.15
_DEFAULT_VOICE_SHARE = 0.5
_SPELLED_SHARE = 0.06
_MASKED_SPAN = 6
_PADDED = 16


@dataclass
class Utterances:
    """Rendered sentences.

    Attributes:
        texts: as they stand in a prompt.
        voices: [n], the index in `VOICES`.
        starts: [n + 1], where each begins in `codes` [codebooks, frames].
    """

    texts: list[str]
    voices: np.ndarray
    starts: np.ndarray
    codes: np.ndarray

    @classmethod
    def load(cls, paths: list[Path]) -> "Utterances":
        """Join shards that `make_corpus.py` wrote."""
        shards = [torch.load(path) for path in paths]
        lengths = torch.cat([shard["starts"].diff() for shard in shards])
        return cls(
            [text for shard in shards for text in shard["texts"]],
            torch.cat([shard["voices"] for shard in shards]).numpy(),
            np.concatenate([[0], lengths.cumsum(0).numpy()]),
            torch.cat([shard["codes"] for shard in shards], 1).numpy(),
        )

    @property
    def frames(self) -> np.ndarray:
        """The length of each, in frames: [n]."""
        return np.diff(self.starts)

    def codes_of(self, index: int) -> np.ndarray:
        """[codebooks, frames]."""
        return self.codes[:, self.starts[index] : self.starts[index + 1]]


@dataclass
class Batch:
    """Sequences, and the codes that follow each row of their last segment.

    Attributes:
        prefixes: what their prompts begin with.
        segments: the rest of the prompts, and audio.
        targets: int64 [batch, rows, codebooks]; IGNORED where a code is forced, or a row padding.
    """

    prefixes: Prefixes
    segments: list[Segment]
    targets: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""

        def moved(segment: Segment) -> Segment:
            return Segment(segment.ids.to(device), segment.valid.to(device))

        prefixes = Prefixes(moved(self.prefixes.segment), self.prefixes.chosen.to(device))
        return Batch(prefixes, [moved(segment) for segment in self.segments], self.targets.to(device))


class BatchMaker:
    """Makes batches of `utterances`.

    Attributes:
        corrupted_share: of the utterances, in an augmented batch, whose audio has spans hidden or exchanged.
        noisy_share: of the utterances, in an augmented batch, of whose codes some are exchanged,
        most_noise: and the largest share of these codes.
    """

    noisy_share = 0.3
    most_noise = 0.2

    def __init__(self, utterances: Utterances, seed: int) -> None:
        self.utterances = utterances
        self.corrupted_share = 0.5
        self.random = random.Random(seed)
        self.numpy = np.random.default_rng(seed)
        self.tokenizer = build_tokenizer()
        speller = build_tokenizer(spell=True, dropout=0.2)
        # A text's tokens are the same in every prompt: the header's line break before it ends a piece.
        self.text_ids = [encoding.ids for encoding in self.tokenizer.encode_batch(utterances.texts)]
        words = {token for ids in self.text_ids for token in ids}
        texts = {token: self.tokenizer.decode([token]) for token in words}
        self._spelled = {
            token: [speller.encode(text.strip()).ids for _ in range(8)]
            for token, text in texts.items()
            if text.strip().isalnum()
        }
        self._frames = {profile: self._frame(profile) for profile in (None, *range(len(VOICES)))}
        self._by_voice = [np.flatnonzero(utterances.voices == voice) for voice in range(len(VOICES))]
        self._short = [
            which[(utterances.frames[which] >= 25) & (utterances.frames[which] <= 70)] for which in self._by_voice
        ]

    def _frame(self, profile: int | None, scene: str | None = None) -> tuple[list[int], list[int]]:
        """The tokens before and after the text of a prompt."""
        voices = [] if profile is None else [Voice(profile=VOICES[profile].profile)]
        ids = prompt_ids("assistant", voices, scene, self.tokenizer)
        index = ids.index(self.tokenizer.encode("assistant").ids[0])
        return ids[:index], ids[index + 1 :]

    def _prefix(self, index: int, augmented: bool) -> list[int]:
        """The tokens before the text of a prompt that names the voice of an utterance, or leaves it to the model."""
        voice = int(self.utterances.voices[index])
        profile = None if voice == 0 and self.random.random() < _DEFAULT_VOICE_SHARE else voice
        if not augmented or self.random.random() > _SCENE_SHARE:
            return self._frames[profile][0]
        scene = " ".join(self.utterances.texts[self.random.randrange(len(self.utterances.texts))].split()[:4])
        return self._frame(profile, scene)[0]

    def _text(self, index: int, augmented: bool) -> list[int]:
        ids = self.text_ids[index]
        if not augmented:
            return ids
        spelled = []
        for token in ids:
            spell = token in self._spelled and self.random.random() < _SPELLED_SHARE
            spelled += self.random.choice(self._spelled[token]) if spell else [token]
        return spelled

    def make(
        self, indices: list[int], augmented: bool, references: bool = False, texts: list[int] | None = None
    ) -> Batch:
        """Make a batch.

        Args:
            indices: of the utterances.
            augmented: spell words, and corrupt the audio that goes in (not what should come out).
            references: show the voice by a recording of it, not by name.
            texts: take the texts of these utterances instead.
        """
        texts = texts or indices
        audio = [self.utterances.codes_of(index).astype(np.int64) for index in indices]
        heard = self._corrupt(audio) if augmented else audio
        columns = [delayed(codes)[:, :-1] for codes in heard]
        targets = [delayed_targets(codes) for codes in audio]
        if references:
            before, after = self._frames[None]
            shown = [self.random.choice(self._short[int(self.utterances.voices[index])]) for index in indices]
            prefixes = [before] * len(indices)
            segments = [
                text_segment([[*self.text_ids[index], *after] for index in shown]),
                audio_segment([delayed(self._reference(index)) for index in shown]),
                text_segment([self._after_reference(self._text(index, augmented)) for index in texts]),
            ]
        else:
            _, after = self._frames[None]
            prefixes = [self._prefix(index, augmented) for index in indices]
            segments = [text_segment([[*self._text(index, augmented), *after] for index in texts])]
        last = audio_segment(columns)
        padded = np.full((len(indices), last.ids.shape[1], CODEBOOKS), IGNORED)
        for row, target in enumerate(targets):
            padded[row, : target.shape[1]] = target.T
        return Batch(_distinct(prefixes), [*segments, last], torch.from_numpy(padded))

    def _reference(self, index: int) -> np.ndarray:
        """Codes as the trained encoder would give them: the finer the level, the more of them differ."""
        codes = self.utterances.codes_of(index).astype(np.int64)
        wrong = self.numpy.random(codes.shape) < np.linspace(0.1, 0.7, CODEBOOKS)[:, None]
        return np.where(wrong, self.numpy.integers(0, CODES, codes.shape), codes)

    def _after_reference(self, text: list[int]) -> list[int]:
        if not hasattr(self, "_turn"):
            voice = Voice(reference_audio=(np.zeros(1), 1), reference_text="one")
            ids = prompt_ids("two", [voice], None, self.tokenizer)
            start = ids.index(self.tokenizer.token_to_id("<|AUDIO_OUT|>")) + 1
            index = ids.index(self.tokenizer.encode("two").ids[0])
            self._turn = ids[start:index], ids[index + 1 :]
        return [*self._turn[0], *text, *self._turn[1]]

    def _corrupt(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        """Hide spans of frames, swap in others, and change single codes: so that the text must be read."""
        heard = []
        for index, codes in enumerate(audio):
            frames = codes.shape[1]
            if self.random.random() < self.corrupted_share:
                codes = codes.copy()
                share = self.random.uniform(0.1, 1.0)
                spans = max(1, round(share * frames / _MASKED_SPAN))
                other = audio[(index + 1) % len(audio)]
                for _ in range(spans):
                    length = min(frames, 1 + int(self.random.expovariate(1 / _MASKED_SPAN)))
                    start = self.random.randrange(frames - length + 1)
                    if self.random.random() < 0.75 or other.shape[1] < length:
                        codes[:, start : start + length] = BOS
                    else:
                        source = self.random.randrange(other.shape[1] - length + 1)
                        codes[:, start : start + length] = other[:, source : source + length]
            if self.random.random() < self.noisy_share:
                share = self.random.uniform(0.02, self.most_noise)
                wrong = self.numpy.random(codes.shape) < share
                codes = np.where(wrong, self.numpy.integers(0, CODES, codes.shape), codes)
            heard.append(codes)
        return heard

    def batches(self, rows: int, longest: int, most_words: int) -> list[tuple[list[int], bool]]:
        """Draw some batches of utterances that are alike in length: indices, and whether references are shown.

        Args:
            rows: of audio that a batch has at most.
            longest: in frames, and
            most_words: what an utterance has at most.
        """
        frames = self.utterances.frames
        allowed = np.flatnonzero((self.words <= most_words) & (frames <= longest))
        pool = self.numpy.choice(allowed, min(len(allowed), 4096), replace=False)
        pool = pool[np.argsort(frames[pool] + self.numpy.uniform(0, 4, len(pool)))]
        found, first = [], 0
        while first < len(pool):
            references = self.random.random() < _REFERENCE_SHARE
            last = first + 1
            extra = 80 if references else 9
            while last < len(pool) and (last + 1 - first) * (frames[pool[last]] + extra) <= rows:
                last += 1
            found.append((pool[first:last].tolist(), references))
            first = last
        self.random.shuffle(found)
        return found

    @property
    def words(self) -> np.ndarray:
        """How many words each utterance has: [n]."""
        if not hasattr(self, "_words"):
            self._words = np.array([len(text.split()) for text in self.utterances.texts])
        return self._words


def prompt_ids(text: str, voices: list[Voice], scene: str | None, tokenizer: Tokenizer) -> list[int]:
    """The tokens that `HiggsAudio.speak` sends, a placeholder for each recording."""
    messages = speech_messages(text, voices, scene, LAYOUT)
    return build_prompt(messages, tokenizer, LAYOUT, force_audio_gen=True).input_ids[0].tolist()


def delayed(codes: np.ndarray) -> np.ndarray:
    """Codes between BOS and EOS, codebook k shifted right by k: [codebooks, T] -> [codebooks, T + codebooks + 1]."""
    frames = codes.shape[1]
    out = np.full((CODEBOOKS, frames + CODEBOOKS + 1), EOS)
    for book in range(CODEBOOKS):
        out[book, : book + 1] = BOS
        out[book, book + 1 : book + 1 + frames] = codes[book]
    return out


def delayed_targets(codes: np.ndarray) -> np.ndarray:
    """What follows each column of `delayed(codes)[:, :-1]`: codes and a codebook's first EOS; the rest is forced."""
    out = delayed(codes)[:, 1:]
    for book in range(CODEBOOKS):
        out[book, :book] = IGNORED
        out[book, book + codes.shape[1] + 1 :] = IGNORED
    return out


def _distinct(prefixes: list[list[int]]) -> Prefixes:
    rows = {tuple(prefix): None for prefix in prefixes}
    numbers = {prefix: number for number, prefix in enumerate(rows)}
    chosen = torch.tensor([numbers[tuple(prefix)] for prefix in prefixes])
    return Prefixes(text_segment([list(row) for row in rows]), chosen)


def padded_length(length: int | np.ndarray) -> int | np.ndarray:
    """What rows of this length are padded to: one of few lengths, since a CPU makes kernels for each new shape."""
    return -(-length // _PADDED) * _PADDED


def text_segment(rows: list[list[int]]) -> Segment:
    """Token ids, padded to one length."""
    longest = padded_length(max(map(len, rows)))
    ids, valid = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        valid[index, : len(row)] = True
    return Segment(ids, valid)


def audio_segment(rows: list[np.ndarray]) -> Segment:
    """Delayed codes [codebooks, columns] each, padded to one length."""
    longest = padded_length(max(row.shape[1] for row in rows))
    ids = np.full((len(rows), longest, CODEBOOKS), EOS)
    valid = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : row.shape[1]] = row.T
        valid[index, : row.shape[1]] = True
    return Segment(torch.from_numpy(ids), valid)
