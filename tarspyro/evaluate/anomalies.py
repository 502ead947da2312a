"""How unlike the training data a data point is, and how well such scores tell anomalies from
the rest.
"""

__all__ = ["anomaly_score", "auroc"]

from typing import Any

import numpy as np

from tarspyro.arguments import as_numbers, check_choice
from tarspyro.evaluate.likelihood import elbo, log_likelihood, reconstruction
from tarspyro.types import Program

_SCORES = {"elbo", "log_likelihood", "reconstruction"}


def anomaly_score(
    model: Program,
    guide: Program,
    x: Any,
    *,
    score: str = "elbo",
    num_particles: int | None = None,
    binarize: bool = False,
    seed: int | None = None,
) -> Any:
    r"""Returns how anomalous each data point is to a pair that was trained on normal ones, in
    nats: more is more.

    - ``"elbo"``: :math:`-\mathcal{L}(x)`, minus the ELBO;
    - ``"log_likelihood"``: :math:`-\log p(x)` by importance sampling, free of what the guide
      lacks;
    - ``"reconstruction"``: :math:`-\mathbb{E}_{q(z \mid x)}[\log p(x \mid z)]`, blind to
      unlikely codes.

    A density is high where data is simple, too: x unlike any training data but with little to
    encode, such as an empty image, scores as normal under each of them. (Nalisnick et al.
    2019, arXiv:1810.09136.)

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        score: Which of them.
        num_particles: The number of draws for each data point; 100 if not given, for each of
            the scores.
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        One number for each data point: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        ValueError: If there is no such score, or too few particles.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> anomaly_score(model, guide, torch.tensor([0.0, 4.0]), score="log_likelihood")
        tensor([1.2655, 5.2655])
    """
    check_choice("score", score, sorted(_SCORES))
    options: dict[str, Any] = {"binarize": binarize, "seed": seed}
    options["num_particles"] = 100 if num_particles is None else num_particles
    if score == "elbo":
        return -elbo(model, guide, x, **options).elbo
    return -{"log_likelihood": log_likelihood, "reconstruction": reconstruction}[score](
        model, guide, x, **options
    )


def auroc(scores: Any, labels: Any) -> float:
    r"""Returns the area under the receiver operating characteristic: how often an anomaly
    scores above a normal point.

    .. math:: \mathrm{AUROC} = P(s_{\text{anomaly}} > s_{\text{normal}}) + \frac12
              P(s_{\text{anomaly}} = s_{\text{normal}})

    over all pairs of them, by the ranks of the scores (Mann and Whitney 1947): 1 tells all
    apart, 0.5 is chance.

    Arguments:
        scores: One number for each data point, such as ``anomaly_score`` returns; infinite
            ones are in order.
        labels: Whether each is an anomaly: booleans, or zeros and ones.

    Raises:
        ValueError: If they differ in length, a score is NaN, or there are no anomalies or
            nothing else.

    Example:
        >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
        >>> auroc([1.0, 1.0, 1.0], [True, False, False])
        0.5
    """
    given = {"scores": scores, "labels": labels}
    values, classes = (
        as_numbers(name, each).detach().cpu().numpy() for name, each in given.items()
    )
    if values.ndim != 1 or values.shape != classes.shape:
        raise ValueError(
            f"labels must be one for each of the scores, got shapes {classes.shape} and"
            f" {values.shape}."
        )
    if np.isnan(values).any():
        raise ValueError(
            f"scores must be numbers, got NaN in {int(np.isnan(values).sum())} of"
            f" {len(values)}."
        )
    if not np.isin(classes, (0, 1)).all():
        raise ValueError(
            f"labels must be booleans, or zeros and ones, got {np.unique(classes)[:5]}."
        )
    anomalous = classes.astype(bool)
    count = int(anomalous.sum())
    if count in (0, len(values)):
        raise ValueError(
            f"labels must have anomalies and others, got {count} anomalies among"
            f" {len(values)}."
        )
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Equal scores share the mean of their ranks 1, 2, ...
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    wins = ranks[anomalous].sum() - count * (count + 1) / 2
    return float(wins / (count * (len(values) - count)))
