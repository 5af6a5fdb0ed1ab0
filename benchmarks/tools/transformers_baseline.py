"""Imports transformers, whose Higgs Audio V2 tests and benchmarks compare with."""

import sys
import types


def import_transformers() -> types.ModuleType:
    """Import transformers with warnings off, and torchaudio with any torch.

    torchaudio's wheels need the libraries of the CUDA release that they were built with. transformers only uses its
    resampler, which is written in Python, so a stub replaces the module that loads the libraries.

    Raises:
        ImportError: transformers or torchaudio is missing.
    """
    if "torchaudio" not in sys.modules:
        extension = types.ModuleType("torchaudio._extension")
        extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
        extension.fail_if_no_align = lambda function: function
        sys.modules["torchaudio._extension"] = extension
    import torchaudio  # noqa: F401
    import transformers

    transformers.utils.logging.set_verbosity_error()
    return transformers
