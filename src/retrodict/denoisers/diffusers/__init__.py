"""Models of diffusers as denoisers: `from_diffusers`, and the reading of schedulers that both directions share."""

from retrodict.denoisers.diffusers.convention import Convention, read, read_process, recall
from retrodict.denoisers.diffusers.loading import FromDiffusers, from_diffusers
from retrodict.denoisers.diffusers.prompts import encode_prompt

__all__ = ["Convention", "FromDiffusers", "encode_prompt", "from_diffusers", "read", "read_process", "recall"]
