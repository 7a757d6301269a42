"""``fit``: learn the reversal of a process from data.

Everything is chosen from the process and the shape of the data, and everything can be given.  With ``out=`` the run
is a folder: a finished run of the same configuration is returned, an unfinished one is resumed, another
configuration is an error that names what differs.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near, require
from retrodict.data import Data, Scale, load_data, make_scale
from retrodict.denoisers import Denoiser
from retrodict.denoisers.networks import Network, make_network
from retrodict.objectives import make_objective
from retrodict.processes import Discrete, Process
from retrodict.solvers import auto
from retrodict.solvers import plan as make_plan
from retrodict.training import RunFolder, save_weights, train
from retrodict.verbs.saving import assemble, load

_OWN = ("module", "loss", "data", "config", "out", "resume", "seed", "device", "steps")
_TRAINING = [name for name in inspect.signature(train).parameters if name not in _OWN]
_DEFAULT_STEPS = 4000


def fit(
    process: Process,
    data: Any,
    *,
    x1: Any = None,
    pairing: str = "auto",
    conditions: dict[str, Any] | None = None,
    scale: str | Scale = "auto",
    network: str | Network = "auto",
    network_options: dict[str, Any] | None = None,
    predicts: str = "auto",
    objective: Any = "auto",
    objective_options: dict[str, Any] | None = None,
    embeddings: Any = None,
    heldout: int | float | None = None,
    steps: int | None = None,
    out: str | Path | None = None,
    resume: str | bool = "auto",
    device: str = "auto",
    seed: int = 0,
    **training: Any,
) -> Denoiser:
    """Learn a denoiser for ``process`` from data.

    Args:
        process: what the denoiser is to reverse.
        data: a name ("digits", "moons", ...), an array, a file, a folder of images, or a data set; see
            `retrodict.data.load_data`.
        x1: the other end, for a path with two ends; paired with the data where the lengths agree, else drawn
            independently. ``pairing`` ("paired", "independent") says which.
        conditions: ``{"label": y}``: integers are classes, reals are vectors. Named data sets bring theirs.
        scale: "auto" scales grey levels to [-1, 1] and standardises other reals; it is stored with the model.
        network: "auto", a name, or a `Network`; ``network_options`` go to a named one.
        predicts: "auto" ("edm" preconditioning; a law over values for tokens, a mean for images that die out by
            `Blackout`, which "law" changes), or a parameterisation of `retrodict.denoisers.Wrapped`; on a path with
            two ends, the heads of `retrodict.denoisers.TwoEnded`: "ends" (auto) or "velocity-noise".
        objective: "auto", a name or a loss; ``objective_options`` go to a named one.
        embeddings: ``(vocabulary, d)`` at unit scale: tokens on a Gaussian path, moved as their embeddings; see
            `retrodict.denoisers.EmbeddedDenoiser`.
        heldout: share or number of samples to keep out of training.
        steps: optimiser steps (default 4,000).
        out: run folder; None keeps the run in memory.
        resume: "auto", True or False; see `retrodict.training.train`.
        training: further options of `retrodict.training.train`: batch_size, lr, ema, precision, ...

    Returns:
        the trained denoiser (averaged weights), in the user's units.
    """
    _check_words(process, training)
    dataset = load_data(data, conditions=conditions, heldout=heldout, seed=seed)
    other = None if x1 is None else load_data(x1, heldout=heldout, seed=seed)
    table = _table(process, dataset, embeddings)
    _check_ends(process, dataset, other, table is not None)
    scaler = make_scale(dataset, "none" if isinstance(process, Discrete) and scale == "auto" else scale)
    require(not isinstance(process, Discrete) or scaler.is_identity, "discrete states are not scaled: leave out scale=")
    net = _network(process, dataset, network, network_options or {}, seed, predicts, table)
    config = _config(process, dataset, other, net, scaler, predicts, table)
    objective = "embedded" if table is not None and isinstance(objective, str) and objective == "auto" else objective
    options = {"steps": _DEFAULT_STEPS if steps is None else steps, "seed": seed, "pairing": pairing} | training
    config["training"] = options | {
        "objective": objective if isinstance(objective, str) else type(objective).__name__,
        "objective_options": objective_options or {},
    }
    folder = None if out is None else RunFolder(out)
    if folder is not None and resume is not False and folder.check(config) == "finished":
        return load(folder.path, None if device == "auto" else device)
    denoiser = _fresh(config, net)
    batches, independent = _batches(process, dataset, other, pairing, scaler)
    compile = training.pop("compile", False)
    if compile:  # the network, not the denoiser: objectives ask for its raw output
        denoiser.network.compile(backend=compile if isinstance(compile, str) else "inductor")  # type: ignore[union-attr]
    loss = _Loss(_objective(process, objective, objective_options or {}), independent)
    result = train(
        denoiser,
        loss,
        batches,
        steps=options["steps"],
        seed=seed,
        out=out,
        resume=resume,
        device=device,
        config=config if folder is not None else None,
        **training,
    )
    trained: Any = result.module
    if folder is not None:
        _finish(folder, trained, process)
    return trained.eval()


# -- checks ---------------------------------------------------------------------------------------------------


def _check_words(process: Process, training: dict[str, Any]) -> None:
    if not isinstance(process, Process):
        raise InputError(f"fit takes a process first, for example VP('cosine'); got {type(process).__name__}")
    for name in training:
        if name not in _TRAINING:
            raise InputError(
                f"unknown option {name!r} of fit; training options: {', '.join(_TRAINING)}.{near(name, _TRAINING)}"
            )


def _table(process: Process, data: Data, embeddings: Any) -> Tensor | None:
    """The embeddings, checked against the tokens."""
    if embeddings is None:
        return None
    table = torch.as_tensor(embeddings, dtype=torch.float32)
    require(data.layout == "tokens", f"embeddings are for tokens, and the data are {data.layout}")
    require(process.state == "real", f"embeddings move on a Gaussian path, not on {type(process).__name__}")
    high = int(data.x.max())
    require(
        table.ndim == 2 and len(table) > high,
        f"embeddings have shape {tuple(table.shape)}; needed: (vocabulary, d) for tokens up to {high}",
    )
    return table


def _check_ends(process: Process, data: Data, other: Data | None, embedded: bool = False) -> None:
    if (len(process.ends) == 2) != (other is not None):
        wanted = "needs x1=, the data of its other end" if other is None else "has one end; leave out x1"
        raise InputError(f"{type(process).__name__} {wanted}")
    if other is not None and other.x.shape[1:] != data.x.shape[1:]:
        hint = ": pad the shorter sequences" if isinstance(process, Discrete) else ""
        raise InputError(
            f"both ends have one shape; got {tuple(data.x.shape[1:])} and {tuple(other.x.shape[1:])}{hint}"
        )
    if not isinstance(process, Discrete):
        if data.layout == "tokens" and not embedded:
            hint = "give embeddings=, or take a process on tokens"
            raise InputError(f"{type(process).__name__} has {process.state} states and the data are tokens: {hint}")
        return
    if process.state == "tokens" and data.layout not in ("tokens", "image"):
        raise InputError(f"{type(process).__name__} has tokens as states and the data are {data.layout}")
    process.check(whole(data.x), "the data")
    if other is not None:
        process.check(whole(other.x), "x1")


def whole(x: Tensor) -> Tensor:
    """Data that hold whole numbers as integers; others as they are."""
    return x if x.is_floating_point() and bool((x != x.round()).any()) else x.long()


# -- assembly -------------------------------------------------------------------------------------------------


def _network(
    process: Process,
    data: Data,
    network: str | Network,
    options: dict[str, Any],
    seed: int,
    predicts: str = "auto",
    table: Tensor | None = None,
) -> Network:
    if isinstance(network, Network):
        require(not options, "network_options go with a network by name")
        return network
    shape = tuple(data.x.shape[1:])
    specs: dict[str, Any] = {}
    for name, value in data.conditions.items():
        specs[name] = (
            tuple(value.shape[1:]) if value.is_floating_point() else data.classes.get(name, int(value.max()) + 1)
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if table is not None:
            network = "transformer" if network == "auto" else network
            words: dict[str, Any] = {"out_channels": len(table)} | options
            return make_network(network, (*shape, table.shape[1]), conditions=specs, layout="series", **words)
        if isinstance(process, Discrete) and _learns_a_law(process, data, network, predicts):
            words = {"vocabulary": process.classes, "out_channels": process.vocabulary, "time": not process.timeless}
            if data.codec is not None and network in ("auto", data.codec.network):
                network, words = data.codec.network, words | data.codec.network_options
            layout = "tokens" if data.layout == "tokens" else "counts"
            return make_network(network, shape, conditions=specs, layout=layout, **(words | options))
        ends = len(process.ends)
        channels = shape[0] if data.layout == "image" else shape[-1]
        return make_network(
            network, shape, conditions=specs, layout=data.layout, out_channels=channels * ends, **options
        )


def _learns_a_law(process: Discrete, data: Data, network: str, predicts: str) -> bool:
    """Whether a network names values, rather than the mean of what died out of an image."""
    require(predicts in ("auto", "law", "mean"), f"discrete states are learned as 'law' or 'mean'; got {predicts!r}")
    if data.layout == "image" and process.state == "count":
        return predicts == "law" or network == "count-unet"
    require(predicts != "mean", "a mean is learned of images that die out by Blackout; leave out predicts=")
    return True


def _config(
    process: Process,
    data: Data,
    other: Data | None,
    network: Network,
    scale: Scale,
    predicts: str,
    table: Tensor | None = None,
) -> dict[str, Any]:
    """What decides the run, as plain values: equal configurations are the same run."""
    discrete = isinstance(process, Discrete) or table is not None
    std = 1.0 if discrete else float(scale(data.x[:4096].float()).std())
    if discrete:  # logits of a network that takes values, or a real output
        predicts = "law" if data.layout == "tokens" or getattr(network, "vocabulary", None) else "mean"
    elif predicts == "auto":
        predicts = "edm" if len(process.ends) == 1 else "ends"
    return {
        "process": process.config(),
        "network": {"name": network.name, "config": network.config},
        "denoiser": {"shape": list(data.x.shape[1:]), "predicts": predicts, "data_std": round(std, 4)},
        "scale": scale.config(),
        "classes": dict(data.classes),
        "data": {"name": data.name, "samples": len(data.x), "digest": _digest(data)}
        | ({} if other is None else {"x1": other.name, "x1_digest": _digest(other)}),
    } | _meaning(data, table)


def _meaning(data: Data, table: Tensor | None) -> dict[str, Any]:
    """What tokens stand for, and where they lie, for those that have it."""
    codec = {} if data.codec is None else {"codec": data.codec.config()}
    return codec | ({} if table is None else {"embeddings": table.tolist()})


def _digest(data: Data) -> str:
    """A fingerprint of the training samples and their conditions."""
    digest = hashlib.blake2b(digest_size=8)
    for value in [data.x, *data.conditions.values()]:
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fresh(config: dict[str, Any], network: Network) -> Denoiser:
    """The denoiser around ``network``, with its initial weights."""
    denoiser = assemble(config)
    denoiser.network.load_state_dict(network.state_dict())  # type: ignore[union-attr]
    return denoiser


def _objective(process: Process, objective: Any, options: dict[str, Any]) -> Any:
    if isinstance(objective, str):
        return make_objective(objective, process, **options)
    require(not options, "objective_options go with an objective by name")
    return objective


class _Loss:
    """The objective, with an independent draw of the other end where the ends are not paired."""

    def __init__(self, objective: Any, other: Tensor | None) -> None:
        self.objective, self.other = objective, other
        if hasattr(objective, "state_dict"):
            self.state_dict, self.load_state_dict = objective.state_dict, objective.load_state_dict

    def __call__(self, denoiser: Any, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if self.other is not None:
            n = len(batch["x0"])
            self.other = self.other.to(batch["x0"].device)
            pick = torch.randint(len(self.other), (n,), generator=generator, device=generator.device)
            batch = {**batch, "x1": self.other[pick.to(self.other.device)]}
        return self.objective(denoiser, batch, generator)


def _batches(
    process: Process, data: Data, other: Data | None, pairing: str, scale: Scale
) -> tuple[dict[str, Tensor], Tensor | None]:
    """``(named tensors of equal length, independent other end or None)`` in the model's units."""
    units = (
        (lambda x: x.long())
        if isinstance(process, Discrete) or data.layout == "tokens"
        else (lambda x: scale(x.float()))
    )
    batches = {"x0": units(data.x), **data.conditions}
    if other is None:
        return batches, None
    if pairing == "auto":
        pairing = "paired" if len(other.x) == len(data.x) else "independent"
    if pairing == "paired":
        require(len(other.x) == len(data.x), f"paired ends have one length; got {len(data.x)} and {len(other.x)}")
        return batches | {"x1": units(other.x)}, None
    require(pairing == "independent", f"pairing is 'paired', 'independent' or 'auto', got {pairing!r}")
    return batches, units(other.x)


def _finish(folder: RunFolder, denoiser: Denoiser, process: Process) -> None:
    """What a finished run holds beside its log: a default plan and, last, the weights."""
    steps = {"nfe": 20} if process.state == "real" else {"steps": 64}
    choice = auto.choose(process, 20, shape=denoiser.shape)
    make_plan(choice.solver, process, grid=choice.grid, eta=choice.eta, **steps, **choice.options).save(
        folder.path / "plan.json"
    )
    save_weights(denoiser, folder.model)
