"""Arguments of a wrong type are refused by name, in one line; `test_properties` tries many more."""

import asyncio
import copy
import pickle

import numpy as np
import pytest
import torch

from higgs_native import HiggsNativeError, ParameterError
from higgs_native.compat import boson
from higgs_native.compat.boson import ChatMLDatasetSample, ChatMLSample, HiggsAudioConfig, Message


HUGE = 10**5000  # which Python refuses to write out
CODES = torch.zeros(8, 3, dtype=torch.int64)


@pytest.fixture(scope="module")
def engine(demo_folder):
    return boson.HiggsAudioServeEngine(demo_folder, demo_folder / "audio_tokenizer", device="cpu")


@pytest.fixture(scope="module")
def client(demo_folder, engine):
    return boson.HiggsAudioModelClient(demo_folder, engine.audio_tokenizer, max_new_tokens=12)


def generate(engine, **arguments):
    inputs = engine._prepare_inputs(ChatMLSample([Message("user", "Hi.")]), force_audio_gen=True)
    return engine.model.generate(**{**inputs, "max_new_tokens": 12, **arguments})


def collator(**settings):
    ids = dict.fromkeys(
        ("audio_in_token_id", "audio_out_token_id", "pad_token_id", "audio_stream_bos_id", "audio_stream_eos_id"), 5
    )
    return boson.HiggsAudioSampleCollator(None, **{**ids, **settings})


def sample(**values):
    return collator()([ChatMLDatasetSample(**{"input_ids": torch.tensor([5]), **values})])


def prepared(engine, **values):
    return boson.prepare_chatml_sample({"messages": [{"role": "user", "content": "Hi."}], **values}, engine.tokenizer)


def spoken(client, **arguments):
    given = {"messages": [], "audio_ids": [], "chunked_text": ["Hi."], "generation_chunk_buffer_size": 1, **arguments}
    return client.generate(**given)


def streamed(engine, value, **settings):
    async def put():
        boson.AsyncHiggsAudioStreamer(engine.tokenizer, **settings).put(value)

    asyncio.run(put())


def test_ids_may_be_an_array(engine):
    inputs = engine._prepare_inputs(ChatMLSample([Message("user", "Hi.")]), force_audio_gen=True)
    expected = generate(engine, seed=1)
    output = generate(engine, input_ids=inputs["input_ids"].numpy().astype(">i4"), seed=1)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.audio_sequences[0], expected.audio_sequences[0])


OF_ENGINE = {
    "ids": (lambda e: generate(e, input_ids=[[1]]), "input_ids must be integers in a tensor or an array, got list"),
    "a mask": (
        lambda e: generate(e, attention_mask=1),
        "attention_mask must be integers in a tensor or an array, got int",
    ),
    "a long mask": (
        lambda e: generate(e, attention_mask=torch.ones(1, 2, dtype=torch.bool)),
        "attention_mask must have the shape [1, ",
    ),
    "codes": (
        lambda e: generate(e, audio_in_ids=3, audio_in_ids_start=torch.tensor([0])),
        "audio_in_ids must be integers in a tensor or an array, got int",
    ),
    "codes of a dimension": (
        lambda e: generate(e, audio_out_ids=CODES[0], audio_out_ids_start=torch.tensor([0])),
        "audio_out_ids must have shape [codebooks, frames], and audio_out_ids_start one dimension, got [3] and [1]",
    ),
    "starts": (
        lambda e: generate(e, audio_in_ids=CODES, audio_in_ids_start=torch.tensor([0, -2])),
        "audio_in_ids_start must ascend from 0 to the 3 frames, got [0, -2]",
    ),
    "do_sample": (lambda e: generate(e, do_sample=np.zeros(2)), "do_sample must be True or False, got array"),
    "streamer": (lambda e: generate(e, streamer="a"), "streamer must have the methods put and end, got str"),
    "a place": (lambda e: e.model.to({}), "can't be moved (to() received an invalid combination of arguments"),
    "a place of bytes": (lambda e: e.model.to(b"\x80"), "can't be moved ('utf-8' codec can't decode byte 0x80"),
    "put": (lambda e: streamed(e, 0), "value must be integers in a tensor or an array, got int"),
    "put without dimensions": (
        lambda e: streamed(e, torch.tensor(1)),
        "value must have shape [1, S], [S], [1] or [codebooks], got []",
    ),
    "timeout": (lambda e: streamed(e, CODES, timeout="1"), "timeout must be a number or None, got '1'"),
    "text": (lambda e: e.tokenizer.encode(3), "text must be a string, got 3"),
    "broken text": (lambda e: e.tokenizer.encode("\ud800"), "text must be valid Unicode, got '\\ud800' at 0"),
    "text ids": (lambda e: e.tokenizer.decode("12"), "each of token_ids must be an integer, got '1'"),
    "negative ids": (lambda e: e.tokenizer.decode([-1]), "each of token_ids must be between 0 and 2**32 - 1, got -1"),
    "tokens": (
        lambda e: e.tokenizer.convert_tokens_to_ids(["a", 3]),
        "tokens must be a list of strings, got ['a', 3]",
    ),
    "role": (
        lambda e: prepared(e, messages=[{"role": 3, "content": "Hi."}]),
        "role must be a string, got 3",
    ),
    "recipient": (
        lambda e: prepared(e, messages=[{"role": "assistant", "content": "Hi.", "recipient": CODES}]),
        "recipient must be a string or None, got tensor(",
    ),
    "no message": (lambda e: prepared(e, messages=()), "conversation must hold at least one message, got none"),
    "no dictionary": (lambda e: prepared(e, messages=[3]), "a message must be a dictionary, got int"),
    "a large number": (lambda e: prepared(e, messages=HUGE), "sample must be a ChatMLSample or its dictionary, got {"),
    "misc": (lambda e: prepared(e, misc=(1,)), "misc must be a dictionary or None, got (1,)"),
    "start_index": (lambda e: prepared(e, start_index="1"), "start_index must be an integer or None, got '1'"),
    "a sample": (
        lambda e: boson.prepare_chatml_sample(CODES, e.tokenizer),
        "sample must be a ChatMLSample or its dictionary, got tensor(",
    ),
}
OF_CLIENT = {
    "chunks": (lambda c: spoken(c, chunked_text=7), "chunked_text must be a list of strings, got 7"),
    "one chunk": (
        lambda c: spoken(c, chunked_text="Hi."),
        "chunked_text must be a list of strings, got the string 'Hi.'",
    ),
    "messages": (lambda c: spoken(c, messages=3), "messages must be a list, got int"),
    "codes": (lambda c: spoken(c, audio_ids=CODES), "audio_ids must be a list, got Tensor"),
}
OTHERS = {
    "a tokenizer": (
        lambda: boson.prepare_chatml_sample(ChatMLSample([Message("user", "Hi.")]), "Hi."),
        "tokenizer must be a text tokenizer with encode, got str",
    ),
    "configuration": (lambda: HiggsAudioConfig.from_dict(0), "config_dict must be a dictionary by names, got 0"),
    "names": (lambda: HiggsAudioConfig.from_dict({1: 2}), "config_dict must be a dictionary by names, got {1: 2}"),
    "start_idx": (lambda: boson.revert_delay_pattern(CODES, "a"), "start_idx must be an integer, got 'a'"),
    "a negative start_idx": (lambda: boson.revert_delay_pattern(CODES, -1), "start_idx must be at least 0, got -1"),
    "no codebooks": (
        lambda: boson.build_delay_pattern_mask(CODES[None, :0], 0, 0),
        "codes must have shape [batch, codebooks, N], got [1, 0, 3]",
    ),
    "an id": (
        lambda: boson.build_delay_pattern_mask(CODES[None], 0, 2**63),
        "pad_token_id must be between -2**31 and 2**31 - 1, got 9223372036854775808",
    ),
    "no memory": (
        lambda: boson.revert_delay_pattern(CODES.to("meta")),
        "delayed codes must be a dense tensor with memory, got one of the device meta",
    ),
    "sparse": (
        lambda: boson.revert_delay_pattern(CODES.to_sparse()),
        "delayed codes must be a dense tensor with memory, got torch.sparse_coo",
    ),
    "no batch": (lambda: collator()([]), "batch must be a list of at least one sample, got []"),
    "no samples": (lambda: collator()(["a"]), "each sample must be of the class ChatMLDatasetSample, got str"),
    "ids": (lambda: sample(input_ids=[5]), "input_ids must be integers in a tensor or an array, got list"),
    "a matrix of ids": (lambda: sample(input_ids=CODES), "input_ids must have 1 dimensions, got [8, 3]"),
    "codes": (
        lambda: sample(audio_ids_concat=CODES[0], audio_ids_start=torch.tensor([0])),
        "audio_ids_concat must have 2 dimensions, got [3]",
    ),
    "starts": (
        lambda: sample(audio_ids_concat=CODES, audio_ids_start=torch.tensor([7])),
        "audio_ids_start must ascend from 0 to the 3 frames, got 7 before 3",
    ),
    "different codebooks": (
        lambda: collator()(
            [ChatMLDatasetSample(torch.tensor([5]), None, codes, torch.tensor([0])) for codes in (CODES, CODES[:2])]
        ),
        "all recordings must have as many codebooks, got [8, 2]",
    ),
    "round_to": (lambda: collator(round_to=0), "round_to must be between 1 and 1048576, got 0"),
    "pad_left": (lambda: collator(pad_left="yes"), "pad_left must be True or False, got 'yes'"),
    "a token": (lambda: collator(pad_token_id="a"), "pad_token_id must be an integer or None, got 'a'"),
    "a recording's number": (
        lambda: ChatMLDatasetSample(torch.tensor([5])).get_audio_codes(-1),
        "idx must be at least 0, got -1",
    ),
}


def check_refused(message, call, *arguments):
    with pytest.raises(HiggsNativeError) as refused:
        call(*arguments)
    assert message in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("case", OF_ENGINE)
def test_the_engine_refuses(engine, case):
    call, message = OF_ENGINE[case]
    check_refused(message, call, engine)


@pytest.mark.parametrize("case", OF_CLIENT)
def test_the_client_refuses(client, case):
    call, message = OF_CLIENT[case]
    check_refused(message, call, client)


@pytest.mark.parametrize("case", OTHERS)
def test_samples_and_codes_are_refused(case):
    call, message = OTHERS[case]
    check_refused(message, call)


def test_a_gpu_is_a_number(demo_folder, engine):
    for device_id in ("0", CODES):
        check_refused(
            "device_id must be an integer or None, got ",
            lambda number: boson.HiggsAudioModelClient(demo_folder, engine.audio_tokenizer, device_id=number),
            device_id,
        )


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_what_holds_weights_says_how_to_share_it(engine, client, copied):
    for item in (engine, engine.model, engine.audio_tokenizer, client):
        with pytest.raises(ParameterError, match=r"^a HiggsAudio\w+ can't be copied or pickled: threads can share it"):
            copied(item)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_what_holds_no_weights_can_be_copied_and_pickled(engine, copied):
    assert copied(engine.model.config).to_dict() == engine.model.config.to_dict()
    assert copied(engine.tokenizer).encode("Hi.") == engine.tokenizer.encode("Hi.")
    assert vars(copied(engine.collator)) == vars(engine.collator)
