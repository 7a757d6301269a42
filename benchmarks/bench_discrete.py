"""Discrete states, trained and measured on a processor in minutes: digits as counts, text, pairs, and time.

    digits   counts 0..16 by pure death and by masks, labels given: the share that a classifier of real digits knows
    text     licences that ship with the system, by characters: bits per character of masked diffusion beside an
             autoregressive network of the same blocks and training, and samples with and without remasking
    bridge   "copy with edits": top-1 accuracy of a token bridge beside a one-shot classifier; edits are correlated
    speed    time per step beside a loop that is written as the published one, against the length of the sequence

    python benchmarks/bench_discrete.py [digits text bridge speed] [--scale 1.0]

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
from retrodict.data import Data, text
from retrodict.denoisers.networks.transformer import Transformer
from retrodict.diagnostics.classifier import feature_classifier
from retrodict.diagnostics.likelihood import elbo

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
        "Blackout, mean": (rd.Blackout(17), {}, 900, 128),
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


# -- text -----------------------------------------------------------------------------------------------------------

LENGTH, SIZE = 64, {"hidden": 96, "depth": 3, "heads": 4, "patch": 1}


def licences() -> Data:
    """The licences of the system, or that of this repository, in windows of 64 characters; the end is held out."""
    shared = Path("/usr/share/common-licenses")
    files = sorted({p.resolve() for p in shared.glob("*")}) if shared.is_dir() else []
    whole = "".join(p.read_text(encoding="utf-8") for p in files or [HERE.parent / "LICENSE"])
    return text(" ".join(whole.split()), length=LENGTH, heldout=0.1, name="licences")


class Causal(Transformer):
    """The same blocks, each position hearing only what stands before it: the autoregressive baseline."""

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        assert self.place is not None
        h = self.embed(x) + self.place
        parts = self.modulate(condition)[:, None].chunk(6 * len(self.blocks) + 2, dim=-1)
        later = torch.full((x.shape[1],) * 2, -torch.inf).triu(1)
        for i, block in enumerate(self.blocks):
            a1, b1, g1, a2, b2, g2 = parts[6 * i : 6 * i + 6]
            heard = block.attention(torch.addcmul(b1, block.norm(h), 1.0 + a1), later)  # type: ignore[operator]
            h = torch.addcmul(h, g1, heard)
            h = torch.addcmul(h, g2, block.feed(torch.addcmul(b2, block.norm(h), 1.0 + a2)))  # type: ignore[operator]
        a, b = parts[-2:]
        return self.leave(torch.addcmul(b, self.norm(h), 1.0 + a))


def surprise(network: Causal, x: Tensor) -> Tensor:
    """-log p of each window in nats a character ``(n,)``; the first character is told by a start token."""
    start = torch.full_like(x[:, :1], network.vocabulary - 1)  # type: ignore[operator]
    log_p = torch.log_softmax(network(torch.cat([start, x[:, :-1]], 1), None).double(), -1)
    return -log_p.gather(-1, x.unsqueeze(-1)).squeeze(-1).mean(1)


def train_causal(data: Data, steps: int, batch: int, lr: float) -> Causal:
    """By the same optimiser, warm-up, decay and averaging as `fit`."""
    from retrodict.training import train

    torch.manual_seed(0)
    size: dict[str, Any] = SIZE
    network = Causal((LENGTH,), vocabulary=data.levels + 1, out_channels=data.levels, time=False, **size)  # type: ignore[operator]
    result = train(
        network,
        lambda module, batch, generator: {"loss": surprise(module, batch["x"]).float().mean()},
        {"x": data.x},
        steps=steps,
        batch_size=batch,
        lr=lr,
        ema=0.99,
        seed=0,
        **QUIET,
    )
    made: Any = result.module
    return made.eval()


@torch.no_grad()
def licence_text(scale: float) -> dict[str, Any]:
    """Bits per character, and what remasking does to samples."""
    data = licences()
    assert data.heldout is not None and data.levels is not None
    steps, words = round(scale * 900), {"batch_size": 32, "lr": 3e-3}
    with torch.enable_grad():
        begun = time.process_time()
        denoiser = rd.fit(
            rd.Masked(data.levels), data, steps=steps, network_options=SIZE, ema=0.99, seed=0, **words, **QUIET
        )
        masked_s = time.process_time() - begun
        begun = time.process_time()
        causal = train_causal(data, steps, words["batch_size"], words["lr"])
        causal_s = time.process_time() - begun
    x = data.heldout.x[:300]
    bound = -elbo(denoiser, x, samples=16).log_prob / LENGTH / math.log(2)
    exact = surprise(causal, x) / math.log(2)
    counts = torch.bincount(data.x.flatten(), minlength=data.levels).double() + 1
    unigram = -(counts[x] / counts.sum()).log2().mean(1)
    rows = [
        _bits("masked diffusion, at most", bound, denoiser.network, masked_s),
        _bits("autoregressive", exact, causal, causal_s),
        _bits("frequencies of characters", unigram, None, 0.0),
    ]
    for row in rows:
        print(row, flush=True)
    rows += _remasking(denoiser, causal, data)
    what = (
        f"Licences by characters ({len(data.x) * LENGTH:,} of them, {data.levels} kinds), windows of {LENGTH}; samples "
    )
    what += "are judged by the autoregressive network, and their entropy of pairs says whether they are monotonous"
    return {"what": what, "rows": rows}


def _bits(name: str, bits: Tensor, network: Any, seconds: float) -> dict[str, Any]:
    error = 1.96 * float(bits.std()) / math.sqrt(len(bits))
    size = 0 if network is None else sum(p.numel() for p in network.parameters())
    return {"case": name, "bits_per_character": float(bits.mean()), "ci95": error, "parameters": size, "cpu_s": seconds}


def _remasking(denoiser: rd.Denoiser, causal: Causal, data: Data) -> list[dict[str, Any]]:
    rows = []
    schedules = {"base": {}, "cap .02": {"remask": rd.Remask("cap", 0.02)}, "loop": {"remask": rd.Remask("loop", 0.05)}}
    for steps in (16, 64, 256):
        for name, options in schedules.items():
            run = rd.sample(denoiser, 48, steps=steps, options=options, seed=2, **QUIET)
            bits = surprise(causal, run.x) / math.log(2)
            pairs = torch.bincount((run.x[:, 1:] * data.levels + run.x[:, :-1]).flatten()).double()
            p = pairs[pairs > 0] / pairs.sum()
            error = 1.96 * float(bits.std()) / math.sqrt(len(bits))
            rows.append(
                {
                    "case": f"samples, {name}",
                    "steps": steps,
                    "passes": run.passes,
                    "bits_per_character": float(bits.mean()),
                    "ci95": error,
                    "entropy_of_pairs": float(-(p * p.log2()).sum()),
                }
            )
            print(rows[-1], repr(denoiser.decode(run.x[0])), flush=True)
    return rows


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


def speed(scale: float) -> dict[str, Any]:
    """Milliseconds a step: medians of alternated runs of both loops with one network."""
    vocabulary, steps, n, rows = 64, 16, 4, []
    for length in (32, 64, 128, 256, 512):
        torch.manual_seed(0)
        size: dict[str, Any] = {"hidden": 64, "depth": 2, "heads": 4, "patch": 1}
        network = Transformer((length,), vocabulary=vocabulary + 1, out_channels=vocabulary, time=False, **size).eval()
        denoiser = rd.denoisers.TokenDenoiser(network, rd.Masked(vocabulary), shape=(length,))
        plan = rd.plan("step", denoiser.process, steps=steps)
        runs: dict[str, Callable[[], Any]] = {
            "ours": lambda d=denoiser, p=plan: rd.sample(d, n, plan=p, **QUIET),
            "published": lambda f=network, l=length: published_loop(f, n, l, vocabulary, steps, True),
            "network": lambda f=network, l=length: f(torch.full((n, l), vocabulary), None),
        }
        seconds = _alternated(runs, max(3, round(7 * scale)))
        row = {
            "length": length,
            "ours_ms": 1000 * seconds["ours"] / steps,
            "published_ms": 1000 * seconds["published"] / steps,
            "network_ms": 1000 * seconds["network"],
            "ratio": seconds["ours"] / seconds["published"],
        }
        rows.append(row)
        print(row, flush=True)
    fig, axis = plt.subplots(figsize=(5, 3.2))
    for key, name in (("ours_ms", "retrodict"), ("published_ms", "published loop"), ("network_ms", "network alone")):
        axis.loglog([r["length"] for r in rows], [r[key] for r in rows], "o-", label=name)
    axis.set_xlabel("tokens in a sequence")
    axis.set_ylabel("ms a step")
    axis.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(ASSETS / "discrete_cost.png", dpi=130, metadata={"Software": None})
    plt.close(fig)
    return {
        "what": f"Milliseconds a step of masked sampling, {n} sequences of {vocabulary} kinds of tokens",
        "rows": rows,
    }


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
    "text": licence_text,
    "bridge": bridge,
    "speed": speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=list(STUDIES), choices=[*STUDIES, []])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    RESULTS.mkdir(exist_ok=True)
    for name in given.studies:
        begun = time.process_time()
        study = STUDIES[name](given.scale)
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
