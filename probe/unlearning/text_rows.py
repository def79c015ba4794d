"""What modules of a text encoder compute for prompts, and a store of it.

Text is encoded once, before the first step, so the store has one step and the branch ``cond``. Its tokens are the
positions of the prompt with the padding: in a causal encoder the padding has read the prompt, and the denoiser attends
to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter
from probe.capture.sites import Site
from probe.capture.tensors import find_output
from probe.errors import InvalidRequest
from probe.interventions.directions import AddDirection
from probe.interventions.guide import text_embeddings
from probe.interventions.intervention import Intervention
from probe.interventions.ops import Op
from probe.interventions.places import place
from probe.model.fingerprint import fingerprint
from probe.model.pipeline import Pipeline

_AT_ONCE = 64


def text_rows(pipe: Pipeline, site: Site | str, prompts: Sequence[str], op: Op) -> torch.Tensor:
    """Rows (prompts, tokens, channels) at a text-encoder site.

    Args:
        pipe: the pipeline.
        site: such as ``text_encoder.encoder.layers.9``; port ``out``.
        prompts: texts.
        op: the operation that will be placed there; the site is checked as if it were.

    Raises:
        UnknownSite: there is no such module.
        InvalidRequest: the site is not the output of a text encoder's module, or there are no prompts.
    """
    return _rows(pipe, [_text_site(pipe, site, prompts, op)], prompts)[0]


def text_store(
    pipe: Pipeline,
    sites: Sequence[str],
    prompts: Sequence[str],
    out: Path,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> ActivationStore:
    """Record what sites of the text encoder compute for prompts; a store of the same is continued.

    Costs a pass of the text encoder a prompt, and tokens x channels x 4 bytes a prompt and site.

    Args:
        pipe: the pipeline.
        sites: as in ``text_rows``.
        prompts: N texts.
        out: folder of the store.
        labels: for each factor, N labels; "" where a prompt does not say.

    Raises:
        UnknownSite, InvalidRequest: as ``text_rows``.
        activations_store.errors.PlanMismatch, FingerprintMismatch: the folder holds another store.
    """
    placed = [_text_site(pipe, site, prompts) for site in sites]
    first = _rows(pipe, placed, prompts[:1])
    names = [str(site) for site in placed]
    specs = (
        SiteSpec(name, rows.shape[1], rows.shape[2], dtype="float32") for name, rows in zip(names, first, strict=True)
    )
    spec = StoreSpec.plan(tuple(specs), len(prompts), (0,), (0.0,), ("cond",), max_samples_per_shard=1024)
    columns = {f"label_{factor}": list(values) for factor, values in (labels or {}).items()}
    plan = {"text": names, "prompts": list(prompts), "labels": columns}
    model = fingerprint(pipe)
    if (out / "store.json").exists():
        writer = StoreWriter.resume(out, spec=spec, fingerprint=model, plan=plan)
    else:
        numbers = np.arange(len(prompts))
        table = pa.table({"sample": numbers, "prompt": list(prompts), "seed": 0 * numbers} | columns)
        writer = StoreWriter.create(out, spec, table, fingerprint=model, plan=plan)
    with writer:
        for shard in writer.pending():
            part = spec.shard_samples(shard)
            rows = _rows(pipe, placed, prompts[part.start : part.stop])
            writer.write_shard(shard, {name: r[:, None, None].numpy() for name, r in zip(names, rows, strict=True)})
    return ActivationStore.open(out)


def _text_site(pipe: Pipeline, site: Site | str, prompts: Sequence[str], op: Op | None = None) -> Site:
    """The full site, checked."""
    where = place(pipe, Intervention(site, op or AddDirection(torch.ones(1))))
    if where.kind != "text" or where.site.port != "out" or not prompts:
        raise InvalidRequest(f"{where.site}: expected prompts and the output of a module of a text encoder.")
    return where.site


def _rows(pipe: Pipeline, sites: Sequence[Site], prompts: Sequence[str]) -> list[torch.Tensor]:
    """Rows (prompts, tokens, channels) float32 of each site."""
    seen: dict[str, list[torch.Tensor]] = {str(site): [] for site in sites}
    with ExitStack() as hooks:
        for site in sites:

            def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str = str(site)) -> None:
                seen[name].append(find_output(name, output, args, kwargs).tensor.detach().float().cpu())

            handle = site.module(pipe).register_forward_hook(keep, with_kwargs=True)
            hooks.callback(handle.remove)
        for start in range(0, len(prompts), _AT_ONCE):
            text_embeddings(pipe, prompts[start : start + _AT_ONCE])
    return [torch.cat(rows) for rows in seen.values()]
