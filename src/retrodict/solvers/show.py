"""A plan printed for people."""

from __future__ import annotations

from retrodict.solvers.plan import Call, Eval, Instruction, Plan, Row


def table(plan: Plan, digits: int = 4) -> str:
    """One line an instruction: what is computed, at which time, from what."""
    rows = [f"{number:>4}  {result:<8}{t:>10}  {expression}" for number, result, t, expression in lines(plan, digits)]
    return "\n".join([f"{'':>4}  {'result':<8}{'t':>10}  expression", *rows, f"      result: X{plan.out}"])


def lines(plan: Plan, digits: int = 4) -> list[list[str]]:
    """The cells of `table`: number, result, time and expression of each instruction."""
    return [[str(i), *_line(c, digits)] for i, c in enumerate(plan.code)]


def _line(c: Instruction, digits: int) -> list[str]:
    if isinstance(c, Eval):
        time = "t" if c.clock is None else f"X{c.clock}"
        return [f"D{c.k}", f"{c.t:.{digits}f}", f"denoiser(X{c.x}, {time})"]
    if isinstance(c, Call):
        read = ", ".join([f"X{c.x}", f"D{c.k}", *(f"X{r}" for r in c.more)])
        return [f"X{c.dst}", f"{c.s:.{digits}f}", f"{c.name}({read})"]
    return [f"X{c.dst}", f"{c.t:.{digits}f}", expression(c, digits)]


def expression(row: Row, digits: int = 4) -> str:
    """The right-hand side of a row."""
    terms = [(f"X{r}", a) for r, a in row.x.items()] + [(f"D{k}", b) for k, b in row.d.items()]
    terms += [(f"E{k}", b) for k, b in row.d1.items()] + [(f"z{m}", c) for m, c in row.z.items()]
    text = " ".join(f"{'-' if value < 0 else '+'} {abs(value):.{digits}g} {name}" for name, value in terms)
    return text.removeprefix("+ ") if text else "0"
