"""A plan printed for people."""

from __future__ import annotations

from retrodict.solvers.plan import Eval, Plan, Row


def table(plan: Plan, digits: int = 4) -> str:
    """One line an instruction: what is computed, at which time, from what."""
    lines = [f"{'':>4}  {'result':<8}{'t':>10}  expression"]
    for number, c in enumerate(plan.code):
        if isinstance(c, Eval):
            lines.append(f"{number:>4}  D{c.k:<7}{c.t:>10.{digits}f}  denoiser(X{c.x}, t)")
        elif isinstance(c, Row):
            lines.append(f"{number:>4}  X{c.dst:<7}{c.t:>10.{digits}f}  {expression(c, digits)}")
        else:
            lines.append(f"{number:>4}  X{c.dst:<7}{c.s:>10.{digits}f}  {c.name}(X{c.x}, D{c.k})")
    lines.append(f"      result: X{plan.out}")
    return "\n".join(lines)


def expression(row: Row, digits: int = 4) -> str:
    """The right-hand side of a row."""
    terms = [(f"X{r}", a) for r, a in row.x.items()] + [(f"D{k}", b) for k, b in row.d.items()]
    terms += [(f"E{k}", b) for k, b in row.d1.items()] + [(f"z{m}", c) for m, c in row.z.items()]
    text = " ".join(f"{'-' if value < 0 else '+'} {abs(value):.{digits}g} {name}" for name, value in terms)
    return text.removeprefix("+ ") if text else "0"
