"""diag(p) - p p^T, the covariance of a categorical variable: the Hessian of logsumexp, with p its softmax."""

import torch

from hbpcompiler.rule import Shape, Tensor, called


def covariance_factor(p: Tensor) -> Tensor:
    """Exact factor S of diag(p) - p p^T: [..., C] -> [..., C-1, C], a column S[k] for each class but the first.

    With heads h_j = p_0 + ... + p_j, column j is sqrt(p_j h_{j-1} / h_j) (e_j - sum_{i<j} p_i / h_{j-1} e_i). No ratio
    exceeds 1; where a head vanishes, so do its terms, and a divisor of 1 makes 0/0 a 0.
    """
    heads = called("heads", p.cumsum(-1))
    divisor = called("divisor", heads + (heads == 0).type_as(p))
    ratio = called("ratio", (p / divisor)[..., 1:].sqrt())
    own = called("own", torch.diag_embed(ratio * heads[..., :-1].sqrt(), offset=1)[..., :-1, :])
    others = called("others", torch.tril((ratio / divisor[..., :-1].sqrt()).unsqueeze(-1) * p.unsqueeze(-2)))
    return own - others


def positionwise(columns: Tensor, shape: Shape) -> Tensor:
    """Columns of each position alone, [N, *d, k, C] -> columns of the sample, [N, k*P, C, *d], block by block."""
    if not shape:
        return columns
    blocks = torch.diag_embed(columns.flatten(1, -3).permute(0, 2, 3, 1))  # [N, k, C, P, P]
    return torch.unflatten(blocks.movedim(-1, 2).flatten(1, 2), -1, shape)
