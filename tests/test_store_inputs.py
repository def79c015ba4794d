"""Every kind of input into every dtype: counted or refused, never cast in silence; every fingerprint field counts."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_support import FINGERPRINT, JOINED, PLAN, complete_store, create, sample_table, small_spec

from activations_store import ActivationStore, SiteSpec, StoreWriter, errors, merge
from activations_store.format.dtypes import DTYPES

SHAPE = (4, 3, 2, 6, 5)
ACCEPTED = {
    "float32": {"float32"},
    "float16": {"float16", "float32"},
    "bfloat16": {"uint16", "float32"},
    "int8": {"float16", "float32"},
}
GIVEN = (
    "float64",
    "float32",
    "float16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "int64",
    "bool",
    "complex64",
    ">f4",
)


@pytest.mark.parametrize("stored", sorted(DTYPES))
@pytest.mark.parametrize("given", GIVEN)
def test_every_pair_of_dtypes_is_exact_or_refused(tmp_path: Path, stored: str, given: str) -> None:
    spec = small_spec(SiteSpec("a", 6, 5, dtype=stored), n_samples=4)
    x = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 2).astype(given)
    with create(tmp_path / "s", spec) as writer:
        if given not in ACCEPTED[stored]:
            with pytest.raises(errors.ShardMismatch, match="does not fit"):
                writer.write_shard(0, {"a": x})
            return
        writer.write_shard(0, {"a": x})
    back = ActivationStore.open(tmp_path / "s").site("a").read()
    expected = (x.astype(np.uint32) << 16).view(np.float32) if given == "uint16" else x.astype(np.float32)
    np.testing.assert_allclose(back.astype(np.float32), expected, rtol=0, atol=1e-6 if stored == "int8" else 0)


@pytest.mark.parametrize("stored", sorted(DTYPES))
@pytest.mark.parametrize(
    ("value", "counts"), [(np.nan, (1, 0)), (np.inf, (0, 1)), (-np.inf, (0, 1)), (1e5, (0, 0)), (3.4e38, (0, 0))]
)
def test_special_values_are_counted_or_refused(
    tmp_path: Path, stored: str, value: float, counts: tuple[int, int]
) -> None:
    spec = small_spec(SiteSpec("a", 6, 5, dtype=stored), n_samples=4)
    x = np.ones(SHAPE, np.float32)
    x[2, 1, 0, 3, 4] = value
    largest = {"float16": 65504.0, "bfloat16": 3.3895e38}.get(stored, np.inf)
    overflow = int(bool(np.isfinite(value)) and abs(value) > largest)
    nan, inf = counts[0], counts[1] + overflow
    with create(tmp_path / "s", spec) as writer:
        if nan + inf:
            with pytest.raises(errors.NonFiniteActivations, match=f"step 1: {nan} NaN, {inf} infinite .{overflow} by"):
                writer.write_shard(0, {"a": x})
        else:
            writer.write_shard(0, {"a": x})
    with create(tmp_path / "t", spec, allow_nonfinite=True) as writer:
        record = writer.write_shard(0, {"a": x}).sites["a"]
    assert (record.nan, record.inf, record.overflow) == ((0, nan, 0), (0, inf, 0), (0, overflow, 0))
    back = ActivationStore.open(tmp_path / "t").site("a").read()
    assert np.isfinite(back[2, 1, 0, 3, 4]) == (nan + inf == 0)


@pytest.mark.parametrize("shape", [(3, *SHAPE[1:]), (1, *SHAPE[1:]), SHAPE[1:], (*SHAPE[:-1], 4), (*SHAPE, 1), (0,)])
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    spec = small_spec(SiteSpec("a", 6, 5), n_samples=4)
    with create(tmp_path / "s", spec) as writer, pytest.raises(errors.ShardMismatch, match="does not fit"):
        writer.write_shard(0, {"a": np.zeros(shape, np.float32)})


def test_memory_layout_does_not_matter(tmp_path: Path) -> None:
    spec = small_spec(SiteSpec("a", 6, 5), n_samples=4)
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)
    layouts = [x, np.asfortranarray(x), np.repeat(x, 2, axis=3)[:, :, :, ::2], x[::-1].copy()[::-1]]
    records = []
    for i, array in enumerate(layouts):
        with create(tmp_path / str(i), spec) as writer:
            records.append(writer.write_shard(0, {"a": array}).to_bytes())
    assert len(set(records)) == 1


FIELDS = {
    "model_class": "Other",
    "weights_hash": "abd",
    "dtype": "float16",
    "revision": "new",
    "scheduler": {"name": "DDIM"},
}


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_field_of_a_fingerprint_counts(tmp_path: Path, field: str) -> None:
    spec = small_spec(JOINED)
    store, other = complete_store(tmp_path / "s", spec), {**FINGERPRINT, field: FIELDS[field]}
    group = replace(spec, sites=(SiteSpec("late", 3, 4),))
    with pytest.raises(errors.FingerprintMismatch, match=field):
        StoreWriter.resume(store.path, spec=spec, fingerprint=other, plan=PLAN)
    with pytest.raises(errors.FingerprintMismatch, match=field):
        StoreWriter.extend(store.path, "g", group, fingerprint=other, plan=PLAN)
    StoreWriter.create(tmp_path / "o", spec, sample_table(spec), fingerprint=other, plan=PLAN).close()
    with pytest.raises(errors.FingerprintMismatch, match=field):
        merge([store, ActivationStore.open(tmp_path / "o")], tmp_path / "m")
    StoreWriter.resume(store.path, spec=spec, fingerprint=FINGERPRINT, plan=PLAN).close()  # no false refusal


SPEC_FIELDS: dict[str, Any] = {
    "n_samples": 10,
    "timesteps": (900, 800, 701),
    "log_snr": (0.0, 1.0, 2.5),
    "branches": ("cond", "uncond"),
    "samples_per_shard": 3,
    "compression": "zstd",
    "ragged": True,
    "sites": (replace(JOINED, dtype="int8"),),
}


@pytest.mark.parametrize("field", sorted(SPEC_FIELDS))
def test_every_field_of_a_spec_and_of_a_plan_counts(tmp_path: Path, field: str) -> None:
    spec = small_spec(JOINED)
    store = complete_store(tmp_path / "s", spec)
    changed = replace(spec, **{field: SPEC_FIELDS[field]})
    assert changed.content_hash() != spec.content_hash()
    with pytest.raises(errors.SpecMismatch, match=field):
        StoreWriter.resume(store.path, spec=changed, fingerprint=FINGERPRINT, plan=PLAN)
    for name in PLAN:
        with pytest.raises(errors.PlanMismatch, match=name):
            StoreWriter.resume(store.path, spec=spec, fingerprint=FINGERPRINT, plan={**PLAN, name: "other"})


def bits_of(dtype: str) -> np.ndarray:
    """Every word of a 16-bit dtype; for float32 every exponent, sign and the ends of the mantissa."""
    if dtype != "float32":
        return np.arange(2**16, dtype=np.uint16)
    ends = np.array([0, 1, 2**12 - 1, 2**12, 2**12 + 1, 3 * 2**12, 2**13, 2**22 - 1, 2**22, 2**23 - 1], np.uint32)
    return (np.arange(512, dtype=np.uint32)[:, None] << np.uint32(23) | ends).reshape(-1)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_counts_of_every_word(name: str) -> None:
    dtype = DTYPES[name]
    bits = bits_of(name)
    values = dtype.decode(bits.view(dtype.stored))
    for word, value in zip(bits, values, strict=True):
        one = np.array([word], bits.dtype).view(dtype.stored)
        if np.isfinite(value):
            assert dtype.count_nonfinite(one, one) == (0, 0)
        else:  # alone, and between finite words of both signs
            among = np.concatenate([one, one, np.array([0, 1 << (8 * dtype.itemsize - 1)], bits.dtype).view(one.dtype)])
            assert dtype.count_nonfinite(one, one) == (int(np.isnan(value)), int(np.isinf(value)))
            assert dtype.count_nonfinite(among, among) == (2 * int(np.isnan(value)), 2 * int(np.isinf(value)))


def test_float16_is_the_same_with_and_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    x = np.concatenate([bits_of("float32"), np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)]).view(
        "<f4"
    )
    encode = DTYPES["float16"].encode
    quick = encode(x)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "from_numpy", lambda *_: pytest.fail("torch was asked"))
        frozen = x.copy()
        frozen.flags.writeable = False
        encode(frozen)
        encode(np.stack([x, x], axis=1)[:, 0])
        patch.delitem(sys.modules, "torch")
        plain = encode(x)
    np.testing.assert_array_equal(quick.view(np.uint16), plain.view(np.uint16))
    finite = np.isfinite(x)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(plain[finite], x[finite].astype(np.float16))
    assert (plain[np.isnan(x)].view(np.uint16) & 0x7E00 == 0x7E00).all()


def test_a_record_may_carry_the_hash_of_the_values_too(tmp_path: Path) -> None:
    spec = small_spec(JOINED)
    store = complete_store(tmp_path / "s", spec)
    record = store.record(0)
    values = store.site(JOINED.name).sel(sample=range(4)).read_stored()
    entry = replace(record.sites[JOINED.name], array_sha256=hashlib.sha256(values.tobytes()).hexdigest())
    both = replace(record, sites={JOINED.name: entry})
    assert both.different_sites(record) == record.different_sites(both) == []
    (tmp_path / "s/commits/000000.json").write_bytes(both.to_bytes())
    store.close()
    assert store.verify() == []
    wrong = replace(record, sites={JOINED.name: replace(entry, array_sha256="0" * 64)})
    (tmp_path / "s/commits/000000.json").write_bytes(wrong.to_bytes())
    assert [(p.kind, p.shard) for p in store.verify()] == [("shard", 0)]
