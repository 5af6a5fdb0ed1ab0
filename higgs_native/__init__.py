"""Text-to-speech with Higgs Audio V2 and Higgs TTS 3, fast and exact."""

import importlib
import pkgutil
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from higgs_native.audio.quality import VoiceWarning, check_recording
    from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
    from higgs_native.checkpoint.publishing import push_to_hub
    from higgs_native.convention import Convention
    from higgs_native.errors import (
        AudioError,
        CheckpointError,
        ConfigError,
        GenerationError,
        HiggsNativeError,
        ParameterError,
        PromptError,
        exit_on_bad_input,
    )
    from higgs_native.generation.conventions.behavior import GenerationMode
    from higgs_native.generation.model import HiggsAudioModel
    from higgs_native.generation.requests import GenerationOutput
    from higgs_native.generation.sampling_params import SamplingParams
    from higgs_native.long_form.chunk_store import SpokenChunk
    from higgs_native.long_form.chunking import TextChunk, chunk_text
    from higgs_native.long_form.long_speech import LongSpeech
    from higgs_native.long_form.settings import Pauses
    from higgs_native.manuscript.books.book import Book, Chapter, read_book
    from higgs_native.pipeline import HiggsAudio
    from higgs_native.prompt.chat import Prompt, build_prompt
    from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent
    from higgs_native.prompt.normalize import normalize_text
    from higgs_native.prompt.recordings import Recording
    from higgs_native.prompt.voices import Voice, find_voice, list_voices
    from higgs_native.speech import Speech
    from higgs_native.streaming import AudioChunk, SpeechStream

__version__ = "0.1.0"

__all__ = [
    "AudioChunk",
    "AudioContent",
    "AudioError",
    "Book",
    "Chapter",
    "ChatMLSample",
    "CheckpointError",
    "ConfigError",
    "Convention",
    "GenerationError",
    "GenerationMode",
    "GenerationOutput",
    "HiggsAudio",
    "HiggsAudioModel",
    "HiggsAudioTokenizer",
    "HiggsNativeError",
    "LongSpeech",
    "Message",
    "ParameterError",
    "Pauses",
    "Prompt",
    "PromptError",
    "Recording",
    "SamplingParams",
    "Speech",
    "SpeechStream",
    "SpokenChunk",
    "TextChunk",
    "TextContent",
    "Voice",
    "VoiceWarning",
    "build_prompt",
    "check_recording",
    "chunk_text",
    "exit_on_bad_input",
    "find_voice",
    "list_voices",
    "normalize_text",
    "push_to_hub",
    "read_book",
]

# The modules of these names. They are imported when a name is first used: they import torch, which takes seconds.
_NAMES = {
    "audio.quality": ("VoiceWarning", "check_recording"),
    "audio_tokenizer.tokenizer": ("HiggsAudioTokenizer",),
    "convention": ("Convention",),
    "errors": (
        "AudioError",
        "CheckpointError",
        "ConfigError",
        "GenerationError",
        "HiggsNativeError",
        "ParameterError",
        "PromptError",
        "exit_on_bad_input",
    ),
    "generation.model": ("HiggsAudioModel",),
    "generation.sampling_params": ("SamplingParams",),
    "generation.conventions.behavior": ("GenerationMode",),
    "generation.requests": ("GenerationOutput",),
    "long_form.chunk_store": ("SpokenChunk",),
    "long_form.chunking": ("TextChunk", "chunk_text"),
    "long_form.long_speech": ("LongSpeech",),
    "long_form.settings": ("Pauses",),
    "manuscript.books.book": ("Book", "Chapter", "read_book"),
    "checkpoint.publishing": ("push_to_hub",),
    "pipeline": ("HiggsAudio",),
    "prompt.chat": ("Prompt", "build_prompt"),
    "prompt.messages": ("AudioContent", "ChatMLSample", "Message", "TextContent"),
    "prompt.normalize": ("normalize_text",),
    "prompt.recordings": ("Recording",),
    "prompt.voices": ("Voice", "find_voice", "list_voices"),
    "speech": ("Speech",),
    "streaming": ("AudioChunk", "SpeechStream"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}

# A program started in a checkout without compiled files imports this folder, not an installed package, and takes `_C`
# and the operators' libraries from the installed one. Pitfalls: modules that this folder lacks come from there too,
# and libraries of another version may lack operators, so reinstall after a merge. A folder that holds `_C` is not
# extended: a module missing from an installed package must not come from a checkout on the path.
if not any(Path(__file__).with_name(f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
    __path__ = pkgutil.extend_path(__path__, __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # to a type checker, a module with `__getattr__` has every name

    def __getattr__(name: str) -> object:
        if name in _MODULE_OF:
            value = getattr(importlib.import_module(_MODULE_OF[name]), name)
            globals()[name] = value
            return value
        module = f"{__name__}.{name}"
        try:  # `higgs_native.pipeline` after `import higgs_native`
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
