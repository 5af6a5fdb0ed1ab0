"""transformers' audio tokenizer, plain and accelerated, by itself and in a processor."""

import copy

import pytest
import torch

from higgs_native.errors import AudioError, ParameterError
from higgs_native.testing.byte_tokenizer import build_tokenizer
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.audio_tokenizer.test_config import SMALL
from tests.helpers import transformers_reference as reference
from tests.helpers.accelerated import compat
from tests.helpers.transformers_reference import transformers


accelerate, restore = compat.accelerate, compat.restore


@pytest.fixture(scope="module")
def audio_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(folder, SMALL)
    return transformers.HiggsAudioV2TokenizerModel.from_pretrained(folder).eval()


@torch.no_grad()
def test_the_audio_tokenizer_gives_the_same(audio_tokenizer):
    model = restore(audio_tokenizer)
    levels = SMALL.num_codebooks
    noise = 0.1 * torch.randn(2, 1, 9600, generator=torch.Generator().manual_seed(0))
    codes = torch.randint(SMALL.codebook_size, (3, levels, 13), generator=torch.Generator().manual_seed(1))
    expected = model.encode(noise), model.decode(codes), model(noise)
    accelerate(model)
    outputs = model.encode(noise), model.decode(codes), model(noise)
    for output, other in zip(outputs, expected, strict=True):
        assert type(output) is type(other)
    assert outputs[0].audio_codes.shape == expected[0].audio_codes.shape
    assert (outputs[0].audio_codes == expected[0].audio_codes).float().mean() > 0.98  # the rest are near ties
    peak = expected[1].audio_values.abs().max()
    torch.testing.assert_close(outputs[1].audio_values, expected[1].audio_values, rtol=0, atol=1e-5 * peak)
    assert outputs[2].audio_values.shape == expected[2].audio_values.shape
    assert torch.equal(model.encode(noise, return_dict=False), outputs[0].audio_codes)
    assert torch.equal(model.decode(codes, return_dict=False), outputs[1].audio_values)
    lowest = model.config.target_bandwidths[0]
    accelerated = model.encode(noise, bandwidth=lowest).audio_codes
    assert accelerated.shape == restore(model).encode(noise, bandwidth=lowest).audio_codes.shape


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 118, 119, 631, 632, 960, 1000, 2399])
def test_audio_shorter_than_a_recording_is(audio_tokenizer, samples):
    """Recordings have at least a tenth of a second; transformers encodes what there is."""
    noise = 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))
    try:
        expected = restore(audio_tokenizer).encode(noise).audio_codes
    except RuntimeError:  # too short for its convolutions, or its branches differ in length
        message = (
            "must have as many acoustic as semantic frames" if samples >= 119 else "must have a row and 119 samples"
        )
        with pytest.raises(AudioError, match=message):
            accelerate(audio_tokenizer).encode(noise)
        return
    codes = accelerate(audio_tokenizer).encode(noise).audio_codes
    assert codes.shape == expected.shape
    assert (codes == expected).float().mean() > 0.9


@torch.no_grad()
def test_frames_shorter_than_those_of_hubert():
    """As in transformers' own tests of the audio tokenizer: 256 samples where HuBERT's have 320."""
    config = transformers.HiggsAudioV2TokenizerConfig(
        sample_rate=16000,
        target_bandwidths=[1.5],
        acoustic_model_config=transformers.DacConfig(
            encoder_hidden_size=8, decoder_hidden_size=8, downsampling_ratios=[16, 16], upsampling_ratios=[16, 16]
        ),
        semantic_model_config=transformers.HubertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, conv_dim=(4,) * 7
        ),
    )
    torch.manual_seed(0)
    model = transformers.HiggsAudioV2TokenizerModel(config).eval()
    noise = torch.randn(4, 1, 256, generator=torch.Generator().manual_seed(0))
    codes = torch.randint(1024, (2, config.num_quantizers, 9), generator=torch.Generator().manual_seed(1))
    expected = model.encode(noise).audio_codes, model.decode(codes).audio_values, model(noise).audio_values
    accelerate(model)
    output = model.encode(noise).audio_codes, model.decode(codes).audio_values, model(noise).audio_values
    assert torch.equal(output[0], expected[0])
    for ours, theirs in zip(output[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.fixture(scope="module")
def audio_tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo_audio_tokenizer")
    write_audio_tokenizer(folder, DEMO_AUDIO_TOKENIZER_CONFIG)
    return folder


def processor_of(config, folder):
    """A processor of a model of this configuration, with the audio tokenizer in `folder`."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(reference.native_config(config)), pad_token="<|end_of_text|>"
    )
    return transformers.HiggsAudioV2Processor(
        transformers.DacFeatureExtractor(sampling_rate=24000, hop_length=960),
        tokenizer,
        transformers.HiggsAudioV2TokenizerModel.from_pretrained(folder).eval(),
    )


TEXT = "Hello there.<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>And now, something longer.<|audio_out_bos|>"
RECORDING = 0.1 * torch.randn(9600, generator=torch.Generator().manual_seed(0)).numpy()


def test_from_a_text_and_a_recording_to_sound_with_the_processor(audio_tokenizer_folder):
    model = reference.tiny_model(8, codebook_size=1026, endless=True)
    processor = processor_of(model.config, audio_tokenizer_folder)

    def speak():
        inputs = processor(text=TEXT, audio=RECORDING, return_tensors="pt", sampling_rate=24000)
        outputs = model.generate(**inputs, max_new_tokens=25, do_sample=False)
        (audio,) = processor.batch_decode(outputs)
        return inputs, outputs, audio

    expected = speak()
    accelerate(model)
    accelerate(processor.audio_tokenizer)
    inputs, outputs, audio = speak()
    assert inputs.keys() == expected[0].keys()
    assert torch.equal(inputs["audio_input_ids"], expected[0]["audio_input_ids"])
    assert torch.equal(outputs, expected[1])
    assert audio.shape == (960 * (25 - 1 - 7),)
    torch.testing.assert_close(audio, expected[2], rtol=0, atol=1e-5 * expected[2].abs().max())


def test_a_processor_with_an_accelerated_audio_tokenizer_stays_whole(audio_tokenizer_folder, tmp_path):
    """transformers copies the processor's parts to describe it."""
    processor = processor_of(reference.tiny_config(codebook_size=1026), audio_tokenizer_folder)
    expected = processor.to_dict(), str(processor)
    accelerate(processor.audio_tokenizer)
    assert (processor.to_dict(), str(processor)) == expected
    copied = copy.deepcopy(processor)
    assert type(copied.audio_tokenizer) is transformers.HiggsAudioV2TokenizerModel
    processor.save_pretrained(tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded.audio_tokenizer) is transformers.HiggsAudioV2TokenizerModel
    options = {"text": TEXT, "audio": RECORDING, "return_tensors": "pt", "sampling_rate": 24000}
    expected = processor(**options)
    for other in (copied, loaded):
        assert torch.equal(other(**options)["audio_input_ids"], expected["audio_input_ids"])


def test_what_the_audio_tokenizer_refuses(audio_tokenizer):
    model = accelerate(audio_tokenizer)
    with pytest.raises(ValueError, match=r"input_values must have shape \[batch, 1, samples\], got \[1, 2, 9600\]"):
        model.encode(torch.zeros(1, 2, 9600))
    for empty in (torch.zeros(0, 1, 9600), torch.zeros(2, 1, 0)):
        with pytest.raises(AudioError, match=r"input_values must have a row and 119 samples or more, got shape \["):
            model.encode(empty)
    with pytest.raises(AudioError, match="input_values must be finite, got NaN or infinity"):
        model.encode(torch.full((1, 1, 9600), float("nan")))
    with pytest.raises(AudioError, match=r"audio_codes must have at least one row, got shape \[0, 3, 5\]"):
        model.decode(torch.zeros(0, SMALL.num_codebooks, 5, dtype=torch.int64))
    with pytest.raises(ParameterError, match="bandwidth must be one of"):
        model.encode(torch.zeros(1, 1, 9600), bandwidth=123)
    for bandwidth in ([123], torch.zeros(2)):
        with pytest.raises(ParameterError, match="bandwidth must be a number or None, got "):
            model.encode(torch.zeros(1, 1, 9600), bandwidth)
    for wrong in (0, [[[0]]], torch.zeros(1, 1, 9600, device="meta"), torch.zeros(1, 1, 9600).to_sparse()):
        for name, method in (("input_values", model.encode), ("audio_codes", model.decode)):
            with pytest.raises(AudioError, match=f"{name} must be a dense tensor of numbers, got "):
                method(wrong)
    with pytest.raises(ParameterError, match="return_dict must be True or False, got 'no'"):
        model.encode(torch.zeros(1, 1, 9600), return_dict="no")
    with pytest.raises(ParameterError, match=r"audio_codes of shape \[1, 2, 5\].* restore\(model\)"):
        model.decode(torch.zeros(1, 2, 5, dtype=torch.int64))
