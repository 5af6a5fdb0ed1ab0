"""The interface of `boson_multimodal`: its serving engine, its example client, and its audio tokenizer.

    from higgs_native.compat.boson import AudioContent, ChatMLSample, HiggsAudioServeEngine, Message

    engine = HiggsAudioServeEngine(model_path, audio_tokenizer_path)
    response = engine.generate(ChatMLSample([Message("user", "Hello there.")]), max_new_tokens=1024)

Prompts and generation follow Boson's rule, whichever layout the checkpoint has. What differs from `boson_multimodal`
is listed in `docs/compat_boson.md`.
"""

from higgs_native.compat.boson.audio_tokenizer import (
    BosonAudioTokenizer,
    load_higgs_audio_tokenizer,
    revert_delay_pattern,
)
from higgs_native.compat.boson.model_client import HiggsAudioModelClient
from higgs_native.compat.boson.serve_engine import HiggsAudioResponse, HiggsAudioServeEngine
from higgs_native.compat.boson.streamer import AsyncHiggsAudioStreamer, HiggsAudioStreamerDelta
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent


__all__ = [
    "AsyncHiggsAudioStreamer",
    "AudioContent",
    "BosonAudioTokenizer",
    "ChatMLSample",
    "HiggsAudioModelClient",
    "HiggsAudioResponse",
    "HiggsAudioServeEngine",
    "HiggsAudioStreamerDelta",
    "Message",
    "TextContent",
    "load_higgs_audio_tokenizer",
    "revert_delay_pattern",
]
