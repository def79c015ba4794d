"""Site groups: sites that are added to a store that exists already.

Nothing of a store is ever changed, so a group is a store of its own inside it, `<store>/groups/<name>/`: the same
samples, steps, branches and model, other sites. It is made under a temporary name and renamed, so a killed creation
leaves a leftover and no group. Its shards are planned, committed, verified and resumed like those of any store.
"""

import re

from activations_store.errors import FingerprintMismatch, InvalidMetadata, InvalidSpec, SpecMismatch, explain
from activations_store.format.layout import Layout, StoreInfo
from activations_store.format.spec import StoreSpec
from activations_store.storage import jsonio
from activations_store.storage.objects import Place
from activations_store.storage.reading import check_folder, names_in

MAX_GROUPS = 256
_GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SHARED = ("n_samples", "timesteps", "log_snr", "branches")


def group_names(layout: Layout) -> list[str]:
    """Names of the groups of a store, ascending; none for a store without groups."""
    try:
        check_folder(layout.groups)
    except FileNotFoundError:
        return []
    names = [name for name in names_in(layout.groups) if _GROUP_NAME.fullmatch(name)]
    if len(names) > MAX_GROUPS:
        raise InvalidMetadata(explain(f"{layout.groups} holds too many groups", found=len(names), expected=MAX_GROUPS))
    for name in names:
        check_folder(layout.group(name))
    return names


def check_name(name: str) -> None:
    """Raise `InvalidSpec` unless `name` can name a group."""
    if not isinstance(name, str) or not _GROUP_NAME.fullmatch(name):
        raise InvalidSpec(
            explain(
                "A group's name cannot be used",
                found=repr(name)[:120],
                expected="1 to 64 of a-z 0-9 _ - that begin with a letter or digit",
            )
        )


def check_addition(base: StoreInfo, spec: StoreSpec, taken: set[str], fingerprint: object) -> None:
    """Raise unless a group of this spec and model can be added to a store whose site names are `taken`.

    Raises:
        SpecMismatch: other samples, steps or branches, or a site that is there already.
        FingerprintMismatch: another model.
    """
    stored, given = base.spec.to_dict(), spec.to_dict()
    lines = [line for key in _SHARED for line in jsonio.differences(stored[key], given[key], key)]
    if lines:
        raise SpecMismatch(
            explain(
                "The group does not fit the store",
                found="; ".join(lines[:6]),
                expected="the store's samples, steps and branches",
                next_step="use dataclasses.replace(store.spec, sites=...)",
            )
        )
    repeated = sorted({site.dir_name.casefold() for site in spec.sites} & taken)
    if repeated:
        raise SpecMismatch(explain("The store has the site already", found=", ".join(repeated), expected="new sites"))
    lines = jsonio.differences(base.fingerprint, jsonio.normalise(fingerprint))
    if lines:
        raise FingerprintMismatch(
            explain("The group comes from another model", found="; ".join(lines), expected="the store's fingerprint")
        )


def check_group(base: StoreInfo, group: StoreInfo, path: Place) -> None:
    """Raise `InvalidMetadata` unless an opened group belongs to the store it lies in."""
    stored, given = base.spec.to_dict(), group.spec.to_dict()
    wrong = [key for key in _SHARED if stored[key] != given[key]]
    wrong += [key for key in ("fingerprint", "samples") if base.hashes[key] != group.hashes[key]]
    if wrong:
        raise InvalidMetadata(
            explain(
                f"{path} is no group of the store it lies in",
                found=f"other {', '.join(wrong)}",
                next_step="move the folder out of the store",
            )
        )
