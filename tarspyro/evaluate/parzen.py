"""Parzen-window log-likelihoods, by which the first GANs were compared."""

__all__ = ["ParzenLogLikelihood", "parzen_log_likelihood"]

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tarspyro.arguments import as_numbers, check_positive, format_fields
from tarspyro.evaluate.distances import distances
from tarspyro.types import ArrayLike

# The number of data points whose distances to all samples are in memory at once.
_ROWS = 100
# The default standard deviations, from 0.1 to 1.
_SCALES = tuple(10 ** (-1 + step / 10) for step in range(11))


class ParzenLogLikelihood(NamedTuple):
    """The log-density of each data point, with the mean over data points and the scale.

    ``standard_error`` is that of the mean over data points.
    """

    log_likelihood: Tensor
    mean: float
    standard_error: float
    scale: float

    def __repr__(self) -> str:
        return format_fields("ParzenLogLikelihood", self._asdict())


def parzen_log_likelihood(
    samples: ArrayLike,
    x: ArrayLike,
    *,
    validation: ArrayLike | None = None,
    scales: float | Sequence[float] = _SCALES,
) -> ParzenLogLikelihood:
    r"""Returns the log-likelihood of data under a mixture of Gaussians around samples.

    .. math:: \log \hat p(x) = \log \frac{1}{M} \sum_{m=1}^M \mathcal{N}(x; s_m, \sigma^2 I)

    In nats per data point. This is for comparison with papers of 2014: in high dimension it
    says little about a model (Theis et al. 2016, arXiv:1511.01844), and blurred copies of data
    can score higher than data.

    Arguments:
        samples: The samples, of shape (M, *event); 10,000 in the papers.
        x: The data, of shape (N, *event).
        validation: Held-out data on which the scale with the highest mean is chosen. Not
            needed for a single scale.
        scales: The standard deviations sigma to choose from, or a single one.

    Returns:
        A tuple (log_likelihood, mean, standard_error, scale): the first of shape (N,), in
        double precision.

    Raises:
        ValueError: If there are several scales and no validation data, if a scale is not
            positive, or if shapes differ.

    References:
        Goodfellow et al. (2014), Generative Adversarial Networks, arXiv:1406.2661, section 5;
        Breuleux et al. (2011).

    Example:
        >>> found = parzen_log_likelihood([[0.0]], [[0.0], [1.0]], scales=1.0)
        >>> found.log_likelihood, round(found.mean, 3)
        (tensor([-0.9189, -1.4189], dtype=torch.float64), -1.169)
    """
    if isinstance(scales, Sequence) and not isinstance(scales, str):
        candidates = list(scales)
    else:
        candidates = [scales]
    for scale in candidates:
        check_positive("scales", scale)
    if not candidates:
        raise ValueError("scales must hold at least one, got none.")
    windows = _rows("samples", samples)
    points = _rows("x", x)
    if len(candidates) > 1:
        if validation is None:
            raise ValueError(
                f"validation must be given to choose among {len(candidates)} scales, or a"
                " single scale."
            )
        held_out = _rows("validation", validation)
        best = _log_densities(windows, held_out, candidates).mean(1).argmax()
        candidates = [candidates[int(best)]]
    values = _log_densities(windows, points, candidates)[0]
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan
    return ParzenLogLikelihood(values, values.mean().item(), error, candidates[0])


def _rows(name: str, values: ArrayLike) -> Tensor:
    """Returns rows of numbers in double precision."""
    rows = as_numbers(name, values).detach().double()
    if rows.dim() < 2 or not rows.numel():
        raise ValueError(
            f"{name} must have the shape (N, *event) with N of at least 1, got"
            f" {tuple(rows.shape)}."
        )
    return rows.flatten(1)


def _log_densities(windows: Tensor, points: Tensor, scales: Sequence[float]) -> Tensor:
    """Returns the log-density of each point for each scale, of shape ``(scales, N)``."""
    size = windows.shape[1]
    if size != points.shape[1]:
        raise ValueError(
            f"data must have {size} numbers in a row as samples have, got {points.shape[1]}."
        )
    parts = []
    for part in points.split(_ROWS):
        squares = distances(part, windows.to(part.device)).square()
        log_densities = [
            (-squares / (2 * scale**2)).logsumexp(1)
            - math.log(len(windows))
            - size / 2 * math.log(2 * math.pi * scale**2)
            for scale in scales
        ]
        parts.append(torch.stack(log_densities))
    return torch.cat(parts, 1)
