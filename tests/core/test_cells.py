"""Uniforms of cells: a function of the key, the cell and the number of the draw; uniform and uncorrelated."""

from __future__ import annotations

import torch
from scipy import stats

from retrodict.core.noise import Cells, KeyedNoise


def test_cells_do_not_know_their_batch():
    keys = KeyedNoise(3, 5).uniform(())
    together, alone = Cells(keys, 7), Cells(keys[2:3], 7)
    every = torch.arange(35)
    for e in (0, 1, 1000):
        whole = together.uniform(e, every).reshape(5, 7)
        assert bool((whole[2] == alone.uniform(e, torch.arange(7))).all())
        assert bool((together.uniform(e, torch.tensor([34, 3])) == whole.flatten()[[34, 3]]).all())


def test_draws_are_uniform_and_independent_of_their_neighbours():
    """Kolmogorov-Smirnov on 1e5 draws and correlations between cells and draws; false alarms 1e-3 together."""
    cells = Cells(KeyedNoise(0, 10).uniform(()), 100)
    u = torch.stack([cells.uniform(e, torch.arange(1000)) for e in range(100)])
    assert 0 <= float(u.min()) and float(u.max()) < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 2e-4
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[:, 100:], u[:, :-100])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) * a.numel() ** 0.5 < 3.7
