"""The embedded voice's text tokenizer: each word of the list is one token, all else falls to pieces and bytes.

A word's sound is learned with its token; a word that is not in the list is spoken from its pieces, as well as they go.
"""

import json

from espeak import VOICES
from sentences import read_words
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
    "<|recipient|>",
    "<|scene_desc_start|>",
    "<|scene_desc_end|>",
)
# What stands in every prompt, one token each, to keep prompts short.
_PHRASES = ("Generate audio following instruction.", "SPEAKER0:", "SPEAKER1:", "[SPEAKER0]", "[SPEAKER1]")
_ROLES = ("system", "user", "assistant")
_PIECES = 220


def build_tokenizer(spell: bool = False, dropout: float | None = None) -> Tokenizer:
    """Make the tokenizer. Text is lower-cased, and a word is the same token wherever it stands.

    Args:
        spell: take words of the list apart too (the vocabulary stays the same): for training.
        dropout: the share of merges left out, where words are taken apart.
    """
    words = [*read_words(), *_ROLES, *(voice.profile for voice in VOICES), "speaker"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + _PIECES, initial_alphabet=alphabet, show_progress=False, max_token_length=4
    )
    trained.train_from_iterator(words, trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    for token in [*("".join(merge) for merge in merges), *("Ġ" + word for word in words), "ĠĊĊ", "ĠĊ"]:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, dropout=dropout, ignore_merges=not spell))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in _PHRASES])
    return tokenizer


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    # A space before each piece makes the first word of a text like the others.
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
