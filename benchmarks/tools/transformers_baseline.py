"""transformers' implementation of Higgs Audio V2, which tests and benchmarks compare with."""

import sys
import types


def import_transformers() -> types.ModuleType:
    """Import transformers, quiet, and torchaudio beside any torch.

    torchaudio's wheels need the libraries of the CUDA release that they were built with, but what transformers takes
    from it, the resampler, is written in Python. Standing in for its loader lets it import.

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
