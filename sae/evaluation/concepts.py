"""How strongly each feature answers to each concept, at each denoising step.

With D_c the samples whose label is c, and f_i the code of feature i (Cywinski & Deja 2025, SAeUron, arXiv
2501.18052):

    (S0)  mu_i(t, D)    = mean of f_i over the samples of D and over the cells of the map, at step t
    (S1)  score_i(t, c) = mu_i(t, D_c) / (sum_j mu_j(t, D_c) + eps)  -  mu_i(t, D_rest) / (sum_j mu_j(t, D_rest) + eps)

D_rest pools the samples of all other concepts (each sample counts once). Sums are streamed: nothing of size (samples,
d_sae) is kept, and several factors (object, style, ...) are scored in one pass over the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from activations_store import ActivationStore
from sae._files import atomic_path, expect_tensors, file_hash, read_json, write_json
from sae.architectures.timed import default_steps, encode_maps
from sae.contract import SparseDictionary
from sae.data import BLOCK_BYTES, Selection, check_fits, select, store_identity, stream
from sae.errors import ConfigError, CorruptFile, EmptySelection, NewerFormat, UnknownConcept
from sae.numerics.sparse import TopKCode

EPS = 1e-8
FORMAT = 1
_JSON, _TENSORS = "scores.json", "mu.safetensors"


@dataclass(frozen=True)
class ConceptScores:
    """Mean activations by concept and step, and the scores that follow from them."""

    factor: str  # e.g. "object"
    concepts: tuple[str, ...]  # its values, sorted
    steps: tuple[int, ...]  # denoising steps, in the order of mu's first axis
    branch: str  # guidance branch whose codes were averaged
    mu: np.ndarray  # (n_steps, n_concepts, d_sae) float32: (S0)
    counts: np.ndarray  # (n_concepts,) int64: samples of each concept
    metadata: dict[str, Any]  # site and hashes of SAE and store

    @property
    def mean_activation(self) -> np.ndarray:
        """(n_steps, d_sae): mu averaged over the concepts, each concept counting once (the threshold in
        SAeUron's S2).
        """
        return self.mu.mean(axis=1)

    def index(self, concept: str) -> int:
        """Position of a concept; raises UnknownConcept with the names there are."""
        if concept not in self.concepts:
            raise UnknownConcept(
                f"No concept {concept!r} in factor {self.factor!r}; it has {', '.join(self.concepts)}."
            )
        return self.concepts.index(concept)

    def score(self, concept: str) -> np.ndarray:
        """(n_steps, d_sae) float32: (S1). Positive where a feature takes a larger share of the code for this
        concept.
        """
        at = self.index(concept)
        if len(self.concepts) < 2:
            raise EmptySelection(
                f"Factor {self.factor!r} has the single value {concept!r}: there is nothing to compare it with."
            )
        inside = self.mu[:, at].astype(np.float64)
        others = np.delete(np.arange(len(self.concepts)), at)
        weights = self.counts[others] / self.counts[others].sum()
        outside = np.einsum("c,tcf->tf", weights, self.mu[:, others].astype(np.float64))
        return (_shares(inside) - _shares(outside)).astype(np.float32)

    def top(self, concept: str, n: int, step: int | None = None) -> np.ndarray:
        """(n,) int64: features with the highest score, best first.

        Args:
            step: a denoising step; None ranks by the mean score over steps.
        """
        scores = self.score(concept)
        if step is None:
            ranked = scores.mean(axis=0)
        elif step in self.steps:
            ranked = scores[self.steps.index(step)]
        else:
            raise UnknownConcept(f"Step {step} was not scored; steps {list(self.steps)} were.")
        return np.argsort(-ranked, kind="stable")[:n]

    def save(self, folder: str | Path) -> Path:
        """Writes `mu.safetensors` and `scores.json` into `folder`; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / _TENSORS) as temporary:
            save_file({"mu": np.ascontiguousarray(self.mu), "counts": self.counts}, temporary)
        write_json(
            folder / _JSON,
            {
                "format": FORMAT,
                "factor": self.factor,
                "concepts": list(self.concepts),
                "steps": list(self.steps),
                "branch": self.branch,
                "d_sae": self.mu.shape[2],
                "mu_sha256": file_hash(folder / _TENSORS),
                "metadata": self.metadata,
            },
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote. Raises UnknownConcept (nothing there), CorruptFile, NewerFormat."""
        folder = Path(folder)
        if not (folder / _JSON).is_file() or not (folder / _TENSORS).is_file():
            raise UnknownConcept(
                f"{folder} holds no concept scores ({_JSON} and {_TENSORS}). Compute them with `denoscope features`."
            )
        info = read_json(folder / _JSON)
        if info.get("format") != FORMAT:
            raise NewerFormat(f"{folder / _JSON} has format {info.get('format')!r}; this version reads {FORMAT}.")
        try:
            concepts, steps = tuple(map(str, info["concepts"])), tuple(map(int, info["steps"]))
            shape = (len(steps), len(concepts), int(info["d_sae"]))
            factor, branch, metadata = str(info["factor"]), str(info["branch"]), dict(info["metadata"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptFile(f"{folder / _JSON} lacks or garbles {error}.") from error
        path = folder / _TENSORS
        expect_tensors(path, {"mu": shape, "counts": (len(concepts),)})
        if file_hash(path) != info.get("mu_sha256"):
            raise CorruptFile(f"{path} is not the file that {_JSON} describes (SHA-256 differs).")
        tensors = load_file(path)
        return cls(factor, concepts, steps, branch, tensors["mu"], tensors["counts"], metadata)


def _shares(mu: np.ndarray) -> np.ndarray:
    """Each feature's share of the total mean activation, by step."""
    return mu / (mu.sum(axis=1, keepdims=True) + EPS)


class ConceptSums:
    """Streaming (S0) for one factor. Feed it per-sample means of codes, then call `scores`."""

    def __init__(self, store: ActivationStore, factor: str, chosen: Selection, d_sae: int) -> None:
        """Samples without a label of this factor (empty string) are left out."""
        labels = store.labels(factor)[chosen.samples]
        self.factor = factor
        self.concepts = tuple(sorted({str(label) for label in labels} - {""}))
        if not self.concepts:
            raise EmptySelection(f"None of the chosen samples of {store.place} has a label of factor {factor!r}.")
        number = {name: i for i, name in enumerate(self.concepts)}
        self._label = np.array([number.get(str(label), -1) for label in labels])
        self._sums = np.zeros((len(chosen.steps), len(self.concepts), d_sae))
        self._chosen = chosen

    @property
    def membership(self) -> np.ndarray:
        """(n_concepts, n_samples) bool: which of the chosen samples carry which concept."""
        return self._label[None, :] == np.arange(len(self.concepts))[:, None]

    def add(self, samples: np.ndarray, means: np.ndarray) -> None:
        """Adds (n, n_steps, d_sae) means over cells of the samples at these positions of the selection."""
        for position, mean in zip(samples, means, strict=True):
            if self._label[position] >= 0:
                self._sums[:, self._label[position]] += mean

    def scores(self, metadata: dict[str, Any]) -> ConceptScores:
        """The scores of everything added."""
        counts = self.membership.sum(axis=1)
        mu = (self._sums / np.maximum(counts, 1)[None, :, None]).astype(np.float32)
        steps = tuple(int(step) for step in self._chosen.steps)
        return ConceptScores(self.factor, self.concepts, steps, self._chosen.branches[0], mu, counts, metadata)


@overload
def score_concepts(
    sae: SparseDictionary,
    store: ActivationStore,
    factor: str,
    *,
    branch: str = ...,
    site: str | None = ...,
    samples: Sequence[int] | np.ndarray | None = ...,
    steps: Sequence[int] | np.ndarray | None = ...,
    any_model: bool = ...,
) -> ConceptScores: ...
@overload
def score_concepts(
    sae: SparseDictionary,
    store: ActivationStore,
    factor: list[str] | tuple[str, ...],
    *,
    branch: str = ...,
    site: str | None = ...,
    samples: Sequence[int] | np.ndarray | None = ...,
    steps: Sequence[int] | np.ndarray | None = ...,
    any_model: bool = ...,
) -> dict[str, ConceptScores]: ...
def score_concepts(
    sae: SparseDictionary,
    store: ActivationStore,
    factor: str | list[str] | tuple[str, ...],
    *,
    branch: str = "cond",
    site: str | None = None,
    samples: Sequence[int] | np.ndarray | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    any_model: bool = False,
) -> ConceptScores | dict[str, ConceptScores]:
    """Scores all concepts of one factor, or of several in one pass over the store.

    Args:
        factor: a factor of the sample table, e.g. "object"; a list of them returns a dict by factor.
        branch: guidance branch to read (codes of the conditional half carry the concept).
        samples, steps: what to read; None = everything committed.
    """
    factors = [factor] if isinstance(factor, str) else list(factor)
    if not factors:
        raise ConfigError("score_concepts was given an empty list of factors.")
    name = check_fits(sae, store, site=site, any_model=any_model)
    steps = default_steps(sae, store) if steps is None else steps
    chosen = select(store, name, samples=samples, steps=steps, branches=[branch], blocks=sae.config.blocks)
    d_sae = sae.config.d_sae
    sums = {f: ConceptSums(store, f, chosen, d_sae) for f in factors}
    device = sae.W_dec.device
    for block in stream(store, chosen, block_bytes=block_bytes_for(chosen, d_sae)):
        code = encode_maps(sae, torch.from_numpy(block.x).to(device), chosen.log_snr)  # (S, T, tokens, k)
        means = sample_means(code, d_sae)
        for each in sums.values():
            each.add(block.samples, means)
    metadata = {"site": name, "sae": sae.config.to_json(), "store": store_identity(store)}
    scores = {f: each.scores(metadata) for f, each in sums.items()}
    return scores[factor] if isinstance(factor, str) else scores


def sample_means(code: TopKCode, d_sae: int) -> np.ndarray:
    """(n, n_steps, d_sae) float64: means over cells of an (n, n_steps, tokens, k) code."""
    n, n_steps, tokens, _ = code.indices.shape
    groups = torch.arange(n * n_steps, device=code.indices.device).view(n, n_steps, 1, 1)
    totals = torch.zeros(n * n_steps * d_sae, dtype=torch.float64, device=code.indices.device)
    totals.index_add_(0, (groups * d_sae + code.indices).reshape(-1), code.values.double().reshape(-1))
    return (totals / tokens).view(n, n_steps, d_sae).cpu().numpy()


def block_bytes_for(chosen: Selection, d_sae: int) -> int:
    """Bytes of rows a block may hold so that its `sample_means` stay near 64 MB too."""
    samples = max(1, 64 * 2**20 // (len(chosen.steps) * d_sae * 8))
    return min(BLOCK_BYTES, samples * len(chosen.steps) * chosen.tokens * chosen.channels * 4)
