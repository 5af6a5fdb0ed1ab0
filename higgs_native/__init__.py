"""Higgs Audio V2 text-to-speech, fast and exact."""

import pkgutil
from pathlib import Path


__version__ = "0.1.0"

# A program started in a checkout without compiled files imports this folder, not an installed package, and takes `_C`
# and the operators' libraries from the installed one. Pitfalls: modules that this folder lacks come from there too,
# and libraries of another version may lack operators, so reinstall after a merge. A folder that holds `_C` is not
# extended: a module missing from an installed package must not come from a checkout on the path.
if not any(Path(__file__).parent.glob("_C.*")):
    __path__ = pkgutil.extend_path(__path__, __name__)

from higgs_native.audio.quality import VoiceWarning, check_recording
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
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
from higgs_native.generation.model import HiggsAudioModel
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.sequence import GenerationMode, GenerationOutput
from higgs_native.long_form.chunk_store import SpokenChunk
from higgs_native.long_form.chunking import TextChunk, chunk_text
from higgs_native.long_form.joining import Pauses
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.manuscript.books import Book, Chapter, read_book
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.chat import Prompt, build_prompt
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent
from higgs_native.prompt.normalize import normalize_text
from higgs_native.prompt.recordings import Recording
from higgs_native.prompt.voices import Voice, find_voice, list_voices
from higgs_native.speech import Speech
from higgs_native.streaming import AudioChunk, SpeechStream


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
    "read_book",
]
