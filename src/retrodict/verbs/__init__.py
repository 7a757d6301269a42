"""The verbs: the only place that dispatches over rooms."""

from retrodict.verbs.condition import Guidance, condition
from retrodict.verbs.sample import sample
from retrodict.verbs.samples import Samples

__all__ = ["Guidance", "Samples", "condition", "sample"]
