"""Jump processes given data: finite states exactly, other rates by weights, reaction networks by guided particles."""

from retrodict.inference.jumps.exact import Expected, JumpPosterior
from retrodict.inference.jumps.guided import GuidedJumps
from retrodict.inference.jumps.network import NetworkPosterior
from retrodict.inference.jumps.paths import JumpPaths
from retrodict.inference.jumps.process import JumpProcess
from retrodict.inference.jumps.reactions import ReactionNetwork
from retrodict.inference.jumps.truncated import BoxPosterior

__all__ = [
    "BoxPosterior",
    "Expected",
    "GuidedJumps",
    "JumpPaths",
    "JumpPosterior",
    "JumpProcess",
    "NetworkPosterior",
    "ReactionNetwork",
]
