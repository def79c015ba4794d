"""Feature bundles: numbers against dense numpy, examples and maps against the store, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sae_world import OBJECTS, SITE, World, plant

from sae import FeatureBundle, SAEConfig, TopKSAE, build_bundle
from sae.errors import BundleExists, ConfigError, CorruptFile, NewerFormat, NotABundle, UnknownConcept
from sae.evaluation.feature_stats import auc_by_concept, decoder_layout, decoder_neighbours

DEAD = 41


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("collection")
    world = plant(folder / "store", n_samples=20, n_steps=3, samples_per_shard=8)
    (folder / "images").mkdir()
    for sample in range(19):  # the last picture is missing
        Image.new("RGB", (8, 8), (sample, 0, 0)).save(folder / "images" / f"{sample:06d}.png")
    return world


@pytest.fixture(scope="module")
def sae(world: World) -> TopKSAE:
    """The planted features, one weak feature and one dead one."""
    made = TopKSAE(SAEConfig(d_in=24, d_sae=42, k=4, site=SITE), metadata={"site": SITE})
    with torch.no_grad():
        made.W_dec[:40] = torch.from_numpy(world.features)
        made.W_enc[:, :40] = torch.from_numpy(world.features.T)
        made.b_dec.copy_(torch.from_numpy(world.mean))
        made.b_enc[DEAD] = -1000.0
    return made


@pytest.fixture(scope="module")
def codes(world: World, sae: TopKSAE) -> np.ndarray:
    """(n, steps, tokens, d_sae) of the cond branch."""
    x = world.store.site(SITE).read(branch="cond")[:, :, 0]
    with torch.no_grad():
        return sae.encode(torch.from_numpy(x)).numpy()


@pytest.fixture(scope="module")
def bundle(world: World, sae: TopKSAE, tmp_path_factory: pytest.TempPathFactory) -> FeatureBundle:
    images = world.store.path.parent / "images"
    calls: list[tuple[int, int]] = []
    built = build_bundle(
        sae,
        world.store,
        images,
        tmp_path_factory.mktemp("out") / "bundle",
        n_examples=6,
        metrics={"l0": 3.5},
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (40, 40)
    assert calls == sorted(calls)
    return built


def test_table_equals_dense(bundle: FeatureBundle, codes: np.ndarray, sae: TopKSAE, world: World) -> None:
    flat = codes.reshape(-1, 42)
    table = bundle.table.to_pydict()
    np.testing.assert_allclose(table["density"], (flat > 0).mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["mean"], flat.mean(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(table["max"], flat.max(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(table["sample_fraction"], (codes.max((1, 2)) > 0).mean(0), rtol=1e-6)
    for feature in range(40):
        active = np.sort(flat[:, feature][flat[:, feature] > 0])
        exact = active[max(0, int(np.ceil(0.5 * len(active))) - 1)]
        assert table["p50"][feature] == pytest.approx(exact, rel=0.1)
        assert table["p50"][feature] <= table["p99"][feature] <= table["p999"][feature] <= table["max"][feature]
        assert table["peak_step"][feature] == codes[..., feature].sum((0, 2)).argmax()
    assert table["dead"][DEAD]
    assert table["peak_step"][DEAD] == -1
    assert bundle.stats(3)["feature"] == 3


def test_ev_contribution_is_the_cost_of_removing_the_feature(
    bundle: FeatureBundle, sae: TopKSAE, world: World, codes: np.ndarray
) -> None:
    x = world.store.site(SITE).read(branch="cond").reshape(-1, 24).astype(np.float64)
    z = codes.reshape(-1, 42).astype(np.float64)
    decoder, bias = sae.W_dec.detach().double().numpy(), sae.b_dec.detach().double().numpy()
    variance = ((x - x.mean(0)) ** 2).sum()
    whole = ((x - z @ decoder - bias) ** 2).sum()
    for feature in (0, 17, DEAD):
        without = z.copy()
        without[:, feature] = 0
        rise = ((x - without @ decoder - bias) ** 2).sum() - whole
        found = bundle.stats(feature)["ev_contribution"]
        assert found == pytest.approx(rise / variance, rel=1e-3, abs=1e-6)


def test_curves_maps_and_histogram(bundle: FeatureBundle, codes: np.ndarray) -> None:
    np.testing.assert_allclose(bundle.mean_by_step, codes.mean((0, 2)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(bundle.max_by_step, codes.max((0, 2)), rtol=1e-5, atol=1e-7)
    by_cell = codes.mean((0, 1)).T.reshape(42, 4, 4)
    np.testing.assert_allclose(bundle.mean_by_cell(5), by_cell[5], rtol=1e-4, atol=1e-7)
    edges, counts = bundle.histogram(5)
    active = codes[..., 5][codes[..., 5] > 0]
    assert counts.sum() == len(active)
    assert edges[np.flatnonzero(counts)[0]] <= active.min() * 1.0001
    assert edges[np.flatnonzero(counts)[-1] + 1] >= active.max() * 0.9999


def test_examples_and_their_maps(bundle: FeatureBundle, codes: np.ndarray, world: World) -> None:
    for feature in (0, 2, 30):
        examples, maps = bundle.examples(feature), bundle.maps(feature)
        strongest = codes[..., feature].max((1, 2))
        order = np.argsort(-strongest, kind="stable")[:6]
        order = order[strongest[order] > 0]
        assert [e.sample for e in examples] == order.tolist()
        assert maps.shape == (len(order), 3, 4, 4)
        for rank, (example, sample) in enumerate(zip(examples, order, strict=True)):
            truth = codes[sample, :, :, feature]
            assert example.activation == pytest.approx(truth.max(), rel=1e-5)
            assert example.step == truth.max(1).argmax()
            # One level of 255, and "off" exactly off.
            np.testing.assert_allclose(maps[rank].reshape(3, 16), truth, atol=strongest.max() / 255)
            np.testing.assert_array_equal(maps[rank].reshape(3, 16) > 0, truth > 0)
            assert example.labels["object"] == OBJECTS[world.objects[sample]]
            assert example.seed == sample + 100
            assert (example.image is None) == (sample == 19)
        np.testing.assert_allclose(bundle.pooled(feature), strongest, rtol=1e-3, atol=1e-6)
    assert bundle.examples(DEAD) == []
    assert bundle.maps(DEAD).shape == (0, 3, 4, 4)


def test_concepts_name_the_planted_features(bundle: FeatureBundle, codes: np.ndarray) -> None:
    assert bundle.factors == ("object", "style")
    for c, name in enumerate(OBJECTS):
        assert bundle.find("object", name, 1)[0] == (c, pytest.approx(1.0, abs=0.05))
        row = bundle.stats(c)
        assert row["best_object"] == name
        assert row["auc_object"] == pytest.approx(bundle.auc("object")[c, c])
        assert row["score_object"] > 0
    assert bundle.stats(DEAD)["best_object"] is None
    assert bundle.auc("object")[0, DEAD] == 0.5
    scores = bundle.scores("object")
    np.testing.assert_allclose(bundle.score("object")[1], scores.score("boat").mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores.mu.shape, (3, 4, 42))


def test_info_and_hash(bundle: FeatureBundle, world: World) -> None:
    assert bundle.info["metrics"] == {"l0": 3.5}
    assert bundle.info["store"]["hashes"] == world.store.hashes
    assert bundle.grid == (4, 4)
    assert len(bundle.timesteps) == len(bundle.log_snr) == 3
    assert bundle.verify() == []
    assert len(bundle.bundle_hash) == 64
    assert str(world.store.path) not in (bundle.path / "bundle.json").read_text()


def test_copied_images_make_it_portable(world: World, sae: TopKSAE, tmp_path: Path) -> None:
    images = world.store.path.parent / "images"
    built = build_bundle(sae, world.store, images, tmp_path / "a", n_examples=2, copy_images=True, factors=["style"])
    moved = FeatureBundle.open(shutil.move(built.path, tmp_path / "elsewhere" / "deep"))
    example = moved.examples(0)[0]
    assert example.image is not None
    assert example.image.parent == tmp_path / "elsewhere" / "deep" / "images"
    assert moved.factors == ("style",)
    assert moved.image_path("../bundle.json") is None


def test_refusals(bundle: FeatureBundle, world: World, sae: TopKSAE, tmp_path: Path) -> None:
    with pytest.raises(BundleExists, match="overwrite=True"):
        build_bundle(sae, world.store, None, bundle.path)
    with pytest.raises(UnknownConcept, match="0 to 41"):
        bundle.maps(42)
    with pytest.raises(UnknownConcept, match="object, style"):
        bundle.auc("colour")
    with pytest.raises(UnknownConcept, match="bell, boat"):
        bundle.find("object", "dog")
    with pytest.raises(NotABundle, match=r"bundle\.json is missing"):
        FeatureBundle.open(tmp_path)

    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    info = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(info | {"format": 2}))
    with pytest.raises(NewerFormat, match="format 2"):
        FeatureBundle.open(copy)
    (copy / "bundle.json").write_text(json.dumps(info | {"d_sae": 43}))
    with pytest.raises(CorruptFile, match="expected"):
        FeatureBundle.open(copy)
    (copy / "bundle.json").write_text(json.dumps({k: v for k, v in info.items() if k != "steps"}))
    with pytest.raises(CorruptFile, match="'steps'"):
        FeatureBundle.open(copy)
    for factor in ("../elsewhere", "/tmp", "..", "a/b", ""):
        (copy / "bundle.json").write_text(json.dumps(info | {"concepts": {factor: ["x"]}}))
        with pytest.raises(CorruptFile, match="cannot name a folder"):
            FeatureBundle.open(copy)
        with pytest.raises(ConfigError, match="cannot name a folder"):
            build_bundle(sae, world.store, None, tmp_path / "other", factors=[factor])
    (copy / "bundle.json").write_text(json.dumps(info))
    raw = bytearray((copy / "maps.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "maps.safetensors").write_bytes(raw)
    assert FeatureBundle.open(copy).verify() == ["maps.safetensors"]
    (copy / "maps.safetensors").unlink()
    with pytest.raises(NotABundle, match=r"maps\.safetensors"):
        FeatureBundle.open(copy)


def test_failed_build_leaves_nothing(world: World, sae: TopKSAE, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(sae, world.store, None, tmp_path / "b", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_auc_counts_ties_as_half_and_leaves_out_unlabelled() -> None:
    rng = np.random.default_rng(0)
    pooled = rng.integers(0, 4, size=(30, 3)).astype(np.float32)
    label = rng.integers(-1, 3, size=30)
    found = auc_by_concept(pooled, label[None] == np.arange(3)[:, None])
    for c in range(3):
        for i in range(3):
            inside, outside = pooled[label == c, i], pooled[(label != c) & (label >= 0), i]
            pairs = inside[:, None] - outside[None]
            assert found[c, i] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_decoder_geometry() -> None:
    decoder = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    near, cosine = decoder_neighbours(decoder)
    unit = decoder / decoder.norm(dim=1, keepdim=True)
    similar = (unit @ unit.T).fill_diagonal_(-2)
    np.testing.assert_array_equal(near[:, 0], similar.argmax(1))
    np.testing.assert_allclose(cosine[:, 0], similar.max(1).values, rtol=1e-5)
    layout = decoder_layout(decoder)
    assert layout.shape == (30, 2)
    assert layout[:, 0].var() >= layout[:, 1].var()
