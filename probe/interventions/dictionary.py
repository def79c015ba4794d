"""Dictionaries of features, as interventions see them: anything with ``encode``, ``decode`` and ``W_dec``.

``as_dictionary`` takes a trained autoencoder over as tensors (``plain_dictionary.py``, ``timed_dictionary.py``): a
recipe stores those, so that it replays without the autoencoder's folder and can be sent to someone else. What was
taken over is compared with the original on test rows, so nothing is edited by codes that its owner would not compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from probe.errors import InvalidIntervention
from probe.interventions.ops import Pack, Unpack
from probe.interventions.plain_dictionary import (
    Dictionary,
    PlainDictionary,
    StandardisedDictionary,
    ThresholdDictionary,
    TopKDictionary,
    UnitNormDictionary,
)
from probe.interventions.timed_dictionary import Film, MomentDictionary, Predictor, TimedDictionary

StoredDictionary = PlainDictionary | TimedDictionary
_STORED = (TopKDictionary, ThresholdDictionary, UnitNormDictionary, StandardisedDictionary, TimedDictionary)
_FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")
_TEST_ROWS = 64


def as_dictionary(source: Any) -> StoredDictionary:
    """A trained autoencoder as tensors, whatever its architecture and options.

    Args:
        source: an object with ``W_enc``, ``b_enc``, ``W_dec``, ``b_dec``, ``encode``, and ``k`` or ``cfg.k`` (TopK), or
            thresholds (``thresholds()`` or ``threshold``), or an ``architecture`` that is a ReLU. If it has
            ``folded()``, that is called first and must return the same with no scaling of its input. One in which
            time enters has ``cores``, ``levels`` and ``at(log_snr)`` instead; one that standardises each row first
            says so by ``standardises_rows`` and has the ``core`` that reads them.

    Raises:
        InvalidIntervention: it lacks one of these, or its codes are not what its tensors say.
    """
    if isinstance(source, _STORED):
        return source
    if callable(getattr(source, "folded", None)):
        source = source.folded()  # an input scale is an exact part of the weights
    with torch.no_grad():
        if all(hasattr(source, name) for name in ("cores", "levels", "at")):
            return _timed(source)
        made = _plain(source)
        x = _test_rows(made)
        _same_codes(type(source).__name__, source.encode(x), made.encode(x))
    return made


def _plain(source: Any) -> PlainDictionary:
    """The tensors of an architecture, without what stands before it unless that is made of the row itself."""
    if getattr(source, "standardises_rows", False):
        core = _plain(source.core)
        assert isinstance(core, TopKDictionary | ThresholdDictionary)
        return StandardisedDictionary(core)
    config = getattr(source, "cfg", getattr(source, "config", None))
    name = type(source).__name__
    missing = [field for field in (*_FOUR, "encode") if not hasattr(source, field)]
    threshold, k = _thresholds(source), _option(source, config, "k")
    relu = _option(source, config, "architecture") in ("relu", "standard")
    if missing or (threshold is None and not relu and not isinstance(k, int)):
        raise InvalidIntervention(
            f"as_dictionary: {name} has no {', '.join(missing) or 'integer k, no thresholds and no ReLU'}; expected an "
            "autoencoder with W_enc, b_enc, W_dec, b_dec, encode, and k or thresholds."
        )
    four = [getattr(source, field).detach().clone() for field in _FOUR]
    if relu:
        made: TopKDictionary | ThresholdDictionary = ThresholdDictionary(*four, threshold=torch.zeros_like(four[1]))
    elif threshold is not None:
        made = ThresholdDictionary(*four, threshold=threshold)
    else:
        assert isinstance(k, int)
        made = TopKDictionary(*four, k=k)
    if _option(source, config, "input") == "unit":
        return UnitNormDictionary(made, source.input.mean)
    return made


def _thresholds(source: Any) -> torch.Tensor | None:
    """(d_sae,) thresholds of a source that has them."""
    if getattr(source, "HAS_THRESHOLD", False):
        return source.thresholds().detach().clone().contiguous()
    found = getattr(source, "threshold", None)
    return found.detach().clone() if isinstance(found, torch.Tensor) and found.ndim == 1 else None


def _option(source: Any, config: Any, name: str) -> Any:
    """An attribute of a source or of its configuration, which may be a method or a key of a mapping."""
    value = getattr(config, name, config.get(name) if isinstance(config, Mapping) else None)
    if value is None and not isinstance(getattr(source, name, None), torch.nn.Module):
        value = getattr(source, name, None)
    return value() if callable(value) else value


def _timed(source: Any) -> TimedDictionary:
    cores = list(source.cores)
    members = tuple(_plain(core) for core in cores)
    levels = source.levels.detach().double().cpu()
    film = predictor = None
    if hasattr(source, "network"):
        d = members[0].W_dec.shape[1]
        own, eye = cores[0].input.tensors(), torch.eye(d)
        width = own.get("width", torch.ones(d))
        film = Film(
            *(source.network[name].detach().clone() for name in ("w1", "b1", "w2", "b2")),
            mean=own.get("mean", torch.zeros(d)).clone(),
            whiten=own.get("whiten", eye / width).clone(),
            colour=own.get("colour", eye * width).clone(),
        )
    if hasattr(source, "transition"):
        predictor = Predictor(source.transition.detach().clone(), source.offset.detach().clone())
    groups = tuple(getattr(source.config, "groups", None) or [0] * len(levels))
    made = TimedDictionary(members, levels, groups, film, predictor)
    for level in levels.tolist():
        x = _test_rows(members[groups[made.level_of(level)]])
        previous = None if predictor is None else x.flip(0)
        expected = source.at(level, previous).encode(x)
        _same_codes(type(source).__name__, expected, made.at(level, previous).encode(x))
    return made


def _test_rows(made: PlainDictionary) -> torch.Tensor:
    """Rows that features answer to."""
    inner = made.inner if isinstance(made, UnitNormDictionary | StandardisedDictionary) else made
    centre = made.mean if isinstance(made, UnitNormDictionary) else inner.b_dec
    d = len(centre)
    noise = torch.randn(_TEST_ROWS, d, generator=torch.Generator("cpu").manual_seed(0)).to(centre.device)
    size = inner.W_enc.norm(dim=0).clamp_min(1e-12).mean().reciprocal()
    if isinstance(inner, ThresholdDictionary):
        size = size * (1 + inner.threshold.mean())
    return centre + noise * size


def _same_codes(name: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    expected = expected.detach().float()
    # A tie at rank k may be broken either way, hence a share of rows and not all of them.
    same = torch.isclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().amax())).all(-1).float().mean()
    if float(same) < 0.95:
        raise InvalidIntervention(
            f"as_dictionary: {name} does not compute the code that its tensors, k and thresholds say "
            "(p = (x - b_dec) W_enc + b_enc, then the k largest or those above the threshold); its codes agree on "
            f"{100 * float(same):.0f} % of test rows. Fold its scaling into the weights first."
        )


def feature_codes(dictionary: Any, x: torch.Tensor, features: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """Codes (..., m) of a few features for rows (..., d), on the device of x; 0 allowed where they are not
    above ``above``.
    """
    moment = isinstance(dictionary, MomentDictionary)
    home = dictionary.device if moment else dictionary.W_dec.device
    features, above = features.to(home), above.to(home)
    if torch.is_grad_enabled() and x.requires_grad:  # the quick way works in buffers, which no gradient passes
        return dictionary.encode(x.to(home))[..., features].to(x)
    if moment:
        return dictionary.encode_features(x.to(home), features, above).to(x.device)
    flat = x.reshape(-1, x.shape[-1]).to(home)
    with torch.no_grad():
        if isinstance(dictionary, _STORED):
            z = dictionary.encode_features(flat, features, above)  # type: ignore[union-attr]
        else:
            z = dictionary.encode(flat)[:, features].float()
    return z.to(x.device).reshape(*x.shape[:-1], len(features))


def feature_directions(dictionary: Any, features: torch.Tensor) -> torch.Tensor:
    """(m, d) what a code of 1 of some features adds, on the dictionary's device."""
    if isinstance(dictionary, MomentDictionary):
        return dictionary.directions(features.to(dictionary.device))
    return dictionary.W_dec.detach()[features.to(dictionary.W_dec.device)]


def dictionary_record(dictionary: Any, pack: Pack) -> dict[str, Any]:
    """A dictionary in a recipe: its tensors in full.

    Raises:
        InvalidIntervention: it cannot be taken over as tensors (``as_dictionary``).
    """
    stored = as_dictionary(dictionary)
    if isinstance(stored, TopKDictionary):
        return {"kind": "topk", "k": stored.k} | _packed(stored.to_tensors(), pack)
    if isinstance(stored, ThresholdDictionary):
        return {"kind": "threshold"} | _packed(stored.to_tensors(), pack)
    if isinstance(stored, UnitNormDictionary):
        return {"kind": "unit", "inner": dictionary_record(stored.inner, pack), "mean": pack(stored.mean)}
    if isinstance(stored, StandardisedDictionary):
        return {"kind": "standardised", "inner": dictionary_record(stored.inner, pack)}
    return {
        "kind": "timed",
        "members": [dictionary_record(member, pack) for member in stored.members],
        "levels": stored.levels.tolist(),
        "groups": list(stored.groups),
        "film": None if stored.film is None else _packed(stored.film._asdict(), pack),
        "predictor": None if stored.predictor is None else _packed(stored.predictor._asdict(), pack),
    }


def dictionary_of(record: Mapping[str, Any], unpack: Unpack) -> StoredDictionary:
    """Inverse of ``dictionary_record``."""
    kind = record["kind"]
    if kind == "timed":
        film, predictor = record["film"], record["predictor"]
        return TimedDictionary(
            tuple(_plain_of(member, unpack) for member in record["members"]),
            torch.tensor(record["levels"], dtype=torch.float64),
            tuple(int(g) for g in record["groups"]),
            None if film is None else Film(**{name: unpack(film[name]) for name in Film._fields}),
            None if predictor is None else Predictor(**{name: unpack(predictor[name]) for name in Predictor._fields}),
        )
    return _plain_of(record, unpack)


def _plain_of(record: Mapping[str, Any], unpack: Unpack) -> PlainDictionary:
    kind = record["kind"]
    if kind in ("unit", "standardised"):
        inner = _plain_of(record["inner"], unpack)
        assert isinstance(inner, TopKDictionary | ThresholdDictionary)
        return UnitNormDictionary(inner, unpack(record["mean"])) if kind == "unit" else StandardisedDictionary(inner)
    if kind not in ("topk", "threshold"):
        raise InvalidIntervention(
            f"recipe: dictionary of kind {kind!r}; this version reads topk, threshold, unit, standardised, timed."
        )
    four = [unpack(record[name]) for name in _FOUR]
    if kind == "topk":
        return TopKDictionary(*four, k=int(record["k"]))
    return ThresholdDictionary(*four, threshold=unpack(record["threshold"]))


def _packed(tensors: Mapping[str, torch.Tensor], pack: Pack) -> dict[str, str]:
    return {name: pack(tensor) for name, tensor in tensors.items()}


__all__ = [
    "Dictionary",
    "MomentDictionary",
    "PlainDictionary",
    "StandardisedDictionary",
    "StoredDictionary",
    "ThresholdDictionary",
    "TimedDictionary",
    "TopKDictionary",
    "UnitNormDictionary",
    "as_dictionary",
    "dictionary_of",
    "dictionary_record",
    "feature_codes",
    "feature_directions",
]
