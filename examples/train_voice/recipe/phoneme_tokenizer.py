"""The text tokenizer: a phoneme is a token, and so is a stress mark with its vowel.

What is no phoneme (a scene in words) falls to bytes.
"""

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from higgs_native.english.pronunciation import PAUSES


VOICES = {
    "heart": "af_heart",
    "bella": "af_bella",
    "fenrir": "am_fenrir",
    "puck": "am_puck",
    "emma": "bf_emma",
    "george": "bm_george",
}
"""What a voice is called in a scene, and what the teacher calls it. The first one is the default voice."""

DESCRIBED = {"heart": "feminine", "fenrir": "masculine"}
"""How voices are called beside their names: by texts whose several speakers nobody describes, and by servers."""

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

_VOWELS = "AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻɐ"
_OTHERS = "bdfhjklmnpstvwzðŋɡɹʃʒʤʧθᵊT"
_STRESSES = "ˈˌ"
# Single tokens of every prompt. Each has a letter that is no phoneme, so that none is found among phonemes.
_PHRASES = (
    "Generate audio following instruction.",
    "SPEAKER0:",
    "SPEAKER1:",
    "[SPEAKER0]",
    "[SPEAKER1]",
    "system",
    "user",
    "assistant",
    *DESCRIBED.values(),
    "\n\n",
)


def build_tokenizer() -> Tokenizer:
    """Make the tokenizer."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []

    def merge(first: str, second: str) -> str:
        if (first, second) not in merges:
            merges.append((first, second))
            vocabulary[first + second] = len(vocabulary)
        return first + second

    in_bytes = {sign: _bytes(sign) for sign in (*_VOWELS, *_OTHERS, *_STRESSES, "ː", *PAUSES)}
    signs = {sign: functools.reduce(merge, written) for sign, written in in_bytes.items()}
    for stress in _STRESSES:
        for vowel in _VOWELS:
            merge(signs[stress], signs[vowel])
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in (*_PHRASES, *VOICES)])
    return tokenizer


def _bytes(sign: str) -> str:
    """The bytes of a sign, each as the character that stands for it in the vocabulary."""
    ((written, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(sign)
    return written
