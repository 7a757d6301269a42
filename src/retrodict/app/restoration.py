"""The demonstration's section on restoration: held-out digits, half of them hidden or blurred, from its trained model.

Each digit is measured with noise and restored by a few populations of weighted particles, so that what is shown are
draws from the posterior of the model, and their spread.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from retrodict.app.report import Block, Code, Images, Section, Text
from retrodict.app.restore.problem import Settings
from retrodict.app.restore.report import restored
from retrodict.app.restore.run import pose, solve, summarise
from retrodict.app.runs import Run
from retrodict.data import Data
from retrodict.denoisers import Denoiser

DIGITS, POPULATIONS, PARTICLES, STEPS = 3, 8, 32, 28
#: Weights alone steer: at equal time three times as many particles as with derivatives of the network.
METHOD = "pigdm:gradient=false"
NOISE = 0.05
TASKS = {"Lower half hidden": "half:bottom", "Blurred": "blur:5,1"}


def measure(out: Path, denoiser: Denoiser, data: Data, seed: int = 0) -> dict[str, Any]:
    """Restore a few held-out digits; pictures and numbers of each task."""
    begun = time.perf_counter()
    run = Run(out, denoiser, {}, data)
    tasks = {}
    for name, words in TASKS.items():
        settings = Settings(words, NOISE, True, 1, METHOD, POPULATIONS, PARTICLES, STEPS, seed, DIGITS)
        problem = pose("digits", run, settings)
        outcomes = [solve(run, problem, i, settings) for i in range(DIGITS)]
        images = restored(problem, outcomes)
        tasks[name] = {
            "pixels": np.asarray(images.pixels).round(3).tolist(),
            "columns": list(images.columns),
            "caption": images.caption,
            "method": outcomes[0].found.method,
            **summarise(outcomes),
        }
    return {"seconds": time.perf_counter() - begun, "tasks": tasks}


def section(found: dict[str, Any]) -> Section:
    """Pictures, errors, coverage."""
    blocks: list[Block] = []
    for name, task in found["tasks"].items():
        pixels = np.asarray(task["pixels"])
        words = f"{len(pixels)} digits: " + ", ".join(task["columns"])
        blocks.append(Images(pixels, alt=words, title=name, columns=task["columns"], caption=task["caption"]))
    told = [
        f"{name.lower()}: error of the mean {task['rmse']:.3f}, spread {task['spread']:.3f}, 90% intervals cover "
        f"{task['coverage']:.0%} of the pixels that vary"
        for name, task in found["tasks"].items()
    ]
    text = Text(
        f"In shares of black to white, over {DIGITS} digits, a few only: {'; '.join(told)}. {POPULATIONS} populations "
        f"of {PARTICLES} weighted particles a digit; all of it took {found['seconds']:.0f} s."
    )
    lead = f"Digits that training never saw, measured with noise of {NOISE:g} of black to white, and what they may be."
    return Section("Restoration", [*blocks, text, Code(_REPRODUCE)], lead=lead)


_REPRODUCE = """\
import retrodict as rd

denoiser = rd.load("runs/demo")
operator = rd.operators.half("bottom")
goal = rd.Measurement(y, operator, noise=0.8)
samples = rd.sample(rd.condition(denoiser, goal, "pigdm", gradient=False), 64, steps=28)
samples.mean(), samples.correction, samples.ess, samples.log_evidence
"""
