"""Dividing a step over processes: by rows and by features it equals the step of one process, up to order of sums."""

import copy

import pytest
import torch
from sae_options import LEVELS, TIMES, made
from sae_together import together
from torch import Tensor

from sae import SAEConfig
from sae.architectures.autoencoder import SparseAutoencoder
from sae.architectures.make import CLASSES
from sae.config import ARCHITECTURES
from sae.errors import ConfigError
from sae.numerics.peers import ALONE, Peers, among_largest, nth_largest
from sae.training.division import Division, Sums, sum_gradients
from sae.training.feature_shards import FeatureDivision

D_IN, D_SAE, K, ROWS = 12, 48, 5, 60
DEAD = torch.tensor([1, 2, 20, 30, 46, 47])


def dictionary(architecture: str) -> SparseAutoencoder:
    """A dictionary with unlike encoder and decoder, initialised on the rows it will see."""
    sae = CLASSES[architecture](SAEConfig(D_IN, D_SAE, K, architecture=architecture, aux_alpha=0.3), seed=1)
    sae.initialise(rows())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        sae.W_enc.add_(torch.randn(sae.W_enc.shape, generator=generator), alpha=0.2)
        sae.b_enc.add_(torch.randn(sae.b_enc.shape, generator=generator), alpha=0.2)
    return sae


def rows() -> Tensor:
    """Rows whose first half is unlike the second, so that a share is unlike the whole."""
    x = torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(0))
    x[: ROWS // 2] += 2
    return x


def one_step(
    division: Division, x: Tensor, dead: Tensor, log_snr: Tensor | None = None
) -> tuple[Sums, dict[str, Tensor]]:
    result, gradients = division.sae.loss(x, dead, log_snr)
    return division.reduce(result, gradients, dead), gradients


def assert_same_sums(found: Sums, expected: Sums) -> None:
    for name in ("loss", "sse", "variance"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5), name
    assert found.n_on == expected.n_on


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("dead", [DEAD, DEAD[:0]], ids=["auxk", "no dead"])
def test_rows_divided_equal_one_process(architecture: str, world: int, dead: Tensor) -> None:
    sae = dictionary(architecture)
    expected, gradients = one_step(Division(copy.deepcopy(sae)), rows(), dead)

    def work(peers: Peers) -> tuple[Sums, dict[str, Tensor], dict[str, Tensor]]:
        division = Division(copy.deepcopy(sae), peers)
        sums, own = one_step(division, rows().chunk(world)[peers.rank], dead)
        division.sae.after_update()
        return sums, own, division.sae.fixed_tensors()

    alone = Division(copy.deepcopy(sae))
    one_step(alone, rows(), dead)
    alone.sae.after_update()
    for sums, own, fixed in together(world, work):
        assert_same_sums(sums, expected)
        assert torch.equal(sums.fired, expected.fired)
        for name, gradient in gradients.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        for name, tensor in alone.sae.fixed_tensors().items():
            torch.testing.assert_close(fixed[name], tensor)


@pytest.mark.parametrize(
    ("architecture", "time"), [(a, t) for a in ARCHITECTURES for t in TIMES if (a, t) != ("relu", "film")]
)
def test_rows_divided_equal_one_process_with_time(architecture: str, time: str) -> None:
    """Steps are spread unevenly: the last process has no row of group 1 of `per_step`, and none has one of group 2."""
    sae, world = made(architecture, time=time, d=D_IN, m=D_SAE, k=K).float(), 3
    x = torch.cat([rows(), rows().flip(0)], 1) if time == "residual" else rows()
    log_snr = torch.tensor(LEVELS, dtype=torch.float64)[torch.arange(ROWS) % 7 % 2 + (torch.arange(ROWS) < 33)]
    expected, gradients = one_step(Division(copy.deepcopy(sae)), x, DEAD, log_snr)

    def work(peers: Peers) -> tuple[Sums, dict[str, Tensor]]:
        mine = slice(peers.rank * ROWS // world, (peers.rank + 1) * ROWS // world)
        return one_step(Division(copy.deepcopy(sae), peers), x[mine], DEAD, log_snr[mine])

    for sums, own in together(world, work):
        assert_same_sums(sums, expected)
        assert torch.equal(sums.fired, expected.fired)
        assert own.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("dead", [DEAD, DEAD[:0], DEAD[:2]], ids=["auxk", "no dead", "dead in one process only"])
def test_features_divided_equal_one_process(architecture: str, world: int, dead: Tensor) -> None:
    sae = dictionary(architecture)
    expected, gradients = one_step(Division(copy.deepcopy(sae)), rows(), dead)
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()

    def work(peers: Peers) -> tuple[Sums, dict[str, Tensor], Tensor]:
        division = FeatureDivision(copy.deepcopy(sae), peers)
        low = peers.rank * D_SAE // world
        own = dead[(dead >= low) & (dead < low + D_SAE // world)] - low
        return (*(found := one_step(division, rows(), own)), division.norm(found[1]))

    found = together(world, work)
    for sums, own, own_norm in found:
        assert_same_sums(sums, expected)
        torch.testing.assert_close(own["b_dec"], gradients["b_dec"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(own_norm, norm)
    assert torch.equal(torch.cat([sums.fired for sums, _, _ in found]), expected.fired)
    for name in ("encoder", "decoder", "b_enc"):
        joined = torch.cat([own[name] for _, own, _ in found])
        torch.testing.assert_close(joined, gradients[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_dictionary_is_cut_and_put_together_again() -> None:
    sae = dictionary("batchtopk")
    whole = together(4, lambda peers: FeatureDivision(copy.deepcopy(sae), peers).whole())
    assert whole[1:] == [None] * 3
    assert whole[0].config == sae.config
    for name, tensor in sae.state_dict().items():
        assert torch.equal(whole[0].state_dict()[name], tensor), name
    assert whole[0].W_enc.T.is_contiguous()


def test_only_touched_rows_travel() -> None:
    sae = dictionary("topk")
    world, counts = 3, []

    def work(peers: Peers) -> int:
        result, gradients = Division(copy.deepcopy(sae), peers).sae.loss(rows().chunk(world)[peers.rank], DEAD)
        fired = peers.sum(result.fired)
        counts.append(int(((fired > 0) | torch.isin(torch.arange(D_SAE), DEAD)).sum()))
        return sum_gradients(gradients, fired, DEAD, peers)

    sent = together(world, work)
    touched = counts[0]
    assert DEAD.numel() < touched < D_SAE
    assert sent == [2 * touched * D_IN + D_SAE + D_IN] * world
    assert sum_gradients({}, torch.zeros(D_SAE), DEAD, ALONE) == 0


@pytest.mark.parametrize("architecture", ["matryoshka", "jumprelu", "relu"])
def test_other_architectures_divide_rows_only(architecture: str) -> None:
    with pytest.raises(ConfigError, match=f"architecture is '{architecture}'.*Divide rows"):
        together(2, lambda peers: FeatureDivision(dictionary(architecture), peers))


def test_refusals_name_the_numbers() -> None:
    with pytest.raises(ConfigError, match="batch_size is 10, over 3 processes"):
        together(3, lambda peers: Division.share_of_rows(10, peers))
    with pytest.raises(ConfigError, match="d_sae is 48, over 5 processes"):
        together(5, lambda peers: FeatureDivision(dictionary("topk"), peers))
    with pytest.raises(ConfigError, match="at least k = 5"):
        together(12, lambda peers: FeatureDivision(dictionary("topk"), peers))


@pytest.mark.parametrize("seed", range(6))
def test_nth_largest_of_all_processes(seed: int) -> None:
    """Against a sort of the union: few distinct values, so that many are equal, and shares of unlike size."""
    generator = torch.Generator().manual_seed(seed)
    shares = [torch.randint(0, 9, (n,), generator=generator) / 3.0 for n in (0, 40, 7)]
    if seed % 2:
        shares = [share * torch.rand(share.shape, generator=generator) for share in shares]
    everything = torch.cat(shares).sort(descending=True).values
    for n in (1, 5, 23, 47):
        found = together(3, lambda peers, n=n: nth_largest(shares[peers.rank], n, peers))
        kept = sum(int((share > value).sum()) + ties for share, (value, ties) in zip(shares, found, strict=True))
        assert [float(value) for value, _ in found] == [float(everything[n - 1])] * 3
        assert kept == n
        for share, (value, ties) in zip(shares, found, strict=True):
            assert 0 <= ties <= int((share == value).sum())


def test_among_largest_keeps_k_of_each_row() -> None:
    values = torch.rand(20, 30, generator=torch.Generator().manual_seed(3))
    parts = [values[:, :0], values[:, :4], values[:, 4:]]
    own = [part.topk(min(6, part.shape[1])).values for part in parts]
    found = together(3, lambda peers: among_largest(own[peers.rank], 6, peers))
    kept = torch.cat(found, dim=1)
    assert torch.equal((kept > 0).sum(1), torch.full((20,), 6))
    assert torch.equal(kept.sort(1, descending=True).values[:, :6], values.topk(6).values)
