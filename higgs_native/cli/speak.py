"""`higgs-native speak`: a text into an audio file or a stream."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_native.cli.console import notice, shows_notices
from higgs_native.cli.options import (
    AudioTokenizerOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    RasWinLenOption,
    RasWinMaxNumRepeatOption,
    ReferenceAudioOption,
    ReferenceTextOption,
    SceneOption,
    SeedOption,
    TemperatureOption,
    TextArgument,
    TopKOption,
    TopPOption,
    VoiceOption,
    VoicesOption,
    default_text,
)
from higgs_native.errors import ParameterError


if TYPE_CHECKING:
    from higgs_native.failure_checks import Failure


def speak(
    text: TextArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="The audio file to write: .wav, .flac, .ogg or .mp3.", show_default="out.wav"),
    ] = None,
    stream: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --out: where to write raw PCM (16 bit, little-endian, mono, 24 kHz) as it is generated: "
            "a file, a named pipe, or - for standard output, such as --stream - | aplay -f S16_LE -r 24000"
        ),
    ] = None,
    model: ModelOption = None,
    audio_tokenizer: AudioTokenizerOption = None,
    voice: VoiceOption = None,
    voices: VoicesOption = None,
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
            help="The maximum number of steps; 25 steps are one second of audio.",
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

    from higgs_native.audio.writing import check_output_path
    from higgs_native.cli.inputs import checked_voices, load_engine, read_text, sampling_params
    from higgs_native.cli.stream import check_stream_path, write_stream
    from higgs_native.prompt.normalize import normalize_text

    # All input is checked before the weights are loaded, which takes seconds.
    if stream is None:
        path = check_output_path(out or Path("out.wav"))
    elif out is not None:
        raise ParameterError(f"--out must not be given with --stream, got {out}")
    else:
        check_stream_path(stream)
    text = read_text(text)
    normalize_text(text)
    chosen = checked_voices(voice, reference_audio, reference_text, voices, model)
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
    engine = load_engine(model, audio_tokenizer, device, dtype, quantization)
    text = engine.tagged_text(text, emotion, style)
    if stream is not None:
        speech_stream = engine.stream(
            text,
            voice=chosen,
            scene=scene,
            sampling=sampling,
        )
        write_stream(speech_stream, stream)
        _warn_of_failures(stream, speech_stream.failures, speech_stream.finish_reason, sampling.max_new_tokens)
        return
    start = time.perf_counter()
    bars = None if shows_notices() else True  # None: on a terminal only
    with tqdm(desc="speaking", bar_format="{desc}: {n:.2f} s of audio [{elapsed}]", leave=False, disable=bars) as bar:

        def show(seconds: float) -> None:
            bar.update(seconds - bar.n)

        speech = engine.speak(
            text,
            voice=chosen,
            scene=scene,
            sampling=sampling,
            on_progress=show,
        )
    elapsed = time.perf_counter() - start
    speech.save(path)
    notice(
        f"{path}: {speech.duration:.2f} s of audio in {elapsed:.2f} s, "
        f"real-time factor {elapsed / speech.duration:.2f} (seconds of work per second of audio), seed {speech.seed}"
    )
    _warn_of_failures(path, speech.failures, speech.finish_reason, sampling.max_new_tokens)


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
