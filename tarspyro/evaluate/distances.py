"""Euclidean distances between rows, exact also far from the origin."""

__all__ = ["distances"]

import torch
from torch import Tensor


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns the Euclidean distances between the rows of x and of y, of shape (N, M).

    Torch's default subtracts squared norms. Equal distances may then come out unequal, and
    those of data far from the origin lose all their digits.

    Example:
        >>> distances(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]]))
        tensor([[3.],
                [2.]])
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
