"""Text by characters on a processor: masked diffusion beside an autoregressive network of equal size and training.

    text       bits per character of held-out licences: the bound of masked diffusion, the exact value of the
               autoregressive network, and of the frequencies of one and of two characters
    remasking  samples of the trained masked network with each schedule at 16 to 256 steps, judged by the autoregressive
               network (bits per character) and by the entropy of their pairs of characters (do they repeat themselves)

    python benchmarks/bench_text.py [text remasking] [--scale 1.0]

The corpus is the licences that ship with the system.  Both networks are kept in ``runs/bench-text`` and are trained
again when that folder is gone.  Each study writes ``benchmarks/results/discrete-NAME.json``; "remasking" also draws
``docs/assets/discrete_remasking.png``.  ``--scale`` multiplies the training length.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from bench_discrete import ASSETS, HERE, QUIET, main
from torch import Tensor, nn

import retrodict as rd
from retrodict.data import Data, text
from retrodict.denoisers.networks.transformer import Transformer
from retrodict.diagnostics.likelihood import elbo
from retrodict.training import train

LENGTH, STEPS = 64, 1200
SIZE: dict[str, Any] = {"hidden": 96, "depth": 2, "heads": 4, "patch": 1, "near": 9}
TRAINING: dict[str, Any] = {"batch_size": 32, "lr": 5e-3, "ema": 0.99, "seed": 0}
RUNS = HERE.parent / "runs" / "bench-text"

# -- the two models -------------------------------------------------------------------------------------------------


def licences() -> Data:
    """The licences of the system, or that of this repository, in overlapping windows; the end is held out."""
    shared = Path("/usr/share/common-licenses")
    files = sorted({p.resolve() for p in shared.glob("*")}) if shared.is_dir() else []
    whole = "".join(p.read_text(encoding="utf-8") for p in files or [HERE.parent / "LICENSE"])
    return text(" ".join(whole.split()), length=LENGTH, stride=8, heldout=0.1, name="licences")


class Causal(Transformer):
    """The same blocks, each position hearing only what stands before it: the autoregressive baseline."""

    def run(self, x: Tensor, condition: Tensor) -> Tensor:
        assert self.place is not None and self.near is not None
        h = self.embed(x)
        before = nn.functional.pad(h.mT, (self.near.kernel_size[0] - 1, 0))  # neighbours on the left alone
        h = h + nn.functional.conv1d(before, self.near.weight, self.near.bias).mT + self.place
        parts = self.modulate(condition)[:, None].chunk(6 * len(self.blocks) + 2, dim=-1)
        later = torch.full((x.shape[1],) * 2, -torch.inf).triu(1)
        for i, block in enumerate(self.blocks):
            a1, b1, g1, a2, b2, g2 = parts[6 * i : 6 * i + 6]
            heard = block.attention(torch.addcmul(b1, block.norm(h), 1.0 + a1), later)  # type: ignore[operator]
            h = torch.addcmul(h, g1, heard)
            h = torch.addcmul(h, g2, block.feed(torch.addcmul(b2, block.norm(h), 1.0 + a2)))  # type: ignore[operator]
        a, b = parts[-2:]
        return self.leave(torch.addcmul(b, self.norm(h), 1.0 + a))


def shifted(network: Causal, x: Tensor) -> Tensor:
    """Log-probabilities of each character given those before it; the first is told by a start token."""
    start = torch.full_like(x[:, :1], network.vocabulary - 1)  # type: ignore[operator]
    return torch.log_softmax(network(torch.cat([start, x[:, :-1]], 1), None).double(), -1)


def surprise(network: Causal, x: Tensor) -> Tensor:
    """-log p of each window in nats a character ``(n,)``."""
    return -shifted(network, x).gather(-1, x.unsqueeze(-1)).squeeze(-1).mean(1)


def trained_masked(data: Data, steps: int) -> tuple[rd.Denoiser, float]:
    """The masked model and the seconds of processor time that it took."""
    assert data.levels is not None
    process, out = rd.Masked(data.levels), RUNS / f"masked-{steps}"
    words = TRAINING | QUIET
    return _timed(out, lambda: rd.fit(process, data, steps=steps, network_options=SIZE, out=out, **words))


def trained_causal(data: Data, steps: int) -> tuple[Causal, float]:
    """By the same optimiser, warm-up, decay and averaging as `fit`."""
    assert data.levels is not None
    torch.manual_seed(0)
    words = SIZE | {"out_channels": data.levels, "time": False}
    network, out = Causal((LENGTH,), vocabulary=data.levels + 1, **words), RUNS / f"causal-{steps}"

    def loss(module: Any, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": surprise(module, batch["x"]).float().mean()}

    made, seconds = _timed(out, lambda: train(network, loss, {"x": data.x}, steps=steps, out=out, **TRAINING, **QUIET))
    return made.module.eval(), seconds


def _timed(out: Path, make: Callable[[], Any]) -> tuple[Any, float]:
    note, begun = out / "cpu_s.json", time.process_time()
    made = make()
    if not note.exists():
        note.write_text(json.dumps(time.process_time() - begun))
    return made, float(json.loads(note.read_text()))


def both(scale: float) -> tuple[Data, rd.Denoiser, Causal, tuple[float, float]]:
    """Data, models and their seconds."""
    data, steps = licences(), round(scale * STEPS)
    masked, masked_s = trained_masked(data, steps)
    causal, causal_s = trained_causal(data, steps)
    return data, masked, causal, (masked_s, causal_s)


# -- bits per character ---------------------------------------------------------------------------------------------


def bits_per_character(scale: float) -> dict[str, Any]:
    """What the models know of text that neither has seen."""
    data, masked, causal, seconds = both(scale)
    assert data.heldout is not None and data.levels is not None
    x = data.heldout.x
    with torch.no_grad():
        bound = -elbo(masked, x, samples=16).log_prob / LENGTH / math.log(2)
        exact = surprise(causal, x) / math.log(2)
    single, pairs = _frequencies(data.x, data.levels)
    first = -single.log2()[x[:, 0]]
    rows = [
        _row("masked diffusion, at most", bound, masked.network, seconds[0]),
        _row("autoregressive", exact, causal, seconds[1]),
        _row("pairs of characters", (first - pairs.log2()[x[:, :-1], x[:, 1:]].sum(1)) / LENGTH),
        _row("single characters", -single.log2()[x].mean(1)),
    ]
    what = f"Licences by characters ({data.levels} kinds) in windows of {LENGTH}: bits per character of what was held "
    what += (
        f"out, {len(x)} windows; both networks took {round(scale * STEPS)} steps of {TRAINING['batch_size']} windows"
    )
    return {"what": what, "rows": rows}


def _frequencies(x: Tensor, kinds: int) -> tuple[Tensor, Tensor]:
    """Probabilities of a character, and of a character after another, half a count added to each."""
    single = torch.bincount(x.flatten(), minlength=kinds).double() + 0.5
    pairs = torch.bincount((x[:, :-1] * kinds + x[:, 1:]).flatten(), minlength=kinds**2).double().view(kinds, kinds)
    pairs = pairs + 50 * single / single.sum()  # backs off to single characters
    return single / single.sum(), pairs / pairs.sum(1, keepdim=True)


def _row(name: str, bits: Tensor, network: Any = None, seconds: float | None = None) -> dict[str, Any]:
    row = {"case": name, "bits_per_character": float(bits.mean()), "ci95": _error(bits)}
    if isinstance(network, nn.Module):
        row |= {"parameters": sum(p.numel() for p in network.parameters()), "cpu_s": seconds}
    print(row, flush=True)
    return row


def _error(values: Tensor) -> float:
    return 1.96 * float(values.std()) / math.sqrt(len(values))


# -- remasking ------------------------------------------------------------------------------------------------------

BUDGETS, SAMPLES = (16, 32, 64, 128, 256), 48
SCHEDULES: dict[str, dict[str, Any]] = {
    "base": {},
    "cap .02": {"remask": rd.Remask("cap", 0.02)},
    "rescale .04": {"remask": rd.Remask("rescale", 0.04)},
    "loop .04": {"remask": rd.Remask("loop", 0.04)},
    "conf": {"remask": rd.Remask("conf")},
    "base, nucleus .9": {"top_p": 0.9},
    "cap .02, nucleus .9": {"remask": rd.Remask("cap", 0.02), "top_p": 0.9},
}


@torch.no_grad()
def remasking(scale: float) -> dict[str, Any]:
    """Quality and variety of samples against the number of steps."""
    data, masked, causal, _ = both(scale)
    assert data.heldout is not None and data.levels is not None
    rows = []
    for steps in BUDGETS:
        for name, options in SCHEDULES.items():
            run = rd.sample(masked, SAMPLES, steps=steps, options=options, seed=2, **QUIET)
            rows.append(_judged(name, causal, run.x, data.levels) | {"steps": steps, "passes": run.passes})
            print(rows[-1], repr(masked.decode(run.x[0])), flush=True)
    _picture(rows)
    rows.append(_judged("autoregressive samples", causal, spoken(causal, SAMPLES), data.levels) | {"steps": LENGTH})
    rows.append(_judged("held-out text", causal, data.heldout.x[::5][:SAMPLES], data.levels))
    what = (
        f"Samples of {LENGTH} characters, {SAMPLES} a row: bits per character under the autoregressive network (lower "
    )
    what += "is more like what it learned), and the entropy of their pairs of characters (low is monotonous)"
    return {"what": what, "rows": rows}


def _judged(name: str, judge: Causal, x: Tensor, kinds: int) -> dict[str, Any]:
    bits = surprise(judge, x) / math.log(2)
    pairs = torch.bincount((x[:, 1:] * kinds + x[:, :-1]).flatten()).double()
    p = pairs[pairs > 0] / pairs.sum()
    entropy = float(-(p * p.log2()).sum())
    return {"case": name, "bits_per_character": float(bits.mean()), "ci95": _error(bits), "entropy_of_pairs": entropy}


def spoken(network: Causal, n: int) -> Tensor:
    """Samples of the autoregressive network, one character after the other."""
    generator = torch.Generator().manual_seed(2)
    x = torch.zeros(n, LENGTH).long()
    for i in range(LENGTH):
        x[:, i] = torch.multinomial(shifted(network, x)[:, i].exp(), 1, generator=generator)[:, 0]
    return x


def _picture(rows: list[dict[str, Any]]) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for name in SCHEDULES:
        own = [r for r in rows if r["case"] == name]
        for axis, key in zip(axes, ("bits_per_character", "entropy_of_pairs")):
            axis.plot([r["steps"] for r in own], [r[key] for r in own], "o-", ms=3, lw=1, label=name)
    for axis, title in zip(axes, ("bits per character, judged", "entropy of pairs, bits")):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("steps")
        axis.set_title(title, fontsize=9)
    axes[1].legend(frameon=False, fontsize=6, loc=(0.02, 0.28), ncol=2)
    fig.tight_layout()
    fig.savefig(ASSETS / "discrete_remasking.png", dpi=130, metadata={"Software": None})
    plt.close(fig)


if __name__ == "__main__":
    main(__doc__, {"text": bits_per_character, "remasking": remasking})
