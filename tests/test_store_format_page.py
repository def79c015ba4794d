"""docs/store-format.md says what the code does: limits, dtypes, keys, names."""

import hashlib
import json
import re
from pathlib import Path

from store_support import BITS, JOINED, REPO, complete_store, ragged_spec, small_spec, write_ragged

from activations_store.format import chunking, groups, layout, records, site_spec, spec
from activations_store.format.dtypes import DTYPES
from activations_store.views import statistics_file

PAGE = (REPO / "docs/store-format.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Text under a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(title: str, number: int = 0) -> list[list[str]]:
    """Cells of a section's table, without its head."""
    blocks = re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in blocks[number].strip().split("\n")[2:]]


def keys(title: str, number: int = 0) -> set[str]:
    return {key for row in table(title, number) for key in re.findall(r"`(\w+)`", row[0])}


def test_limits() -> None:
    rows = {re.findall(r"`(\w+)`", name)[0]: int(value) for name, value in table("Limits")}
    assert len(rows) > 10
    for name, value in rows.items():
        (owner,) = [m for m in (layout, spec, site_spec, groups, chunking) if m.__dict__.get(name) is not None][:1]
        assert getattr(owner, name) == value, name


def test_dtypes() -> None:
    rows = {row[0].strip("`"): row[1:] for row in table("Dtypes")}
    assert set(rows) == set(DTYPES)
    for name, (zarr_name, itemsize, extra, fill) in rows.items():
        dtype = DTYPES[name]
        found = (f"`{dtype.zarr_name}`", str(dtype.itemsize), str(dtype.row_extra), f"`{json.dumps(dtype.fill_json)}`")
        assert found == (zarr_name, itemsize, extra, fill)


def test_versions_and_names() -> None:
    assert PAGE.startswith(f"# The activation store, format version {layout.FORMAT_VERSION}\n")
    for name in (layout.FORMAT, records.RECORD_FORMAT, statistics_file.FORMAT):
        assert f'`"{name}"`' in PAGE
    assert list(layout.DIMENSIONS) == re.findall(r"`(\w+)`", section("Arrays").split(".")[0])


def test_keys_of_a_real_store(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", small_spec(JOINED)).path
    info = json.loads((path / "store.json").read_bytes())
    assert set(info) == keys("store.json")
    assert set(info["spec"]) | {"ragged"} == keys("store.json", 1)
    ragged = write_ragged(tmp_path / "r", ragged_spec(JOINED, BITS)).path
    assert json.loads((ragged / "store.json").read_bytes())["spec"]["ragged"] is True
    record = json.loads((ragged / "commits/000000.json").read_bytes())
    assert set(record) == keys("Commit records")
    assert set(record["sites"][JOINED.name]) | {"array_sha256"} == keys("Commit records", 1)
    packed = complete_store(tmp_path / "z", small_spec(JOINED, compression="zstd")).path
    site = json.loads((packed / "commits/000000.json").read_bytes())["sites"][JOINED.name]
    assert set(site) | {"present"} == keys("Commit records", 1)
    assert record["hashes"] == json.loads((ragged / "store.json").read_bytes())["hashes"]
    attributes = json.loads(next(path.glob("arrays/*/zarr.json")).read_bytes())["attributes"]
    assert all(f"`{name}`" in section("Arrays") for name in attributes)


def test_every_file_of_a_store_is_in_the_layout(tmp_path: Path) -> None:
    store = complete_store(tmp_path / "s", small_spec(JOINED))
    store.statistics(JOINED.name)
    for file in store.path.rglob("*"):
        name = str(file.relative_to(store.path)).replace(JOINED.dir_name, "<site>")
        name = re.sub(r"c\.\d+\.", "c.<i>.", re.sub(r"\d{6}\.json", "<i>.json", name))
        assert f"<store>/{name}" in section("Layout"), name


def test_folder_names() -> None:
    for site in (JOINED, BITS):
        slug = re.sub(r"[^A-Za-z0-9_.-]", "-", site.name)[:80].rstrip(".")
        assert site.dir_name == f"{slug}-{hashlib.sha256(site.name.encode()).hexdigest()[:8]}"
