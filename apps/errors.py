"""Every error that ``apps`` raises on purpose; each is an ``AppError`` and also a fitting builtin."""


class AppError(Exception):
    """Base of all errors of this package."""


class RunNotFound(AppError, FileNotFoundError):
    """The folder is no run: it holds no store, no dictionary and no bundle."""


class UnknownName(AppError, KeyError):
    """A run has no dictionary, bundle or recipe of this name; the message lists those that it has."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would print the repr of the message


class OutputExists(AppError, FileExistsError):
    """The output is there already and belongs to something else, or would be overwritten."""


class FolderInUse(AppError, BlockingIOError):
    """Another command works in the folder; the message names its process."""


class InvalidOption(AppError, ValueError):
    """An option of a command is out of range, or two options do not fit together."""


class InvalidFile(AppError, ValueError):
    """A file of a run is damaged or is not what its name says."""


class NoLabels(AppError, ValueError):
    """A store has no labelled factor, but the command needs one."""


class NoJudge(AppError, FileNotFoundError):
    """The judge's weights are not part of this installation, or the judge does not know the model."""


class CannotRepair(AppError, RuntimeError):
    """A store's damage cannot be mended by collecting shards again."""


class MissingExtra(AppError, ImportError):
    """A command needs an optional dependency that is not installed."""


class ProcessesFailed(AppError, RuntimeError):
    """One of the processes that a command started ended with an error."""


class CannotDraw(AppError, ValueError):
    """A run's model cannot be asked for another image: the run holds real images, or the model is another."""


class ModelMissing(AppError, FileNotFoundError):
    """A model is not on this machine; the message has the command that brings it."""


class NotEnoughRoom(AppError, MemoryError):
    """Memory ran out; the message says what was asked."""
