"""The streamer of `boson_multimodal` by itself: what a thread puts in, and what an event loop takes out."""

import asyncio
import copy
import pickle
import threading

import pytest
import torch

from higgs_native.compat.boson import AsyncHiggsAudioStreamer
from higgs_native.errors import ParameterError
from higgs_native.utils.background_iterator import ConsumerLeft
from tests.helpers.waiting import PATIENCE, join


async def collect(streamer) -> list:
    return [delta async for delta in streamer]


class ByteTokenizer:
    """Token n is the byte n."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", errors="replace")


def test_the_streamer():
    async def run(**options):
        streamer = AsyncHiggsAudioStreamer(ByteTokenizer(), audio_num_codebooks=8, **options)

        def put():
            streamer.put(torch.tensor([[65, 66]]))
            for byte in "é!".encode():
                streamer.put(torch.tensor([byte]))
            streamer.put(torch.arange(8))
            streamer.end()

        thread = threading.Thread(target=put)
        thread.start()
        deltas = await collect(streamer)
        join(thread)
        return deltas

    *texts, audio = asyncio.run(run(skip_prompt=True))
    assert [delta.text for delta in texts] == ["", "é", "!"]
    assert [delta.text_tokens.tolist() for delta in texts] == [[195], [169], [33]]
    assert torch.equal(audio.audio_tokens, torch.arange(8))
    assert asyncio.run(run())[0].text == "AB"


def test_the_streamer_raises_what_went_wrong():
    async def run(act, **options):
        streamer = AsyncHiggsAudioStreamer(ByteTokenizer(), skip_prompt=True, audio_num_codebooks=8, **options)
        streamer.put(torch.tensor([[1]]))
        act(streamer)
        return await collect(streamer)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run(lambda streamer: streamer.fail(ZeroDivisionError())))
    with pytest.raises(TimeoutError, match=r"nothing was generated for 0\.01 s"):
        asyncio.run(run(lambda streamer: None, timeout=0.01))
    with pytest.raises(ParameterError, match="a frame must have 8 codes, got 7"):
        asyncio.run(run(lambda streamer: streamer.put(torch.arange(7))))


def test_a_streamer_can_not_be_copied():
    async def streamer():
        return AsyncHiggsAudioStreamer(None)

    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ParameterError, match=r"^an AsyncHiggsAudioStreamer can't be copied or pickled"):
            copied(asyncio.run(streamer()))


def test_text_that_ends_inside_of_a_character_comes_at_the_end():
    async def run():
        streamer = AsyncHiggsAudioStreamer(ByteTokenizer(), skip_prompt=True)
        for byte in b"\x01!\xe4\xbd":  # the prompt, a character, and two bytes of three
            streamer.put(torch.tensor([byte]))
        streamer.end()
        return [(delta.text, delta.text_tokens is None) for delta in await collect(streamer)]

    assert asyncio.run(run()) == [("!", False), ("", False), ("", False), ("\ufffd", True)]


def test_after_the_streamers_end_there_is_nothing():
    async def run(act):
        streamer = AsyncHiggsAudioStreamer(ByteTokenizer())
        streamer.put(torch.tensor([[65]]))
        act(streamer)
        assert (await anext(streamer)).text == "A"
        for _ in range(3):
            try:
                await asyncio.wait_for(anext(streamer), PATIENCE)
            except (StopAsyncIteration, ZeroDivisionError) as error:
                yield type(error)

    async def kinds(act):
        return [kind async for kind in run(act)]

    assert asyncio.run(kinds(lambda streamer: streamer.end())) == [StopAsyncIteration] * 3
    failed = asyncio.run(kinds(lambda streamer: streamer.fail(ZeroDivisionError())))
    assert failed == [ZeroDivisionError, StopAsyncIteration, StopAsyncIteration]


def test_a_streamer_that_has_ended_takes_another_generation():
    async def run():
        streamer = AsyncHiggsAudioStreamer(ByteTokenizer(), skip_prompt=True)
        texts = []
        for letter in (65, 66):
            streamer.put(torch.tensor([[1]]))
            streamer.put(torch.tensor([letter]))
            streamer.end()
            texts += [delta.text for delta in await collect(streamer)]
        return texts

    assert asyncio.run(run()) == ["A", "B"]


def puts_until_the_consumer_left(streamer, puts):
    streamer.put(torch.tensor([[1]]))
    try:
        while len(puts) < 10**6:
            streamer.put(torch.tensor([65]))
            puts.append(1)
    except ConsumerLeft:
        return
    raise AssertionError("nothing told the thread to end")


def test_the_streamer_waits_for_a_slow_consumer_and_ends_with_it():
    puts: list[int] = []

    async def run():
        streamer = AsyncHiggsAudioStreamer(ByteTokenizer(), skip_prompt=True)
        thread = threading.Thread(target=puts_until_the_consumer_left, args=(streamer, puts))
        thread.start()
        taken = 0
        async for _ in streamer:
            taken += 1
            if taken == 3:
                await asyncio.sleep(0.2)
                assert len(puts) <= 3 + 64
            if taken == 200:
                break
        await asyncio.to_thread(join, thread)

    asyncio.run(run())
    assert 200 <= len(puts) <= 200 + 64


def test_a_closed_event_loop_ends_the_streamers_thread():
    puts: list[int] = []

    async def run():
        streamer = AsyncHiggsAudioStreamer(ByteTokenizer(), skip_prompt=True)
        thread = threading.Thread(target=puts_until_the_consumer_left, args=(streamer, puts))
        thread.start()
        await anext(streamer)
        return thread

    thread = asyncio.run(run())
    join(thread)
    assert len(puts) <= 65
