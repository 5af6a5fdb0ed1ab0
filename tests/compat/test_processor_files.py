"""The files by which transformers makes a tokenizer and a processor: those of the embedded voice, and of others."""

import json
import shutil

import pytest
import torch

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.checkpoint.files import load_tokenizer
from higgs_native.compat.processor_files import write_processor_files
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.prompt.chat import build_prompt
from higgs_native.prompt.messages import AudioContent, Message
from higgs_native.testing.random_checkpoint import write_demo_checkpoint
from tests.helpers.accelerated import compat
from tests.helpers.transformers_reference import transformers


FILES = ("chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer_config.json")


def test_the_embedded_voice_has_the_files_that_are_written(tmp_path):
    for name in ("config.json", "audio_tokenizer/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(EMBEDDED_VOICE / name, tmp_path / name)
    write_processor_files(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_text() == (EMBEDDED_VOICE / name).read_text(), name


@pytest.fixture(scope="module")
def processor():
    audio_tokenizer = transformers.HiggsAudioV2TokenizerModel.from_pretrained(
        EMBEDDED_VOICE / "audio_tokenizer", dtype=torch.float32
    )
    return transformers.AutoProcessor.from_pretrained(EMBEDDED_VOICE, audio_tokenizer=audio_tokenizer)


def test_the_processor_of_the_embedded_voice(processor):
    config = transformers.AutoConfig.from_pretrained(EMBEDDED_VOICE)
    assert type(processor) is transformers.HiggsAudioV2Processor
    tokenizer = processor.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (config.pad_token_id, config.eos_token_id)
    assert (processor.audio_stream_bos_id, processor.audio_stream_eos_id) == (256, 257)
    audio_tokenizer = HiggsAudioTokenizerConfig.from_pretrained(EMBEDDED_VOICE / "audio_tokenizer")
    extractor = processor.feature_extractor
    assert (extractor.sampling_rate, extractor.hop_length) == (
        audio_tokenizer.sampling_rate,
        audio_tokenizer.hop_length,
    )


def text(*words: str) -> list[dict]:
    return [{"type": "text", "text": word} for word in words]


AUDIO = {"type": "audio", "path": "voice.wav"}


@pytest.mark.parametrize(
    "conversation",
    [
        [("system", text("Generate audio.")), ("user", text("Hello. "))],
        [
            ("system", text(" Speak.")),
            ("user", text("Some words.")),
            ("assistant", [AUDIO]),
            ("user", text("Others.")),
        ],
        [("system", text("Speak.")), ("scene", text("A quiet room.")), ("user", text("Hello."))],
        [
            ("system", text("Speak.")),
            ("scene", text("A room.", "SPEAKER0: a", "SPEAKER1: b")),
            ("user", text("Hello.")),
        ],
        [("system", text("Speak.")), ("scene", [*text("Room.", "SPEAKER0:"), AUDIO]), ("user", text("Hello."))],
        [
            ("system", text("Speak.")),
            ("scene", [*text("SPEAKER0:"), AUDIO, *text("SPEAKER1:"), AUDIO, *text("SPEAKER2: b")]),
            ("user", text("Hello.", "Again.")),
        ],
        [("system", text("Speak."))],
    ],
)
def test_the_template_renders_the_prompt_of_the_convention(processor, conversation):
    messages = [
        Message(role, [AudioContent(audio_url="voice.wav") if item is AUDIO else item["text"] for item in content])
        for role, content in conversation
    ]
    expected = build_prompt(messages, load_tokenizer(EMBEDDED_VOICE), "transformers", force_audio_gen=True).input_ids
    conversation = [{"role": role, "content": content} for role, content in conversation]
    rendered = processor.apply_chat_template(conversation, tokenize=False)
    ids = processor.tokenizer(rendered, add_special_tokens=False, return_tensors="pt").input_ids
    assert torch.equal(ids, expected)


def test_a_content_may_be_a_string(processor):
    short = [{"role": "system", "content": "Speak."}, {"role": "user", "content": "Hello."}]
    long = [{"role": "system", "content": text("Speak.")}, {"role": "user", "content": text("Hello.")}]
    assert processor.apply_chat_template(short, tokenize=False) == processor.apply_chat_template(long, tokenize=False)


def test_the_embedded_voice_speaks_by_its_own_settings(processor):
    model = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(EMBEDDED_VOICE)
    config, defaults = model.generation_config, SamplingParams()
    for name in ("temperature", "top_k", "top_p", "ras_win_len", "ras_win_max_num_repeat"):
        assert getattr(config, name) == getattr(defaults, name)
    assert config.do_sample
    inputs = processor.apply_chat_template(
        [
            {"role": "system", "content": text("Generate audio following instruction.")},
            {"role": "user", "content": text("The sun rises in the east.")},
        ],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    torch.manual_seed(0)
    outputs = compat.accelerate(model).generate(**inputs, max_new_tokens=300)
    (audio,) = processor.batch_decode(outputs)
    assert 1 < len(audio) / processor.feature_extractor.sampling_rate < 4
    assert (outputs[0, -1] == model.config.audio_stream_eos_id).all()


def test_random_checkpoints_have_a_tokenizer_and_become_processors(tmp_path):
    write_demo_checkpoint(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (config["pad_token_id"], config["eos_token_id"])
    assert tokenizer.encode("Hi.<|eot_id|>") == load_tokenizer(tmp_path).encode("Hi.<|eot_id|>").ids
    write_processor_files(tmp_path)
    audio_tokenizer = transformers.HiggsAudioV2TokenizerModel.from_pretrained(tmp_path / "audio_tokenizer")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path, audio_tokenizer=audio_tokenizer)
    assert (processor.audio_stream_bos_id, processor.audio_stream_eos_id) == (1024, 1025)


def test_the_model_card():
    card = (EMBEDDED_VOICE / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert dict(line.split(": ") for line in head.splitlines())["license"] == "apache-2.0"
    for program in body.split("```python\n")[1:]:
        compile(program.split("```")[0], "README.md", "exec")
