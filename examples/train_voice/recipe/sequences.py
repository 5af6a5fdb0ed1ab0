"""Training sequences: prompts as the engine builds them, of phonemes, and the codes that follow."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from higgs_native.prompt.chat import build_prompt, speech_messages
from higgs_native.prompt.voices import Voice
from higgs_native.training.data.rows import IGNORED, PackedRows, Sample
from higgs_native.training.data.samples import frame_targets
from recipe.codes import codes_folder, finished_codes, read_codes, read_spoken
from recipe.phoneme_tokenizer import DESCRIBED, VOICES, build_tokenizer
from recipe.screen import rejected
from recipe.shards import read_utterances, shard_path
from recipe.spectral_quantizer import CODEBOOKS, CODES


_NAMES = list(VOICES)
_DESCRIBED = {_NAMES.index(name): description for name, description in DESCRIBED.items()}

_BOS, _EOS = CODES, CODES + 1
_LAYOUT = "transformers"

_DEFAULT_VOICE_SHARE, _DESCRIBED_SHARE = 0.5, 0.15
_KINDS = {"single": 0.67, "joined": 0.1, "reference": 0.15, "dialogue": 0.08}
"""The share of each kind of batch."""
# Codes are mostly noisy: a model that often hears an utterance as it is knows it by heart.
_NOISY_SHARE, _MOST_NOISE = 0.9, 0.35
_HIDDEN_SHARE, _HIDDEN_SPAN = 0.5, 6
_PADDED = 16
_TURN_GAP = 4
"""Frames of silence that are put between two utterances, beside what they end and begin with."""
_PLACEHOLDER = "ˈA"
_DELAYED = CODEBOOKS
"""Rows that an utterance has beyond its frames."""
_SHOWN = 128
"""About so many more, where a recording is shown before it or another speaker follows."""


class Corpus:
    """Codes and phonemes of all utterances that are rendered, encoded and not rejected.

    Attributes:
        phonemes: of each utterance.
        voices: uint8 [n], the index in `phoneme_tokenizer.VOICES`.
        starts: int64 [n + 1], where each begins in `codes` uint8 [codebooks, frames].
        spoken: int16 [frames], which of its utterance's phonemes each frame speaks; -1 in the silence before.

    Args:
        folder: of the recipe.
        held_out: take the held-out utterances, and only them, in one cut; else the others, in each cut.
    """

    def __init__(self, folder: Path, held_out: bool) -> None:
        teacher_names = list(VOICES.values())
        bad = rejected(folder)
        self.phonemes: list[str] = []
        voices, lengths, parts, spoken = [], [0], [], []
        self.shards = finished_codes(codes_folder(folder, pitch=True), every_cut=not held_out)
        for path in self.shards:
            (codes, starts), said = read_codes(path), read_spoken(path)
            for index, utterance in enumerate(read_utterances(shard_path(folder, int(path.name[:5])))):
                if bool(utterance["held_out"]) != held_out or utterance["id"] in bad:
                    continue
                self.phonemes.append(str(utterance["phonemes"]))
                voices.append(teacher_names.index(str(utterance["voice"])))
                parts.append(codes[:, starts[index] : starts[index + 1]])
                spoken.append(said[starts[index] : starts[index + 1]])
                lengths.append(parts[-1].shape[1])
        self.voices = np.array(voices, np.uint8)
        self.starts = np.cumsum(lengths)
        self.codes, self.spoken = np.concatenate(parts, 1), np.concatenate(spoken)

    @property
    def frames(self) -> np.ndarray:
        """The length of each, in frames: [n]."""
        return np.diff(self.starts)

    def codes_of(self, index: int) -> np.ndarray:
        """[codebooks, frames]."""
        return self.codes[:, self.starts[index] : self.starts[index + 1]]


@dataclass
class SpokenRows:
    """The rows of a pass, and what they speak.

    Attributes:
        rows: of the pass.
        spoken: int64 [kept rows], the token of the phoneme that is spoken in the frame whose first code follows each
            row; IGNORED where there is none.
    """

    rows: PackedRows
    spoken: torch.Tensor


class SequenceMaker:
    """Makes batches of a corpus: of single utterances, two of a voice, references and what follows, two speakers."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.utterances = corpus
        self.random, self.numpy = random.Random(seed), np.random.default_rng(seed)
        self.tokenizer = build_tokenizer()
        self.text_ids = [encoding.ids for encoding in self.tokenizer.encode_batch(corpus.phonemes)]
        self._lengths = {token: len(self.tokenizer.decode([token])) for ids in self.text_ids for token in ids}
        self._cached: dict[tuple[str | None, ...], tuple[list[int], list[int]]] = {}
        self._by_voice = [np.flatnonzero(corpus.voices == voice) for voice in range(len(VOICES))]
        self._short = [which[(corpus.frames[which] >= 30) & (corpus.frames[which] <= 120)] for which in self._by_voice]
        self._turn = self._turn_ids()
        self._space = self.tokenizer.encode(" ").ids
        # Silence, as utterances begin with it.
        self._gap = np.repeat(corpus.codes[:, corpus.starts[:1]], _TURN_GAP, 1)

    def make(
        self, indices: list[int], augmented: bool, kind: str = "single", texts: list[int] | None = None
    ) -> SpokenRows:
        """Make the rows of a pass.

        Args:
            indices: of the utterances.
            augmented: corrupt the audio that goes in (not what should come out).
            kind: `single`; `joined`, another utterance of the voice follows; `reference`, after a recording of the
                voice; `dialogue`, an utterance of another voice follows.
            texts: take the texts of these utterances instead.
        """
        corpus = self.utterances
        audio = [corpus.codes_of(index).astype(np.int64) for index in indices]
        spoken = [self._spoken(index) for index in indices]
        prompts: list[list[list[int] | np.ndarray]] = []
        for row, index in enumerate(indices):
            voice, ids = int(corpus.voices[index]), self.text_ids[(texts or indices)[row]]
            if kind == "reference":
                shown, frame = self._other(voice), self._frame_of()
                recording = delayed(self._reference(shown))
                before = [*frame[0], *self.text_ids[shown], *self._turn[0]]
                prompts.append([before, recording, [*self._turn[1], *ids, *frame[1]]])
                continue
            if kind == "dialogue":
                frame, text, other = self._dialogue(voice, ids)
            else:
                frame, text, other = self._frame_of(*self._named(voice)), ids, None
            if kind == "joined":
                other = self._other(voice)
                text = [*ids, *self._space, *self.text_ids[other]]
            if other is not None:
                audio[row] = np.concatenate([audio[row], self._gap, corpus.codes_of(other)], 1)
                silence = np.full(_TURN_GAP, IGNORED)
                spoken[row] = np.concatenate([spoken[row], silence, self._spoken(other)])
            prompts.append([[*frame[0], *text, *frame[1]]])
        heard = self._corrupt(audio) if augmented else audio
        parts = zip(prompts, heard, audio, strict=True)
        samples = [_sample([*prompt, delayed(codes)[:, :-1]], right) for prompt, codes, right in parts]
        said = [np.concatenate([tokens, np.full(_DELAYED, IGNORED)]) for tokens in spoken]
        return SpokenRows(PackedRows.pack(samples), torch.from_numpy(np.concatenate(said)))

    def _spoken(self, index: int) -> np.ndarray:
        """The token of the phoneme that each frame of an utterance speaks: [frames]."""
        corpus, ids = self.utterances, self.text_ids[index]
        tokens = np.repeat(ids, [self._lengths[token] for token in ids])
        phonemes = corpus.spoken[corpus.starts[index] : corpus.starts[index + 1]]
        return np.where(phonemes < 0, IGNORED, tokens[phonemes.clip(0, len(tokens) - 1)])

    def _named(self, voice: int) -> tuple[str, ...]:
        """The name of a voice that speaks alone, as a scene has it, or its description; empty if it has neither."""
        if voice == 0 and self.random.random() < _DEFAULT_VOICE_SHARE:
            return ()
        described = voice in _DESCRIBED and self.random.random() < _DESCRIBED_SHARE
        return (_DESCRIBED[voice] if described else _NAMES[voice],)

    def _dialogue(self, voice: int, text: list[int]) -> tuple[tuple[list[int], list[int]], list[int], int]:
        """The prompt's frame and text of an utterance and that of another speaker behind it, and which one that is."""
        other = self.random.choice([v for v in range(len(VOICES)) if v != voice and len(self._by_voice[v])])
        index = self._other(other)
        unnamed = (_DESCRIBED.get(voice), _DESCRIBED.get(other)) == ("feminine", "masculine")
        names = () if unnamed and self.random.random() < 0.5 else (_NAMES[voice], _NAMES[other])
        first, second = (self.tokenizer.encode(piece).ids for piece in ("[SPEAKER0] ", "\n[SPEAKER1] "))
        return self._frame_of(*names, dialogue=True), [*first, *text, *second, *self.text_ids[index]], index

    def _other(self, voice: int) -> int:
        return int(self.random.choice(self._short[voice] if len(self._short[voice]) else self._by_voice[voice]))

    def _reference(self, index: int) -> np.ndarray:
        """Codes as the trained encoder would give them: the finer the level, the more of them differ."""
        codes = self.utterances.codes_of(index).astype(np.int64)
        wrong = self.numpy.random(codes.shape) < np.linspace(0.1, 0.7, CODEBOOKS)[:, None]
        return np.where(wrong, self.numpy.integers(0, CODES, codes.shape), codes)

    def _corrupt(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        """Hide spans of frames, swap in others, and change single codes: so that the text must be read."""
        heard = []
        for index, codes in enumerate(audio):
            frames = codes.shape[1]
            if self.random.random() < _HIDDEN_SHARE:
                codes = codes.copy()
                share = self.random.uniform(0.1, 1.0)
                spans = max(1, round(share * frames / _HIDDEN_SPAN))
                other = audio[(index + 1) % len(audio)]
                for _ in range(spans):
                    length = min(frames, 1 + int(self.random.expovariate(1 / _HIDDEN_SPAN)))
                    start = self.random.randrange(frames - length + 1)
                    if self.random.random() < 0.75 or other.shape[1] < length:
                        codes[:, start : start + length] = _BOS
                    else:
                        source = self.random.randrange(other.shape[1] - length + 1)
                        codes[:, start : start + length] = other[:, source : source + length]
            if self.random.random() < _NOISY_SHARE:
                share = self.random.uniform(0.02, _MOST_NOISE)
                wrong = self.numpy.random(codes.shape) < share
                codes = np.where(wrong, self.numpy.integers(0, CODES, codes.shape), codes)
            heard.append(codes)
        return heard

    def _frame_of(self, *names: str, dialogue: bool = False) -> tuple[list[int], list[int]]:
        """The tokens before and after the text of a prompt with voices of these names."""
        key = (*names, "dialogue" if dialogue else None)
        if key not in self._cached:
            text = f"[SPEAKER0] {_PLACEHOLDER}\n[SPEAKER1] {_PLACEHOLDER}" if dialogue else _PLACEHOLDER
            ids = _prompt_ids(text, [Voice(profile=name) for name in names], self.tokenizer)
            inner = self.tokenizer.encode(text).ids
            index = next(i for i in range(len(ids)) if ids[i : i + len(inner)] == inner)
            self._cached[key] = ids[:index], ids[index + len(inner) :]
        return self._cached[key]

    def _turn_ids(self) -> tuple[list[int], list[int]]:
        """The tokens between a recording's words and the recording, and between that and the text."""
        (shown,) = self.tokenizer.encode(_PLACEHOLDER).ids
        voice = Voice(reference_audio=(np.zeros(1), 1), reference_text=_PLACEHOLDER)
        ids = _prompt_ids(_PLACEHOLDER, [voice], self.tokenizer)
        first = ids.index(shown)
        audio = ids.index(self.tokenizer.token_to_id("<|AUDIO_OUT|>"))
        return ids[first + 1 : audio], ids[audio + 1 : ids.index(shown, first + 1)]

    def batches(self, rows: int, longest: int) -> list[tuple[list[int], str]]:
        """Draw some batches of utterances that are alike in length: indices, and their kind.

        Args:
            rows: of audio that a batch has at most.
            longest: in frames, what an utterance has at most.
        """
        frames = self.utterances.frames
        allowed = np.flatnonzero(frames <= longest)
        pool = self.numpy.choice(allowed, min(len(allowed), 4096), replace=False)
        lengths = padded_length(frames[pool] + _DELAYED)
        found = []
        for length in np.unique(lengths):
            alike = pool[lengths == length]
            first = 0
            while first < len(alike):
                (kind,) = self.random.choices(list(_KINDS), list(_KINDS.values()))
                count = max(1, rows // int(length + (0 if kind == "single" else _SHOWN)))
                taken = alike[first : first + count]
                # All batches of a length are as large: the last one repeats some.
                more = self.numpy.choice(alike, count - len(taken))
                found.append(([*taken.tolist(), *more.tolist()], kind))
                first += count
        self.random.shuffle(found)
        return found


def _prompt_ids(text: str, voices: list[Voice], tokenizer: Tokenizer) -> list[int]:
    """The tokens that `HiggsAudio.speak` sends, a placeholder for each recording."""
    messages = speech_messages(text, voices, None, _LAYOUT)
    return build_prompt(messages, tokenizer, _LAYOUT, force_audio_gen=True).input_ids[0].tolist()


def delayed(codes: np.ndarray) -> np.ndarray:
    """Codes between BOS and EOS, codebook k shifted right by k: [codebooks, T] -> [codebooks, T + codebooks + 1]."""
    frames = codes.shape[1]
    out = np.full((CODEBOOKS, frames + CODEBOOKS + 1), _EOS)
    for book in range(CODEBOOKS):
        out[book, : book + 1] = _BOS
        out[book, book + 1 : book + 1 + frames] = codes[book]
    return out


def padded_length(length: int | np.ndarray) -> int | np.ndarray:
    """What rows of this length are padded to: one of few lengths, since a CPU makes kernels for each new shape."""
    return -(-length // _PADDED) * _PADDED


def _sample(parts: list[list[int] | np.ndarray], codes: np.ndarray) -> Sample:
    """Make a sample.

    Args:
        parts: token ids and delayed codes [codebooks, frames] in turn; the last one is what is heard of `codes`.
        codes: [codebooks, frames], what should come out.
    """
    is_audio = np.concatenate([np.full(np.shape(part)[-1], isinstance(part, np.ndarray)) for part in parts])
    targets = torch.full((len(is_audio), CODEBOOKS), IGNORED)
    learned = frame_targets(torch.from_numpy(delayed(codes).T))[1:]
    targets[-len(learned) :] = learned
    return Sample(
        token_ids=torch.tensor([token for part in parts if isinstance(part, list) for token in part]),
        codes=torch.from_numpy(np.concatenate([part.T for part in parts if isinstance(part, np.ndarray)])),
        is_audio=torch.from_numpy(is_audio),
        text_targets=torch.full((len(is_audio),), IGNORED),
        audio_targets=targets,
    )
