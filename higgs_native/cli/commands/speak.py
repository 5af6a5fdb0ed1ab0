"""`higgs-native speak`: a text into an audio file or a stream."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_native.cli.console import notice
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
    default_text,
)
from higgs_native.errors import ParameterError
from higgs_native.utils.progress import bars_hidden


if TYPE_CHECKING:
    from higgs_native.failure_checks import Failure


def speak(
    text: TextArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"{OUT_HELP} - writes to standard output, such as --out - --format mp3 | mpv -",
            show_default="out.wav",
        ),
    ] = None,
    format: FormatOption = None,
    loudness: LoudnessOption = None,
    speed: SpeedOption = 1.0,
    subtitles: SubtitlesOption = None,
    subtitle_words: SubtitleWordsOption = False,
    stream: Annotated[
        Path | None,
        typer.Option(
            help="Write raw PCM (16 bit, little-endian, mono, 24 kHz) while it is generated, instead of --out: to a "
            "file, a named pipe, or - for standard output, such as --stream - | aplay -f S16_LE -r 24000"
        ),
    ] = None,
    play: Annotated[
        bool, typer.Option("--play", help="Play the finished speech, by sounddevice or a program such as aplay.")
    ] = False,
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
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of steps; 25 steps are one second of audio.",
            show_default=default_text("max_new_tokens"),
        ),
    ] = None,
    emotion: Annotated[
        str | None, typer.Option(help="Higgs TTS 3: how each sentence is spoken, such as amusement or sadness.")
    ] = None,
    style: Annotated[str | None, typer.Option(help="Higgs TTS 3: singing, shouting or whispering.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
) -> None:
    """Speak a text into an audio file."""
    from tqdm import tqdm

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
    from higgs_native.cli.output import check_output, check_stream_path, shortened, write_output, write_stream
    from higgs_native.manuscript.lexicon import Lexicon
    from higgs_native.manuscript.preparation import prepare_text
    from higgs_native.manuscript.timing import split_passages, without_timing
    from higgs_native.prompt.normalize import normalize_text
    from higgs_native.subtitles import check_subtitles_path

    # All input is checked before the weights are loaded, which takes seconds.
    target = out or Path("out.wav")
    if stream is None:
        check_output(target, format)
        check_loudness(loudness)
        check_speed(speed)
        if subtitles is not None:
            check_subtitles_path(subtitles)
    else:
        given = {
            "--out": out,
            "--format": format,
            "--loudness": loudness,
            "--speed": None if speed == 1 else speed,
            "--subtitles": subtitles,
            "--play": play or None,
        }
        for name, value in given.items():
            if value is not None:
                raise ParameterError(f"{name} must not be given with --stream, got {value}")
        check_stream_path(stream)
    text = read_text(text)
    words = None if lexicon is None else Lexicon.read(lexicon)
    prepared = prepare_text(text, normalize, strip_markup, words, phonemes=True)
    split_passages(prepared)
    title = shortened(normalize_text(without_timing(prepared)))
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
        max_new_tokens=max_new_tokens,
    )
    engine = load_engine(model, audio_tokenizer, device, dtype, quantization, adapters)
    text = engine.tagged_text(engine.prepare_text(text, normalize, strip_markup, words), emotion, style)
    notice_unreadable(engine, text)
    if stream is not None:
        speech_stream = engine.stream(
            text,
            voice=chosen,
            scene=scene,
            adapter=speaking.name,
            sampling=sampling,
        )
        write_stream(speech_stream, stream)
        _warn_of_failures(stream, speech_stream.failures, speech_stream.finish_reason, sampling.max_new_tokens)
        return
    start = time.perf_counter()
    shown = "{desc}: {n:.2f} s of audio [{elapsed}]"
    with tqdm(desc="speaking", bar_format=shown, leave=False, disable=bars_hidden()) as bar:

        def show(seconds: float) -> None:
            bar.update(seconds - bar.n)

        speech = engine.speak(
            text,
            voice=chosen,
            scene=scene,
            adapter=speaking.name,
            sampling=sampling,
            on_progress=show,
        )
    elapsed = time.perf_counter() - start
    if str(target) == "-":
        write_output(speech.to_bytes(format or "wav", title, loudness, speed))
    else:
        speech.save(target, format, title, loudness, speed)
    if subtitles is not None:
        speech.save_subtitles(subtitles, subtitle_words, speed)
    notice(
        f"{target}: {speech.duration:.2f} s of audio in {elapsed:.2f} s, "
        f"real-time factor {elapsed / speech.duration:.2f} (seconds of work per second of audio), seed {speech.seed}"
    )
    _warn_of_failures(target, speech.failures, speech.finish_reason, sampling.max_new_tokens)
    if play:
        speech.play(loudness, speed)


def _warn_of_failures(
    path: Path, failures: "Sequence[Failure] | None", finish_reason: str | None, max_new_tokens: int
) -> None:
    """Name the failures in one line; there are none yet if the reader of a stream has left it."""
    if failures:
        found = ", ".join(failures)
        if finish_reason == "length":
            limit = f"cut off at --max-new-tokens {max_new_tokens}, or at the end of the cache"
            found = found.replace("no end", f"no end ({limit})")
        notice(f"warning: {path}: {found}; higgs-native read speaks a text in chunks, and again those that fail")
