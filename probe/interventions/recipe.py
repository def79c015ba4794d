"""Recipes: interventions on disk, with the model they belong to.

A recipe is a folder with ``recipe.json`` (readable: sites, steps, branches, strengths, fingerprint) and
``recipe.safetensors`` (directions, tables, masks and, for feature edits, the dictionary). The dictionary's
tensors are stored in full rather than by reference: a TopK code of one feature depends on all encoder columns, and a
recipe that replays on its own can be sent to someone else. Equal tensors are stored once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from probe.errors import ProbeError, RecipeError, RecipeExists, RecipeNotFound, WrongModel
from probe.interventions.intervention import Intervention
from probe.interventions.ops import op_of, op_record
from probe.interventions.windows import Schedule, Window
from probe.model.fingerprint import differences, fingerprint
from probe.model.pipeline import Pipeline

FORMAT = "denoscope.recipe"
VERSION = 2
JSON_FILE = "recipe.json"
TENSOR_FILE = "recipe.safetensors"


@dataclass(frozen=True)
class Recipe:
    """Interventions and the fingerprint of their model.

    Attributes:
        interventions: in the order in which they apply.
        fingerprint: of the model they were made for (``probe.model.fingerprint``).
        about: free JSON values for people and reports, such as the concept and the hash of the autoencoder.
    """

    interventions: tuple[Intervention, ...]
    fingerprint: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", tuple(self.interventions))

    @classmethod
    def of(
        cls,
        pipe: Pipeline,
        interventions: Sequence[Intervention],
        about: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """A recipe for this pipeline."""
        return cls(tuple(interventions), fingerprint(pipe), about or {})

    def save(self, folder: str | Path) -> Path:
        """Write the recipe; a folder that holds one already is refused.

        Raises:
            RecipeExists: there is a recipe in the folder.
            InvalidIntervention: an edit uses a dictionary that cannot be taken over as tensors (`as_dictionary`).
        """
        folder = Path(folder)
        if (folder / JSON_FILE).exists():
            raise RecipeExists(f"recipe: {str(folder / JSON_FILE)!r} exists; choose another folder or remove it.")
        tensors: dict[str, torch.Tensor] = {}
        names: dict[str, str] = {}

        def pack(tensor: torch.Tensor) -> str:
            kept = tensor.detach().cpu().clone().contiguous()  # views of one tensor may not share their memory
            key = _tensor_key(kept)
            if key not in names:
                names[key] = f"tensor_{len(names)}"
                tensors[names[key]] = kept
            return names[key]

        items = [_item_record(item, pack) for item in self.interventions]
        data = save_tensors(tensors)
        record = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": dict(self.fingerprint),
            "about": dict(self.about),
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
            "interventions": items,
        }
        text = json.dumps(record, indent=1)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / TENSOR_FILE, data)
        _write(folder / JSON_FILE, text.encode())  # last: a folder without it holds no recipe
        return folder

    @classmethod
    def load(cls, folder: str | Path, pipe: Pipeline | None, *, any_scheduler: bool = False) -> Recipe:
        """Read a recipe for a pipeline.

        Args:
            folder: what ``save`` wrote.
            pipe: the pipeline it will be applied to; None reads it for inspection only.
            any_scheduler: accept another scheduler than the recipe's; the images then differ from those it
                was made with.

        Raises:
            RecipeNotFound: the folder holds no recipe.
            WrongModel: it belongs to another model; both are named.
            RecipeError: it is damaged, or of a newer format.
        """
        folder = Path(folder)
        try:
            text, data = (folder / JSON_FILE).read_bytes(), (folder / TENSOR_FILE).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RecipeNotFound(
                f"recipe: {str(folder)!r} holds no {JSON_FILE} and {TENSOR_FILE}; give the folder that "
                "Recipe.save wrote."
            ) from error
        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise RecipeError(f"recipe: {str(folder)!r} has format {record['format']!r}, expected {FORMAT!r}.")
            if record["version"] > VERSION:
                raise RecipeError(
                    f"recipe: {str(folder)!r} has version {record['version']}, this denoscope reads up to "
                    f"{VERSION}; update it."
                )
            if pipe is not None:
                _check_model(folder, record["fingerprint"], fingerprint(pipe), any_scheduler)
            found = hashlib.sha256(data).hexdigest()
            if found != record["tensors_sha256"]:
                raise RecipeError(
                    f"recipe: {TENSOR_FILE} in {str(folder)!r} does not belong to its {JSON_FILE} (hash {found[:12]}, "
                    f"expected {str(record['tensors_sha256'])[:12]}); copy the folder again."
                )
            tensors = load_tensors(data)
            items = tuple(_item_of(item, tensors.__getitem__) for item in record["interventions"])
            return cls(items, record["fingerprint"], record["about"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, SafetensorError) as error:
            if isinstance(error, ProbeError):
                raise
            raise RecipeError(f"recipe: {str(folder)!r} is damaged: {type(error).__name__}: {error}.") from error


def _check_model(folder: Path, made_for: Mapping[str, Any], found: dict[str, Any], any_scheduler: bool) -> None:
    lines = [
        line for line in differences(found, dict(made_for)) if not (any_scheduler and line.startswith("scheduler"))
    ]
    if lines:
        raise WrongModel(
            f"recipe: {str(folder)!r} was made for {_named(made_for)}, but the pipeline is {_named(found)}. "
            f"They differ in {'; '.join(lines)}. Load the recipe's model"
            + (", or pass any_scheduler=True." if all(line.startswith("scheduler") for line in lines) else ".")
        )


def _named(found: Mapping[str, Any]) -> str:
    return (
        f"{found.get('model_class')} {found.get('name')!r} (weights {str(found.get('weights_hash'))[:12]}, "
        f"{found.get('scheduler')} {str(found.get('scheduler_config_hash'))[:12]})"
    )


def _item_record(item: Intervention, pack: Any) -> dict[str, Any]:
    steps = item.steps.to_record() if isinstance(item.steps, Window) else item.steps
    return {
        "site": str(item.where),
        "steps": list(steps) if isinstance(steps, tuple) else steps,
        "branch": item.branch,
        "strength": item.strength.to_record() if isinstance(item.strength, Schedule) else item.strength,
        "mask": None if item.mask is None else pack(torch.as_tensor(item.mask)),
        "inject": item.inject,
        "op": op_record(item.op, pack),
    }


def _item_of(record: Mapping[str, Any], unpack: Any) -> Intervention:
    steps, strength = record["steps"], record["strength"]
    return Intervention(
        site=record["site"],
        op=op_of(record["op"], unpack),
        steps=Window.from_record(steps) if isinstance(steps, dict) else None if steps is None else tuple(steps),
        branch=record["branch"],
        strength=Schedule(**strength) if isinstance(strength, dict) else strength,
        mask=None if record["mask"] is None else unpack(record["mask"]),
        inject=record.get("inject", "both"),  # version 1 knew no other
    )


def _tensor_key(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    return f"{digest}{tensor.dtype}{tuple(tensor.shape)}"


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
