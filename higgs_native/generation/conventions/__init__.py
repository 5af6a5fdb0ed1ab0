"""The rules of generation, one implementation of `Rules` per convention."""

from higgs_native.convention import Convention
from higgs_native.generation.conventions.boson import BosonRules
from higgs_native.generation.conventions.higgs_tts_3 import HiggsTts3Rules
from higgs_native.generation.conventions.rules import Rules
from higgs_native.generation.conventions.transformers import TransformersRules


_RULES: dict[Convention, Rules] = {
    Convention.BOSON: BosonRules(),
    Convention.TRANSFORMERS: TransformersRules(),
    Convention.HIGGS_TTS_3: HiggsTts3Rules(),
}


def rules_of(convention: Convention) -> Rules:
    """Return the rules of a convention; its name is accepted too."""
    return _RULES[Convention(convention)]
