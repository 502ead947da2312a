"""What the geometry of the latent space says: which data points are near, and what differences
of codes mean.
"""

__all__ = ["Neighbours", "arithmetic", "nearest_neighbours"]

from typing import Any, NamedTuple

import numpy as np
import torch

from tarspyro.arguments import as_count, check_number
from tarspyro.evaluate.codes import decode, embed
from tarspyro.evaluate.distances import distances
from tarspyro.scopes import preserved_rng
from tarspyro.types import Program


class Neighbours(NamedTuple):
    """Which data points are nearest, and how far they are; a row for each query, the nearest
    first.
    """

    indices: Any
    distances: Any


def nearest_neighbours(
    guide: Program, x: Any, among: Any, *, num: int = 5, site: str | None = None
) -> Neighbours:
    """Finds the data points whose codes, the posterior means, are nearest to those of x in
    Euclidean distance.

    A data point that is itself among them is its own nearest neighbour.

    Arguments:
        guide: The guide.
        x: The queries, in any form that ``fit`` takes in memory.
        among: The data to look among, likewise.
        num: How many neighbours of each.
        site: Which latent variable; not needed if there is one.

    Returns:
        A tuple (indices, distances) of shape ``(N, num)``: arrays for arrays, tensors for
        tensors.

    Raises:
        NotImplementedError: If the guide's family has no mean in closed form.
        ValueError: If ``num`` is not between 1 and the number of data points.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x, 1.0).to_event(1))
        >>> nearest_neighbours(guide, torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [2.0]]), num=2).indices
        tensor([[1, 0]])
    """
    with preserved_rng():  # the guide draws, although only its means are looked at
        codes, others = embed(guide, x, site=site), embed(guide, among, site=site)
    if as_count("num", num, 0) not in range(1, len(others) + 1):
        raise ValueError(
            f"num must lie between 1 and the number of data points, {len(others)}, got {num}."
        )
    first, second = (torch.as_tensor(part).flatten(1) for part in (codes, others))
    found = [distances(part, second).topk(num, largest=False) for part in first.split(100)]
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    if isinstance(codes, np.ndarray):
        return Neighbours(indices.numpy(), values.numpy())
    return Neighbours(indices, values)


def arithmetic(
    model: Program,
    guide: Program,
    a: Any,
    b: Any,
    c: Any,
    *,
    latent: str = "z",
    site: str = "x",
    scale: float = 1.0,
) -> Any:
    r"""Decodes c moved along the direction in the latent space that leads from b to a: "a is
    to b as ... is to c".

    .. math:: z_n = \bar{z}(c_n) + s \left(\frac{1}{|a|} \sum_i \bar{z}(a_i) - \frac{1}{|b|} \sum_j \bar{z}(b_j)\right),
              \qquad \bar{z}(x) = \mathbb{E}_{q(z \mid x)}[z]

    With a those data points that have an attribute and b those that do not, the difference of
    their mean codes is the vector of the attribute. (Larsen et al. 2016, arXiv:1512.09300,
    section 4.2.) For latent variables of the whole
    space: sums of points of a simplex need not lie in it.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        guide: The guide.
        a: Data points with the attribute, one or more, in any form that ``fit`` takes in
            memory.
        b: Data points without it, likewise.
        c: Data points to give it to, likewise.
        latent: The name of the latent variable.
        site: The observed site to decode.
        scale: s, how far to go.

    Returns:
        The likelihood's mean for each row of c: an array for arrays, a tensor for tensors.

    Raises:
        NotImplementedError: If the guide's or the likelihood's family has no mean in closed
            form.
        PairError: If the model does not generate.
    """
    check_number("scale", scale)
    with preserved_rng():
        z_a, z_b, z_c = (embed(guide, part, site=latent) for part in (a, b, c))
    codes, first, second = (torch.as_tensor(part) for part in (z_c, z_a, z_b))
    moved = codes + scale * (first.mean(0) - second.mean(0))
    return decode(
        model,
        moved.numpy() if isinstance(z_c, np.ndarray) else moved,
        latent=latent,
        site=site,
    )
