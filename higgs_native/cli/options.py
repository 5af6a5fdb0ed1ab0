"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_native.prompt.voices import VOICES_VARIABLE


MODEL_NAME = "bosonai/higgs-audio-v2-generation-3B-base"

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
