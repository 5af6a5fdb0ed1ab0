"""A plain speech server around transformers' `generate`, which `higgs-native serve` is compared with.

    python -m benchmarks.tools.transformers_server --model /data/higgs-random --port 8001

It speaks one request after the other, in bfloat16, and sends a speech as pcm when it is complete. The checkpoint must
have the layout of transformers, with its audio tokenizer in `audio_tokenizer/`.
"""

import argparse
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.tools.transformers_baseline import import_transformers
from higgs_native.audio.samples import pcm_samples
from higgs_native.checkpoint.files import load_tokenizer
from higgs_native.convention import Convention
from higgs_native.prompt.chat import build_prompt, speech_messages


class Speech(BaseModel):
    """A request; other fields of OpenAI's API are ignored."""

    input: str
    max_new_tokens: int = 1024
    temperature: float = 0.3
    top_k: int = 50
    top_p: float = 0.95


class TransformersSpeaker:
    """transformers' model and audio tokenizer of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        transformers = import_transformers()
        self._processor = transformers.HiggsAudioV2Processor
        self._model = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
        self._audio_tokenizer = transformers.HiggsAudioV2TokenizerModel.from_pretrained(folder / "audio_tokenizer")
        self._tokenizer = load_tokenizer(folder)
        self._lock = threading.Lock()

    @torch.inference_mode()
    def speak(self, text: str, **options: Any) -> bytes:
        """Return the speech as pcm."""
        convention = Convention.TRANSFORMERS
        prompt = build_prompt(speech_messages(text, [], None, convention), self._tokenizer, convention)
        config = self._model.config
        with self._lock:
            generated = self._model.generate(
                input_ids=prompt.input_ids, do_sample=True, return_dict_in_generate=True, **options
            )
            delayed = generated.audio_sequences[0]
            begin = int((delayed == config.audio_stream_bos_id).all(-1).nonzero()[-1])
            codes = self._processor.revert_delay_pattern(SimpleNamespace(), delayed[begin + 1 :])
            codes = codes.clip(0, config.audio_stream_bos_id - 1).T
            samples = self._audio_tokenizer.decode(codes[None]).audio_values
        return pcm_samples(samples.flatten().float().numpy()).tobytes()


def create_app(speaker: TransformersSpeaker) -> FastAPI:
    """Return the application with its only route."""
    app = FastAPI()

    @app.post("/v1/audio/speech")
    def speech(request: Speech) -> Response:
        options = request.model_dump()
        return Response(speaker.speak(options.pop("input"), **options), media_type="audio/pcm")

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a folder in the layout of transformers")
    parser.add_argument("--port", type=int, default=8001)
    args = parser.parse_args()
    uvicorn.run(create_app(TransformersSpeaker(args.model)), host="127.0.0.1", port=args.port)


if __name__ == "__main__":
    main()
