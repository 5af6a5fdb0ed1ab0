"""The deltas of text and audio that Boson's engine streams."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import torch

from higgs_native.errors import ParameterError
from higgs_native.utils.background_iterator import ConsumerLeft
from higgs_native.utils.checks import check_flag, check_integer, check_number
from higgs_native.utils.tensors import integer_tensor
from higgs_native.utils.uncopyable import Uncopyable


DELTAS_AHEAD = 64
"""Deltas that may wait for their consumer."""

_LOOP_CHECK_SECONDS = 0.5


@dataclass
class HiggsAudioStreamerDelta:
    """A delta of the output: text, or one frame of audio; the last one says why generation ended.

    Attributes:
        text: of `text_tokens`; empty while a character is incomplete, then the text of all its tokens. An incomplete
            character at the end comes in a delta without tokens.
        text_tokens: [1], int64.
        audio_tokens: [codebooks], int64: the next frame, still delayed; a segment begins with a frame of BOS.
        finish_reason: `stop` or `length`, alone in the last delta.
    """

    text: str | None = None
    text_tokens: torch.Tensor | None = None
    audio_tokens: torch.Tensor | None = None
    finish_reason: str | None = None


class TextDeltas:
    """Decodes tokens as they come, and keeps those that end inside a character."""

    def __init__(self, tokenizer: Any, decode_options: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._options = {"skip_special_tokens": False} | decode_options
        self._pending: list[int] = []

    def delta(self, tokens: torch.Tensor) -> HiggsAudioStreamerDelta:
        """The next tokens [N], and their text if it is complete."""
        self._pending += tokens.tolist()
        text = self._tokenizer.decode(self._pending, **self._options)
        if text.endswith("\ufffd") and len(self._pending) < 4:  # a character has up to four bytes
            text = ""
        else:
            self._pending = []
        return HiggsAudioStreamerDelta(text=text, text_tokens=tokens)

    def rest(self) -> list[HiggsAudioStreamerDelta]:
        """At the end: the text of tokens that end inside of a character, in one delta, if there are such."""
        pending, self._pending = self._pending, []
        return [HiggsAudioStreamerDelta(text=self._tokenizer.decode(pending, **self._options))] if pending else []


class AsyncHiggsAudioStreamer(Uncopyable):
    """Takes tokens from a generating thread, and gives them as deltas to an `async for`.

    It is created in the consumer's event loop. The thread calls `put`, then `end` or `fail`; `put` waits while 64
    deltas are not taken. Leaving the `async for` closes it, and so does the end of its event loop. A consumer that
    only uses `anext` calls `close`.

    Args:
        tokenizer: decodes the text: `decode(ids, skip_special_tokens=...)`.
        skip_prompt: pass over what is put first.
        timeout: how long to wait for a delta, in seconds; None: for ever.
        audio_num_codebooks: how many codes a frame has.
        decode_kwargs: for `tokenizer.decode`.
    """

    _instead = "; its deltas may be"

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        audio_num_codebooks: int = 1,
        **decode_kwargs: Any,
    ) -> None:
        check_flag("skip_prompt", skip_prompt)
        check_number("timeout", timeout, optional=True)
        check_integer("audio_num_codebooks", audio_num_codebooks)
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.timeout = timeout
        self.audio_num_codebooks = audio_num_codebooks
        self.next_tokens_are_prompt = True
        self._texts = TextDeltas(tokenizer, decode_kwargs)
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._queue: asyncio.Queue[HiggsAudioStreamerDelta | BaseException | None] = asyncio.Queue()
        self._changed = threading.Condition()
        self._waiting = 0  # deltas that are not taken
        self._closed = False
        self._over = False  # the consumer has had all

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt [1, S] or [S] first, then a text token [1] or a frame [codebooks] at a time.

        In a thread other than the event loop's it waits for a consumer that is slow.

        Raises:
            ParameterError: it is no tensor of integers; or there are more codes than codebooks, or fewer.
            ConsumerLeft: nobody takes deltas any more: an error that ends the generation.
        """
        value = integer_tensor("value", value)
        if value.dim() == 0:
            raise ParameterError("value must have shape [1, S], [S], [1] or [codebooks], got []")
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        if is_prompt or len(value) == 1:
            delta = self._texts.delta(value.flatten())
        elif len(value) == self.audio_num_codebooks:
            delta = HiggsAudioStreamerDelta(audio_tokens=value)
        else:
            raise ParameterError(f"a frame must have {self.audio_num_codebooks} codes, got {len(value)}")
        with self._changed:
            # The event loop's own thread can't wait for its consumer.
            while self._waiting >= DELTAS_AHEAD and not self._left() and threading.get_ident() != self._loop_thread:
                self._changed.wait(_LOOP_CHECK_SECONDS)
            if self._left():
                raise ConsumerLeft
        self._send(delta)

    def end(self) -> None:
        """Say that nothing will follow."""
        self.next_tokens_are_prompt = True
        for delta in self._texts.rest():
            self._send(delta)
        self._send(None)

    def fail(self, error: BaseException) -> None:
        """Let the consumer raise an error."""
        self._send(error)

    def close(self) -> None:
        """Take no deltas any more: the next `put` ends the generating thread by ConsumerLeft."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _left(self) -> bool:
        return self._closed or self._loop.is_closed()

    def _send(self, item: HiggsAudioStreamerDelta | BaseException | None) -> None:
        with self._changed:
            self._waiting += 1
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the event loop is closed, perhaps since a moment ago
            self.close()

    async def __aiter__(self) -> AsyncIterator[HiggsAudioStreamerDelta]:
        try:
            while True:
                try:
                    delta = await anext(self)
                except StopAsyncIteration:
                    return
                yield delta
        finally:
            if not self._over:
                self.close()

    async def __anext__(self) -> HiggsAudioStreamerDelta:
        if self._over and not self._waiting:
            raise StopAsyncIteration
        try:
            item = await asyncio.wait_for(self._queue.get(), self.timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"nothing was generated for {self.timeout} s") from None
        with self._changed:
            self._waiting -= 1
            self._changed.notify_all()
        self._over = item is None or isinstance(item, BaseException)
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item
