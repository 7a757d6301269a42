"""What was measured: operators for `Measurement` (re-exported from the steering room, where its page is)."""

from retrodict.steering.operators import *  # noqa: F403
from retrodict.steering.operators import __all__  # noqa: F401
