"""Mixtures of Gaussians in the plane, which show the modes that a generator leaves out."""

__all__ = ["Modes", "grid", "ring"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_seed, check_positive


@dataclass(frozen=True)
class Modes:
    """Points of a mixture of equally likely round Gaussians.

    Attributes:
        x: The points, of shape (N, 2).
        y: The mode of each point, of shape (N,).
        means: The means of the modes, of shape (K, 2).
        scale: The standard deviation of each mode in each direction.
    """

    x: Tensor
    y: Tensor
    means: Tensor
    scale: float

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        modes = len(self.means)
        return f"Modes: {len(self)} points of {modes} Gaussians of scale {self.scale:g}"

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the log-density of the mixture at points of shape (N, 2), in nats."""
        # By differences: torch's default subtracts squared norms, which is too coarse for
        # modes that are narrow beside their distances.
        distances = torch.cdist(x, self.means, compute_mode="donot_use_mm_for_euclid_dist")
        squares = distances**2 / (2 * self.scale**2)
        normalizer = math.log(len(self.means) * 2 * math.pi * self.scale**2)
        return (-squares).logsumexp(-1) - normalizer


def ring(
    num: int, *, modes: int = 8, radius: float = 2.0, scale: float = 0.02, seed: int = 0
) -> Modes:
    """Returns points around the corners of a regular polygon, 8 Gaussians on a circle by
    default.

    As in Metz et al. (2016), Unrolled Generative Adversarial Networks, arXiv:1611.02163.

    Arguments:
        num: The number of points.
        modes: The number of Gaussians.
        radius: The radius of the circle.
        scale: The standard deviation of each Gaussian.
        seed: The seed of the points.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> ring(100).x.shape
        torch.Size([100, 2])
    """
    num = as_count("num", num)
    modes = as_count("modes", modes)
    check_positive("radius", radius)
    check_positive("scale", scale)
    angles = 2 * math.pi * torch.arange(modes) / modes
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)
    return _around(means, num, scale, seed)


def grid(
    num: int, *, side: int = 5, step: float = 2.0, scale: float = 0.05, seed: int = 0
) -> Modes:
    """Returns points around the nodes of a square grid that is centred at zero, 25 Gaussians
    by default.

    As in Srivastava et al. (2017), VEEGAN, arXiv:1705.07761.

    Arguments:
        num: The number of points.
        side: The number of Gaussians in a row.
        step: The distance of neighbours.
        scale: The standard deviation of each Gaussian.
        seed: The seed of the points.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> len(grid(100).means)
        25
    """
    num = as_count("num", num)
    side = as_count("side", side)
    check_positive("step", step)
    check_positive("scale", scale)
    places = step * (torch.arange(side) - (side - 1) / 2)
    return _around(torch.cartesian_prod(places, places), num, scale, seed)


def _around(means: Tensor, num: int, scale: float, seed: int) -> Modes:
    generator = torch.Generator().manual_seed(as_seed(seed))
    y = torch.randint(len(means), (num,), generator=generator)
    x = means[y] + scale * torch.randn(num, 2, generator=generator)
    return Modes(x, y, means, scale)
