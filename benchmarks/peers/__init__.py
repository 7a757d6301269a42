"""Samplers of other libraries, driven on our problems: the same starts, the same denoiser, equal network passes.

`problem.Problem` is what is solved, `Peer` one sampler with its grid and flags.  A peer keeps its state in its own
convention; every network pass tells the problem the state's (alpha, sigma), and gets the posterior mean back.  The
level is the exact one of the state, never a rounded timestep, which is in the peers' favour.
"""

from __future__ import annotations

from peers.azula_samplers import azula_peers
from peers.diffusers_schedulers import diffusers_peers
from peers.problem import Peer, Problem
from peers.sigma_samplers import sigma_peers

__all__ = ["Peer", "Problem", "all_peers"]


def all_peers(problem: Problem) -> tuple[list[Peer], list[str]]:
    """Every peer that is installed, and the libraries that are not."""
    peers, missing = sigma_peers(problem), []
    for name, family in (("diffusers", diffusers_peers), ("azula", azula_peers)):
        try:
            peers += family(problem)
        except ImportError:
            missing.append(name)
    return peers, missing
