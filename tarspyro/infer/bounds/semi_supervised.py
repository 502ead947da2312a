"""The loss of pairs that learn from few labels: a bound, and the classifier's own loss on the
labels.
"""

__all__ = ["SemiSupervised"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tarspyro.arguments import check_positive
from tarspyro.distributions import as_discrete
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.composed import Composed
from tarspyro.infer.traces import name_of
from tarspyro.types import Program


class SemiSupervised(Composed):
    r"""A bound, and beside it the log-likelihood of the given labels under the guide's
    classifier.

    .. math:: \mathcal{J}^\alpha = \mathcal{J} + \alpha N \, \mathbb{E}_{\tilde{p}_l(x, y)}[-\log q(y \mid x)]

    J is minus the bound, in which a given label teaches the classifier nothing; N counts all
    data points, and the expectation is over the labelled ones. In evaluation mode, as on
    held-out data, the loss is minus the bound alone. ``fit`` writes the bound down as
    ``bound``, with the terms of an ``ELBO``, and the second term without alpha, the mean of
    log q(y | x), as ``classifier``.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. What ``schedules`` of ``fit`` change, such as
            ``beta``, is set here.
        alpha: The weight of the labels for each data point, 0.1 in the paper; may be
            scheduled.

    Raises:
        TypeError: If ``bound`` is not a bound of the library; in training, if the guide has no
            classifier.
        ValueError: If alpha is not positive.

    References:
        Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised Learning with Deep
        Generative Models, arXiv:1406.5298, eq. 9.

    Example:
        >>> from tarspyro.infer import ELBO
        >>> SemiSupervised(ELBO(), alpha=0.5).adjustable
        ('alpha', 'beta')
    """

    adjustable = ("alpha",)

    def __init__(self, bound: Bound, alpha: float = 0.1) -> None:
        check_positive("alpha", alpha)
        super().__init__(bound)
        self.alpha = alpha

    def further(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns minus alpha N times the mean log-likelihood of the labels, and N times that
        mean.
        """
        half: Any = guide
        if not hasattr(half, "classifier"):
            raise TypeError(
                "SemiSupervised needs a guide with a classifier q(y | x), and"
                f" {name_of(guide)} has none."
            )
        x, y, unlabelled = _parts(*args, **kwargs)
        if x is None or y is None or not half.training:
            return 0.0, {}
        rest = 0 if unlabelled is None else len(unlabelled)
        labelled = max(half.num_labelled, len(x))
        log_likelihood = as_discrete(half.classifier(x)).log_prob(y).mean()
        total = (labelled + max(half.num_unlabelled, rest)) * log_likelihood
        return -self.alpha * total, {"classifier": total.detach()}


def _parts(
    x: Tensor | None = None, y: Tensor | None = None, unlabelled: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The arguments of a semi-supervised pair."""
    return x, y, unlabelled
