"""`higgs-native read`: a long text into an audio file, in chunks."""

import os
from pathlib import Path
from typing import Annotated

import typer

from higgs_native.cli.console import advising, notice
from higgs_native.cli.options import (
    OUT_HELP,
    AdapterOption,
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
    SubtitlesOption,
    SubtitleWordsOption,
    TemperatureOption,
    TextArgument,
    TopKOption,
    TopPOption,
    VoiceOption,
    VoicesOption,
)
from higgs_native.long_form.settings import CHUNK_SECONDS, MAX_RETRIES, Pauses
from higgs_native.utils.files import locked
from higgs_native.utils.progress import bars_hidden


def read(
    text: TextArgument,
    out: Annotated[
        Path,
        typer.Option(
            help=f"{OUT_HELP} For a book (.epub, .md), also .m4b, which has chapter marks, or a folder, which gets a "
            "file per chapter."
        ),
    ] = Path("out.wav"),
    format: FormatOption = None,
    loudness: LoudnessOption = None,
    speed: SpeedOption = 1.0,
    subtitles: SubtitlesOption = None,
    subtitle_words: SubtitleWordsOption = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="The folder that keeps finished chunks and every attempt. After an interruption, the same command "
            "resumes from it.",
            show_default="--out with .parts appended, removed at the end",
        ),
    ] = None,
    chunk_seconds: Annotated[
        float | None,
        typer.Option(help="Maximum length of a chunk in seconds, 2 to 30.", show_default="20; embedded voice: 10"),
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
    chapter_pause: Annotated[float, typer.Option(help="Seconds of silence before a chapter.")] = Pauses.chapter,
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
    adapter: AdapterOption = None,
    reference_audio: ReferenceAudioOption = None,
    reference_text: ReferenceTextOption = None,
    scene: SceneOption = None,
    seed: SeedOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    ras_win_len: RasWinLenOption = None,
    ras_win_max_num_repeat: RasWinMaxNumRepeatOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
) -> None:
    """Speak a long text, such as a book, into an audio file, in chunks.

    An EPUB (.epub) or Markdown (.md) file is a book with chapters.
    """
    from tqdm import tqdm

    from higgs_native.audio.files.formats import find_format
    from higgs_native.audio.files.m4b import check_m4b_path, is_m4b
    from higgs_native.audio.files.writing import check_output_path
    from higgs_native.audio.loudness import check_loudness
    from higgs_native.audio.tempo import check_speed
    from higgs_native.cli.inputs import (
        ChosenAdapter,
        checked_voices,
        load_engine,
        notice_unreadable,
        parsed_adapters,
        read_text,
        sampling_params,
    )
    from higgs_native.cli.output import shortened
    from higgs_native.errors import ParameterError
    from higgs_native.long_form.chunk_store import ChunkStore
    from higgs_native.long_form.chunking import chunk_text
    from higgs_native.long_form.long_speech import LongSpeech, check_long_form
    from higgs_native.manuscript.books.book import is_book, read_book
    from higgs_native.manuscript.lexicon import Lexicon
    from higgs_native.manuscript.preparation import prepare_text
    from higgs_native.subtitles import check_subtitles_path

    if not out.name:
        raise ParameterError(f"--out must name a file or a folder to make, got {out}")
    is_file = not is_book(text) or (out.suffix and not os.path.isdir(out))
    find_format(format or "mp3")
    if is_file and not is_m4b(out):
        check_output_path(out, format)
    elif is_file:
        check_m4b_path(out)
        if format is not None:
            raise ParameterError(f"--format must be left out for {out.name}, got {format}")
    check_loudness(loudness)
    check_speed(speed)
    if subtitles is not None:
        check_subtitles_path(subtitles)
        if not is_file:
            raise ParameterError(f"--subtitles must be left out if --out is a folder, got {subtitles}")
    pauses = Pauses(paragraph_pause, turn_pause, sentence_pause, chapter_pause)
    check_long_form(context_chunks, max_retries, parallel)
    manuscript = read_book(text) if is_book(text) else read_text(text)
    words = None if lexicon is None else Lexicon.read(lexicon)
    parts = []
    for part in [manuscript] if isinstance(manuscript, str) else [chapter.text for chapter in manuscript.chapters]:
        parts.append(prepare_text(part, normalize, strip_markup, words, phonemes=True))
        chunk_text(parts[-1], CHUNK_SECONDS if chunk_seconds is None else chunk_seconds)
    adapters = parsed_adapters(adapter)
    speaking = ChosenAdapter.of(voice, adapters)
    chosen = checked_voices(speaking.voice, reference_audio, reference_text, voices, model, speaking.speakers)
    sampling = sampling_params(
        model,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        ras_win_len=ras_win_len,
        ras_win_max_num_repeat=ras_win_max_num_repeat,
        seed=seed,
    )
    chunk_store = ChunkStore(out.with_name(f"{out.name}.parts") if folder is None else folder)
    engine = load_engine(model, audio_tokenizer, device, dtype, quantization, adapters)
    notice_unreadable(engine, "\n\n".join(parts))
    speech = LongSpeech(
        engine,
        manuscript,
        chunk_store.folder,
        voice=chosen,
        adapter=speaking.name,
        scene=scene,
        sampling=sampling,
        chunk_seconds=chunk_seconds,
        context_chunks=context_chunks,
        max_retries=max_retries,
        strict=strict,
        parallel=parallel,
        pauses=pauses,
        normalize=normalize,
        strip_markup=strip_markup,
        lexicon=words,
    )
    begun = speech.num_finished
    if begun:
        notice(f"{speech.folder}: {begun} of {len(speech)} chunks are finished.")
    seconds, retried, failed = 0.0, 0, []
    advice = f"The same command goes on from {speech.folder}, where the finished chunks are."
    bar = tqdm(
        desc="resumed" if begun else "reading",
        total=len(speech),
        initial=begun,
        unit="chunk",
        leave=False,
        disable=bars_hidden(),
    )
    with locked(speech.folder), advising(advice), bar:
        for chunk in speech:
            bar.update(chunk.index >= begun)
            seconds += chunk.duration
            retried += len(chunk.attempts) > 1
            if chunk.failures:
                failures = ", ".join(chunk.failures)
                failed.append(f"chunk {chunk.index} failed with every seed ({failures}): {chunk.text.text!r}")
        if is_file:
            title = shortened(speech.chunks[0].text) if isinstance(manuscript, str) else manuscript.title
            speech.save(out, format, title, loudness, speed)
            if subtitles is not None:
                speech.save_subtitles(subtitles, subtitle_words, speed)
        else:
            speech.save_chapters(out, format or "mp3", loudness, speed)
        if folder is None:
            chunk_store.remove()
    report = f"{seconds:.2f} s of audio in {len(speech)} chunks, {retried} of them spoken again, seed {speech.seed}"
    notice(f"{out}: {report}")
    for line in failed:
        notice(line)
