"""Generation in each convention: one implementation of `Behavior` per convention."""

from higgs_native.convention import Convention
from higgs_native.generation.conventions.behavior import Behavior
from higgs_native.generation.conventions.boson import BosonBehavior
from higgs_native.generation.conventions.higgs_tts_3 import HiggsTts3Behavior
from higgs_native.generation.conventions.transformers import TransformersBehavior


_BEHAVIORS: dict[Convention, Behavior] = {
    Convention.BOSON: BosonBehavior(),
    Convention.TRANSFORMERS: TransformersBehavior(),
    Convention.HIGGS_TTS_3: HiggsTts3Behavior(),
}


def behavior_of(convention: Convention) -> Behavior:
    """Return the behavior of a convention; its name is accepted too."""
    return _BEHAVIORS[Convention(convention)]
