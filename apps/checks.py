"""Whether a model, a store and a dictionary belong together: asked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from activations_store import ActivationStore
    from sae import OpenedSAE


def check_model(pipe: DiffusionPipeline, made_with: Mapping[str, Any], what: str | Path) -> None:
    """Refuse what was made with another model.

    Args:
        pipe: the model at hand.
        made_with: fingerprint that ``what`` carries.
        what: a store or dictionary, for the message.

    Raises:
        probe.errors.ModelMismatch: weights, class or scheduler differ.
    """
    from probe.errors import ModelMismatch
    from probe.model import fingerprint
    from probe.model.fingerprint import differences

    found = fingerprint(pipe)
    lines = differences(found, dict(made_with))
    if lines:
        raise ModelMismatch(
            f"{str(what)!r} was made with model {made_with.get('name')!r}, but the model here is {found['name']!r}: "
            f"{'; '.join(lines)}. Give that model with --model, or collect and train with this one."
        )


def check_dictionary(sae: OpenedSAE, folder: Path, store: ActivationStore) -> str:
    """The site of a dictionary, after a check that the store holds it and is of the same model.

    Raises:
        sae.errors.SAESiteMismatch, SAEModelMismatch, activations_store.errors.UnknownSite
    """
    from sae import check_fits
    from sae.errors import SAESiteMismatch

    site = sae.config.site
    if site and site not in store.sites:
        raise SAESiteMismatch(
            f"{str(folder)!r} was trained at site {site}, which {str(store.path)!r} does not hold; it has "
            f"{', '.join(store.sites)}. Choose the store that it was trained on, or collect that site."
        )
    return check_fits(sae, store)


def model_of(sae: OpenedSAE) -> str | None:
    """Name of the model whose activations a dictionary was trained on, as ``--model`` takes it."""
    found = sae.metadata.get("store", {}).get("fingerprint", {}).get("name")
    return str(found) if found else None


def fingerprint_of(sae: OpenedSAE) -> dict[str, Any] | None:
    """Fingerprint of the model whose activations a dictionary was trained on."""
    found = sae.metadata.get("store", {}).get("fingerprint")
    return dict(found) if isinstance(found, dict) and found.get("weights_hash") else None
