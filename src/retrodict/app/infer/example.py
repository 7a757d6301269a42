"""The configuration and the data that ``retrodict infer --example DIR`` writes: prey are counted, predators never."""

from __future__ import annotations

import torch
import yaml

import retrodict as rd

CONFIG = """\
# Predators and prey (Lotka-Volterra with noise): prey are counted, predators are never seen.
# Run with:  retrodict infer config.yaml data.csv --out results
title: Predators that nobody saw
model:
  kind: sde                # or: local-level, local-trend, ar, linear-gaussian, hmm, jump
  drift: lotka-volterra    # or: ou, double-well, fitzhugh-nagumo, linear; {family: ..., its parameters}
  diffusion: [0.2, 0.2]    # any number may be {guess: 0.2, prior: {lognormal: [-2, 1]}}: then it is fitted
  start: {mean: [0, 0.5], std: [0.3, 0.3]}
  names: [log prey, log predators]
  observation: {noise: 0.2}
data:
  time: week
  observed: prey           # empty cells are missing values
  log: true
infer:
  particles: 1000
  steps: 10                # Euler steps between observations
  forecast: 6              # steps beyond the data
  seed: 1
"""


def simulate() -> str:
    """Data of the model in `CONFIG` as the text of a CSV, with a gap."""
    from retrodict.app.infer.models import build

    model: rd.SDE = build(yaml.safe_load(CONFIG)["model"], 1, 0.0)[0].model
    times = torch.arange(1, 49, dtype=torch.float64) * 0.25
    prey = model.sample(1, times, steps=50, seed=4).x[0, 0, :, 0]
    noise = torch.randn(len(prey), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen = (prey + 0.2 * noise).exp().tolist()
    gap = range(20, 26)
    rows = [f"{t:g},{'' if k in gap else f'{y:.3f}'}" for k, (t, y) in enumerate(zip(times.tolist(), seen))]
    return "\n".join(["week,prey", *rows]) + "\n"
