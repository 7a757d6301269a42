"""The package particles on a bridge of a double well: arguments are the start, the deviation, N and the steps.

Prints one line of JSON: milliseconds, effective share, effective samples a second, evidence.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np

import particles
from particles import distributions as dists
from particles import state_space_models as ssm


class DoubleWell(ssm.StateSpaceModel):
    """Euler steps as time steps; only the last one is observed."""

    def PX0(self):
        return self._step(self.x0)

    def PX(self, t, xp):
        return self._step(xp)

    def PY(self, t, xp, x):
        return dists.Normal(loc=x, scale=self.sd if t == self.steps - 1 else 1e8)

    def _step(self, x):
        return dists.Normal(loc=x + (x - x**3) / self.steps, scale=0.8 / np.sqrt(self.steps))


def main() -> None:
    x0, sd, n, steps = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    model = DoubleWell(x0=x0, sd=sd, steps=steps)
    data = [1.0] * steps
    seconds, effective = [], []
    for _ in range(6):
        begin = time.perf_counter()
        run = particles.SMC(fk=ssm.Bootstrap(ssm=model, data=data), N=n)
        run.run()
        seconds.append(time.perf_counter() - begin)
        effective.append(float(run.wgts.ESS))
    middle, size = statistics.median(seconds[1:]), statistics.mean(effective[1:])
    row = {"milliseconds": 1e3 * middle, "effective_share": size / n, "effective_per_second": size / middle}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
