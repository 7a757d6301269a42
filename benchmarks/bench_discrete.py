"""Discrete states, trained and measured on a processor in minutes: digits as counts, text, pairs, and time.

    digits   counts 0..16 by pure death and by masks, labels given: the share that a classifier of real digits knows
    bridge   "copy with edits": top-1 accuracy of a token bridge beside a one-shot classifier; edits are correlated
    speed    time per step beside a loop that is written as the published one, against the length of the sequence

    python benchmarks/bench_discrete.py [digits bridge speed] [--scale 1.0]

Each study writes ``benchmarks/results/discrete-NAME.json``; "speed" also draws ``docs/assets/discrete_cost.png``, and
"digits" ``docs/assets/discrete_digits.png``.  ``--scale`` multiplies every training length.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import retrodict as rd
from retrodict.denoisers.networks.transformer import Transformer
from retrodict.diagnostics.classifier import feature_classifier

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS, ASSETS = HERE / "results", HERE.parent / "docs" / "assets"
QUIET = {"progress": False}


# -- digits ---------------------------------------------------------------------------------------------------------


def digits(scale: float) -> dict[str, Any]:
    """Both processes learn a law over the 17 values of every pixel, or the mean of what died."""
    data = rd.load_data("digits")
    classifier = feature_classifier(data.x, data.conditions["label"], seed=0)
    label = torch.arange(500) % 10
    rows, shown = [], {}
    small = {"channels": [32, 64], "dropout": 0.1}
    cases = {
        "Blackout, law": (rd.Blackout(17), {"predicts": "law", "network_options": small}, 700, 64),
        "Masked, law": (rd.Masked(17), {"network_options": small}, 700, 64),
        "Blackout, mean": (rd.Blackout(17), {"network_options": small}, 1200, 128),
    }
    for name, (process, words, training, steps) in cases.items():
        begun = time.process_time()
        denoiser = rd.fit(
            process, data, steps=round(scale * training), batch_size=64, lr=3e-3, ema=0.99, seed=0, **words, **QUIET
        )
        trained = time.process_time() - begun
        for guidance in (1.0, 2.0):
            law = name.endswith("law")
            if guidance != 1 and not law:
                continue  # a mean has no class posteriors to guide
            run = rd.sample(denoiser, 500, label=label, steps=steps, guidance=guidance, seed=1, **QUIET)
            found = classifier.accuracy(run.x.float(), label)
            shown[f"{name}, {guidance:g}"] = run.x[:20]
            rows.append(
                {
                    "process": name,
                    "guidance": guidance,
                    "training_steps": round(scale * training),
                    "cpu_s": trained,
                    "steps": steps,
                    "recognised": found.value,
                    "low": found.low,
                    "high": found.high,
                }
            )
            print(rows[-1], flush=True)
    assert data.heldout is not None
    real = classifier.accuracy(data.heldout.x, data.heldout.conditions["label"])
    rows.append({"process": "held-out digits", "recognised": real.value, "low": real.low, "high": real.high})
    _digits_picture(shown)
    return {"what": "Digits as counts 0 to 16, labels given: recognised by a classifier of real digits", "rows": rows}


def _digits_picture(shown: dict[str, Tensor]) -> None:
    fig, axes = plt.subplots(len(shown), 20, figsize=(10, 0.6 * len(shown)))
    for row, (name, images) in zip(axes, shown.items()):
        for axis, x in zip(row, images):
            axis.imshow(x[0], cmap="gray_r", vmin=0, vmax=16)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    fig.tight_layout(pad=0.2)
    fig.savefig(ASSETS / "discrete_digits.png", dpi=130, metadata={"Software": None})
    plt.close(fig)


# -- pairs ----------------------------------------------------------------------------------------------------------

STRING, LETTERS = 8, 6  # letters 0..5, the pair to be edited 6 7, edits 8..11
EDITS, CHANCES = [(6, 7), (8, 9), (8, 10), (8, 11)], [0.36, 0.22, 0.21, 0.21]


def edited(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``(target, source)``: random letters with the pair "6 7" somewhere, which is kept or replaced as a pair.

    The most likely single tokens are 8 and 7, a pair that never occurs.
    """
    g = torch.Generator().manual_seed(seed)
    source = torch.randint(LETTERS, (n, STRING), generator=g)
    at = torch.randint(STRING - 1, (n,), generator=g)
    rows = torch.arange(n)
    source[rows, at], source[rows, at + 1] = 6, 7
    pick = torch.multinomial(torch.tensor(CHANCES), n, replacement=True, generator=g)
    target = source.clone()
    edits = torch.tensor(EDITS)[pick]
    target[rows, at], target[rows, at + 1] = edits[:, 0], edits[:, 1]
    return target, source


def bridge(scale: float) -> dict[str, Any]:
    """The bridge's best of 100 draws by frequency, and the one-shot classifier's most likely tokens."""
    target, source = edited(4000, 0)
    size: dict[str, Any] = {"hidden": 64, "depth": 2, "heads": 4, "patch": 1}
    steps = round(scale * 900)
    words = {"batch_size": 64, "lr": 3e-3, "ema": 0.99}
    process = rd.TokenBridge(vocabulary=12)
    denoiser = rd.fit(
        process, target, x1=source, steps=steps, network="transformer", network_options=size, **words, **QUIET
    )
    shot = _one_shot(target, source, steps, size, words)
    wanted, given = edited(200, 1)
    with torch.no_grad():
        guess = shot(given, None).argmax(-1)
    rows = [{"case": "one-shot classifier", "top_1": float((guess == wanted).all(1).double().mean())}]
    for k in (1, 8, 16):
        draws = rd.sample(denoiser, 100 * len(given), x1=given.repeat_interleave(100, 0), steps=k, seed=3, **QUIET).x
        best = [Counter(map(tuple, group.tolist())).most_common(1)[0][0] for group in draws.view(len(given), 100, -1)]
        hit = float((torch.tensor(best) == wanted).all(1).double().mean())
        rows.append({"case": f"token bridge, {k} steps, best of 100", "top_1": hit})
    for row in rows:
        row["ci95"] = 1.96 * math.sqrt(row["top_1"] * (1 - row["top_1"]) / len(given))
        print(row, flush=True)
    rows.append({"case": "the law's own mode", "top_1": float((given == wanted).all(1).double().mean())})
    return {"what": "Copy with correlated edits: top-1 accuracy over 200 strings", "rows": rows}


def _one_shot(target: Tensor, source: Tensor, steps: int, size: dict[str, Any], words: dict[str, Any]) -> nn.Module:
    from retrodict.training import train

    torch.manual_seed(0)
    network = Transformer((STRING,), vocabulary=12, time=False, **size)

    def loss(module: Any, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(module(batch["x1"], None).flatten(0, 1), batch["x"].flatten())}

    made: Any = train(network, loss, {"x": target, "x1": source}, steps=steps, seed=0, **words, **QUIET).module
    return made.eval()


# -- time -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def published_loop(network: nn.Module, n: int, length: int, vocabulary: int, steps: int, cached: bool) -> Tensor:
    """Masked ancestral sampling as it is published: a float64 softmax over vocabulary and mask, a Gumbel draw, shown
    tokens copied; with ``cached`` the answer is kept while nothing changes."""
    x = torch.full((n, length), vocabulary)
    kept, p = None, torch.empty(0)
    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        if not cached or kept is None or not torch.equal(kept, x):
            p = torch.softmax(network(x, None).double(), -1)
            kept = x
        q = torch.cat([p * (t - s), torch.full((n, length, 1), s, dtype=torch.float64)], -1) / t
        gumbel = 1e-10 - (torch.rand_like(q) + 1e-10).log()
        x = torch.where(x == vocabulary, (q / gumbel).argmax(-1), x)
    return x


class Forgetful(rd.denoisers.TokenDenoiser):
    """The same denoiser, asked at every step."""

    timeless = False

    def _clock(self, t: Tensor) -> None:
        return None


def speed(scale: float) -> dict[str, Any]:
    """Milliseconds a step: medians of alternated runs of both loops with one network.

    First against the length, where every step changes something; then in runs of more steps than tokens, where a kept
    answer saves calls; last with a vocabulary of words.
    """
    cases = [(64, length, 4, 16) for length in (32, 64, 128, 256, 512)]
    cases += [(64, 32, 1, steps) for steps in (64, 256)] + [(8000, 64, 2, 16)]
    rows = [_timed_case(*case, repeats=max(3, round(7 * scale))) for case in cases]
    lengths = rows[:5]
    fig, axis = plt.subplots(figsize=(5, 3.2))
    for key, name in (("ours_ms", "retrodict"), ("published_ms", "published loop"), ("network_ms", "network alone")):
        axis.loglog([r["length"] for r in lengths], [r[key] for r in lengths], "o-", label=name)
    axis.set_xlabel("tokens in a sequence")
    axis.set_ylabel("ms a step")
    axis.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(ASSETS / "discrete_cost.png", dpi=130, metadata={"Software": None})
    plt.close(fig)
    what = "Milliseconds a step of masked sampling beside a loop as published (float64 Gumbel over all values); "
    return {"what": what + "'ratio' with kept answers in both, 'ratio_asked' with a call at every step", "rows": rows}


def _timed_case(vocabulary: int, length: int, n: int, steps: int, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden": 64, "depth": 2, "heads": 4, "patch": 1}
    network = Transformer((length,), vocabulary=vocabulary + 1, out_channels=vocabulary, time=False, **size).eval()
    process = rd.Masked(vocabulary)
    kept, asked = (cls(network, process, shape=(length,)) for cls in (rd.denoisers.TokenDenoiser, Forgetful))
    plan = rd.plan("step", process, steps=steps)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: rd.sample(kept, n, plan=plan, **QUIET),
        "published": lambda: published_loop(network, n, length, vocabulary, steps, True),
        "ours_asked": lambda: rd.sample(asked, n, plan=plan, **QUIET),
        "published_asked": lambda: published_loop(network, n, length, vocabulary, steps, False),
        "network": lambda: network(torch.full((n, length), vocabulary), None),
    }
    seconds = _alternated(runs, repeats)
    ms = {f"{k}_ms": 1000 * v / (1 if k == "network" else steps) for k, v in seconds.items()}
    row = {"vocabulary": vocabulary, "length": length, "sequences": n, "steps": steps} | ms
    row["ratio"] = seconds["ours"] / seconds["published"]
    row["ratio_asked"] = seconds["ours_asked"] / seconds["published_asked"]
    print(row, flush=True)
    return row


@torch.no_grad()
def _alternated(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if repeat:  # the first warms up
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


STUDIES: dict[str, Callable[[float], dict[str, Any]]] = {
    "digits": digits,
    "bridge": bridge,
    "speed": speed,
}


def main(about: str | None = __doc__, studies: dict[str, Callable[[float], dict[str, Any]]] = STUDIES) -> None:
    """Run the studies that the command line names and write what they found."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=list(studies), choices=[*studies, []])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    RESULTS.mkdir(exist_ok=True)
    for name in given.studies:
        begun = time.process_time()
        study = studies[name](given.scale)
        facts = {
            "cpu_s": round(time.process_time() - begun),
            "scale": given.scale,
            "seed": 0,
            "threads": given.threads,
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
        }
        path = RESULTS / f"discrete-{name}.json"
        path.write_text(json.dumps(study | facts, indent=1) + "\n", encoding="utf-8")
        print(path, flush=True)


if __name__ == "__main__":
    main()
