"""Building a feature bundle (format in bundle.py) from a dictionary and a store.

Two passes over the chosen samples. The first streams statistics: sums and maxima by step and cell, a log
histogram of active values for the percentiles, the largest activation of every feature in every sample, and
the concept sums. The second encodes again the samples that are somebody's example and keeps only the maps of
the features they are an example of.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

from activations_store import ActivationStore
from sae._files import create_tensor_file, file_hash, fsync_folder, write_json
from sae.architectures.timed import default_steps, encode_maps
from sae.contract import SparseDictionary
from sae.data import Selection, check_fits, select, store_identity, stream
from sae.errors import BundleExists
from sae.evaluation.bundle import FILES, FORMAT, INFO_NAME, FeatureBundle, folder_name
from sae.evaluation.concepts import ConceptSums, block_bytes_for, sample_means
from sae.evaluation.feature_stats import FeatureStats, auc_by_concept, decoder_layout, decoder_neighbours
from sae.evaluation.metrics import DENSE_ABOVE


def build_bundle(
    sae: SparseDictionary,
    store: ActivationStore,
    images_dir: str | Path | None,
    out: str | Path,
    *,
    factors: Sequence[str] | None = None,
    branch: str = "cond",
    samples: Sequence[int] | np.ndarray | None = None,
    steps: Sequence[int] | None = None,
    n_examples: int = 16,
    copy_images: bool = False,
    metrics: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    any_model: bool = False,
) -> FeatureBundle:
    """Builds a bundle in `out`, which appears complete or not at all.

    Args:
        images_dir: folder with one picture a sample, 000000.png, 000001.png, ...; None if there are none.
        factors: factors of the sample table to score; None = all.
        branch: guidance branch whose activations are shown.
        samples, steps: what to use; None = everything committed.
        n_examples: samples kept with their maps for every feature.
        copy_images: copy the pictures of examples into the bundle, so that it can be moved without the store.
        metrics: the SAE's metrics, kept in `bundle.json` as they are.
        overwrite: replace a bundle that is already in `out`.
        progress: called with (samples done, samples in both passes).

    Raises:
        BundleExists: `out` exists and `overwrite` is False.

    Memory: n_samples x d_sae float32, and one block of samples.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise BundleExists(f"{out} already exists. Choose another folder or pass overwrite=True.")
    site = check_fits(sae, store, any_model=any_model)
    steps = default_steps(sae, store) if steps is None else steps
    chosen = select(store, site, samples=samples, steps=steps, branches=[branch], blocks=sae.config.blocks)
    names = [folder_name(name) for name in (store.factors if factors is None else factors)]
    n_samples, d_sae = len(chosen.samples), sae.config.d_sae
    n_examples = max(1, min(n_examples, n_samples))

    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        concepts = {name: ConceptSums(store, name, chosen, d_sae) for name in names}
        stats = FeatureStats(sae, chosen)
        done = 0
        for block in stream(store, chosen, block_bytes=block_bytes_for(chosen, d_sae)):
            code = stats.add(block)
            means = sample_means(code, d_sae)
            for each in concepts.values():
                each.add(block.samples, means)
            done += len(block.samples)
            if progress is not None:
                progress(done, 2 * n_samples)

        # (d_sae, n) positions in the selection. Contiguous, as safetensors writes bytes in memory order.
        order = np.ascontiguousarray(np.argsort(-stats.pooled, axis=0, kind="stable")[:n_examples].T)
        activation = np.take_along_axis(stats.pooled.T, order, axis=1)
        scale = stats.pooled.max(axis=0)
        peak = _write_maps(temporary, sae, store, chosen, order, activation, scale, progress)
        used = activation > 0
        save_file(
            {
                "sample": np.ascontiguousarray(np.where(used, order, -1), dtype=np.int32),
                "step": np.ascontiguousarray(np.where(used, peak, -1), dtype=np.int32),
                "activation": np.ascontiguousarray(np.where(used, activation, 0), dtype=np.float32),
            },
            temporary / "examples.safetensors",
        )
        normalised = stats.pooled / np.where(scale > 0, scale, 1)
        save_file(
            {"pooled": np.ascontiguousarray(normalised.T.astype(np.float16))},
            temporary / "pooled.safetensors",
        )

        columns = stats.columns()
        tensors = stats.tensors() | {"map_scale": scale.astype(np.float32)}
        near, cosine = decoder_neighbours(sae.W_dec)
        tensors |= {"neighbours": near, "neighbour_cosine": cosine}
        columns |= {"nearest": near[:, 0], "nearest_cosine": cosine[:, 0]}
        columns |= dict(zip(("layout_x", "layout_y"), decoder_layout(sae.W_dec).T, strict=True))
        metadata = {"site": site, "sae": sae.config.to_json(), "store": store_identity(store)}
        for name, sums in concepts.items():
            scores = sums.scores(metadata)
            scores.save(temporary / "concepts" / name)
            auc = auc_by_concept(stats.pooled, sums.membership)
            several = len(scores.concepts) > 1  # with a single concept there is nothing to compare
            score = np.stack([scores.score(c).mean(axis=0) for c in scores.concepts]) if several else np.zeros_like(auc)
            tensors |= {f"auc.{name}": auc, f"score.{name}": score.astype(np.float32)}
            best = auc.argmax(axis=0)
            at = np.arange(d_sae)
            alive = scale > 0
            labels = [scores.concepts[c] if on and several else None for c, on in zip(best, alive, strict=True)]
            columns |= {f"best_{name}": pa.array(labels, pa.string())}
            columns |= {f"auc_{name}": auc[best, at], f"score_{name}": score[best, at].astype(np.float32)}
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary / "stats.safetensors")
        pq.write_table(
            pa.table({"feature": np.arange(d_sae, dtype=np.int32), **columns}), temporary / "features.parquet"
        )
        _write_samples(temporary, store, chosen, images_dir, np.unique(order[used]) if copy_images else None)
        grid = store.site(site).spec.grid
        info = {
            "format": FORMAT,
            "site": site,
            "branch": branch,
            "d_sae": d_sae,
            "d_in": sae.config.d_in,
            "tokens": chosen.tokens,
            "grid": list(grid) if grid else None,
            "steps": chosen.steps.tolist(),
            "timesteps": [store.spec.timesteps[s] for s in chosen.steps],
            "log_snr": [store.spec.log_snr[s] for s in chosen.steps],
            "n_samples": n_samples,
            "n_examples": n_examples,
            "dense_above": DENSE_ABOVE,
            "histogram": stats.histogram_spec,
            "concepts": {name: list(sums.concepts) for name, sums in concepts.items()},
            "images": _relative(images_dir, out),
            "sae": {"config": sae.config.to_json(), "metadata": sae.metadata},
            "store": store_identity(store),
            "metrics": metrics or {},
            "files": {name: file_hash(temporary / name) for name in FILES},
        }
        write_json(temporary / INFO_NAME, info)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
        fsync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return FeatureBundle.open(out)


def _write_maps(
    folder: Path,
    sae: SparseDictionary,
    store: ActivationStore,
    chosen: Selection,
    order: np.ndarray,
    activation: np.ndarray,
    scale: np.ndarray,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Writes `maps.safetensors`; returns (d_sae, n) the step of each example's largest value.

    Args:
        order: (d_sae, n) positions of examples in the selection. activation: (d_sae, n) their largest values.
        scale: (d_sae,) value that becomes 255.
    """
    d_sae, n_examples = order.shape
    n_steps, tokens = len(chosen.steps), chosen.tokens
    path = folder / "maps.safetensors"
    maps = create_tensor_file(path, "maps", (d_sae, n_examples, n_steps, tokens), "uint8")
    peak = np.zeros((d_sae, n_examples), dtype=np.int32)
    feature, rank = np.nonzero(activation > 0)
    position = order[feature, rank]
    by_position = np.argsort(position, kind="stable")
    feature, rank, position = feature[by_position], rank[by_position], position[by_position]
    wanted = np.unique(position)
    part = replace(chosen, samples=chosen.samples[wanted])
    slot_of = np.full(d_sae, -1)
    for block in stream(store, part) if len(wanted) else ():
        code = encode_maps(sae, torch.from_numpy(block.x).to(sae.W_dec.device), chosen.log_snr)
        all_values, all_indices = code.values.cpu().numpy(), code.indices.cpu().numpy()
        for row, at in enumerate(wanted[block.samples]):
            here = slice(*np.searchsorted(position, [at, at + 1]))
            features, ranks = feature[here], rank[here]
            slot_of[features] = np.arange(len(features))
            slots = slot_of[all_indices[row]]
            on = (slots >= 0) & (all_values[row] > 0)
            step, cell, _ = np.nonzero(on)
            dense = np.zeros((len(features), n_steps, tokens), dtype=np.float32)
            dense[slots[on], step, cell] = all_values[row][on]
            slot_of[features] = -1
            levels = np.rint(dense * (255.0 / scale[features])[:, None, None])
            # The faintest activation stays visible: 0 means exactly "off".
            maps[features, ranks] = np.where(dense > 0, np.clip(levels, 1, 255), 0).astype(np.uint8)
            peak[features, ranks] = chosen.steps[dense.max(axis=2).argmax(axis=1)]
        if progress is not None:
            n = len(chosen.samples)
            progress(n + int(n * (block.samples[-1] + 1) / len(wanted)), 2 * n)
    maps.flush()
    return peak


def _write_samples(
    folder: Path,
    store: ActivationStore,
    chosen: Selection,
    images_dir: str | Path | None,
    copied: np.ndarray | None,
) -> None:
    """Writes the chosen rows of the sample table with their picture's file name; copies pictures of `copied`
    positions.
    """
    table = store.samples.take(pa.array(chosen.samples))
    names = [f"{sample:06d}.png" for sample in chosen.samples]
    present = [name if images_dir is not None and (Path(images_dir) / name).is_file() else None for name in names]
    at = table.column_names.index("image") if "image" in table.column_names else None
    image = pa.array(present, pa.string())
    table = table.append_column("image", image) if at is None else table.set_column(at, "image", image)
    pq.write_table(table, folder / "samples.parquet")
    for position in copied if copied is not None else ():
        name = present[position]
        if name is not None and images_dir is not None:
            (folder / "images").mkdir(exist_ok=True)
            shutil.copyfile(Path(images_dir) / name, folder / "images" / name)


def _relative(images_dir: str | Path | None, out: Path) -> str | None:
    """The images folder as seen from the bundle, so that both can be moved together."""
    return None if images_dir is None else Path(os.path.relpath(Path(images_dir).resolve(), out.resolve())).as_posix()
