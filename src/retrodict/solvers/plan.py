"""The plan: a solver is data.

A plan is a straight-line program over registers: states X_r, denoiser outputs D_k (and D1_k on paths with two
ends), and fresh standard normals z_m.  Three instructions make every solver:

    Eval   D_k   = denoiser(X_r, t_k)                                       one network evaluation
    Row    X_dst = sum a_r X_r + sum b_k D_k + sum e_k D1_k + sum c_m z_m   float64 coefficients
    Call   X_dst = a named function of (X_r, D_k, noise)                    where a row depends on data

Rows are linear, so a plan has a unique normal form (`Plan.normal_form`): every evaluated state as a combination of
the start, the denoiser outputs before it and the noises.  Two plans are the same solver if those are equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, InputTypeError
from retrodict.processes import Process, from_config

FORMAT = 1


@dataclass(frozen=True)
class Eval:
    """``D_k = denoiser(X_x, t)`` at noise level (alpha, sigma); with a ``clock`` at the times in that register, one a
    sample."""

    k: int
    x: int
    t: float
    alpha: float
    sigma: float
    clock: int | None = None

    def reads(self) -> list[str]:
        return [f"x{self.x}"] if self.clock is None else [f"x{self.x}", f"x{self.clock}"]

    def writes(self) -> str:
        return f"d{self.k}"


@dataclass(frozen=True)
class Row:
    """``X_dst = sum x[r] X_r + sum d[k] D_k + sum d1[k] D1_k + sum z[m] z_m``, a state at time t."""

    dst: int
    x: dict[int, float] = field(default_factory=dict)
    d: dict[int, float] = field(default_factory=dict)
    d1: dict[int, float] = field(default_factory=dict)
    z: dict[int, float] = field(default_factory=dict)
    t: float = 0.0

    def reads(self) -> list[str]:
        return [f"x{r}" for r in self.x] + [f"d{k}" for k in dict.fromkeys([*self.d, *self.d1])]

    def writes(self) -> str:
        return f"x{self.dst}"

    @property
    def terms(self) -> int:
        return len(self.x) + len(self.d) + len(self.d1) + len(self.z)


@dataclass(frozen=True)
class Call:
    """``X_dst = calls[name](X_x, belief k, noise, t, s, **options)``: a row that depends on data; it may read ``more``
    registers."""

    dst: int
    name: str
    x: int
    k: int
    t: float
    s: float
    options: dict[str, Any] = field(default_factory=dict)
    more: tuple[int, ...] = ()

    def reads(self) -> list[str]:
        return [f"x{self.x}", f"d{self.k}", *(f"x{r}" for r in self.more)]

    def writes(self) -> str:
        return f"x{self.dst}"


Instruction = Eval | Row | Call
#: Rows that depend on data and are no draw of the process' own reverse step.
_NO_MOVE = ("langevin", "noise-level", "affine")
_KINDS: dict[str, type] = {"eval": Eval, "row": Row, "call": Call}


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler as data; made by `retrodict.plan`.

    Attributes:
        code: instructions in order; register 0 is the start, ``out`` the result.
        times: the grid, from start to end.
        process: the process it steps through.
        meta: solver name and options, from which the plan regenerates (`between`).
        starts: the registers that a run is given; more than one where a method carries several states, and then the
            start of a run is ``(batch, len(starts), *shape)``.
        also: registers that a run returns beside ``out``.
    """

    code: tuple[Instruction, ...]
    out: int
    times: tuple[float, ...]
    process: Process
    meta: dict[str, Any] = field(default_factory=dict)
    starts: tuple[int, ...] = (0,)
    also: tuple[int, ...] = ()

    @property
    def nfe(self) -> int:
        """Denoiser evaluations per sample."""
        return sum(isinstance(i, Eval) for i in self.code)

    @property
    def steps(self) -> int:
        """Intervals of the grid."""
        return len(self.times) - 1

    @property
    def noises(self) -> int:
        """Fresh normals per sample used by rows."""
        return sum(len(i.z) for i in self.code if isinstance(i, Row))

    @property
    def order(self) -> float | None:
        """Declared order of convergence as the grid is refined; None for a plan without one."""
        return self.meta.get("order")

    @property
    def opaque(self) -> bool:
        """Whether some rows depend on data, so that there is no normal form."""
        return any(isinstance(i, Call) for i in self.code)

    @property
    def paired(self) -> bool:
        """Whether a run starts from several states, or returns several."""
        return len(self.starts) > 1 or bool(self.also)

    @property
    def two_ended(self) -> bool:
        """Whether rows use the second end."""
        return any(isinstance(i, Row) and i.d1 for i in self.code)

    @property
    def has_density(self) -> bool:
        """Whether every evaluated state comes from a step with fresh noise, so that importance weights exist.

        Of rows that depend on data the moves of discrete processes and the process' own reverse step count: what is
        drawn there is what the unsteered process draws, so that no ratio is booked."""
        last = max((i for i, c in enumerate(self.code) if isinstance(c, Eval)), default=-1)
        rows = [c for c in self.code[:last] if not isinstance(c, Eval)]
        return bool(rows) and all(bool(c.z) if isinstance(c, Row) else c.name not in _NO_MOVE for c in rows)

    @property
    def start_time(self) -> float:
        return self.times[0]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Plan) or (self.out, self.times) != (other.out, other.times):
            return False
        if (self.starts, self.also) != (other.starts, other.also):
            return False
        # processes without a schedule have levels of NaN, which differ from themselves but print alike
        return self.code == other.code or repr(self.code) == repr(other.code)

    def __hash__(self) -> int:
        return hash((self.out, self.times, len(self.code)))

    def normal_form(self) -> NormalForm:
        """Every evaluated state and the result over the basis (x_start, D_0.., D1_0.., z_0..)."""
        from retrodict.solvers.passes import normal_form

        return normal_form(self)

    def equivalent(self, other: Plan, tol: float = 1e-12) -> bool:
        """Whether both plans are the same solver: equal evaluation times and normal forms."""
        a, b = self.normal_form(), other.normal_form()
        if a.inputs.shape != b.inputs.shape or not np.allclose(a.times, b.times, rtol=0, atol=tol):
            return False
        scale = max(1.0, float(np.abs(a.inputs).max(initial=0)), float(np.abs(a.output).max()))
        return bool(
            np.abs(a.inputs - b.inputs).max(initial=0) <= tol * scale
            and np.abs(a.output - b.output).max() <= tol * scale
        )

    def between(self, start: float, end: float | None = None) -> Plan:
        """The same solver from ``start`` to ``end`` (times, not shares of the steps), on this plan's grid between.

        Multistep start-up rows differ in the middle, so the plan is generated anew.
        """
        from retrodict.solvers.build import rebuild

        return rebuild(self, start, end)

    def to_diffusers(
        self,
        like: Any = None,
        *,
        prediction_type: str | None = None,
        grid: str = "plan",
        shift_by_mu: bool | None = None,
        clip: bool | None = None,
        seed: int = 0,
    ) -> Any:
        """A scheduler object that runs this plan in a pipeline: ``pipe.scheduler = plan.to_diffusers(pipe.scheduler)``.

        Args:
            like: ``pipe.scheduler`` (or the pipeline), which says what the network predicts and how it is told the
                time; not needed where the plan's process came from `from_diffusers`.
            prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction", instead of ``like`` or over it.
            grid: "plan" for the plan's grid, made anew for the number of steps that the pipeline asks for; "like" for
                the times that the ``pipe.scheduler`` given as ``like`` would visit.
            shift_by_mu: whether the ``mu`` that flow pipelines compute from the resolution shifts the grid's log-SNR;
                None does as ``like`` is configured.
            clip: whether the mean is clipped; None does as ``like`` is configured.
            seed: of the noise where a pipeline hands on no generator.

        Raises:
            InputError: no prediction type is known; the plan was made for another process than the network's.
        """
        from retrodict.solvers.to_diffusers import to_diffusers

        options = {
            "prediction_type": prediction_type,
            "grid": grid,
            "shift_by_mu": shift_by_mu,
            "clip": clip,
            "seed": seed,
        }
        return to_diffusers(self, like, **options)

    def table(self, digits: int = 4) -> str:
        """The rows as a readable table."""
        from retrodict.solvers.show import table

        return table(self, digits)

    def __repr__(self) -> str:
        name = self.meta.get("solver", "plan")
        options = ", ".join(f"{k}={_short(v)}" for k, v in self.meta.get("options", {}).items())
        if options:
            name = f"{name}({options})"
        eta = self.meta.get("eta", 0.0)
        kind = "deterministic" if not self.noises and not self.opaque else f"stochastic, eta={eta:g}"
        order = "" if self.order is None else f", order {self.order:g}"
        grid = _short(self.meta.get("grid", "custom"))
        return (
            f"Plan({name}: {self.steps} steps, {self.nfe} evaluations, {kind}{order}, "
            f"t {self.times[0]:g} to {self.times[-1]:g} on grid {grid}; {_short(repr(self.process))})"
        )

    # -- files ----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` restores an equal plan (JSON keeps float64 exactly)."""
        code = []
        for instruction in self.code:
            kind = next(k for k, v in _KINDS.items() if isinstance(instruction, v))
            code.append({"kind": kind} | {k: v for k, v in vars(instruction).items() if v not in ({}, (), None)})
        process = self.process.config() if self.process.can_save else None
        return {
            "format": FORMAT,
            "code": code,
            "out": self.out,
            "times": list(self.times),
            "process": process,
            "meta": self.meta,
        } | ({"starts": list(self.starts), "also": list(self.also)} if self.paired else {})

    @staticmethod
    def from_dict(data: dict[str, Any], process: Process | None = None) -> Plan:
        """Restore a plan; ``process`` is needed when the plan was made for one from code."""
        if data.get("format") != FORMAT:
            raise InputError(f"a plan file of format {FORMAT} is read here, got {data.get('format')!r}")
        if process is None:
            if data["process"] is None:
                raise InputError("this plan was made for a process from code; pass process=")
            process = from_config(data["process"])
        code = tuple(_instruction(entry) for entry in data["code"])
        registers = (tuple(data.get(name, default)) for name, default in (("starts", (0,)), ("also", ())))
        return Plan(code, data["out"], tuple(data["times"]), process, data["meta"], *registers)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1))

    @staticmethod
    def load(path: str | Path, process: Process | None = None, nfe: int | None = None) -> Plan:
        """Read a plan from JSON.

        Args:
            path: the file; process: needed where the plan was made for one from code.
            nfe: the plan of so many evaluations, of those that `tune` wrote: this file's, or that of
                ``NAME-<nfe>.json`` beside it.

        Raises:
            InputError: not a plan file, or none with so many evaluations.
        """
        path = Path(path)
        plan = _read(path, process)
        if nfe is None or plan.nfe == nfe:
            return plan
        others = _beside(path)
        if nfe in others and (other := _read(others[nfe], process)).nfe == nfe:
            return other
        there = ", ".join(f"{n} ({others[n].name})" for n in sorted(others)) or f"no {path.stem}-<evaluations>.json"
        raise InputError(f"{path} is a plan of {plan.nfe} evaluations, not of {nfe}; beside it: {there}")

    def with_code(self, code: Iterable[Instruction]) -> Plan:
        """The same plan with other instructions (used by passes)."""
        return replace(self, code=tuple(code))


def as_plan(value: Any, process: Process, words: Mapping[str, Any], **usual: Any) -> Plan:
    """A `Plan` from one or from a file; ``nfe`` among the words picks one of several (`Plan.load`).

    The other words would say again what the plan says: refused, unless they are None, empty or the ``usual``.
    """
    empty = lambda word: word is None or (isinstance(word, dict) and not word)  # noqa: E731
    said = {name: word for name, word in words.items() if name != "nfe" and not empty(word)}
    given = [name for name, word in said.items() if not (name in usual and usual[name] == word)]
    if given:
        raise InputError(f"plan= fixes the solver and the grid; leave out {', '.join(given)}")
    nfe = words.get("nfe")
    if isinstance(value, (str, Path)):
        return Plan.load(value, process, nfe)
    if not isinstance(value, Plan):
        raise InputTypeError(f"plan is a Plan or a file of one, got {type(value).__name__}")
    if nfe not in (None, value.nfe):
        raise InputError(
            f"this plan has {value.nfe} evaluations, not {nfe}: leave out nfe=, or pass a file that tune wrote with "
            "others beside it"
        )
    return value


def _read(path: Path, process: Process | None) -> Plan:
    try:
        data = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a plan file: {error}") from error
    if not isinstance(data, dict) or "code" not in data:
        raise InputError(f"{path} is JSON but not a plan: it has no 'code'")
    return Plan.from_dict(data, process)


def _beside(path: Path) -> dict[int, Path]:
    """Files ``NAME-<evaluations>.json`` beside ``NAME.json``."""
    named = {file: file.stem.removeprefix(f"{path.stem}-") for file in path.parent.glob("*.json")}
    return {int(rest): file for file, rest in named.items() if rest.isdecimal()}


@dataclass(frozen=True)
class NormalForm:
    """Unrolled plan.  ``inputs (nfe, basis)`` and ``output (basis,)`` over the basis
    ``[x_start, D_0.., D1_0.., z_0..]``; ``times (nfe,)`` of the evaluations."""

    inputs: np.ndarray
    output: np.ndarray
    times: np.ndarray
    nfe: int

    @property
    def start_weight(self) -> float:
        """Coefficient of the start in the result."""
        return float(self.output[0])

    @property
    def data_weights(self) -> np.ndarray:
        """Coefficients of D_k in the result."""
        return self.output[1 : 1 + self.nfe]

    @property
    def noise_weights(self) -> np.ndarray:
        """Coefficients of z_m in the result."""
        return self.output[1 + 2 * self.nfe :]


def _short(value: Any) -> str:
    """A setting for people: long sequences by their length, long texts cut."""
    if isinstance(value, dict):
        return ", ".join(str(v) if k == "name" else f"{k}={_short(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)) and len(value) > 6:
        return f"<{len(value)} values>"
    text = str(value)
    return text if len(text) <= 120 else f"{text[:100]}...)"


def _instruction(entry: dict[str, Any]) -> Instruction:
    entry = dict(entry)
    kind = entry.pop("kind", None)
    if kind not in _KINDS:
        raise InputError(f"unknown instruction {kind!r} in a plan file; known: {', '.join(_KINDS)}")
    for name in ("x", "d", "d1", "z"):
        if isinstance(entry.get(name), dict):
            entry[name] = {int(k): float(v) for k, v in entry[name].items()}
    if "more" in entry:
        entry["more"] = tuple(entry["more"])
    return _KINDS[kind](**entry)
