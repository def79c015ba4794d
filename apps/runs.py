"""A run folder: where its store, dictionaries, bundles, recipes and results lie.

    <run>/store/                 activation store; the generated images in store/images/000000.png ...
    <run>/sae/<name>/            a dictionary (cfg.json, sae_weights.safetensors); <name> comes from its site
    <run>/bundle/<name>/         the feature bundle that the dashboard reads, concept scores included
    <run>/recipes/<name>/        saved interventions
    <run>/unlearn/<name>/        what the judge saw, and images before and after
    <run>/stages/<stage>.json    what a finished stage of the demo was made from
    <run>/results.json, report.html

A folder of a kind may also *be* its only member (``<run>/sae/cfg.json``), which is then called ``main``.
Names reach a path only through ``check_name``, so no name leaves the run folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.errors import InvalidOption, RunNotFound, UnknownName

if TYPE_CHECKING:
    from activations_store import ActivationStore

MAIN = "main"
"""Name of the only member of a kind that lies directly in the kind's folder."""

KINDS = ("sae", "bundle", "recipes", "unlearn")
STORE_MARK = "store.json"
SAE_MARK = "cfg.json"
BUNDLE_MARK = "bundle.json"
RECIPE_MARK = "recipe.json"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,119}")


@dataclass(frozen=True)
class Run:
    """Paths of one run.

    Attributes:
        folder: the run folder; it need not exist.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """An existing run.

        Raises:
            RunNotFound: the folder does not exist, or holds neither a store nor a dictionary nor a bundle.
        """
        run = cls(Path(folder))
        if not run.exists():
            state = "holds no store, dictionary or bundle" if run.folder.is_dir() else "does not exist"
            raise RunNotFound(
                f"run: {str(folder)!r} {state}. Make a run with: denoscope demo --out {folder}, "
                f"or: denoscope collect --model canvas --out {folder}"
            )
        return run

    def exists(self) -> bool:
        """Whether there is anything of a run in the folder."""
        return (self.store / STORE_MARK).is_file() or bool(self.saes()) or bool(self.bundles())

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def store(self) -> Path:
        """The activation store."""
        return self.folder / "store"

    @property
    def images(self) -> Path:
        """Images that were generated while the store was collected."""
        return self.store / "images"

    @property
    def results(self) -> Path:
        """Measurements (``apps.measurement``)."""
        return self.folder / "results.json"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.folder / "report.html"

    def image(self, sample: int) -> Path:
        """The image of a sample."""
        return self.images / f"{sample:06d}.png"

    def stage(self, name: str) -> Path:
        """Record of a finished stage."""
        return self.folder / "stages" / f"{check_name(name)}.json"

    def saes(self) -> dict[str, Path]:
        """Dictionaries by name."""
        return _members(self.folder / "sae", SAE_MARK)

    def bundles(self) -> dict[str, Path]:
        """Feature bundles by name; a bundle has the name of its dictionary."""
        return _members(self.folder / "bundle", BUNDLE_MARK)

    def recipes(self) -> dict[str, Path]:
        """Recipes by name."""
        return _members(self.folder / "recipes", RECIPE_MARK)

    def sae(self, name: str | None = None) -> Path:
        """Folder of the dictionary of this name, or of the only one; raises ``UnknownName``."""
        return _choose(self, "sae", self.saes(), name)

    def bundle(self, name: str | None = None) -> Path:
        """Folder of the bundle of this name, or of the only one; raises ``UnknownName``."""
        return _choose(self, "bundle", self.bundles(), name)

    def recipe(self, name: str | None = None) -> Path:
        """Folder of the recipe of this name, or of the only one; raises ``UnknownName``."""
        return _choose(self, "recipes", self.recipes(), name)

    def new(self, kind: str, name: str) -> Path:
        """Where a new member of a kind (sae, bundle, recipes, unlearn) goes."""
        if kind not in KINDS:
            raise InvalidOption(f"run: there is no kind {kind!r}; expected one of {', '.join(KINDS)}.")
        folder = self.folder / kind
        return folder if name == MAIN else folder / check_name(name)


def run_of(path: str | Path) -> tuple[Run, str]:
    """The run that a store, dictionary or bundle folder belongs to by its place, and its name in the run.

    ``runs/x/sae/mid_block`` gives (runs/x, "mid_block"); ``runs/x/sae`` and ``runs/x/store``
    give (runs/x, "main").
    """
    path = Path(path)
    if path.parent.name in KINDS:
        return Run(path.parent.parent), path.name
    return Run(path.parent), MAIN


def store_folder(path: str | Path) -> Path:
    """The store itself, from a store folder or a run folder that holds one."""
    path = Path(path)
    inside = Run(path).store
    return inside if (inside / STORE_MARK).is_file() and not (path / STORE_MARK).is_file() else path


def sae_folder(path: Path) -> Path:
    """The folder of a dictionary, from itself, or from a run (or its ``sae`` folder) that holds one.

    Raises:
        UnknownName: the run holds several; they are listed.
    """
    run = Run(path.parent) if path.name == "sae" else Run(path)
    return path if (path / SAE_MARK).is_file() or not run.saes() else run.sae()


def find_runs(root: str | Path) -> list[Run]:
    """Runs directly under a folder, by name; a folder that is a run itself gives that one."""
    root = Path(root)
    if Run(root).exists():
        return [Run(root)]
    if not root.is_dir():
        return []
    return [Run(folder) for folder in sorted(root.iterdir()) if folder.is_dir() and Run(folder).exists()]


def site_name(site: str) -> str:
    """A folder name for a site: ``unet.up_blocks.1:out`` is ``up_blocks.1``; ``:delta`` adds ``-delta``."""
    path, _, port = site.partition(":")
    short = path.partition(".")[2] or path
    name = short if port in ("", "out") else f"{short}-{port}"
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", name)


def find_site(store: ActivationStore, name: str | None) -> str:
    """The store's name of a site as people type it (``up_blocks.1`` for ``unet.up_blocks.1:out``).

    Raises:
        activations_store.errors.UnknownSite: the store has no such site, or several and none was named.
    """
    from activations_store.errors import UnknownSite

    known = ", ".join(store.sites)
    if name is None:
        if len(store.sites) == 1:
            return store.sites[0]
        raise UnknownSite(f"{store.path} has {len(store.sites)} sites; choose one with --site: {known}.")
    wanted = name if ":" in name else f"{name}:out"
    matches = [site for site in store.sites if site == wanted or site.partition(".")[2] == wanted]
    if len(matches) != 1:
        raise UnknownSite(f"{store.path} has no site {name!r}; it has {known}.")
    return matches[0]


def check_name(name: str) -> str:
    """The name itself if it is safe as one part of a path; raises ``InvalidOption`` otherwise."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidOption(
            f"name: {name[:60]!r} cannot be used; expected 1 to 120 of A-Z a-z 0-9 _ . + -, "
            "starting with a letter, digit or _, without '..'."
        )
    return name


def _members(folder: Path, mark: str) -> dict[str, Path]:
    """Members of a kind, by name."""
    found = {MAIN: folder} if (folder / mark).is_file() else {}
    if folder.is_dir():
        for child in sorted(folder.iterdir()):
            if _NAME.fullmatch(child.name) and (child / mark).is_file():
                found[child.name] = child
    return found


_ONE_AND_MORE = {
    "sae": ("dictionary", "dictionaries"),
    "bundle": ("bundle", "bundles"),
    "recipes": ("recipe", "recipes"),
}
_NEXT = {
    "sae": "train one with: denoscope train RUN/store --site SITE",
    "bundle": "build one with: denoscope features RUN",
    "recipes": "make one with: denoscope unlearn --run RUN --object NAME",
}


def _choose(run: Run, kind: str, members: dict[str, Path], name: str | None) -> Path:
    if name is not None and name in members:
        return members[name]
    if name is None and len(members) == 1:
        return next(iter(members.values()))
    one, more = _ONE_AND_MORE[kind]
    asked = f"no {one}" if not members else f"{len(members)} {more}"
    asked = asked if name is None else f"no {one} {name!r}"
    where = f"{', '.join(sorted(members))} (in {run.folder / kind})"
    raise UnknownName(f"run {str(run.folder)!r} has {asked}; {f'choose one of: {where}.' if members else _NEXT[kind]}")
