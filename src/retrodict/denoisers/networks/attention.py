"""Multi-head self-attention over a set of tokens (Vaswani et al., 2017, equation 1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

#: Up to here the matrix of scores is cheap, and written out it can be differentiated any number of times.
WRITTEN_OUT = 256


class Attention(nn.Module):
    """``x (batch, tokens, width) -> (batch, tokens, width)``, without position, mask or residual.

    Equivariant under permutations of the tokens.  ``width`` must be a multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``bias (batch, heads, tokens, tokens)`` is added to the scores."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(attend(q, k, v, bias).transpose(1, 2).reshape(batch, tokens, width))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(d) + bias) v`` on the last two axes.

    Long sequences use the fused kernel; where it has no forward-mode derivative (jvp), the written-out form.
    """
    if q.shape[-2] > WRITTEN_OUT:
        try:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        except NotImplementedError:
            pass
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ v
