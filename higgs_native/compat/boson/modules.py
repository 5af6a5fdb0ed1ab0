"""Boson's module names, for programs that import them: `install` puts this package's classes under them."""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType

from typing_extensions import Never

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
from higgs_native.compat.boson.serve_engine import HiggsAudioResponse, HiggsAudioServeEngine
from higgs_native.compat.boson.streamer import AsyncHiggsAudioStreamer, HiggsAudioStreamerDelta
from higgs_native.errors import ParameterError
from higgs_native.prompt.markup import AUDIO_PLACEHOLDERS
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent


_ROOT = "boson_multimodal"
_DATA_TYPES: dict[str, object] = {
    "AudioContent": AudioContent,
    "ChatMLSample": ChatMLSample,
    "Message": Message,
    "TextContent": TextContent,
}
_DATASET: dict[str, object] = {
    "ChatMLDatasetSample": ChatMLDatasetSample,
    "prepare_chatml_sample": prepare_chatml_sample,
}
_DELAY_PATTERN: dict[str, object] = {
    "build_delay_pattern_mask": build_delay_pattern_mask,
    "revert_delay_pattern": revert_delay_pattern,
}
_AUDIO_TOKENIZER: dict[str, object] = {
    "HiggsAudioTokenizer": BosonAudioTokenizer,
    "load_higgs_audio_tokenizer": load_higgs_audio_tokenizer,
}
_MODEL: dict[str, object] = {"HiggsAudioConfig": HiggsAudioConfig, "HiggsAudioModel": HiggsAudioModel}
_COLLATOR: dict[str, object] = {
    "HiggsAudioBatchInput": HiggsAudioBatchInput,
    "HiggsAudioSampleCollator": HiggsAudioSampleCollator,
}

# The names that programs import from Boson's modules; packages come before their modules.
MODULES: dict[str, dict[str, object]] = {
    "": {},
    ".constants": dict(zip(("AUDIO_IN_TOKEN", "AUDIO_OUT_TOKEN"), AUDIO_PLACEHOLDERS, strict=True)),
    ".data_types": _DATA_TYPES,
    ".audio_processing": {},
    ".audio_processing.higgs_audio_tokenizer": _AUDIO_TOKENIZER,
    ".data_collator": {},
    ".data_collator.higgs_audio_collator": {**_COLLATOR, **_DATASET, **_DELAY_PATTERN},
    ".dataset": {},
    ".dataset.chatml_dataset": {**_DATASET, **_DATA_TYPES},
    ".model": {},
    ".model.higgs_audio": _MODEL,
    ".model.higgs_audio.configuration_higgs_audio": {"HiggsAudioConfig": HiggsAudioConfig},
    ".model.higgs_audio.modeling_higgs_audio": {**_MODEL, "HiggsAudioGenerationOutput": HiggsAudioGenerationOutput},
    ".model.higgs_audio.utils": _DELAY_PATTERN,
    ".serve": {},
    ".serve.serve_engine": {
        "AsyncHiggsAudioStreamer": AsyncHiggsAudioStreamer,
        "HiggsAudioResponse": HiggsAudioResponse,
        "HiggsAudioServeEngine": HiggsAudioServeEngine,
        "HiggsAudioStreamerDelta": HiggsAudioStreamerDelta,
        **_AUDIO_TOKENIZER,
        **_COLLATOR,
        **_DATASET,
        **_DATA_TYPES,
        **_DELAY_PATTERN,
        **_MODEL,
    },
}


class _Alias(ModuleType):
    """A module of Boson's name."""

    def __getattr__(self, name: str) -> Never:
        raise AttributeError(f"{self.__name__} has no {name} here: higgs_native.compat.boson generates, and no more")


def install() -> None:
    """Let `import boson_multimodal...` in this process mean this package, for programs that stay as they are.

        import higgs_native.compat.boson

        higgs_native.compat.boson.install()
        from boson_multimodal.serve.serve_engine import HiggsAudioServeEngine

    transformers' AutoConfig, where it is installed, then reads configurations of the original layout too.

    Raises:
        ParameterError: `boson_multimodal` itself is imported already.
    """
    present = sys.modules.get(_ROOT)
    if present is not None and not isinstance(present, _Alias):
        raise ParameterError(
            f"{_ROOT} must not be imported before install(), got that of {getattr(present, '__file__', 'memory')}"
        )
    for suffix, contents in MODULES.items():
        name = _ROOT + suffix
        module = _Alias(name, f"higgs_native.compat.boson under Boson's name {name}.")
        is_package = any(other.startswith(f"{suffix}.") for other in MODULES)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=__file__, is_package=is_package)
        module.__file__ = __file__  # named by errors of imports
        if is_package:
            module.__path__ = []
        vars(module).update(contents)
        sys.modules[name] = module
        parent, _, own_name = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own_name, module)
    if importlib.util.find_spec("transformers") is not None:
        from transformers import AutoConfig

        AutoConfig.register(HiggsAudioConfig.model_type, HiggsAudioConfig, exist_ok=True)
