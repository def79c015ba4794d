"""Every error of the `sae` package.

Each class is also a builtin, so a caller who does not know this package can catch `ValueError` or
`FileNotFoundError`. A message says what failed, where, what was found, what was expected and, where there is
one, the command or call that mends it.
"""


class SAEError(Exception):
    """Base of every error raised by `sae`."""


class ConfigError(SAEError, ValueError):
    """A configuration contradicts itself or the data it is meant for."""


class ShapeMismatch(SAEError, ValueError):
    """A tensor does not have the width or rank that the dictionary expects."""


class NotAnSAE(SAEError, FileNotFoundError):
    """The folder does not hold `cfg.json` and `sae_weights.safetensors`."""


class CorruptFile(SAEError, ValueError):
    """A file of this package is truncated, oversized, or disagrees with its own header or hash."""


class UnsupportedSAE(SAEError, ValueError):
    """The folder holds an SAE whose architecture or options this package would not reproduce exactly."""


class SAESiteMismatch(SAEError, ValueError):
    """The SAE was trained at another site, or at another width, than the one asked for."""


class SAEModelMismatch(SAEError, ValueError):
    """The SAE was trained on activations of another model than the store holds."""


class RunMismatch(SAEError, FileExistsError):
    """The output folder holds a run with another configuration or another store."""


class NonFiniteLoss(SAEError, ArithmeticError):
    """The loss became NaN or infinite; nothing later than the last good checkpoint is kept."""


class ProcessLost(SAEError, ConnectionError):
    """Another process that takes part in the training ended or does not answer."""


class ProcessFailed(SAEError, RuntimeError):
    """The first process could not do what the others waited for; the message says what."""


class EmptySelection(SAEError, ValueError):
    """The chosen samples, steps or branches contain no row."""


class UnknownConcept(SAEError, LookupError):
    """A concept, factor or feature name or number that does not exist; the message lists what does."""


class NotABundle(SAEError, FileNotFoundError):
    """The folder is not a feature bundle, or one of its files is missing."""


class BundleExists(SAEError, FileExistsError):
    """The output folder of a bundle is already there."""


class NewerFormat(SAEError, ValueError):
    """The folder was written by a later version of the format."""
