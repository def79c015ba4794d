"""What a store holds: its facts as JSON values, and the same as text for a terminal."""

from __future__ import annotations

from typing import Any

from activations_store import ActivationStore
from probe.capture.size import human_bytes


def describe(store: ActivationStore) -> dict[str, Any]:
    """What a store holds, as JSON values; bytes are those on disk."""
    spec = store.spec
    holders = {"": store, **store.groups}
    sites = [
        {
            "name": site.name,
            "group": group,
            "tokens": site.tokens,
            "channels": site.channels,
            "grid": site.grid,
            "dtype": site.dtype,
            "compression": holder.spec.compression,
            "ragged": holder.spec.ragged,
            "committed_samples": holder.n_committed_samples,
            "shards": holder.spec.n_shards,
            "committed_shards": len(holder.committed),
            "statistics": holder.has_statistics(site.name),
            "bytes": holder.n_bytes(site.name),
        }
        for group, holder in holders.items()
        for site in holder.spec.sites
    ]
    return {
        "path": str(store.place),
        "samples": spec.n_samples,
        "committed_samples": store.n_committed_samples,
        "shards": spec.n_shards,
        "samples_per_shard": spec.samples_per_shard,
        "steps": spec.n_steps,
        "log_snr": [spec.log_snr[0], spec.log_snr[-1]],
        "branches": list(spec.branches),
        "factors": list(store.factors),
        "model": str(store.plan.get("model", "unknown")),
        "hashes": store.hashes,
        "bytes": sum(site["bytes"] for site in sites),
        "sites": sites,
    }


def as_text(store: ActivationStore) -> str:
    """Samples, model, steps, branches and labels a line each, then a table of the sites, then what is missing."""
    facts = describe(store)
    size = human_bytes(facts["bytes"])
    lines = [
        f"{facts['path']}: {facts['committed_samples']} of {facts['samples']} samples, {size} on disk",
        f"model    {facts['model']}",
        f"steps    {facts['steps']}, log SNR {facts['log_snr'][0]:.2f} to {facts['log_snr'][1]:.2f}",
        f"branches {', '.join(facts['branches'])}",
        f"labels   {', '.join(facts['factors']) or 'none'}",
        f"plan     {facts['hashes']['plan']}",
    ]
    rows = [("site", "tokens x channels", "dtype", "shards", "size", "statistics", "")]
    for site in facts["sites"]:
        notes = [f"group {site['group']}"] if site["group"] else []
        notes += ["maps may be missing"] if site["ragged"] else []
        rows.append(
            (
                site["name"],
                f"{site['tokens']} x {site['channels']}",
                site["dtype"] + (f" {site['compression']}" if site["compression"] else ""),
                f"{site['committed_shards']} of {site['shards']}",
                human_bytes(site["bytes"]),
                "kept" if site["statistics"] else "none",
                ", ".join(notes),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
    missing = sorted(set(range(facts["shards"])) - set(store.committed))
    if missing:
        shown = f"{', '.join(map(str, missing[:20]))}{' ...' * (len(missing) > 20)}"
        lines.append(f"shards without a commit record: {shown}")
    return "\n".join(lines)
