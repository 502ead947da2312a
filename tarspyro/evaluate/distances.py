"""Distances between rows, from differences: by matrix products they are wrong by what the rows
have in common.
"""

__all__ = ["distances"]

import torch
from torch import Tensor


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns the Euclidean distances of the rows of x and of y, of shape (N, M).

    Torch's default subtracts squared norms: equal distances then come out unequal, and data
    that lie far from the origin lose all their digits.

    Example:
        >>> distances(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]]))
        tensor([[3.],
                [2.]])
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
