"""`retrodict restore`: measured images back to what they may have been, as posterior samples with their spread."""

from retrodict.app.restore.posterior import Restored, restore
from retrodict.app.restore.problem import Settings
from retrodict.app.restore.run import restore_files

__all__ = ["Restored", "Settings", "restore", "restore_files"]
