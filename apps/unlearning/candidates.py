"""What a setting of each kind of unlearning method consists of; which ones are tried is in ``config.py``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from apps.unlearning.edits import setting_text
from probe.unlearning import ESDSetting, Setting


@dataclass(frozen=True)
class Candidate:
    """A setting of a method; its name tells the fields that differ from their defaults."""

    @property
    def name(self) -> str:
        """In a few words, such as ``attention, 2 features, multiplier -12, both``."""
        changed = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(_text(key, value) for key, value in changed) or "default"

    @property
    def uses(self) -> tuple[str, ...]:
        """Names of the dictionaries that it needs."""
        return ()


@dataclass(frozen=True)
class Plain(Candidate):
    """No hyper-parameters."""


@dataclass(frozen=True)
class Phrase(Candidate):
    """A prompt that says the concept.

    Attributes:
        phrase: with the label in the place of the braces.
    """

    phrase: str


@dataclass(frozen=True)
class Features(Candidate):
    """Features of a concept, pushed at the sites of one dictionary or of several at once.

    Attributes:
        dictionaries: names in ``DICTIONARIES``.
        setting: of ``saeuron``, ``norm_scaled`` or ``patch_replacement``.
    """

    dictionaries: tuple[str, ...]
    setting: Setting

    @property
    def uses(self) -> tuple[str, ...]:
        return self.dictionaries


@dataclass(frozen=True)
class Direction(Candidate):
    """A direction projected out of recorded sites.

    Attributes:
        sites: members of ``SITES``.
        strength: 1 is the projection; more goes beyond it.
        branch: guidance branches that are edited.
    """

    sites: tuple[str, ...]
    strength: float = 1.0
    branch: str = "both"


@dataclass(frozen=True)
class NormMatched(Candidate):
    """The decoder row of the concept's best feature, added at the site's own size, at the sites of one dictionary or of
    several at once.

    Attributes:
        dictionaries: names in ``DICTIONARIES``.
        rho: share of the site's root mean square norm; negative removes.
        branch: guidance branches that are edited.
    """

    dictionaries: tuple[str, ...]
    rho: float
    branch: str = "both"

    @property
    def uses(self) -> tuple[str, ...]:
        return self.dictionaries


@dataclass(frozen=True)
class Rewrite(Candidate):
    """UCE.

    Attributes:
        guide: what the concept's keys and values become, in the place of the label; left out for the target itself.
        phrase: with a label in the place of the braces; for the target, the guide and what is retained.
        erase_scale: weight of the erased concept.
        lam: weight of staying near the original.
        tokens: see ``probe.unlearning.uce``.
    """

    guide: str
    phrase: str = "{}"
    erase_scale: float = 1.0
    lam: float = 0.5
    tokens: str = "from_last"


@dataclass(frozen=True)
class Tuned(Candidate):
    """ESD.

    Attributes:
        setting: of ``probe.unlearning.esd``.
        phrase: the erased prompt, with the label in the place of the braces.
    """

    setting: ESDSetting
    phrase: str


@dataclass(frozen=True)
class TextSteering(Candidate):
    """Concept Steerers at a layer of the text encoder.

    Attributes:
        dictionary: a name in ``DICTIONARIES``.
        phrase: the concept's prompt, with the label in the place of the braces.
        strength: lambda; negative removes.
        branch: ``opposite`` in the paper.
    """

    dictionary: str
    phrase: str
    strength: float
    branch: str = "opposite"

    @property
    def uses(self) -> tuple[str, ...]:
        return (self.dictionary,)


@dataclass(frozen=True)
class TextFeatures(Candidate):
    """Interpret-then-Deactivate at a layer of the text encoder.

    Attributes:
        dictionary: a name in ``DICTIONARIES``.
        phrase: of the erased and the retained prompts, with a label in the place of the braces.
        n_features: the strongest features of a prompt that count as its own.
        multiplier: gamma.
    """

    dictionary: str
    phrase: str
    n_features: int
    multiplier: float

    @property
    def uses(self) -> tuple[str, ...]:
        return (self.dictionary,)


def _text(name: str, value: Any) -> str:
    if isinstance(value, Setting):
        return setting_text(value)
    if isinstance(value, ESDSetting):
        return f"{value.iterations} iterations at {value.lr:g}, eta {value.eta:g}, layers {value.layers}"
    if isinstance(value, tuple):
        return " + ".join(map(str, value))
    return f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
