"""Every error that ``probe`` raises on purpose.

Each class is a ``ProbeError`` and also the builtin that a caller would expect, so that both ``except
ProbeError`` and ``except FileNotFoundError`` work. A message says what failed, where, what was found, what
was expected and what to do.
"""


class ProbeError(Exception):
    """Base of all errors of this package."""


# Models


class ModelNotFound(ProbeError, FileNotFoundError):
    """There is no pipeline under the given name or folder."""


class UnsupportedPipeline(ProbeError, TypeError):
    """The pipeline lacks something that is needed here (a denoiser, a prompt argument, a known schedule)."""


class InvalidRequest(ProbeError, ValueError):
    """An argument is out of range or two arguments do not fit together."""


# Sites and capture


class UnknownSite(ProbeError, KeyError):
    """No module or port has this name; the message lists near matches."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would print the repr of the message


class UnsupportedSite(ProbeError, ValueError):
    """The site exists, but its tensor is not a map over tokens, or it does not fire once a step."""


class PromptFileError(ProbeError, ValueError):
    """A prompt file cannot be read as text, CSV or JSON lines; the message names the line."""


class PromptFileNotFound(ProbeError, FileNotFoundError):
    """The prompt file does not exist."""


class EmptyPrompts(ProbeError, ValueError):
    """There are no prompts to run."""


class InvalidPlan(ProbeError, ValueError):
    """A capture plan contradicts itself or the pipeline."""


class ModelMismatch(ProbeError, ValueError):
    """The plan was made for another model than the one at hand."""


class NotEnoughSpace(ProbeError, OSError):
    """The disk has less room than the store needs; the message names cheaper settings with their sizes."""


class NotEnoughMemory(ProbeError, MemoryError):
    """The machine or the accelerator has less memory than the run needs."""


class NotAMap(ProbeError, ValueError):
    """Rows that have no place in an image were to be drawn as a map."""


class ImageFileError(ProbeError, ValueError):
    """An image, a mask or the table beside them cannot be read; the message names the file."""


class ImageFolderNotFound(ProbeError, FileNotFoundError):
    """There is no folder of images, or no image in it."""


# Interventions


class InvalidIntervention(ProbeError, ValueError):
    """An intervention contradicts itself, the pipeline or the tensor that it meets."""


class ConflictingInterventions(ProbeError, ValueError):
    """Two interventions would overwrite each other."""


class RecipeError(ProbeError, ValueError):
    """A recipe folder is damaged, of a newer format, or holds something that cannot be stored."""


class RecipeNotFound(ProbeError, FileNotFoundError):
    """There is no recipe in this folder."""


class RecipeExists(ProbeError, FileExistsError):
    """A recipe is already in this folder."""


class WrongModel(ProbeError, ValueError):
    """A recipe belongs to another model; the message names both."""


# Unlearning


class UnknownConcept(ProbeError, KeyError):
    """The concept is not among those that were scored or prompted; the message lists them."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InvalidTable(ProbeError, ValueError):
    """Prompted and judged labels do not fit together."""


# Directions


class InvalidDirection(ProbeError, ValueError):
    """A direction, or what a finder is given, contradicts itself, the store or the model."""


class DirectionNotFound(ProbeError, FileNotFoundError):
    """There is no direction in this folder."""


class DirectionExists(ProbeError, FileExistsError):
    """A direction is already in this folder."""


class NotFitted(ProbeError, RuntimeError):
    """A finder was asked for a result before ``fit``."""
