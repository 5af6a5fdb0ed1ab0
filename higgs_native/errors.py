"""The errors that users can mend. Each says in one line what is wrong and what would be right."""


class HiggsNativeError(Exception):
    """Base of the errors that this package raises on bad input."""


class ConfigError(HiggsNativeError, ValueError):
    """A configuration file is missing, unreadable, or describes another model."""


class CheckpointError(HiggsNativeError, ValueError):
    """A checkpoint's files are missing or damaged, or its tensors don't fit its configuration."""


class AudioError(HiggsNativeError, ValueError):
    """Audio that can't be read, or that can't serve as a reference."""


class PromptError(HiggsNativeError, ValueError):
    """A prompt that can't be built or that doesn't fit the model."""


class ParameterError(HiggsNativeError, ValueError):
    """A generation parameter outside its range."""


class GenerationError(HiggsNativeError, RuntimeError):
    """The model did not do what it was asked to, with any of the seeds that were tried."""
