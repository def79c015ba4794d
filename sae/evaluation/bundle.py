"""The feature bundle: all that a page about a feature needs, read without a model, a store or a GPU.

Folder (format 1; every array is feature-first where a page reads one feature, so that one feature is one contiguous
read):

    bundle.json          format, what it was made from (SAE, store, hashes), steps with t and log_snr, grid, concepts,
                         files
    features.parquet     one row a feature: density, mean, mean_active, max, p50, p99, p999, peak_step, sample_fraction,
                         ev_contribution, nearest, nearest_cosine, dead, dense, layout_x, layout_y, and for every factor
                         best_<factor>, auc_<factor>, score_<factor>
    samples.parquet      the sample table, with `image`, a file name in images/ or in the images folder of bundle.json
    stats.safetensors    mean_by_step, max_by_step (n_steps, d_sae); mean_by_cell (d_sae, tokens); histogram (d_sae,
                         n_bins) counts of active values; neighbours, neighbour_cosine (d_sae, 8); map_scale (d_sae,);
                         auc.<factor>, score.<factor> (n_concepts, d_sae)
    examples.safetensors sample, step (d_sae, n) int32 and activation (d_sae, n) float32, best first; sample -1 = unused
    maps.safetensors     maps (d_sae, n, n_steps, tokens) uint8; activation = maps / 255 * map_scale
    pooled.safetensors   pooled (d_sae, n_samples) float16: largest activation in a sample / map_scale
    concepts/<factor>/   `ConceptScores`
    images/              copies of the example images, if asked for

"Activation" is the code z in the units of the site; nothing here says what a feature causes.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from sae._files import expect_tensors, file_hash, read_json, tensor_header
from sae.errors import ConfigError, CorruptFile, NewerFormat, NotABundle, UnknownConcept
from sae.evaluation.concepts import ConceptScores

FORMAT = 1
INFO_NAME = "bundle.json"
FILES = (
    "features.parquet",
    "samples.parquet",
    "stats.safetensors",
    "examples.safetensors",
    "maps.safetensors",
    "pooled.safetensors",
)
_FOLDER_NAME = re.compile(r"\w[\w .+-]{0,99}")


def folder_name(factor: str) -> str:
    """The factor's name, which is that of a folder too.

    Raises:
        ConfigError: it cannot be one, or would lead elsewhere.
    """
    if not _FOLDER_NAME.fullmatch(factor):
        raise ConfigError(
            f"The factor {factor!r} cannot name a folder; expected letters, digits, spaces and . _ + - after a letter "
            "or digit, 100 at most."
        )
    return factor


@dataclass(frozen=True)
class Example:
    """A sample in which a feature is strongly active."""

    rank: int  # 0 = strongest
    sample: int  # number in the store
    activation: float  # largest over steps and cells
    step: int  # denoising step of that largest value
    prompt: str
    seed: int
    labels: dict[str, str]  # factor -> value
    image: Path | None  # its picture, or None where no picture is found


class FeatureBundle:
    """A bundle opened for reading. Small tables load when first asked for; maps and pooled values one feature
    at a time.
    """

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info
        try:
            self.n_features = int(info["d_sae"])
            self.n_examples = int(info["n_examples"])
            self.n_samples = int(info["n_samples"])
            self.tokens = int(info["tokens"])
            self.steps = tuple(int(s) for s in info["steps"])
            self.timesteps = tuple(float(t) for t in info["timesteps"])
            self.log_snr = tuple(float(s) for s in info["log_snr"])
            self.grid = (int(info["grid"][0]), int(info["grid"][1])) if info["grid"] else None
            self.concepts = {folder_name(f): tuple(map(str, names)) for f, names in info["concepts"].items()}
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise CorruptFile(f"{path / INFO_NAME} lacks or garbles {error}.") from error

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens a bundle and checks that its files are there with the shapes that `bundle.json` declares.

        Raises:
            NotABundle: no bundle, or a file is missing. NewerFormat. CorruptFile: a header or shape is wrong.
        """
        path = Path(path)
        if not (path / INFO_NAME).is_file():
            raise NotABundle(
                f"{path} is not a feature bundle ({INFO_NAME} is missing). Build one with `denoscope features`."
            )
        info = read_json(path / INFO_NAME)
        if info.get("format") != FORMAT:
            raise NewerFormat(f"{path / INFO_NAME} has format {info.get('format')!r}; this version reads {FORMAT}.")
        missing = [name for name in FILES if not (path / name).is_file()]
        if missing:
            raise NotABundle(f"{path} lacks {', '.join(missing)}. Build the bundle again with `denoscope features`.")
        bundle = cls(path, info)
        bundle._check_shapes()
        return bundle

    def _check_shapes(self) -> None:
        d, n, t = self.n_features, self.n_examples, len(self.steps)
        pairs = {"sample": (d, n), "step": (d, n), "activation": (d, n)}
        expect_tensors(self.path / "examples.safetensors", pairs)
        expect_tensors(self.path / "maps.safetensors", {"maps": (d, n, t, self.tokens)})
        expect_tensors(self.path / "pooled.safetensors", {"pooled": (d, self.n_samples)})
        header = tensor_header(self.path / "stats.safetensors")
        expected = {
            "mean_by_step": (t, d),
            "max_by_step": (t, d),
            "mean_by_cell": (d, self.tokens),
            "map_scale": (d,),
        }
        for factor, names in self.concepts.items():
            expected |= {f"auc.{factor}": (len(names), d), f"score.{factor}": (len(names), d)}
        for name, shape in expected.items():
            found = header.get(name, ("", None))[1]
            if found != shape:
                raise CorruptFile(f"{self.path / 'stats.safetensors'}: {name!r} has shape {found}; expected {shape}.")

    @cached_property
    def bundle_hash(self) -> str:
        """SHA-256 of `bundle.json`, which holds the hashes of the other files: names the bundle in links."""
        return file_hash(self.path / INFO_NAME)

    def verify(self) -> list[str]:
        """Names of files whose bytes are not those recorded; reads everything."""
        recorded = self.info["files"]
        return [name for name in FILES if recorded.get(name) != file_hash(self.path / name)]

    @property
    def factors(self) -> tuple[str, ...]:
        """Factors with concept scores."""
        return tuple(self.concepts)

    @cached_property
    def table(self) -> pa.Table:
        """`features.parquet`."""
        return pq.read_table(self.path / "features.parquet")

    @cached_property
    def samples(self) -> pa.Table:
        """`samples.parquet`: the samples the bundle was made from."""
        return pq.read_table(self.path / "samples.parquet")

    def stats(self, feature: int) -> dict[str, Any]:
        """The feature's row of `features.parquet`."""
        return self.table.slice(self._check(feature), 1).to_pylist()[0]

    @cached_property
    def mean_by_step(self) -> np.ndarray:
        """(n_steps, d_sae) float32: mean activation over samples and cells."""
        return self._whole("mean_by_step")

    @cached_property
    def max_by_step(self) -> np.ndarray:
        """(n_steps, d_sae) float32: largest activation."""
        return self._whole("max_by_step")

    def mean_by_cell(self, feature: int) -> np.ndarray:
        """Where in the map the feature is active on average: (height, width), or (tokens,) without a grid."""
        return self._shaped(self._row("stats", "mean_by_cell", feature))

    def histogram(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """(edges (n_bins + 1,), counts (n_bins,)) of the feature's active values; bins are even in log
        activation.
        """
        low, per_octave = float(self.info["histogram"]["low"]), float(self.info["histogram"]["per_octave"])
        counts = self._row("stats", "histogram", feature)
        return low * 2.0 ** (np.arange(len(counts) + 1) / per_octave), counts

    def neighbours(self, feature: int) -> list[tuple[int, float]]:
        """Features with the most similar decoder rows: (feature, cosine), most similar first."""
        near = self._row("stats", "neighbours", feature)
        return list(zip(near.tolist(), self._row("stats", "neighbour_cosine", feature).tolist(), strict=True))

    def examples(self, feature: int) -> list[Example]:
        """The samples with the largest activation, strongest first; [] for a dead feature."""
        feature = self._check(feature)
        sample, step, activation = (self._row("examples", n, feature) for n in ("sample", "step", "activation"))
        used = np.flatnonzero(sample >= 0)
        rows = self.samples.take(pa.array(sample[used], type=pa.int64())).to_pylist() if len(used) else []
        found = []
        for rank, row in enumerate(rows):
            labels = {k.removeprefix("label_"): v or "" for k, v in row.items() if k.startswith("label_")}
            image = self.image_path(row["image"])
            found.append(
                Example(
                    rank,
                    row["sample"],
                    float(activation[rank]),
                    int(step[rank]),
                    row["prompt"],
                    row["seed"],
                    labels,
                    image,
                )
            )
        return found

    def maps(self, feature: int) -> np.ndarray:
        """(examples, n_steps, height, width) float32 activations of `examples(feature)`; (..., tokens)
        without a grid.
        """
        feature = self._check(feature)
        used = int((self._row("examples", "sample", feature) >= 0).sum())
        maps = self._row("maps", "maps", feature)[:used].astype(np.float32)
        return self._shaped(maps * (self._scales[feature] / 255.0))

    def pooled(self, feature: int) -> np.ndarray:
        """(n_samples,) float32: the feature's largest activation in each sample, in the order of `samples`."""
        return self._row("pooled", "pooled", feature).astype(np.float32) * self._scales[feature]

    def auc(self, factor: str) -> np.ndarray:
        """(n_concepts, d_sae): how well the pooled activation tells a concept from the others; 0.5 = chance."""
        return self._whole(f"auc.{self._factor(factor)}")

    def score(self, factor: str) -> np.ndarray:
        """(n_concepts, d_sae): concept score (S1), mean over steps."""
        return self._whole(f"score.{self._factor(factor)}")

    def scores(self, factor: str) -> ConceptScores:
        """The factor's scores at every step."""
        return ConceptScores.load(self.path / "concepts" / self._factor(factor))

    def find(self, factor: str, concept: str, n: int = 10) -> list[tuple[int, float]]:
        """Features that tell a concept best: (feature, AUC), best first."""
        if concept not in self.concepts[self._factor(factor)]:
            raise UnknownConcept(f"No concept {concept!r} in {factor!r}; it has {', '.join(self.concepts[factor])}.")
        auc = self.auc(factor)[self.concepts[factor].index(concept)]
        return [(int(f), float(auc[f])) for f in np.argsort(-auc, kind="stable")[:n]]

    def image_path(self, name: str | None) -> Path | None:
        """Where a sample's picture is: in the bundle, else in the collection's folder; None if in neither."""
        if not name or Path(name).name != name:  # names come from a file: they never leave the two folders
            return None
        folders = [self.path / "images"]
        if self.info.get("images"):
            folders.append(self.path / self.info["images"])
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    @cached_property
    def _scales(self) -> np.ndarray:
        return self._whole("map_scale")

    def _whole(self, name: str) -> np.ndarray:
        with safe_open(self.path / "stats.safetensors", framework="np") as file:
            return file.get_tensor(name)

    def _row(self, file_name: str, name: str, feature: int) -> np.ndarray:
        feature = self._check(feature)
        with safe_open(self.path / f"{file_name}.safetensors", framework="np") as file:
            return file.get_slice(name)[feature]

    def _shaped(self, maps: np.ndarray) -> np.ndarray:
        return maps.reshape(*maps.shape[:-1], *self.grid) if self.grid else maps

    def _check(self, feature: int) -> int:
        if not 0 <= feature < self.n_features:
            raise UnknownConcept(f"Feature {feature} is not in {self.path}; it has 0 to {self.n_features - 1}.")
        return int(feature)

    def _factor(self, factor: str) -> str:
        if factor not in self.concepts:
            raise UnknownConcept(f"No factor {factor!r} in {self.path}; it has {', '.join(self.concepts) or 'none'}.")
        return factor
