"""Options that several commands take."""

import re
from pathlib import Path
from typing import Annotated

import typer

from higgs_native.audio.files.formats import FORMATS
from higgs_native.errors import ParameterError
from higgs_native.generation.sampling_params import HIGGS_TTS_3_SAMPLING, SamplingParams
from higgs_native.utils.variables import VOICES_VARIABLE


MODEL_NAME = "bosonai/higgs-audio-v2-generation-3B-base"


def default_text(name: str) -> str:
    """Return the default of a sampling parameter, and that of Higgs TTS 3 if it is another one."""
    default, other = getattr(SamplingParams, name), getattr(HIGGS_TTS_3_SAMPLING, name)
    return f"{default}" if other == default else f"{default}, with Higgs TTS 3 {other or 0}"


def _refuse_option(text: str) -> str:
    """Return the text, unless it is a mistyped option: options that are unknown come here too."""
    if _OPTION.fullmatch(text):
        raise ParameterError(
            f"text must not look like an option, got {text}; --help shows the options; a text can begin with a space"
        )
    return text


_OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)
TextArgument = Annotated[
    str,
    typer.Argument(
        help="What to say: a text, a text file, or - for standard input. [pause:1s] is a pause, [speed:1.2] a speed; "
        "<speak> begins SSML; [[...]] holds phonemes, for voices that read them.",
        callback=_refuse_option,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help=f"The checkpoint: a folder, or a name on the Hub, such as {MODEL_NAME}. "
        "Default: the embedded voice, which is small, trained on synthetic speech, and reads English only."
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
    typer.Option(
        help="A voice in the folder of voices (anna; profile:NAME for a description) or of the model (the embedded "
        "voice has heart, bella, fenrir, puck, emma, george). Several, separated by commas, are SPEAKER0, ..."
    ),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        help="An adapter (LoRA) beside the weights: NAME=FOLDER, as higgs-native train writes it; may be repeated. "
        "NAME is then a voice.",
        show_default="none",
    ),
]
VoicesOption = Annotated[Path | None, typer.Option(help="The folder of voices.", show_default=f"${VOICES_VARIABLE}")]
ReferenceAudioOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="A recording of the voice to clone; may be repeated, each with its --reference-text.", show_default="none"
    ),
]
ReferenceTextOption = Annotated[
    list[str] | None,
    typer.Option(help="The words spoken in the recording; may be repeated, in the same order.", show_default="none"),
]
SceneOption = Annotated[
    str | None,
    typer.Option(
        help="The surroundings, such as 'Audio is recorded from a quiet room.', or a voice: "
        "'SPEAKER0: male; british accent'."
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="The same seed gives the same speech. Default: a new one each time.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        help="Sampling temperature; 0 takes the most likely code, unless RAS (--ras-win-len) redraws it.",
        show_default=default_text("temperature"),
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(help="Draw among the k most likely codes; 0 turns it off.", show_default=default_text("top_k")),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        help="Draw among the most likely codes that together have this probability.",
        show_default=default_text("top_p"),
    ),
]
RasWinLenOption = Annotated[
    int | None,
    typer.Option(
        help="Window of repetition-aware sampling (RAS), in frames; 0 turns it off.",
        show_default=default_text("ras_win_len"),
    ),
]
RasWinMaxNumRepeatOption = Annotated[
    int | None,
    typer.Option(
        help="A code that occurs this often in the window is redrawn.",
        show_default=default_text("ras_win_max_num_repeat"),
    ),
]
OUT_HELP = "The audio file to write: .wav, .flac, .mp3, .ogg or .opus."
FormatOption = Annotated[
    str | None,
    typer.Option(help=f"Format of the audio: {', '.join(FORMATS)}.", show_default="by the file's extension, 16 bits"),
]
SubtitlesOption = Annotated[
    Path | None, typer.Option(help="Also write subtitles: a .srt or .vtt file.", show_default="nowhere")
]
SubtitleWordsOption = Annotated[
    bool, typer.Option("--subtitle-words", help="A subtitle per word, instead of per sentence.")
]
LoudnessOption = Annotated[
    float | None,
    typer.Option(help="Loudness of the audio in LUFS, such as -16; less if it would clip. Default: as generated."),
]
SpeedOption = Annotated[
    float,
    typer.Option(
        help="Speed of the audio, 0.25 to 4; the pitch stays. Speeds other than 1 need PyAV (pip install av)."
    ),
]
NormalizeOption = Annotated[
    bool, typer.Option("--normalize", help="Write out numbers, dates, units and the like of an English text.")
]
LexiconOption = Annotated[
    Path | None,
    typer.Option(help="A file of words and how to spell them for speech, in lines such as nginx = engine x."),
]
StripMarkupOption = Annotated[
    bool,
    typer.Option("--strip-markup", help="Leave out Markdown's markup, and emoji (needs pip install markdown-it-py)."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: a GPU if there is one.")]
DtypeOption = Annotated[
    str, typer.Option(help="Dtype of the weights: float32, bfloat16, float16, or auto: that of the checkpoint.")
]
QuantizationOption = Annotated[
    str | None,
    typer.Option(
        help="Quantize the weights at load: fp8, int8, int4, or one format per part (attention, text_ffn, audio_ffn, "
        "heads), such as int4,heads=int8. Default: as stored."
    ),
]
