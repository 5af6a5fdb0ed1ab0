"""The metrics of an engine."""

from dataclasses import dataclass


@dataclass
class EngineMetrics:
    """The state of an engine, and totals since it was made.

    Attributes:
        waiting, running: requests without and with a slot.
        finished, aborted, failed: requests that have ended.
        preempted: how often a request has lost its slot for want of pages.
        underruns: how often the playback of a real-time stream had to pause.
        steps, rows: steps, and rows that they computed.
        prompt_rows: the rows among them that belong to prompts.
        prefill_seconds, decode_seconds: time of the steps with rows of prompts, and of the others.
        frames: frames drawn; 25 are a second of audio.
        scheduling_seconds: time of the steps that is neither `prefill_seconds` nor `decode_seconds`.
        pages_held, pages: pages of the cache that sequences hold, and all pages.
    """

    waiting: int = 0
    running: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    preempted: int = 0
    underruns: int = 0
    steps: int = 0
    rows: int = 0
    prompt_rows: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    frames: int = 0
    scheduling_seconds: float = 0.0
    pages_held: int = 0
    pages: int = 0
