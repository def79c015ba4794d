"""What the unlearning benchmarks are asked to measure, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.errors import InvalidOption, UnknownName
from apps.unlearning import config as unlearn_config
from apps.unlearning.methods import KINDS, METHODS, Method, method
from apps.unlearning.place import Place
from probe.unlearning.attacks import ATTACKS

if TYPE_CHECKING:
    from sae import TrainConfig

_MIN_SEEDS = 2


@dataclass(frozen=True)
class UnlearnBench:
    """What is measured.

    Attributes:
        work: run folder of everything that is made.
        methods: names in ``METHODS``.
        targets: (factor, label) of every target.
        place: the world, and where its files lie.
        n_seeds: seeds of each object in each style; 5 in UnlearnCanvas.
        retain_seeds: of these, how many are drawn for a prompt that does not ask for the target.
        attacks: names of the attacks on every edit; none for no attacks.
        attack_images: images of each attack on each target.
        audit: whether the edited models are audited.
        n_recorded: prompts that are recorded.
        validation: images of a setting that ask for the target, and that do not.
        max_settings: settings of a method that are tried at most; None for all.
        train_rows: rows that a dictionary is trained on; None for what its configuration says.
        objects, styles: the part of the world that is drawn; all if empty.
        batch_size: images at a time.
        n_boot: bootstrap replicates of the intervals.
    """

    work: Path
    methods: tuple[str, ...]
    targets: tuple[tuple[str, str], ...]
    place: Place = field(default_factory=Place)
    n_seeds: int = 5
    retain_seeds: int = 5
    attacks: tuple[str, ...] = ()
    attack_images: int = 10
    audit: bool = False
    n_recorded: int = unlearn_config.N_PROMPTS
    validation: tuple[int, int] = (unlearn_config.VALIDATION_TARGET, unlearn_config.VALIDATION_RETAIN)
    max_settings: int | None = None
    train_rows: int | None = None
    objects: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    batch_size: int = 16
    n_boot: int = 1000

    def __post_init__(self) -> None:
        chosen = [method(name) for name in self.methods]
        if not chosen or not self.targets:
            raise InvalidOption("bench unlearn: expected at least one method and one target.")
        if self.n_seeds < _MIN_SEEDS:
            raise InvalidOption(
                "bench unlearn: expected two seeds at least; the distance compares images across seeds."
            )
        if not 1 <= self.retain_seeds <= self.n_seeds:
            raise InvalidOption(
                f"bench unlearn: retain_seeds must be 1 to {self.n_seeds}, the seeds of a prompt; got "
                f"{self.retain_seeds}."
            )
        if "random_direction" in self.methods and not any(m.kind == "sae" for m in chosen):
            known = ", ".join(m.name for m in METHODS.values() if m.kind == "sae")
            raise InvalidOption(
                f"bench unlearn: random_direction is the control of the best method that edits features; add one of "
                f"{known}."
            )

        if self.place.world != "canvas" and (self.attacks or self.audit):
            raise InvalidOption(
                "bench unlearn: attacks and audits know the words and pictures of canvas only; leave out --attacks and "
                f"--audit with --world {self.place.world}."
            )
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown:
            raise UnknownName(f"there is no attack {unknown[0]!r}; expected one of {', '.join(ATTACKS)}.")

    def settings(self, m: Method, factor: str, label: str) -> tuple[Any, ...]:
        """The settings of a method that are tried for a target."""
        return m.settings(factor, label, self.place.constants.CANDIDATES)[: self.max_settings]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the methods that run."""
        found = {method(name).kind for name in self.methods}
        return tuple(kind for kind in KINDS if kind in found)

    def dictionary_names(self) -> tuple[str, ...]:
        """Dictionaries that the settings need."""
        names = [
            used
            for name in self.methods
            for factor, label in self.targets
            for setting in self.settings(method(name), factor, label)
            for used in setting.uses
        ]
        return tuple(dict.fromkeys(names))

    def train_config(self, name: str) -> TrainConfig:
        """How a dictionary is trained.

        Raises:
            InvalidOption: the settings name a dictionary that is not configured.
        """
        known = self.place.constants.DICTIONARIES
        if name not in known:
            raise InvalidOption(
                f"bench unlearn: the settings use a dictionary {name!r}; configured are {', '.join(known)}."
            )
        config = known[name]
        return config if self.train_rows is None else replace(config, rows=self.train_rows, epochs=None)


@dataclass(frozen=True)
class ManyBench:
    """What the benchmark of several concepts measures.

    Attributes:
        bench: work folder, world and sizes; its targets name the factors (one target of each is enough).
        counts: numbers of concepts, ascending.
        n_rescored: prompts that are recorded from an edited model to find the next concept's features.
        order_seed: of the order of the concepts.
    """

    bench: UnlearnBench
    counts: tuple[int, ...] = (1, 2, 4, 8)
    n_rescored: int = 192
    order_seed: int = 0

    def __post_init__(self) -> None:
        if not self.counts or list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 1:
            raise InvalidOption(f"bench unlearn-many: counts {list(self.counts)}; expected ascending, from 1.")

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors that are measured."""
        return tuple(dict.fromkeys(factor for factor, _ in self.bench.targets))

    def record(self) -> dict[str, Any]:
        """JSON values without folders."""
        b = self.bench
        sizes = {"n_seeds": b.n_seeds, "retain_seeds": b.retain_seeds, "n_recorded": b.n_recorded}
        own = {"counts": self.counts, "n_rescored": self.n_rescored, "order_seed": self.order_seed}
        return own | sizes | {"factors": self.factors, "place": b.place.record()}
