"""The log-likelihood of data under a window around each sample: what GANs were first compared
by.
"""

__all__ = ["ParzenLogLikelihood", "parzen_log_likelihood"]

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tarspyro.arguments import as_numbers, check_positive
from tarspyro.evaluate.distances import distances

# How many data points meet all samples at once.
_ROWS = 100
_SCALES = tuple(10 ** (-1 + step / 10) for step in range(11))


class ParzenLogLikelihood(NamedTuple):
    """The log-density of each data point, their mean with its standard error over data points,
    and the window.
    """

    log_likelihood: Tensor
    mean: float
    standard_error: float
    scale: float


def parzen_log_likelihood(
    samples: Any,
    x: Any,
    *,
    validation: Any = None,
    scales: float | Sequence[float] = _SCALES,
) -> ParzenLogLikelihood:
    r"""Returns the log-likelihood of data under a mixture of Gaussians, one around each
    sample.

    .. math:: \log \hat p(x) = \log \frac{1}{M} \sum_{m=1}^M \mathcal{N}(x; s_m, \sigma^2 I)

    In nats per data point. A figure that the papers of 2014 print, and no more than that: in
    high dimension it says little of a model (Theis et al. 2016, arXiv:1511.01844), and samples
    of a blurred copy of the data can beat data.

    Arguments:
        samples: The samples, of shape (M, *event); 10,000 in the papers.
        x: The data, of shape (N, *event).
        validation: Held-out data that choose the scale: the one of the highest mean. Not
            needed for a single scale.
        scales: The standard deviations sigma to choose from, 0.1 to 1 if not given; or one.

    Returns:
        A tuple (log_likelihood, mean, standard_error, scale): the first of shape (N,), in
        double precision.

    Raises:
        ValueError: If there are several scales and no validation data, a scale is not
            positive, or shapes differ.

    References:
        Goodfellow et al. (2014), Generative Adversarial Networks, arXiv:1406.2661, section 5;
        Breuleux et al. (2011).

    Example:
        >>> found = parzen_log_likelihood([[0.0]], [[0.0], [1.0]], scales=1.0)
        >>> found.log_likelihood, round(found.mean, 3)
        (tensor([-0.9189, -1.4189], dtype=torch.float64), -1.169)
    """
    candidates = (
        list(scales)
        if isinstance(scales, Sequence) and not isinstance(scales, str)
        else [scales]
    )
    for scale in candidates:
        check_positive("scales", scale)
    if not candidates:
        raise ValueError("scales must hold at least one, got none.")
    windows, points = _rows("samples", samples), _rows("x", x)
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


def _rows(name: str, values: Any) -> Tensor:
    """Rows of numbers in double precision."""
    rows = as_numbers(name, values).detach().double()
    if rows.dim() < 2 or not rows.numel():
        raise ValueError(
            f"{name} must have the shape (N, *event) with N of at least 1, got"
            f" {tuple(rows.shape)}."
        )
    return rows.flatten(1)


def _log_densities(windows: Tensor, points: Tensor, scales: Sequence[float]) -> Tensor:
    """Log-densities for each scale, of shape (scales, N)."""
    if windows.shape[1] != points.shape[1]:
        raise ValueError(
            f"data must have {windows.shape[1]} numbers in a row as samples have, got"
            f" {points.shape[1]}."
        )
    size, parts = windows.shape[1], []
    for part in points.split(_ROWS):
        squares = distances(part, windows.to(part.device)).square()
        parts.append(
            torch.stack(
                [
                    (-squares / (2 * scale**2)).logsumexp(1)
                    - math.log(len(windows))
                    - size / 2 * math.log(2 * math.pi * scale**2)
                    for scale in scales
                ]
            )
        )
    return torch.cat(parts, 1)
