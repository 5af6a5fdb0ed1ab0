"""Speak through the processor and models of transformers, which `accelerate` makes run natively.

    pip install '.[transformers]' torchaudio
    python examples/transformers_interface.py --model bosonai/higgs-audio-v2-generation-3B-base

Code for transformers only needs the calls of `accelerate`: see docs/compat_transformers.md.
"""

import argparse

import torch
from transformers import (
    AutoProcessor,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2Processor,
    HiggsAudioV2TokenizerModel,
    logging,
)

from higgs_native import exit_on_bad_input
from higgs_native.audio.files.writing import check_output_path
from higgs_native.compat.transformers import accelerate
from higgs_native.manuscript.phonemes import PhonemeReader
from higgs_native.pipeline import EMBEDDED_VOICE


@exit_on_bad_input(OSError, ValueError)  # transformers raises these for a wrong model
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="The sun rises in the east and sets in the west.")
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--out", default="transformers_interface.wav")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    check_output_path(args.out)  # fails before the work, not after it
    model = accelerate(HiggsAudioV2ForConditionalGeneration.from_pretrained(args.model or EMBEDDED_VOICE))
    processor = AutoProcessor.from_pretrained(args.model) if args.model else embedded_processor()
    accelerate(processor.audio_tokenizer)
    text = args.text if args.model else PhonemeReader.from_folder(EMBEDDED_VOICE).spell(args.text)
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": "Generate audio following instruction."}]},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    torch.manual_seed(args.seed)
    options = {"do_sample": True, "temperature": 0.3, "top_k": 50, "top_p": 0.95}
    outputs = model.generate(**inputs, max_new_tokens=1024, **options)
    processor.save_audio(processor.batch_decode(outputs), args.out)
    print(args.out)


def embedded_processor() -> HiggsAudioV2Processor:
    """The processor of the embedded voice, whose audio tokenizer is stored in float16 for size."""
    logging.set_verbosity_error()  # hides warnings about tensors that only training needs
    folder = EMBEDDED_VOICE / "audio_tokenizer"
    audio_tokenizer = HiggsAudioV2TokenizerModel.from_pretrained(folder, dtype=torch.float32)
    return AutoProcessor.from_pretrained(EMBEDDED_VOICE, audio_tokenizer=audio_tokenizer)


if __name__ == "__main__":
    main()
