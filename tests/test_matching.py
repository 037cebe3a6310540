"""Streaming moments against dense float64 ones; the assignment against all permutations."""

import itertools

import numpy as np
import pytest
import torch

from eqbench.probes.ladders.matching import Moments, channels, match


def maps(offset=0.0, seed=0, n=12, c=6, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, c, 5, 4, generator=g, dtype=torch.float64)
    b = a.roll(1, 1) + 0.7 * torch.randn(n, c, 5, 4, generator=g, dtype=torch.float64)
    return (a + offset).to(dtype), (b - offset).to(dtype)


def streamed(a, b, size):
    moments = Moments()
    for x, y in zip(a.split(size), b.split(size), strict=True):
        moments.update(x, y)
    return moments


def dense(a, b):
    a, b = channels(a.double()).numpy(), channels(b.double()).numpy()
    return np.corrcoef(a, b)[: len(a), len(a) :]


@pytest.mark.parametrize("size", [1, 5, 12])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_moments_equal_the_dense_ones(size, offset):
    a, b = maps(offset)
    moments = streamed(a, b, size)
    rows_a, rows_b = channels(a.double()), channels(b.double())
    assert moments.correlation().numpy() == pytest.approx(dense(a, b), abs=1e-6)
    assert moments.mean_a.numpy() == pytest.approx(rows_a.mean(1).numpy(), rel=1e-6, abs=1e-6)
    assert moments.var_b.numpy() == pytest.approx(rows_b.var(1, correction=0).numpy(), rel=1e-5)
    cross = (rows_a - rows_a.mean(1, keepdim=True)) @ (rows_b - rows_b.mean(1, keepdim=True)).mT / rows_a.shape[1]
    assert moments.cross.numpy() == pytest.approx(cross.numpy(), abs=1e-6)


def test_without_the_shift_a_common_mean_cancels():
    """The mutation: raw products in float32, the mean subtracted afterwards."""
    a, b = maps(1e4)
    x, y = channels(a), channels(b)
    covariance = x @ y.mT / x.shape[1] - torch.outer(x.mean(1), y.mean(1))
    raw = covariance / torch.outer(x.std(1), y.std(1))
    assert np.abs(raw.numpy() - dense(a, b)).max() > 0.5
    assert np.abs(streamed(a, b, 4).correlation().numpy() - dense(a, b)).max() < 1e-6


def test_channels_last_maps_are_not_copied():
    tokens = torch.randn(3, 4 * 5, 7).mT.unflatten(-1, (4, 5))
    assert channels(tokens).data_ptr() == tokens.data_ptr()
    assert torch.equal(channels(tokens), channels(tokens.contiguous()))


def test_a_constant_channel_correlates_with_nothing():
    a, b = maps()
    a[:, 2], b[:, 4] = 1e3 + 1 / 3, 0.0
    correlation = streamed(a, b, 5).correlation()
    assert (correlation[2] == 0).all()
    assert (correlation[:, 4] == 0).all()
    assert correlation.isfinite().all()
    assert sorted(match(correlation).tolist()) == list(range(6))


def test_memory_does_not_grow_with_images():
    def held(moments):
        return sum(value.numel() for value in vars(moments).values() if isinstance(value, torch.Tensor))

    a, b = maps(n=40)
    assert held(streamed(a[:4], b[:4], 4)) == held(streamed(a, b, 4)) < 4 * 36


def test_other_numbers_of_channels_on_the_two_sides():
    a, b = maps()
    correlation = streamed(a, torch.cat([a, b], 1), 5).correlation()
    assert correlation.diagonal().numpy() == pytest.approx(1, abs=1e-6)
    assert correlation[:, 6:].numpy() == pytest.approx(dense(a, b), abs=1e-6)


def test_match_is_the_best_of_all_permutations():
    for seed in range(5):
        correlation = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        best = max(itertools.permutations(range(6)), key=lambda pi: sum(correlation[i, j] for i, j in enumerate(pi)))
        assert match(correlation).tolist() == list(best)


def test_greedy_matching_would_not_do():
    """The mutation: each row's own maximum is not a permutation here, and the first-come one is worse."""
    correlation = torch.tensor([[0.9, 0.8], [0.8, 0.1]])
    assert match(correlation).tolist() == [1, 0]
    assert correlation.argmax(1).tolist() == [0, 0]


def test_the_partner_of_channel_i_is_channel_pi_i():
    """A permutation that is not its own inverse: the other convention fails."""
    a, _ = maps(c=8)
    pi = torch.tensor([3, 0, 1, 2, 6, 4, 5, 7])
    b = torch.empty_like(a)
    b[:, pi] = a
    b += 0.3 * torch.randn(b.shape, generator=torch.Generator().manual_seed(1))
    found = match(streamed(a, b, 5).correlation())
    assert torch.equal(found, pi)
    assert (a - b[:, found]).square().mean() < 0.1
    assert (a - b[:, found.argsort()]).square().mean() > 0.5
