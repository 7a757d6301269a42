"""`certify`: one page that says what a sampler does, measured against closed forms.

    certificate = rd.certify("unipc")
    certificate = rd.certify(pipe.scheduler)
    print(certificate)

Every number comes from `blackbox`: the sampler is shown denoisers whose answer is known, and nothing else of it is
used.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrodict.diagnostics.certificate import blackbox
from retrodict.diagnostics.certificate.finding import Finding
from retrodict.diagnostics.certificate.samplers import Sampler, as_sampler


@dataclass(frozen=True)
class Certificate:
    """What was measured of a sampler.

    Attributes:
        name, library, version: of the sampler.
        stochastic: whether it draws noise.
        declared: the order that it declares, None for none; order: the one that was measured, NaN if it could not be.
        findings: the measurements, in the order of the page.
    """

    name: str
    library: str
    version: str
    stochastic: bool
    declared: float | None
    order: float
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every measurement is what it should be."""
        return all(self.findings)

    def __bool__(self) -> bool:
        return self.ok

    def find(self, name: str) -> list[Finding]:
        """The findings of one name."""
        return [f for f in self.findings if f.name == name]

    @property
    def title(self) -> str:
        """The sampler with its library."""
        return f"{self.name} ({' '.join(filter(None, [self.library, self.version]))})"

    def text(self) -> str:
        """The page for a terminal."""
        kind = "stochastic" if self.stochastic else "deterministic"
        failed = sum(not f for f in self.findings)
        verdict = "holds what it declares" if self.ok else f"{failed} of {len(self.findings)} findings do not hold"
        return "\n".join([self.title, f"{kind}; {verdict}", "", *map(str, self.findings)])

    def __str__(self) -> str:
        return self.text()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not a number becomes None."""
        plain = {k: _plain(v) for k, v in asdict(self).items() if k != "findings"}
        return plain | {
            "ok": self.ok,
            "findings": [{k: _plain(v) for k, v in asdict(f).items()} for f in self.findings],
        }

    def html(self) -> str:
        """The page as one HTML file that fetches nothing."""
        rows = "\n".join(
            f"<tr><td>{'holds' if f else '<b>fails</b>'}</td><td>{html.escape(f.name)}</td>"
            f"<td>{html.escape(f.text)}</td></tr>"
            for f in self.findings
        )
        title = html.escape(self.title)
        summary = html.escape(self.text().splitlines()[1])
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
            f"<h1>{title}</h1><p>{summary}</p><table><thead><tr><th>verdict</th><th>measurement</th><th>result</th>"
            f"</tr></thead><tbody>\n{rows}\n</tbody></table></html>\n"
        )

    def save(self, folder: str | Path) -> None:
        """Write certificate.txt, certificate.json and certificate.html to a folder, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pages = {"txt": self.text() + "\n", "json": json.dumps(self.to_dict(), indent=1) + "\n", "html": self.html()}
        for kind, page in pages.items():
            (folder / f"certificate.{kind}").write_text(page, encoding="utf-8")


_STYLE = (
    "body{max-width:60rem;margin:3rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
    "h1{font-size:1.5rem}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.4rem .8rem .4rem 0;border-bottom:1px solid #8884}"
)


def certify(
    sampler: Any,
    *,
    steps: Sequence[int] = blackbox.STEPS,
    budgets: Sequence[int] = blackbox.BUDGETS,
    **options: Any,
) -> Certificate:
    """Measure a sampler, ours or anyone's, against closed forms.

    Args:
        sampler: a `Plan` (made anew, on its grid, for other numbers of steps); the name of a solver;
            a scheduler of diffusers or its configuration; a sampler class of azula; a function
            ``f(model, x, sigmas) -> x`` in k-diffusion's convention (``model(x, sigma)`` is the denoised
            ``x = x0 + sigma z``, sigmas fall to 0), or its name "module:function".
        steps: numbers of steps, doubling, from which orders are measured.
        budgets: of evaluations, at which errors are measured.
        options: of the solver, of azula's class, or ``order=`` that a function declares.

    Returns:
        `Certificate`.  A measurement that the sampler breaks is a finding that does not hold.

    Raises:
        InputError: nothing of these; a plan whose rows depend on data.

    >>> import retrodict as rd
    >>> rd.certify("heun", budgets=(5,)).ok
    True
    """
    made = as_sampler(sampler, **options)
    findings = list(_measure(made, steps, budgets))
    order = next((f.value for f in findings if f.name in ("order", "weak order")), math.nan)
    return Certificate(made.name, made.library, made.version, made.stochastic, made.order, order, tuple(findings))


def _measure(sampler: Sampler, steps: Sequence[int], budgets: Sequence[int]) -> list[Finding]:
    measurements: list[tuple[str, Callable[[], Finding | list[Finding]]]] = [
        ("ends", lambda: blackbox.ends(sampler)),
        ("evaluations", lambda: blackbox.evaluations(sampler)),
        ("constant denoiser", lambda: blackbox.constant_identity(sampler)),
        ("reproducibility", lambda: blackbox.reproducibility(sampler)),
        ("Gaussian moments", lambda: blackbox.moments(sampler, budgets)),
        ("mixture", lambda: blackbox.marginal_error(sampler, budgets)),
    ]
    if not sampler.fixed:
        named = ("weak order", blackbox.weak_order) if sampler.stochastic else ("order", blackbox.order)
        measurements.insert(2, (named[0], lambda: named[1](sampler, steps)))
    if not sampler.stochastic:
        measurements.insert(-2, ("polynomials", lambda: blackbox.polynomials(sampler)))
    found: list[Finding] = []
    for name, measure in measurements:
        try:
            result = measure()
        except Exception as error:
            result = Finding(name, math.nan, math.nan, False, f"{type(error).__name__}: {error}")
        found += result if isinstance(result, list) else [result]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
