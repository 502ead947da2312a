"""Nearest neighbours and attribute vectors in the latent space."""

__all__ = ["Neighbours", "arithmetic", "nearest_neighbours"]

from typing import NamedTuple

import numpy as np
import torch

from tarspyro.arguments import as_count, check_number, format_fields
from tarspyro.evaluate.batching import Array
from tarspyro.evaluate.codes import embed
from tarspyro.evaluate.distances import distances
from tarspyro.evaluate.sampling import decode
from tarspyro.scopes import preserved_rng
from tarspyro.types import Data, Program


class Neighbours(NamedTuple):
    """The indices and distances of the nearest neighbours of each query, nearest first."""

    indices: Array
    distances: Array

    def __repr__(self) -> str:
        return format_fields("Neighbours", self._asdict())


def nearest_neighbours(
    guide: Program, x: Data, among: Data, *, num: int = 5, site: str | None = None
) -> Neighbours:
    """Finds the data points whose codes are nearest to those of the queries x.

    Codes are posterior means, and distances Euclidean. A query that is among the data is its
    own nearest neighbour.

    Arguments:
        guide: The guide.
        x: The queries, in any form that ``fit`` takes.
        among: The data to search, likewise.
        num: The number of neighbours of each query.
        site: The latent variable; not needed if there is one.

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
        >>> data = torch.tensor([[0.0], [1.0], [2.0]])
        >>> nearest_neighbours(guide, torch.tensor([[0.9]]), data, num=2).indices
        tensor([[1, 0]])
    """
    with preserved_rng():  # the guide draws, although only its means are read
        codes = embed(guide, x, site=site)
        others = embed(guide, among, site=site)
    num = as_count("num", num, most=len(others), most_is="the number of data points")
    rows = torch.as_tensor(codes).flatten(1)
    columns = torch.as_tensor(others).flatten(1)
    found = [distances(part, columns).topk(num, largest=False) for part in rows.split(100)]
    values = torch.cat([part.values for part in found])
    indices = torch.cat([part.indices for part in found])
    if isinstance(codes, np.ndarray):
        return Neighbours(indices.numpy(), values.numpy())
    return Neighbours(indices, values)


def arithmetic(
    model: Program,
    guide: Program,
    a: Data,
    b: Data,
    c: Data,
    *,
    latent: str = "z",
    site: str = "x",
    scale: float = 1.0,
) -> Array:
    r"""Decodes the codes of c after adding the difference between the mean codes of a and b.

    .. math:: z_n = \bar{z}(c_n) + s \left(\frac{1}{|a|} \sum_i \bar{z}(a_i)
              - \frac{1}{|b|} \sum_j \bar{z}(b_j)\right), \qquad
              \bar{z}(x) = \mathbb{E}_{q(z \mid x)}[z]

    If a are data points with an attribute, such as smiling, and b are data points without it,
    the difference is the vector of the attribute. (Larsen et al. 2016, arXiv:1512.09300,
    section 4.2.) This is for latent variables on the whole space: the sum of points of a
    simplex may lie outside it.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        guide: The guide.
        a: Data points with the attribute, one or more, in any form that ``fit`` takes in
            memory.
        b: Data points without it, likewise.
        c: Data points to give it to, likewise.
        latent: The name of the latent variable.
        site: The observed site to decode.
        scale: s, the length of the step.

    Returns:
        The likelihood's mean for each row of c: an array for arrays, a tensor for tensors.

    Raises:
        NotImplementedError: If the family of the guide or of the likelihood has no mean in
            closed form.
        PairError: If the model does not generate.
    """
    check_number("scale", scale)
    with preserved_rng():  # the guide draws, although only its means are read
        codes = embed(guide, c, site=latent)
        first, second = (torch.as_tensor(embed(guide, part, site=latent)) for part in (a, b))
    moved = torch.as_tensor(codes) + scale * (first.mean(0) - second.mean(0))
    z = moved.numpy() if isinstance(codes, np.ndarray) else moved
    return decode(model, z, latent=latent, site=site)
