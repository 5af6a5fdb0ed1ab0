"""A text tokenizer for checkpoints with random weights: it reads text as bytes."""

import itertools
from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.errors import ConfigError


# Tokens without an id in the configuration take the free ids after the lowest id that the configuration names.
_SPECIAL_TOKENS = (
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
_HIGGS_TTS_3_TOKENS = (
    *("<|tts|>", "<|audio|>", "<|text|>", "<|ref_audio|>", "<|ref_text|>"),
    *(
        f"<|{category}:{name}|>"
        for category, names in {
            "emotion": "affection amusement anger arousal awe bitterness confusion contemplation contentment "
            "determination disgust elation enthusiasm fear helplessness longing pride relief sadness shame surprise",
            "style": "singing shouting whispering",
            "sfx": "cough laughter crying screaming burping humming sigh sniff sneeze",
            "prosody": "speed_very_slow speed_slow speed_fast speed_very_fast pitch_low pitch_high pause long_pause "
            "expressive_high expressive_low",
        }.items()
        for name in names.split()
    ),
)
_NUM_BYTES = 256


def build_tokenizer(config: HiggsAudioConfig) -> Tokenizer:
    """Return a tokenizer with `config.vocab_size` tokens: bytes, special tokens and unused ones.

    Special tokens that the configuration names have its ids.

    Raises:
        ConfigError: the vocabulary is too small, or an id lies outside it or names two tokens.
    """
    is_tts_3 = config.convention is Convention.HIGGS_TTS_3
    tokens = _HIGGS_TTS_3_TOKENS if is_tts_3 else _SPECIAL_TOKENS
    min_size = _NUM_BYTES + len(tokens)
    if config.vocab_size < min_size:
        raise ConfigError(f"vocab_size must be at least {min_size}, got {config.vocab_size}")
    if is_tts_3:
        return _tokenizer(dict(zip(tokens, range(_NUM_BYTES, min_size), strict=True)), config.vocab_size)
    configured = {
        "<|AUDIO|>": config.audio_in_token_id,
        "<|AUDIO_OUT|>": config.audio_out_token_id,
        "<|audio_out_bos|>": config.audio_out_bos_token_id,
        "<|audio_eos|>": config.audio_eos_token_id,
        "<|reserved_special_token_6|>": config.audio_delay_token_id,
        "<|end_of_text|>": config.pad_token_id,
    }
    named = {token: token_id for token, token_id in configured.items() if token_id is not None}
    # eos_token_id names `<|eot_id|>` in one layout; in the other it may name a token that is listed above.
    if config.eos_token_id is not None and config.eos_token_id not in (*named.values(), *range(_NUM_BYTES)):
        named["<|eot_id|>"] = config.eos_token_id
    for token, token_id in named.items():
        if not _NUM_BYTES <= token_id < config.vocab_size:
            raise ConfigError(f"the id of {token} must be {_NUM_BYTES} to {config.vocab_size - 1}, got {token_id}")
    if len(set(named.values())) < len(named):
        raise ConfigError(f"ids of special tokens must differ, got {named}")
    lowest = min(named.values())
    candidates = itertools.chain(range(lowest, config.vocab_size), range(_NUM_BYTES, lowest))
    free = (token_id for token_id in candidates if token_id not in named.values())
    special = dict(named)
    for token in _SPECIAL_TOKENS:
        if token not in special:
            special[token] = next(free)

    return _tokenizer(special, config.vocab_size)


def _tokenizer(special: Mapping[str, int], vocab_size: int) -> Tokenizer:
    """Return a tokenizer of bytes with these special tokens, filled up with unused ones."""
    token_of = {token_id: token for token, token_id in special.items()}
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {token_of.get(i, f"<|unused_{i}|>"): i for i in range(_NUM_BYTES, vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token_of[i], special=True, normalized=False) for i in sorted(token_of)])
    return tokenizer
