"""The interface of `boson_multimodal`: serving engine, model, collator, example client and audio tokenizer.

    from higgs_native.compat.boson import AudioContent, ChatMLSample, HiggsAudioServeEngine, Message

    engine = HiggsAudioServeEngine(model_path, audio_tokenizer_path)
    response = engine.generate(ChatMLSample([Message("user", "Hello there.")]), max_new_tokens=1024)

`install()` puts it under the module names of `boson_multimodal`. Prompts and generation follow Boson's convention,
whichever layout the checkpoint has. What differs from `boson_multimodal` is listed in `docs/compat_boson.md`.
"""

from higgs_native.compat.boson.audio_tokenizer import (
    BosonAudioTokenizer,
    build_delay_pattern_mask,
    load_higgs_audio_tokenizer,
    revert_delay_pattern,
)
from higgs_native.compat.boson.config import HiggsAudioConfig
from higgs_native.compat.boson.dataset import (
    ChatMLDatasetSample,
    HiggsAudioBatchInput,
    HiggsAudioSampleCollator,
    prepare_chatml_sample,
)
from higgs_native.compat.boson.model import HiggsAudioGenerationOutput, HiggsAudioModel
from higgs_native.compat.boson.model_client import HiggsAudioModelClient
from higgs_native.compat.boson.modules import install
from higgs_native.compat.boson.serve_engine import HiggsAudioResponse, HiggsAudioServeEngine
from higgs_native.compat.boson.streamer import AsyncHiggsAudioStreamer, HiggsAudioStreamerDelta
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent


__all__ = [
    "AsyncHiggsAudioStreamer",
    "AudioContent",
    "BosonAudioTokenizer",
    "ChatMLDatasetSample",
    "ChatMLSample",
    "HiggsAudioBatchInput",
    "HiggsAudioConfig",
    "HiggsAudioGenerationOutput",
    "HiggsAudioModel",
    "HiggsAudioModelClient",
    "HiggsAudioResponse",
    "HiggsAudioSampleCollator",
    "HiggsAudioServeEngine",
    "HiggsAudioStreamerDelta",
    "Message",
    "TextContent",
    "build_delay_pattern_mask",
    "install",
    "load_higgs_audio_tokenizer",
    "prepare_chatml_sample",
    "revert_delay_pattern",
]
