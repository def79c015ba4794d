"""Time options: codes at a level, gradients against autograd, files, training on a store, resume after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_options import LEVELS, TIMES, made, rows
from sae_world import OBJECTS, SITE, World, plant

from sae import SAEConfig, TrainConfig, build_bundle, evaluate, load_sae, make_sae, save_sae, score_concepts, train
from sae._files import file_hash
from sae.architectures.film import FilmSAE
from sae.architectures.per_step import PerStepSAE
from sae.architectures.residual import ResidualSAE, TrajectoryMoments
from sae.architectures.timed import TimedSAE, encode_maps, members
from sae.config import ARCHITECTURES
from sae.contract import SparseDictionary
from sae.errors import ConfigError
from sae.training.optimiser import Adam

D = 6
QUICK: dict[str, Any] = {
    "site": SITE,
    "d_sae": 48,
    "k": 4,
    "batch_size": 256,
    "pool_rows": 2048,
    "init_rows": 2048,
    "log_every": 10,
    "holdout": 0.1,
}


def levels_for(n: int) -> torch.Tensor:
    """A level for each of n rows, mixed."""
    return torch.tensor(LEVELS, dtype=torch.float64)[torch.arange(n) * 7 % len(LEVELS)]


def film_reference(sae: FilmSAE, x: torch.Tensor, log_snr: torch.Tensor, dead: torch.Tensor):
    """Loss and gradients of the formula in film.py, dense and by autograd."""
    core, config = sae.cores[0], sae.cores[0].config
    leaves = {name: t.clone().requires_grad_(True) for name, t in sae.trained_tensors().items()}
    encoder, decoder, b_enc, b_dec = (leaves[f"0.{name}"] for name in ("encoder", "decoder", "b_enc", "b_dec"))
    low, high = min(LEVELS), max(LEVELS)
    u = (log_snr - (low + high) / 2) / ((high - low) / 2)
    hidden = torch.tanh(u[:, None] * leaves["film.w1"] + leaves["film.b1"])
    a, shift = (hidden @ leaves["film.w2"].T + leaves["film.b2"]).chunk(2, dim=1)
    gain = a.exp()
    y = core.input.into(x)
    s = core.scale
    modulated = s * (y * gain + shift)
    pre = (modulated - b_dec) @ encoder.T + b_enc
    variance = s**2 * (y - y.mean(0)).pow(2).sum()
    extra: Any = 0.0
    if config.architecture == "topk":
        top = pre.topk(config.k)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    elif config.architecture == "jumprelu":
        theta = leaves["0.log_threshold"].exp()
        near = ((pre - theta).abs() < config.bandwidth / 2).to(pre.dtype).detach()
        on = (pre > theta).to(pre.dtype)
        step = on + near / config.bandwidth * -(theta - theta.detach())  # smoothed, by theta alone
        z = pre * on + theta.detach() * (step - on)
        extra = config.sparsity * (step.sum(1).mean() / config.k - 1) ** 2
    else:
        flat = pre.detach().flatten()
        kept = torch.zeros_like(flat, dtype=torch.bool)
        kept[flat.argsort(descending=True)[: len(x) * config.k]] = True
        z = pre * (kept & (flat > 0)).view_as(pre)

    def undone(z: torch.Tensor, m: int) -> torch.Tensor:
        return ((z[:, :m] @ decoder[:m] + b_dec) / s - shift) / gain

    sizes = config.nested if config.architecture == "matryoshka" else (config.d_sae,)
    errors = [(s * (y - undone(z, m))).pow(2).sum() / variance for m in sizes]
    loss = sum(errors[1:], errors[0]) / len(errors) + extra
    if len(dead):
        e = ((modulated - z @ decoder - b_dec) / gain).detach()
        pre_dead = (modulated - b_dec).detach() @ encoder[dead].T + b_enc[dead]
        top = pre_dead.topk(min(config.n_aux, len(dead)))
        z_dead = torch.zeros_like(pre_dead).scatter(1, top.indices, top.values.relu())
        part = (z_dead @ decoder[dead]) / gain.detach() - e
        loss = loss + config.aux_alpha * min(len(dead) / config.n_aux, 1.0) * part.pow(2).sum() / variance
    loss.backward()
    gradients = {name: t.grad if t.grad is not None else torch.zeros_like(t) for name, t in leaves.items()}
    along = (gradients["0.decoder"] * decoder.detach()).sum(1, keepdim=True)
    gradients["0.decoder"] = gradients["0.decoder"] - along * decoder.detach()
    return loss.detach(), gradients


@pytest.mark.parametrize("kind", ["raw", "centred", "whitened"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "jumprelu"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), n_dead=st.integers(0, 5))
def test_film_gradients_equal_dense_autograd(architecture: str, kind: str, seed: int, n_dead: int) -> None:
    sae = made(architecture, input=kind, time="film", seed=seed)
    assert isinstance(sae, FilmSAE)
    x, log_snr = rows(D, 30, seed=seed), levels_for(30)
    dead = torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:n_dead]
    expected, gradients = film_reference(sae, x, log_snr, dead)
    result, ours = sae.loss(x, dead, log_snr)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-12)
    assert ours.keys() == gradients.keys() == sae.trained_tensors().keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-7, atol=1e-10, msg=lambda s, n=name: f"{n}: {s}")


def test_film_is_undone_after_decoding() -> None:
    sae = made("topk", time="film", k=24)
    assert isinstance(sae, FilmSAE)
    x = rows(D)
    gain, shift = sae.modulation(torch.tensor([LEVELS[2]], dtype=torch.float64))
    core, member = sae.cores[0], sae.at(LEVELS[2])
    by_hand = (core(x * gain + shift) - shift) / gain
    torch.testing.assert_close(member.decode(member.encode(x)), by_hand)
    assert not torch.allclose(sae.at(LEVELS[0]).encode(x), member.encode(x))
    fresh = make_sae(SAEConfig(D, 24, 3, **TIMES["film"])).double()
    assert isinstance(fresh, FilmSAE)
    torch.testing.assert_close(fresh.at(0.0).encode(x), fresh.cores[0].encode(x))  # does nothing at first


def test_film_learns_a_modulation_that_a_shared_dictionary_cannot() -> None:
    """Rows of every step are the same few planted features behind a scale and a shift of the step's own."""
    g = torch.Generator().manual_seed(0)
    d, m = 12, 16
    features = torch.nn.functional.normalize(torch.randn(m, d, generator=g))
    gain, shift = (0.7 * torch.randn(4, d, generator=g)).exp(), torch.randn(4, d, generator=g)

    def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        step = torch.randint(4, (n,), generator=g)
        on = (torch.rand(n, m, generator=g) < 0.12) * (1 + torch.rand(n, m, generator=g))
        return (on @ features) * gain[step] + shift[step], torch.tensor(LEVELS, dtype=torch.float64)[step]

    left = {}
    for time in ("shared", "film"):
        sae = make_sae(SAEConfig(d, 24, 3, aux_alpha=0.0, **TIMES.get(time, {})), seed=0)
        sae.initialise(*batch(2000))
        adam = Adam(sae.trained_tensors(), betas=(0.9, 0.999), eps=6.25e-10, clip_norm=1.0)
        for _ in range(250):
            rows_of_batch, levels = batch(256)
            adam.update(sae.loss(rows_of_batch, None, levels)[1], 1e-2)
            sae.after_update()
        result, _ = sae.loss(*(lambda b: (b[0], None, b[1]))(batch(4000)))
        left[time] = float(result.sse / result.variance)
    assert left["film"] < 0.75 * left["shared"], left


def test_per_step_is_its_groups_side_by_side() -> None:
    sae = made("topk", time="per_step")
    assert isinstance(sae, PerStepSAE)
    x, log_snr = rows(D, 40, seed=5), levels_for(40)
    dead = torch.tensor([2, 9, 17])
    result, gradients = sae.loss(x, dead, log_snr)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}  # their memory is used again
    group = torch.tensor(sae.config.groups)[sae.level_of(log_snr)]
    total = 0.0
    for g, core in enumerate(sae.cores):
        own = dead[(dead // 8) == g] - 8 * g
        share = float((group == g).double().mean())
        alone, found = core.loss(x[group == g], own)
        total += share * float(alone.loss)
        for name, gradient in found.items():
            torch.testing.assert_close(gradients[f"{g}.{name}"], share * gradient)
        assert torch.equal(result.fired[8 * g : 8 * g + 8], alone.fired)
    assert float(result.loss) == pytest.approx(total)
    member = sae.at(3.0)
    z = member.encode(x)
    assert not bool(z[:, :16].any())
    torch.testing.assert_close(z[:, 16:], sae.cores[2].encode(x))
    # A batch without rows of a group leaves that group alone.
    _, few = sae.loss(x[group == 0], None, log_snr[group == 0])
    assert few.keys() == sae.trained_tensors().keys()
    assert not any(bool(few[f"2.{name}"].any()) for name in ("encoder", "decoder", "b_enc", "b_dec"))


def test_predictor_recovers_a_linear_process() -> None:
    g = torch.Generator().manual_seed(0)
    a = 0.5 * torch.randn(2, 4, 4, generator=g, dtype=torch.float64)
    c = torch.randn(2, 4, generator=g, dtype=torch.float64)
    x = [torch.randn(4000, 4, generator=g, dtype=torch.float64) + 1]
    noise = []
    for t in range(2):
        noise.append(0.3 * torch.randn(4000, 4, generator=g, dtype=torch.float64))
        x.append(x[-1] @ a[t] + c[t] + noise[-1])
    sums = TrajectoryMoments(3, 4)
    for part in torch.stack(x, 1).split(900):
        sums.add(part)
    predictor, of_residual = sums.fit()
    torch.testing.assert_close(predictor.transition[1:], a, rtol=0, atol=0.03)
    torch.testing.assert_close(predictor.offset[1:], c, rtol=0, atol=0.05)
    sae = ResidualSAE(
        SAEConfig(4, 8, 2, time="residual", levels=(0.0, 1.0, 2.0)),
        [make_sae(SAEConfig(4, 8, 2))],  # type: ignore[list-item]
    ).double()
    sae.set_predictor(predictor)
    left = [sae.residual(torch.cat([x[t], x[max(0, t - 1)]], 1), torch.full((4000,), float(t))) for t in range(3)]
    torch.testing.assert_close(left[1], noise[0], rtol=0, atol=0.15)
    pooled = torch.cat(left)
    torch.testing.assert_close(pooled.T @ pooled / len(pooled), of_residual.covariance, rtol=1e-6, atol=1e-6)
    assert float(pooled.mean(0).abs().max()) < 1e-9


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(
    ("architecture", "kind"), [("topk", "raw"), ("jumprelu", "whitened"), ("batchtopk", "centred")]
)
def test_saved_and_loaded_compute_the_same(time: str, architecture: str, kind: str, tmp_path: Path) -> None:
    sae = made(architecture, input=kind, time=time)
    assert isinstance(sae, TimedSAE)
    again = load_sae(save_sae(sae, tmp_path))
    assert isinstance(again, type(sae))
    assert again.config == sae.config
    maps = rows(D, 4 * len(LEVELS) * 3).view(4, len(LEVELS), 3, D)
    pairs = zip(members(sae, maps, LEVELS), members(again, maps, LEVELS), strict=True)
    for t, (one, other) in enumerate(pairs):
        assert isinstance(other, SparseDictionary)
        x = maps[:, t]
        z = one.encode(x)
        assert bool(z.any())
        torch.testing.assert_close(other.encode(x), z, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(other.decode(z), one.decode(z), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(other.decode_sparse(other.encode_sparse(x)), one.decode(z), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(other.directions, one.directions, rtol=1e-8, atol=1e-8)
        unit = torch.zeros(24, *x.shape[:-1], 24, dtype=torch.float64)
        unit[torch.arange(24), ..., torch.arange(24)] = 1.0
        change = one.decode(unit) - one.decode(0 * unit)
        torch.testing.assert_close(change[:, 0, 0], one.directions)
    code = encode_maps(sae, maps, LEVELS)
    torch.testing.assert_close(code.to_dense(24)[:, 1], members(sae, maps, LEVELS)[1].encode(maps[:, 1]))
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "denoscope"


def test_messages() -> None:
    film, residual = made(time="film"), made(time="residual")
    with pytest.raises(ConfigError, match=r"use sae.at\(log_snr\)"):
        film.encode(rows(D))
    assert isinstance(residual, ResidualSAE)
    with pytest.raises(ConfigError, match="its steps from the first on, none left out"):
        members(residual, rows(D, 8).view(2, 2, 2, D), LEVELS[1:3])
    with pytest.raises(ConfigError, match="without the rows of the step before"):
        residual.at(LEVELS[2])
    with pytest.raises(ConfigError, match="no levels are given"):
        SAEConfig(4, 8, 2, time="film")
    with pytest.raises(ConfigError, match="must divide by the 3 groups"):
        SAEConfig(4, 8, 2, time="per_step", levels=(0.0, 1.0, 2.0), groups=(0, 1, 2))
    with pytest.raises(ConfigError, match="they belong to 'per_step'"):
        TrainConfig(site="a", d_sae=8, epochs=1, groups=((0,), (1,)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted")


RUNS: dict[str, dict[str, Any]] = {
    "whitened": {"input": "whitened"},
    "unit": {"input": "unit"},
    "per_step": {"time": "per_step", "groups": ((0, 2), (1, 3))},
    "film": {"time": "film", "input": "whitened"},
    "residual": {"time": "residual"},
}


def test_a_group_without_initial_rows_is_named(world: World, tmp_path: Path) -> None:
    quick = QUICK | {"init_rows": 2, "time": "per_step", "rows": 1000}
    config = TrainConfig(**quick)
    with pytest.raises(ConfigError, match="None of the 2 rows for initial values is of group . of 4 .*Raise init_rows"):
        train(world.store, config, tmp_path)


@pytest.mark.parametrize("name", RUNS)
def test_trains_measures_scores_and_resumes(name: str, world: World, tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, **RUNS[name], rows=15_000, lr=3e-3, checkpoint_rows=2560)
    whole = train(world.store, config, tmp_path / "a")

    def stop(report: Any) -> None:
        if report.batch == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world.store, config, tmp_path / "b", progress=stop)
    again = train(world.store, config, tmp_path / "b")
    assert again.resumed_from > 0
    assert file_hash(tmp_path / "a/sae_weights.safetensors") == file_hash(tmp_path / "b/sae_weights.safetensors")

    metrics = whole.metrics
    assert metrics["explained_variance"] > 0.3
    assert len(metrics["ev_per_step"]) == 4
    loaded = load_sae(tmp_path / "a")
    held_out = evaluate(loaded, world.store, max_rows=1000)
    assert held_out["explained_variance"] == pytest.approx(metrics["explained_variance"], abs=0.2)
    scores = score_concepts(loaded, world.store, "object")
    assert scores.mu.shape == (4, len(OBJECTS), 48)
    assert bool((scores.mu.sum(2) > 0).all())
    bundle = build_bundle(loaded, world.store, None, tmp_path / "bundle", n_examples=2, samples=range(8))
    assert bundle.n_features == 48


def test_a_dictionary_of_some_steps(world: World, tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, rows=2000, time="residual", steps=(0, 2, 3))
    result = train(world.store, config, tmp_path)
    assert result.sae.config.levels == tuple(world.store.spec.log_snr[s] for s in (0, 2, 3))
    assert len(result.metrics["ev_per_step"]) == 3
    assert evaluate(result.sae, world.store)["steps"] == [0, 2, 3]
    assert score_concepts(result.sae, world.store, "object").steps == (0, 2, 3)
    with pytest.raises(ConfigError, match="groups hold the steps"):
        train(world.store, TrainConfig(**QUICK, rows=2000, time="per_step", groups=((0,), (1,))), tmp_path / "b")


def test_residual_explains_what_the_step_before_does_not(tmp_path: Path) -> None:
    """Where steps are copies of each other, all that remains is at the first."""
    sae = made(time="residual")
    assert isinstance(sae, ResidualSAE)
    sums = TrajectoryMoments(3, D)
    x = rows(D, 500)
    sums.add(x[:, None].expand(500, 3, D))
    predictor, _ = sums.fit()
    left = x - x @ predictor.transition[2] - predictor.offset[2]
    assert float(left.pow(2).sum() / (x - x.mean(0)).pow(2).sum()) < 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_every_time(architecture: str, world: World, tmp_path: Path) -> None:
    for time in TIMES:
        if (architecture, time) == ("relu", "film"):
            continue
        result = train(
            world.store, TrainConfig(**QUICK, rows=1500, architecture=architecture, time=time), tmp_path / time
        )
        assert isinstance(result.sae, TimedSAE)
        assert -1 < result.metrics["explained_variance"] < 1
