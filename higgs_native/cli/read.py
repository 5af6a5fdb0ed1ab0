"""`higgs-native read`: a long text into an audio file, in chunks."""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from higgs_native.audio.loudness import check_loudness
from higgs_native.audio.tempo import check_speed
from higgs_native.audio.writing import check_output_path
from higgs_native.cli.console import notice
from higgs_native.cli.inputs import checked_voices, load_engine, read_text
from higgs_native.cli.options import (
    OUT_HELP,
    AudioTokenizerOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    LexiconOption,
    LoudnessOption,
    ModelOption,
    NormalizeOption,
    QuantizationOption,
    RasWinLenOption,
    RasWinMaxNumRepeatOption,
    ReferenceAudioOption,
    ReferenceTextOption,
    SceneOption,
    SeedOption,
    SpeedOption,
    StripMarkupOption,
    TemperatureOption,
    TextArgument,
    TopKOption,
    TopPOption,
    VoiceOption,
    VoicesOption,
)
from higgs_native.cli.output import shortened
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.long_form.chunk_store import ChunkStore
from higgs_native.long_form.chunking import chunk_text
from higgs_native.long_form.joining import Pauses
from higgs_native.long_form.long_speech import CHUNK_SECONDS, MAX_RETRIES, LongSpeech, check_long_form
from higgs_native.manuscript.preparation import prepare_text
from higgs_native.utils.files import locked


def read(
    text: TextArgument,
    out: Annotated[Path, typer.Option(help=OUT_HELP)] = Path("out.wav"),
    format: FormatOption = None,
    loudness: LoudnessOption = None,
    speed: SpeedOption = 1.0,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where finished chunks are kept, with every attempt. After an interruption, the same command resumes "
            "from this folder.",
            show_default="the name of --out and .parts, removed at the end",
        ),
    ] = None,
    chunk_seconds: Annotated[
        float | None,
        typer.Option(help="Maximum length of a chunk in seconds, 2 to 30.", show_default="20; embedded voice: 4.5"),
    ] = None,
    context_chunks: Annotated[
        int | None,
        typer.Option(
            help="Number of earlier chunks in the prompt of the next one.", show_default="2; embedded voice: 0"
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of chunks that are spoken at the same time. Above 1, the prompt of a chunk holds no "
            "earlier chunks.",
            show_default="8 without --context-chunks, else 1",
        ),
    ] = None,
    max_retries: Annotated[
        int, typer.Option(help="Maximum retries of a chunk that fails, each with the next seed.")
    ] = MAX_RETRIES,
    strict: Annotated[bool, typer.Option(help="Stop at a chunk that fails with every seed.")] = False,
    paragraph_pause: Annotated[float, typer.Option(help="Seconds of silence before a paragraph.")] = Pauses.paragraph,
    turn_pause: Annotated[float, typer.Option(help="Seconds of silence before another speaker's turn.")] = Pauses.turn,
    sentence_pause: Annotated[
        float, typer.Option(help="Seconds of silence before a sentence that begins a chunk.")
    ] = Pauses.sentence,
    normalize: NormalizeOption = False,
    strip_markup: StripMarkupOption = False,
    lexicon: LexiconOption = None,
    model: ModelOption = None,
    audio_tokenizer: AudioTokenizerOption = None,
    voice: VoiceOption = None,
    voices: VoicesOption = None,
    reference_audio: ReferenceAudioOption = None,
    reference_text: ReferenceTextOption = None,
    scene: SceneOption = None,
    seed: SeedOption = None,
    temperature: TemperatureOption = SamplingParams.temperature,
    top_k: TopKOption = SamplingParams.top_k,
    top_p: TopPOption = SamplingParams.top_p,
    ras_win_len: RasWinLenOption = SamplingParams.ras_win_len,
    ras_win_max_num_repeat: RasWinMaxNumRepeatOption = SamplingParams.ras_win_max_num_repeat,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
) -> None:
    """Speak a long text, such as a book, into an audio file, in chunks."""
    out = check_output_path(out, format)
    check_loudness(loudness)
    check_speed(speed)
    pauses = Pauses(paragraph_pause, turn_pause, sentence_pause)
    sampling = SamplingParams(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
    check_long_form(sampling, context_chunks, max_retries, parallel)
    text = prepare_text(read_text(text), normalize, strip_markup, lexicon)
    chunk_text(text, CHUNK_SECONDS if chunk_seconds is None else chunk_seconds)
    chosen = checked_voices(voice, reference_audio, reference_text, voices, model)
    chunk_store = ChunkStore(out.with_name(f"{out.name}.parts") if folder is None else folder)
    engine = load_engine(model, audio_tokenizer, device, dtype, quantization)
    speech = LongSpeech(
        engine,
        text,
        chunk_store.folder,
        voice=chosen,
        scene=scene,
        sampling=sampling,
        chunk_seconds=chunk_seconds,
        context_chunks=context_chunks,
        max_retries=max_retries,
        strict=strict,
        parallel=parallel,
        pauses=pauses,
    )
    if speech.num_finished:
        notice(f"{speech.folder}: {speech.num_finished} of {len(speech)} chunks are finished.")
    seconds, retried, failed = 0.0, 0, []
    with locked(speech.folder):
        for chunk in tqdm(speech, desc="reading", unit="chunk", leave=False, disable=None):
            seconds += chunk.duration
            retried += len(chunk.attempts) > 1
            if chunk.failures:
                failures = ", ".join(chunk.failures)
                failed.append(f"chunk {chunk.index} failed with every seed ({failures}): {chunk.text.text!r}")
        speech.save(out, format, shortened(speech.chunks[0].text), loudness, speed)
        if folder is None:
            chunk_store.remove()
    report = f"{seconds:.2f} s of audio in {len(speech)} chunks, {retried} of them spoken again, seed {speech.seed}"
    notice(f"{out}: {report}")
    for line in failed:
        notice(line)
