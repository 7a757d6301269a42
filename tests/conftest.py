"""Settings that every test shares: no network, no display, reproducible random choices."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

# Examples are derived from the test, not drawn anew: a red test is red for everybody, every time.
settings.register_profile("retrodict", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("retrodict")
