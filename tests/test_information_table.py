"""probe.information: tables and their store, columns, intervals, decomposition algebra, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from information_world import Channel, Points
from seeded import SEEDS, normal
from store_support import complete_store, small_spec

from activations_store import ActivationStore
from activations_store.errors import PlanMismatch
from probe.errors import InvalidRequest
from probe.information import (
    Column,
    GaussianControl,
    Nodes,
    TruncatedWindow,
    atoms,
    caption_columns,
    class_columns,
    classify,
    collect_table,
    estimate,
    information,
    interval,
    likelihood,
    measure,
    open_table,
    pid,
    running_labels,
    word_information,
)
from probe.information.columns import drop_words, shuffled
from probe.information.table import NodeTable

NODES = Nodes.logistic(6, 0.0, 1.0)


def small(n: int = 5, seed: int = 0) -> tuple[Points, torch.Tensor, list[Column]]:
    model = Points.labelled(normal(seed, 3, 4), 0.5)
    x, labels = model.draw(n, seed)
    return model, x, [Column("empty"), Column("a", labels.tolist()), Column("b", [0] * n)]


def made(terms: dict[str, np.ndarray]) -> NodeTable:
    """A table whose columns have given squared errors, one token."""
    error = np.stack([v[..., None] for v in terms.values()], -1)
    nodes = Nodes(error.shape[1], (0.0, 2.0 * error.shape[1]), placement="gauss")
    log_snr, weight = nodes.place(len(error))
    k = len(terms)
    difference = np.zeros((*error.shape[:3], k * (k - 1) // 2))
    return NodeTable(tuple(terms), nodes, log_snr, weight, error, difference, 1, None, np.zeros((len(error), 1)))


# Tables


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("batch", [1, 4, 7, 1000])
def test_errors_and_differences_do_not_depend_on_the_batch(batch, seed):
    model, x, columns = small(seed=seed)
    table = measure(model, x, columns, NODES, seed=seed, batch=batch)
    whole = measure(model, x, columns, NODES, seed=seed, batch=30)
    assert table.error.shape == (5, 6, 4, 3) and table.difference.shape == (5, 6, 4, 3)
    assert np.allclose(table.error, whole.error, rtol=1e-12) and np.allclose(table.difference, whole.difference)
    alone = measure(model, x[:1], [replace(c, conds=c.conds and c.conds[:1]) for c in columns], NODES, seed=seed)
    assert np.allclose(alone.error[0], whole.error[0], rtol=1e-12)
    other = measure(model, x, columns, NODES, seed=seed + 1, batch=30)
    assert not np.isclose(other.error, whole.error).any()


def test_a_table_of_maps_sums_over_channels_and_keeps_the_grid():
    class Shrink:
        sample_shape, log_snr_range = (3, 2, 5), (-20.0, 20.0)
        dtype, device = torch.float32, torch.device("cpu")

        def eps(self, z, log_snr, cond=None):
            return z * (0.5 if cond is None else 0.25)

    x = normal(0, 2, 3, 2, 5).float()
    nodes = Nodes(4, (0.0, 1.0))
    table = measure(Shrink(), x, [Column("empty"), Column("c", ["q"] * 2)], nodes)
    assert table.grid == (2, 5) and table.error.shape == (2, 4, 10, 2) and table.dimensions == 30
    assert table.error.dtype == np.float32
    with pytest.warns(TruncatedWindow):  # this gap is everywhere
        found = information(table, "c", form="orthogonal")
    assert found.maps.shape == (2, 2, 5)
    assert np.allclose(found.pixels.sum(1), found.pointwise, rtol=1e-5)


def test_a_column_may_have_a_denoiser_of_its_own_and_meets_the_same_noise():
    model, x, columns = small()
    other = Points.labelled(model.points + 0.3, 0.5)
    together = measure(model, x, [*columns, Column("other", model=other)], NODES)
    assert np.array_equal(together.errors("other"), measure(other, x, [Column("empty")], NODES).errors("empty"))
    assert np.array_equal(together.errors("empty"), measure(model, x, columns, NODES).errors("empty"))
    assert np.array_equal(together.differences("other", "empty"), together.differences("empty", "other"))
    assert not together.differences("a", "a").any()
    part = together.select([3, 1])
    assert np.array_equal(part.error[0], together.error[3]) and part.columns == together.columns


def test_progress_and_estimate_count_every_evaluation():
    model, x, columns = small()
    calls: list[tuple[int, int]] = []
    measure(model, x, columns, NODES, batch=4, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (5 * 6 * 3, 5 * 6 * 3) and [c[0] for c in calls] == sorted({c[0] for c in calls})
    cost = estimate(model, x, columns, NODES)
    assert cost.evaluations == 90 and cost.bytes == 4 * 5 * 6 * 4 * 6 and cost.seconds > 0


# Stores


@pytest.mark.parametrize("placement", ["jitter", "dealt"])
def test_a_table_survives_the_disk_and_goes_on_after_a_kill(tmp_path, placement):
    model, x, columns = small(70)
    nodes = replace(NODES, placement=placement)
    control = GaussianControl.fit(x)
    columns.append(Column("control", model=control))
    seen: list[int] = []

    def killed(done: int, total: int) -> None:
        seen.append(done)
        if done > 0.95 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_table(tmp_path / "t", model, x, columns, nodes, seed=3, progress=killed)
    assert ActivationStore.open(tmp_path / "t").committed == [0]
    seen.clear()
    store = collect_table(
        tmp_path / "t", model, x, columns, nodes, seed=3, batch=16, progress=lambda done, _: seen.append(done)
    )
    assert seen[0] > 64 * 6 * 4 and seen[-1] == 70 * 6 * 4
    assert store.complete and store.verify() == []
    table, direct = open_table(tmp_path / "t"), measure(model, x, columns, nodes, seed=3)
    assert table.columns == direct.columns and table.nodes == nodes
    assert np.array_equal(table.log_snr, direct.log_snr) and np.array_equal(table.weight, direct.weight)
    assert np.allclose(table.error, direct.error, rtol=1e-6) and np.allclose(table.difference, direct.difference)
    assert np.allclose(
        likelihood(table, control=control).nats, likelihood(direct, control=control).nats, rtol=1e-4, atol=1e-4
    )
    some = open_table(tmp_path / "t", [66, 2])
    assert np.array_equal(some.error, table.error[[66, 2]]) and np.array_equal(some.weight, table.weight[[66, 2]])
    with pytest.raises(PlanMismatch):
        collect_table(tmp_path / "t", model, x, columns, nodes, seed=4)
    with pytest.raises(PlanMismatch):
        collect_table(tmp_path / "t", model, x + 1e-9, columns, nodes, seed=3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("placement", ["jitter", "gauss"])
@pytest.mark.filterwarnings("ignore::probe.information.TruncatedWindow")
def test_two_parts_of_the_nodes_add_up_to_the_whole(placement, seed):
    model, x, columns = small(seed=seed)
    table = measure(model, x, columns, Nodes.logistic(10, 0.0, 1.0, placement=placement, seed=seed))
    cut = float(table.log_snr[0, 3])
    low, high = table.within(-99.0, cut), table.within(cut + 1e-9, 99.0)
    assert (low.n_nodes, high.n_nodes) == (4, 6)
    assert (low.nodes.window[0], high.nodes.window[1]) == pytest.approx(table.nodes.window)
    assert low.nodes.window[1] == pytest.approx(high.nodes.window[0]) and low.weight.sum(1)[0] == pytest.approx(
        low.nodes.window[1] - low.nodes.window[0]
    )
    for form in ("standard", "orthogonal"):
        parts = [information(t, "a", form=form).pointwise for t in (low, high)]
        assert np.allclose(sum(parts), information(table, "a", form=form).pointwise)
    with pytest.raises(InvalidRequest, match="0 of 10 nodes between 50 and 60"):
        table.within(50.0, 60.0)
    dealt = measure(model, x, columns, Nodes.logistic(2, 0.0, 1.0, placement="dealt"))
    with pytest.raises(InvalidRequest, match="shared by all images"):
        dealt.within(-99.0, 99.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_become_certain_from_node_to_node(seed):
    model = Points.labelled(3.0 * normal(seed, 3, 4), 0.5)
    x, labels = model.draw(60, seed)
    columns = class_columns(60, {"0": 0, "1": 1, "2": 2})
    table = measure(model, x, columns, Nodes.logistic(30, 0.0, 1.5, seed=seed))
    steps = running_labels(table, ["0", "1", "2"])
    whole = classify(table, ["0", "1", "2"])
    assert np.allclose(steps[-1].log_posterior, whole.log_posterior)
    entropy = [float(s.entropy.mean()) for s in steps]
    assert entropy[0] > 0.9 * whole.prior_entropy and entropy[-1] < 0.1 * whole.prior_entropy
    assert whole.accuracy([str(int(k)) for k in labels]) > 0.9


def test_a_store_of_activations_is_no_table(tmp_path):
    complete_store(tmp_path / "s", small_spec())
    with pytest.raises(InvalidRequest, match="holds activations, not a node table"):
        open_table(tmp_path / "s")


# Columns


def test_caption_columns_say_what_their_names_say():
    captions = ["a red star on dark", "a blue cup on dark"]
    words = {"colour": ["red", "blue"], "object": ["star", "cup"], "ground": ["dark", "dark"]}
    found = {c.name: c.conds for c in caption_columns(captions, words)}
    assert found["empty"] is None and found["caption"] == captions
    assert found["shuffled"] == captions[::-1]
    assert found["caption-colour"] == ["a star on dark", "a cup on dark"]
    assert found["swap:colour"] == ["a blue star on dark", "a red cup on dark"]
    assert "swap:ground" not in found  # there is no other word
    assert found["caption-colour-object"] == ["a on dark", "a on dark"]
    assert found["word:object"] == ["star", "cup"] and found["pair:colour+object"] == ["red star", "blue cup"]
    said = caption_columns(
        captions, {"object": ["star", "cup"]}, absent={"object": "thing"}, say=lambda given: f"a {given['object']}"
    )
    assert {c.name: c.conds for c in said}["caption-object"] == ["a red thing on dark", "a blue thing on dark"]
    assert {c.name: c.conds for c in said}["word:object"] == ["a star", "a cup"]


def test_captions_made_of_words_are_said_anew():
    words = {"object": ["star", "cup"], "colour": ["red", "blue"]}

    def say(given):
        return f"a {given.get('colour', '')} {given.get('object', 'thing')}".replace("  ", " ")

    made = caption_columns(["a red star", "a blue cup"], words, say=say, restate=True)
    found = {c.name: c.conds for c in made}
    assert found["caption-object"] == ["a red thing", "a blue thing"]
    assert found["caption-colour"] == ["a star", "a cup"]
    assert found["swap:object"] == ["a red cup", "a blue star"]
    assert found["caption-object-colour"] == ["a thing", "a thing"]
    assert found["pair:object+colour"] == found["caption"]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_null_never_gives_an_image_its_own_caption(seed):
    captions = ["a", "b", "b", "b"] * 5
    drawn = shuffled(captions, seed=seed)
    assert all(x != y for x, y in zip(captions, drawn, strict=True)) and set(drawn) == {"a", "b"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drop_words("a red star", {"blue": ""}), "'blue' is 0 times in 'a red star'"),
        (lambda: drop_words("a red red star", {"red": ""}), "'red' is 2 times"),
        (lambda: caption_columns(["a star"]), r"no other caption than 'a star' .* give others="),
        (lambda: caption_columns(["a", "b"], {"c": ["a"]}), "role 'c' has 1 words for 2 captions"),
        (lambda: caption_columns(["a", "b"], {"c-d": ["a", "b"]}), "role without '-'"),
        (lambda: caption_columns(["a", "b"], {"c": ["a", "b"]}, pairs=[("c", "d")]), "no words for role 'd'"),
    ],
)
def test_columns_refuse(call, message):
    with pytest.raises(InvalidRequest, match=message):
        call()


# Reductions


def test_nulls_come_with_the_information_of_captions_and_words():
    n, rng = 30, np.random.default_rng(0)
    base = rng.random((n, 4)) + 5
    table = made(
        {"empty": base, "caption": base - 2, "shuffled": base + 1, "caption-w": base - 1, "swap:w": base - 1.5}
    )
    whole, word = information(table, "caption"), word_information(table, "w")
    assert whole.mean == pytest.approx(8.0) and whole.null is not None and whole.null.mean == pytest.approx(-4.0)
    assert word.mean == pytest.approx(4.0) and word.null is not None and word.null.mean == pytest.approx(2.0)
    assert whole.null.null is None and information(table, "caption-w").null is None


@pytest.mark.parametrize("seed", SEEDS)
def test_intervals_cover_the_truth_about_as_often_as_they_say(seed):
    channel = Channel.random(seed, information=1.0, d=3, m=2)
    hits = {"images": 0, "dealt": 0, "one": 0}
    repeats = 30
    for k in range(repeats):
        x, y = channel.draw(60, 900 * seed + k)
        for name, nodes in (
            ("images", Nodes.logistic(20, 1.0, 2.0, seed=k)),
            ("dealt", Nodes.logistic(1, 1.0, 2.0, placement="dealt", seed=k)),
        ):
            table = measure(channel, x, channel.columns(y, y=[0, 1]), nodes, seed=k, batch=2048)
            found = information(table, "y")
            low, high = found.interval(0.9, n=100)[1:3]
            hits[name] += low <= channel.information() <= high
            if name == "images":
                exact = channel.pointwise(x[:1], y[:1])[0]
                hits["one"] += abs(found.pointwise[0] - exact) < 1.645 * found.pointwise_error[0]
    for name, count in hits.items():
        assert count >= 0.75 * repeats, name


def test_an_interval_is_the_bootstrap_of_its_statistic():
    rng = np.random.default_rng(0)
    terms = rng.normal(size=(500, 1)) + 3.0
    found = interval([terms], lambda v: float(v[0].mean()), n=2000)
    assert found.value == pytest.approx(terms.mean())
    assert found.error == pytest.approx(terms.std() / np.sqrt(500), rel=0.1)
    assert found.low == pytest.approx(found.value - 1.96 * found.error, abs=0.02)
    for level, n in ((1.0, 100), (0.9, 1)):
        with pytest.raises(InvalidRequest, match="expected a level between"):
            interval([terms], lambda v: float(v[0].mean()), level=level, n=n)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("measure_", ["mmi", "pointwise_min", "finn_lizier", "i_min"])
def test_identities_of_every_redundancy(measure_, seed):
    rng = np.random.default_rng(seed)
    i1, i2, i12 = rng.normal(size=(3, 40, 6))
    h = rng.random((2, 40)) * 3
    targets = rng.integers(5, size=40)
    r, u1, u2, s = atoms(i1, i2, i12, measure=measure_, surprisal=(h[0], h[1]), targets=targets)
    assert r.shape == (6,)
    assert np.allclose(r + u1, i1.mean(0)) and np.allclose(r + u2, i2.mean(0))
    assert np.allclose(r + u1 + u2 + s, i12.mean(0))
    # Exchanging the words exchanges their unique parts; a word with itself is redundant alone.
    swapped = atoms(i2, i1, i12, measure=measure_, surprisal=(h[1], h[0]), targets=targets)
    assert np.allclose(swapped.redundancy, r) and np.allclose(swapped.unique_first, u2)
    same = atoms(i1, i1, i1, measure=measure_, surprisal=(h[0], h[0]))
    assert np.allclose(same.redundancy, i1.mean(0)) and np.allclose(same.synergy, 0) and np.allclose(same[1], 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_i_min_lies_between_pointwise_min_and_mmi(seed):
    i1, i2 = np.random.default_rng(seed).normal(size=(2, 60))

    def r(measure_, targets=None):
        return float(atoms(i1, i2, i1 + i2, measure=measure_, targets=targets).redundancy)

    assert r("i_min") == r("pointwise_min") == pytest.approx(r("i_min", range(60)))
    assert r("i_min", [0] * 60) == pytest.approx(r("mmi"))
    assert r("pointwise_min") <= r("i_min", np.arange(60) // 4) <= r("mmi")


def test_pid_with_context_and_its_interval():
    rng = np.random.default_rng(1)
    e = rng.random((40, 4)) + 9
    # Given neither word, given one, given both: errors fall by 1, 2 and 4, everywhere.
    table = made({"caption-a-b": e, "caption-b": e - 1, "caption-a": e - 2, "caption": e - 4})
    found = pid(table, "a", "b", context=True, measure="pointwise_min")
    assert [float(v) for v in found.image] == pytest.approx([4.0, 0.0, 4.0, 8.0])
    low, high = found.interval("synergy", n=50)[1:3]
    assert low == pytest.approx(8.0) and high == pytest.approx(8.0)
    h = np.full(40, 2.0)
    finn = pid(table, "a", "b", context=True, measure="finn_lizier", surprisal=(h, h))
    assert float(finn.image.redundancy) == pytest.approx(8.0)  # the greater, at equal surprisals
    assert finn.specificity is not None and finn.ambiguity is not None
    assert finn.specificity - finn.ambiguity == pytest.approx(8.0)
    assert finn.interval("redundancy", n=50).low == pytest.approx(8.0)


def test_reductions_refuse():
    e = np.ones((3, 2)) + 4
    table = made({"empty": e, "word:a": e, "word:b": e, "pair:a+b": e})
    for call, message in (
        (lambda: information(table, "caption"), "no column 'caption'; expected one of empty, word:a"),
        (lambda: information(table, "word:a", form="pointwise"), "expected one of standard, orthogonal"),  # type: ignore[arg-type]
        (lambda: information(table, "word:a").maps, "the samples are vectors"),
        (lambda: pid(table, "a", "b", measure="broja"), "expected one of mmi, pointwise_min"),  # type: ignore[arg-type]
        (lambda: pid(table, "a", "b", measure="i_min", form="orthogonal"), "only the standard form is"),
        (lambda: pid(table, "a", "b", measure="finn_lizier"), "needs surprisal"),
        (lambda: pid(table, "a", "b", measure="i_min").interval("synergy"), "another measure than i_min"),
        (lambda: classify(table, ["word:a"]), "two or more"),
        (lambda: classify(table, ["word:a", "word:b"], {"word:a": 1.0}), "prior above zero"),
        (lambda: likelihood(table, control=GaussianControl.fit(torch.ones(2, 1))), "no column 'control'"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            call()


def test_requests_are_refused_before_the_first_evaluation():
    model, x, columns = small()
    for bad, message in (
        ([], "columns none"),
        ([columns[0], columns[0]], "names unique"),
        ([Column("a", [0, 1])], "column 'a' has 2 conditions for 5 images"),
        ([Column("a", model=Points.labelled(normal(0, 2, 7), 1.0))], r"Points takes samples \(7,\), not \(4,\)"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            measure(model, x, bad, NODES)
    with pytest.raises(InvalidRequest, match="batch is 0"):
        measure(model, x, columns, NODES, batch=0)
    with pytest.raises(InvalidRequest, match="at least 2"):
        GaussianControl.fit(x[:1])
