"""Jump processes given data: finite states exactly, other rates by weights, reaction networks by guided particles."""

from retrodict.inference.jumps.exact import Expected, JumpPosterior
from retrodict.inference.jumps.guided import GuidedJumps
from retrodict.inference.jumps.paths import JumpPaths
from retrodict.inference.jumps.process import JumpProcess

__all__ = ["Expected", "GuidedJumps", "JumpPaths", "JumpPosterior", "JumpProcess"]
