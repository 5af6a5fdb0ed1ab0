"""The files beside a language model's weights by which transformers makes its tokenizer and its processor."""

import json
from pathlib import Path
from typing import Any

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import AUDIO_TOKENIZER_FOLDER
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.testing.configs import TOKENIZER_CONFIG
from higgs_native.utils.files import replacing


# Renders what `prompt.conventions.transformers` does. White space inside of tags is dropped by the dashes.
CHAT_TEMPLATE = """\
{%- set recording = '<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>' -%}
{%- for message in messages -%}
    {%- set items = message['content'] -%}
    {%- if items is string -%}{%- set items = [{'type': 'text', 'text': items}] -%}{%- endif -%}
    {%- if message['role'] == 'scene' -%}
        {{- '\\n\\n<|scene_desc_start|>\\n' -}}
        {%- for item in items -%}
            {%- if item['type'] == 'audio' -%}
                {{- ' ' + recording + ('' if loop.last else '\\n') -}}
            {%- else -%}
                {{- item['text'] | trim -}}
                {%- if not loop.last and loop.first -%}
                    {{- '\\n\\n' -}}
                {%- elif not loop.last and loop.nextitem['type'] == 'text' -%}
                    {{- '\\n' -}}
                {%- endif -%}
            {%- endif -%}
        {%- endfor -%}
        {{- '\\n<|scene_desc_end|><|eot_id|>' -}}
    {%- else -%}
        {{- '<|begin_of_text|>' if loop.first else '' -}}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
        {%- for item in items -%}{{- recording if item['type'] == 'audio' else item['text'] | trim -}}{%- endfor -%}
        {{- '<|eot_id|>' if loop.last or not loop.first or loop.nextitem['role'] != 'scene' else '' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n<|audio_out_bos|>' -}}
"""


def write_processor_files(folder: Path) -> None:
    """Write `tokenizer_config.json`, `processor_config.json`, `chat_template.jinja` and `generation_config.json`.

        processor = AutoProcessor.from_pretrained(folder, audio_tokenizer=audio_tokenizer)

    The processor's file does not name the audio tokenizer: transformers would look for it in the current folder.

    Args:
        folder: has a checkpoint of transformers' layout, and its audio tokenizer.

    Raises:
        ConfigError: a configuration is missing, or can't be read.
    """
    config = HiggsAudioConfig.from_pretrained(folder)
    audio_tokenizer = HiggsAudioTokenizerConfig.from_pretrained(folder / AUDIO_TOKENIZER_FOLDER)
    _write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    processor = {
        "processor_class": "HiggsAudioV2Processor",
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
        "feature_extractor": {
            "feature_extractor_type": "DacFeatureExtractor",
            "sampling_rate": audio_tokenizer.sampling_rate,
            "hop_length": audio_tokenizer.hop_length,
        },
    }
    _write_json(folder / "processor_config.json", processor)
    # As `HiggsAudio.speak` draws by default.
    names = ("temperature", "top_k", "top_p", "ras_win_len", "ras_win_max_num_repeat")
    generation = {
        "do_sample": True,
        **{name: getattr(SamplingParams(), name) for name in names},
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    _write_json(folder / "generation_config.json", generation)
    with replacing(folder / "chat_template.jinja") as path:
        path.write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
