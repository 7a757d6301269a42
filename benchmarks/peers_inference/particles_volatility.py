"""The package particles on stochastic volatility: arguments are a file of the data, N, the runs and a seed.

Prints one line of JSON: the seconds of every run and its log evidence.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

import particles
from particles import state_space_models as ssm


def main() -> None:
    """Bootstrap filter, systematic resampling below one half."""
    y, N, runs = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    model = ssm.StochVol(mu=-1.0, rho=0.9, sigma=0.3)
    np.random.seed(int(sys.argv[4]))
    seconds, evidence = [], []
    for _ in range(runs):
        run = particles.SMC(fk=ssm.Bootstrap(ssm=model, data=list(y)), N=N, resampling="systematic", ESSrmin=0.5)
        begin = time.perf_counter()
        run.run()
        seconds.append(time.perf_counter() - begin)
        evidence.append(float(run.logLt))
    print(json.dumps({"seconds": seconds, "log_evidence": evidence}))


if __name__ == "__main__":
    main()
