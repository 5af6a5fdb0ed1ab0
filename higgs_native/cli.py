"""The command `higgs-native`."""

import errno
import io
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

import higgs_native
from higgs_native._C import build_info
from higgs_native.audio.quality import VoiceWarning
from higgs_native.audio.writing import check_output_path
from higgs_native.calibration import DEFAULT_TEXTS, calibrated_model, check_calibration
from higgs_native.errors import AudioError, ParameterError, PromptError, exit_on_bad_input, exit_with_error
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.long_form.chunk_store import ChunkStore
from higgs_native.long_form.chunking import chunk_text
from higgs_native.long_form.joining import Pauses
from higgs_native.long_form.long_speech import CHUNK_SECONDS, MAX_RETRIES, LongSpeech, check_long_form
from higgs_native.model.checkpoint import resolve_folder
from higgs_native.model.packed_checkpoint import check_target, write_packed
from higgs_native.model.quantization import Quantization
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops import check_instruction_set
from higgs_native.ops.device import checked_device
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.normalize import normalize_text
from higgs_native.prompt.voices import VOICES_VARIABLE, Voice, check_voice, choose_voices, list_voices, read_voice
from higgs_native.streaming import SpeechStream
from higgs_native.utils.files import check_file_can_be_made, locked


# A text that looks like this is taken for the name of a missing file: nobody writes it to have it spoken.
_FILE_NAME = re.compile(r"\S+\.(?:txt|text|md|rst|html?|xml|json|srt|epub|pdf|docx?|odt|rtf)|(?:~|\.{0,2})/\S+")

MODEL_NAME = "bosonai/higgs-audio-v2-generation-3B-base"

app = typer.Typer(
    help="Higgs Audio V2 text-to-speech.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


# Options of several commands.
TextArgument = Annotated[str, typer.Argument(help="What to say: a text, a text file, or - for standard input.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help=f"The checkpoint: a folder, or a name on the Hub, such as {MODEL_NAME}. "
        "Default: the embedded voice, which is small, trained on synthetic speech, and knows few words."
    ),
]
AudioTokenizerOption = Annotated[
    str | None,
    typer.Option(
        help="The audio tokenizer: a folder, or a name on the Hub.",
        show_default="audio_tokenizer within the checkpoint, or else the published one",
    ),
]
VoiceOption = Annotated[
    str | None,
    typer.Option(help="A voice in the folder of voices; several, separated by commas, for SPEAKER0, SPEAKER1, ..."),
]
VoicesOption = Annotated[Path | None, typer.Option(help="The folder of voices.", show_default=f"${VOICES_VARIABLE}")]
ReferenceAudioOption = Annotated[Path | None, typer.Option(help="A recording of the voice to clone.")]
ReferenceTextOption = Annotated[str | None, typer.Option(help="The words spoken in the recording.")]
SceneOption = Annotated[
    str | None,
    typer.Option(help="The scene: where or how it is spoken, such as 'Audio is recorded from a quiet room.'"),
]
SeedOption = Annotated[int | None, typer.Option(help="The same seed gives the same speech.")]
TemperatureOption = Annotated[float, typer.Option(help="How freely codes are drawn; 0 takes the most likely ones.")]
TopKOption = Annotated[int, typer.Option(help="Draw among the k most likely codes; 0 turns it off.")]
TopPOption = Annotated[
    float, typer.Option(help="Draw among the most likely codes that together have this probability.")
]
RasWinLenOption = Annotated[int, typer.Option(help="Repetition window in frames; 0 turns it off.")]
RasWinMaxNumRepeatOption = Annotated[
    int, typer.Option(help="Occurrences in the window after which a code is redrawn.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: a GPU where there is one.")]
DtypeOption = Annotated[
    str, typer.Option(help="Dtype of the weights: float32, bfloat16, float16, or auto: that of the checkpoint.")
]
QuantizationOption = Annotated[
    str | None,
    typer.Option(help="Format of the weights: fp8, int8, int4, or one per part, such as int4,heads=int8."),
]


@app.command()
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
    temperature: TemperatureOption = SamplingParams.temperature,
    top_k: TopKOption = SamplingParams.top_k,
    top_p: TopPOption = SamplingParams.top_p,
    ras_win_len: RasWinLenOption = SamplingParams.ras_win_len,
    ras_win_max_num_repeat: RasWinMaxNumRepeatOption = SamplingParams.ras_win_max_num_repeat,
    max_new_tokens: Annotated[
        int, typer.Option(help="The maximum number of steps; 25 make a second of audio.")
    ] = SamplingParams.max_new_tokens,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
) -> None:
    """Speak a text into an audio file."""
    # All input is checked before the weights are loaded, which takes seconds.
    if stream is None:
        out = check_output_path(out or Path("out.wav"))
    elif out is not None:
        raise ParameterError("--out and --stream must not both be given")
    else:
        _check_stream_path(stream)
    text = _read_text(text)
    normalize_text(text)
    chosen = _checked_voices(voice, reference_audio, reference_text, voices)
    sampling = SamplingParams(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed, max_new_tokens)
    engine = _loaded_engine(model, audio_tokenizer, device, dtype, quantization)
    if stream is not None:
        speech_stream = engine.stream(
            text,
            voice=chosen,
            scene=scene,
            sampling=sampling,
        )
        _write_stream(speech_stream, stream)
        _report_cut_off(speech_stream.finish_reason, max_new_tokens)
        return
    start = time.perf_counter()
    # disable=None: on a terminal only.
    with tqdm(desc="speaking", bar_format="{desc}: {n:.2f} s of audio [{elapsed}]", leave=False, disable=None) as bar:

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
    speech.save(out)
    print(
        f"{out}: {speech.duration:.2f} s of audio in {elapsed:.2f} s, "
        f"real-time factor {elapsed / speech.duration:.2f} (seconds of work per second of audio)",
        file=sys.stderr,
    )
    _report_cut_off(speech.finish_reason, max_new_tokens)


@app.command()
def read(
    text: TextArgument,
    out: Annotated[Path, typer.Option(help="The audio file to write: .wav, .flac, .ogg or .mp3.")] = Path("out.wav"),
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
    max_retries: Annotated[
        int, typer.Option(help="How often a chunk with a failure is spoken again, each time with the next seed.")
    ] = MAX_RETRIES,
    strict: Annotated[bool, typer.Option(help="Stop at a chunk that fails with every seed.")] = False,
    paragraph_pause: Annotated[float, typer.Option(help="Seconds of silence before a paragraph.")] = Pauses.paragraph,
    turn_pause: Annotated[float, typer.Option(help="Seconds of silence before another speaker's turn.")] = Pauses.turn,
    sentence_pause: Annotated[
        float, typer.Option(help="Seconds of silence before a sentence that begins a chunk.")
    ] = Pauses.sentence,
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
    out = check_output_path(out)
    pauses = Pauses(paragraph_pause, turn_pause, sentence_pause)
    sampling = SamplingParams(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
    check_long_form(sampling, context_chunks, max_retries)
    text = _read_text(text)
    chunk_text(text, CHUNK_SECONDS if chunk_seconds is None else chunk_seconds)
    chosen = _checked_voices(voice, reference_audio, reference_text, voices)
    chunk_store = ChunkStore(out.with_name(f"{out.name}.parts") if folder is None else folder)
    engine = _loaded_engine(model, audio_tokenizer, device, dtype, quantization)
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
        pauses=pauses,
    )
    if speech.num_finished:
        print(f"{speech.folder}: {speech.num_finished} of {len(speech)} chunks are finished.", file=sys.stderr)
    seconds, retried, failed = 0.0, 0, []
    with locked(speech.folder):
        for chunk in tqdm(speech, desc="reading", unit="chunk", leave=False, disable=None):
            seconds += chunk.duration
            retried += len(chunk.attempts) > 1
            if chunk.failures:
                failures = ", ".join(chunk.failures)
                failed.append(f"chunk {chunk.index} failed with every seed ({failures}): {chunk.text.text!r}")
        speech.save(out)
        if folder is None:
            chunk_store.remove()
    print(f"{out}: {seconds:.2f} s of audio in {len(speech)} chunks, {retried} of them spoken again", file=sys.stderr)
    for line in failed:
        print(line, file=sys.stderr)


@app.command()
def quantize(
    source: Annotated[str, typer.Argument(help="The checkpoint: a folder, or a name on the Hub.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    format: Annotated[
        str,
        typer.Option(
            help="fp8, int8, int4, or one format per part (attention, text_ffn, audio_ffn, heads): "
            "int4,heads=int8 is int4 for all parts but the heads."
        ),
    ] = "int8",
    clip: Annotated[
        bool,
        typer.Option(
            help="Choose the scales of int8 and int4 for the minimum squared error, which clips the largest values."
        ),
    ] = True,
    calibrate: Annotated[
        bool,
        typer.Option(
            help="Let the model speak first, and round its weights for the inputs seen then (GPTQ): a smaller error "
            "at the same size. Needs the memory of the whole model, and about a minute per layer on two cores."
        ),
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="The texts that --calibrate speaks: a file with one text per line, or - for standard input.",
            show_default="sentences in the package",
        ),
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Write a quantized checkpoint, which loads at the speed of the disk."""
    quantization = replace(Quantization.parse(format), clip=clip)
    if texts is not None and not calibrate:
        raise ParameterError("--texts must come with --calibrate")
    check_target(target)
    place = checked_device(device)
    lines: list[str] = []
    if calibrate:
        lines = [line for line in _read_file(str(texts or DEFAULT_TEXTS)).splitlines() if line.strip()]
        check_calibration(quantization, lines)
    folder = resolve_folder(source)
    if calibrate:
        model = calibrated_model(folder, quantization, lines, place, progress=True)
    else:
        model = LanguageModel.from_pretrained(folder, place, quantization=quantization)
    write_packed(model.named_weights(), model.quantization, folder, target, calibrate)
    print(f"{target}: {_size(model.nbytes)} of weights")


@app.command()
def voices(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of voices.", show_default=f"${VOICES_VARIABLE}")
    ] = None,
) -> None:
    """List the voices in a folder: the name, and the recording's words or the description.

    Lines below a name say what is wrong with its recording, and what is expected.
    """
    listed = list_voices(folder)
    if not listed:
        place = folder or os.environ[VOICES_VARIABLE]
        print(f"{place} holds no voices: neither recordings nor config.json nor profile.yaml", file=sys.stderr)
    unusable = []
    for name, voice in listed.items():
        print(f"{name}\t{voice.profile or voice.reference_text or ''}")
        try:
            advice = check_voice(voice)
        except AudioError as error:
            advice = [f"it can't be used: {error}"]
            unusable.append(name)
        for line in advice:
            print(f"    {line}")
    if unusable:
        raise AudioError(f"{len(unusable)} of {len(listed)} voices can't be used: {', '.join(unusable)}")


@app.command()
def info() -> None:
    """Show what is built in, what this machine supports, and what will be used."""
    build, device = build_info(), checked_device("auto")
    cpu = f"cpu, {build['cpu_instruction_set']} kernels, {torch.get_num_threads()} threads"
    cuda = "none" if not build["cuda"] else f"{build['cuda_version']} for {build['cuda_architectures']}"
    rows = {
        "higgs_native": higgs_native.__version__,
        "built against torch": build["torch_built_against"],
        "built by": build["compiler"],
        "CPU kernels built in": ", ".join(build["cpu_instruction_sets"]),
        "CUDA kernels built in": cuda,
        "torch": torch.__version__,
        "this CPU runs": ", ".join(build["cpu_instruction_sets_supported"]),
        "this CPU has": build["cpu_features"],
        "GPUs": torch.cuda.device_count() or "none",
        "will be used": cpu if device.type == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}",
    }
    for name, value in rows.items():
        print(f"{name + ':':<23}{value}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: with 0, 1 on an unexpected error, 2 on bad input, 143 on SIGTERM.

    An error is one line on standard error.

    Args:
        arguments: by default those of the process.
    """
    if threading.current_thread() is threading.main_thread():  # no other may set a handler
        # SIGTERM becomes an exception, as Ctrl-C is one, so that half-written files are removed.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with exit_on_bad_input():
            check_instruction_set()
            app(arguments)
    except Exception as error:
        if os.environ.get("HIGGS_NATIVE_TRACEBACK"):
            raise
        exit_with_error(f"{type(error).__name__}: {error} (HIGGS_NATIVE_TRACEBACK=1 shows where)", 1)


def _checked_voices(
    voice: str | None, reference_audio: Path | None, reference_text: str | None, voices_folder: Path | None
) -> list[Voice]:
    """Read the chosen voices, and print advice on poor recordings before weights are loaded."""
    chosen = [read_voice(item) for item in choose_voices(voice, reference_audio, reference_text, voices_folder)]
    for item in chosen:
        for advice in check_voice(item):
            print(f"warning: {item.reference_audio.name}: {advice}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=VoiceWarning)  # said above
    return chosen


def _loaded_engine(
    model: str | None, audio_tokenizer: str | None, device: str, dtype: str, quantization: str | None
) -> HiggsAudio:
    if model is None:
        print(
            "No --model is given: the embedded demonstration voice speaks, which knows about 1,500 English words.\n"
            f"For the published model: --model {MODEL_NAME}",
            file=sys.stderr,
        )
    return HiggsAudio.from_pretrained(
        model, device=device, dtype=dtype, audio_tokenizer=audio_tokenizer, quantization=quantization
    )


def _report_cut_off(finish_reason: str | None, max_new_tokens: int) -> None:
    if finish_reason == "length":
        print(
            f"The speech was cut off at --max-new-tokens {max_new_tokens}, or at the end of the cache; "
            "for longer texts there is higgs-native read.",
            file=sys.stderr,
        )


def _check_stream_path(path: Path) -> None:
    """Raise ParameterError if raw audio can't be written to `path`: a file, a named pipe, or `-`."""
    if str(path) == "-":
        if sys.stdout is None:
            raise ParameterError("--stream - needs standard output, which is closed")
        return
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise ParameterError(f"--stream must be a file, a named pipe, or -, got {path}")
        if not path.exists():
            check_file_can_be_made(path)
        elif path.is_file():
            path.open("ab").close()  # its contents are kept until there is audio
        elif not os.access(path, os.W_OK):  # opening a pipe would wait for its reader
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ParameterError(f"{path} can't be written: {error.strerror}") from None


def _opened_stream(path: Path) -> io.RawIOBase:
    if str(path) == "-":
        return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise ParameterError(f"{path} can't be written: {error.strerror}") from None


def _write_stream(speech: SpeechStream, path: Path) -> None:
    """Write the chunks of `speech` as they come, as 16-bit PCM, to a file, or to standard output if `path` is `-`."""
    written, closed = 0, False
    with _opened_stream(path) as file:
        os.set_blocking(file.fileno(), True)
        for chunk in speech:
            rest = memoryview((chunk.samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except BrokenPipeError:
                print("The reader has closed the pipe.", file=sys.stderr)
                closed = True
                break
            except OSError as error:
                raise ParameterError(f"{path} can't be written: {error.strerror}") from None
            written += len(chunk.samples)
    if written == 0 and not closed:
        raise AudioError("the model made no audio to write")
    report = f"{path}: {written / speech.sampling_rate:.2f} s of audio"
    if speech.first_audio_seconds is not None:
        report += f", the first after {speech.first_audio_seconds:.2f} s"
    if speech.underrun_margin_seconds is not None:
        report += f", under-run margin {speech.underrun_margin_seconds:.2f} s (below zero, playback would pause)"
    print(report, file=sys.stderr)


def _size(nbytes: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes / 1e3:.2f} kB"


def _read_text(text: str) -> str:
    """The text to speak: `text` itself, or the contents of the file that it names, or of standard input."""
    if text == "-" or os.path.exists(text):
        return _read_file(text)
    if _FILE_NAME.fullmatch(text):
        raise PromptError(f"text must be a text, an existing text file, or -, got the name of a missing file: {text}")
    return text


def _read_file(name: str) -> str:
    """The contents of a text file, or of standard input for `-`."""
    expected = "expected plain text in UTF-8"
    try:
        # A pipe can be read, too.
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        name = "standard input" if name == "-" else name
        decoded = data.decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"{name} can't be read: {error.strerror}; {expected}") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 text at byte {error.start}; {expected}") from None
    if "\0" in decoded:  # UTF-16 of plain letters is valid UTF-8
        raise PromptError(f"{name} holds zero bytes, so it is UTF-16 or no text; {expected}")
    return decoded


if __name__ == "__main__":
    main()
