"""Anomaly scores, and how well they separate anomalies from normal data."""

__all__ = ["anomaly_score", "auroc"]

from tarspyro.arguments import as_numbers, check_choice
from tarspyro.evaluate.batching import Array
from tarspyro.evaluate.likelihood import elbo, log_likelihood
from tarspyro.types import ArrayLike, Data, Program

_SCORES = ("elbo", "log_likelihood", "reconstruction")


def anomaly_score(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    score: str = "elbo",
    num_particles: int | None = None,
    binarize: bool = False,
    seed: int | None = None,
) -> Array:
    r"""Returns a score of each data point, in nats, that is high for anomalies.

    The pair was trained on normal data.

    - ``"elbo"``: :math:`-\mathcal{L}(x)`, the negative ELBO;
    - ``"log_likelihood"``: :math:`-\log p(x)` by importance sampling, which does not depend on
      the guide's gap;
    - ``"reconstruction"``: :math:`-\mathbb{E}_{q(z \mid x)}[\log p(x \mid z)]`, which ignores
      how unlikely the code is.

    Simple data has a high density, too: a data point unlike the training data, but with little
    to encode, such as an empty image, scores as normal under each of them. (Nalisnick et al.
    2019, arXiv:1810.09136.)

    Arguments:
        model: The model.
        guide: The guide; None for a model without latent variables, whose ELBO is log p(x).
        x: The data, in any form that ``fit`` takes.
        score: The score, one of the above.
        num_particles: The number of draws for each data point; 100 if not given.
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        One number for each data point: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        ValueError: If there is no such score, or if ``num_particles`` is below 1.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 4.0])
        >>> anomaly_score(model, guide, x, score="log_likelihood")
        tensor([1.2655, 5.2655])
    """
    check_choice("score", score, _SCORES)
    num_particles = 100 if num_particles is None else num_particles
    if score == "log_likelihood":
        log_p: Array = log_likelihood(
            model, guide, x, num_particles=num_particles, binarize=binarize, seed=seed
        )
        return -log_p
    bound = elbo(model, guide, x, num_particles=num_particles, binarize=binarize, seed=seed)
    return -bound.elbo if score == "elbo" else -bound.reconstruction


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    r"""Returns the area under the receiver operating characteristic, by scikit-learn.

    It is the probability that an anomaly has a higher score than a normal data point,

    .. math:: \mathrm{AUROC} = P(s_{\text{anomaly}} > s_{\text{normal}}) +
              \frac12 P(s_{\text{anomaly}} = s_{\text{normal}})

    A value of 1 separates them perfectly, 0.5 is chance.

    Arguments:
        scores: A number for each data point, for example the result of ``anomaly_score``;
            infinite scores are allowed.
        labels: Booleans, or zeros and ones, true for anomalies.

    Raises:
        ValueError: If scores and labels differ in length, if a score is NaN, or if all labels
            are equal.

    Example:
        >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
        >>> auroc([1.0, 1.0, 1.0], [True, False, False])
        0.5
    """
    from sklearn.metrics import roc_auc_score

    values = as_numbers("scores", scores).detach().cpu()
    classes = as_numbers("labels", labels).detach().cpu()
    if values.dim() != 1 or values.shape != classes.shape:
        raise ValueError(
            f"labels must be one for each of the scores, got shapes {tuple(classes.shape)} and"
            f" {tuple(values.shape)}."
        )
    if values.isnan().any():
        raise ValueError(
            f"scores must be numbers, got NaN in {int(values.isnan().sum())} of {len(values)}."
        )
    found = classes.unique().tolist()
    if not set(found) <= {0, 1}:
        raise ValueError(f"labels must be booleans, or zeros and ones, got {found[:5]}.")
    count = int(classes.sum())
    if count in (0, len(values)):
        raise ValueError(
            f"labels must have anomalies and normal data points, got {count} anomalies among"
            f" {len(values)}."
        )
    # Ranks with ties stand for the scores, because scikit-learn refuses infinite ones.
    _, ranks = values.unique(return_inverse=True)
    return float(roc_auc_score(classes.bool().numpy(), ranks.numpy()))
