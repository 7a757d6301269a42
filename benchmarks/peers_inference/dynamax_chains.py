"""dynamax on chains that a benchmark wrote to a file: run by the peers' interpreter, never imported by ours.

    .venv-peers/bin/python benchmarks/peers_inference/dynamax_chains.py chains.npz [--runs 5]

Prints one JSON object: for each problem and task the seconds of the first call (compilation included), the median
seconds after it, and the log evidence, so that the benchmark can see that both solved the same problem.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from dynamax.hidden_markov_model import hmm_filter, hmm_posterior_mode, hmm_smoother  # noqa: E402
from dynamax.linear_gaussian_ssm import (  # noqa: E402
    ParamsLGSSM,
    ParamsLGSSMDynamics,
    ParamsLGSSMEmissions,
    ParamsLGSSMInitial,
    lgssm_filter,
    lgssm_posterior_sample,
    lgssm_smoother,
)


def timed(call: Callable[[], Any], runs: int) -> dict[str, float]:
    """Seconds of the first call, and the median of ``runs`` later ones."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return {"first": first, "seconds": statistics.median(seconds)}


def gaussian(data: dict[str, np.ndarray], runs: int) -> dict[str, Any]:
    """Filter, smoother, draw and gradient of a linear-Gaussian model; ``y`` is ``(series, time, m)``."""
    m, P, A, b, Q, L, R, y = (jnp.asarray(data[k]) for k in ("m0", "P0", "A", "b", "Q", "L", "R", "y"))

    def model(A: jax.Array, Q: jax.Array, R: jax.Array) -> ParamsLGSSM:
        d, k = A.shape[0], L.shape[0]
        return ParamsLGSSM(
            initial=ParamsLGSSMInitial(mean=m, cov=P),
            dynamics=ParamsLGSSMDynamics(weights=A, bias=b, input_weights=jnp.zeros((d, 0)), cov=Q),
            emissions=ParamsLGSSMEmissions(weights=L, bias=jnp.zeros(k), input_weights=jnp.zeros((k, 0)), cov=R),
        )

    def each(f: Callable[..., Any]) -> Callable[[], Any]:
        """Compiled, over the series, with the model as argument so that nothing is folded into a constant."""
        compiled = jax.jit(jax.vmap(f, (None, 0)) if len(y) > 1 else lambda p, ys: f(p, ys[0]))
        return lambda: compiled((A, Q, R), y)

    def loss(p: tuple[jax.Array, ...], ys: jax.Array) -> jax.Array:
        total = (
            jax.vmap(lambda v: lgssm_filter(model(*p), v).marginal_loglik)(ys)
            if len(y) > 1
            else (lgssm_filter(model(*p), ys[0]).marginal_loglik)
        )
        return total.sum()

    gradient = jax.jit(jax.value_and_grad(loss))
    sample = partial(lgssm_posterior_sample, jax.random.PRNGKey(0))
    log_evidence = np.asarray(each(lambda p, v: lgssm_filter(model(*p), v).marginal_loglik)())
    return {
        "evidence": timed(each(lambda p, v: lgssm_filter(model(*p), v).marginal_loglik), runs),
        "means": timed(each(lambda p, v: lgssm_smoother(model(*p), v).smoothed_means), runs),
        "covariances": timed(each(lambda p, v: lgssm_smoother(model(*p), v).smoothed_covariances), runs),
        "draw": timed(each(lambda p, v: sample(model(*p), v)), runs),
        "gradient": timed(lambda: gradient((A, Q, R), y), runs),
        "log_evidence": float(log_evidence.sum()),
    }


def finite(data: dict[str, np.ndarray], runs: int) -> dict[str, Any]:
    """Filter, smoother, most probable path and gradient of a hidden Markov model; ``log_g (series, time, K)``."""
    p0, P, log_g = (jnp.asarray(data[k]) for k in ("p0", "P", "log_g"))

    def each(f: Callable[..., Any]) -> Callable[[], Any]:
        compiled = jax.jit(jax.vmap(f, (None, None, 0)) if len(log_g) > 1 else lambda a, b, g: f(a, b, g[0]))
        return lambda: compiled(p0, P, log_g)

    def loss(p0: jax.Array, P: jax.Array, log_g: jax.Array) -> jax.Array:
        if len(log_g) == 1:
            return hmm_filter(p0, P, log_g[0]).marginal_loglik
        return jax.vmap(lambda g: hmm_filter(p0, P, g).marginal_loglik)(log_g).sum()

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    log_evidence = np.asarray(each(lambda a, b, g: hmm_filter(a, b, g).marginal_loglik)())
    return {
        "evidence": timed(each(lambda a, b, g: hmm_filter(a, b, g).marginal_loglik), runs),
        "smooth": timed(each(lambda a, b, g: hmm_smoother(a, b, g).smoothed_probs), runs),
        "viterbi": timed(each(hmm_posterior_mode), runs),
        "gradient": timed(lambda: gradient(p0, P, log_g), runs),
        "log_evidence": float(log_evidence.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    arrays = np.load(arguments.problems)
    names = dict.fromkeys(key.split("/")[0] for key in arrays)
    found = {}
    for name in names:
        data = {key.split("/")[1]: arrays[key] for key in arrays if key.startswith(f"{name}/")}
        found[name] = (finite if "log_g" in data else gaussian)(data, arguments.runs)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
