"""transformers' HiggsAudioV2ForConditionalGeneration and HiggsAudioV2TokenizerModel, run by the native engine.

    from higgs_native.compat.transformers import accelerate

    model = accelerate(HiggsAudioV2ForConditionalGeneration.from_pretrained(name))
    audio = model.generate(**inputs, max_new_tokens=1024)

`from_pretrained` here loads a language model that has no other weights than those of the engine.

The arguments of `generate` are read, checked and completed by transformers' own; only its loop over frames is
replaced. So everything else of the model, and what `generate` returns, stay what they were.
"""

try:
    from transformers import HiggsAudioV2ForConditionalGeneration, HiggsAudioV2TokenizerModel  # noqa: F401 (a check)
except ImportError as error:
    raise ImportError(
        f"higgs_native.compat.transformers needs transformers 5.23: pip install 'higgs-native[transformers]' ({error})"
    ) from error

from higgs_native.compat.transformers.acceleration import accelerate, restore
from higgs_native.compat.transformers.loading import from_pretrained


__all__ = ["accelerate", "from_pretrained", "restore"]
