"""The loss of semi-supervised pairs: minus a bound, plus the classifier's cross-entropy."""

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
    r"""Minus a bound, plus the cross-entropy of the labels under the guide's classifier.

    .. math:: \mathcal{J}^\alpha = \mathcal{J} +
              \alpha N \, \mathbb{E}_{\tilde{p}_l(x, y)}[-\log q(y \mid x)]

    J is minus the bound, in which the labels give the classifier no gradient. N is the number of
    all data points, and the expectation is over the labelled ones. In evaluation mode, as on
    held-out data, the loss is minus the bound alone. ``fit`` records the bound as ``bound``,
    with the terms of an ``ELBO``, and N times the mean of log q(y | x) as ``classifier``.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. Its adjustable attributes, such as ``beta``, are
            attributes of this loss too, and ``schedules`` of ``fit`` may change them.
        alpha: The weight of the cross-entropy for each data point, 0.1 in the paper. It may be
            scheduled too.

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
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns minus alpha N times the mean of log q(y | x), and N times that mean."""
        half: Any = guide
        if not hasattr(half, "classifier"):
            raise TypeError(
                "SemiSupervised needs a guide with a classifier q(y | x), such as"
                f" guides.SemiSupervisedVAE, got {name_of(guide)}."
            )
        x, y, unlabelled = _parts(*args, **kwargs)
        if x is None or y is None or not half.training:
            return 0.0, {}
        num_labelled = max(half.num_labelled, len(x))
        rest = 0 if unlabelled is None else len(unlabelled)
        num_unlabelled = max(half.num_unlabelled, rest)
        log_likelihood = as_discrete(half.classifier(x)).log_prob(y).mean()
        total = (num_labelled + num_unlabelled) * log_likelihood
        return -self.alpha * total, {"classifier": total.detach()}


def _parts(
    x: Any = None, y: Any = None, unlabelled: Any = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the arguments of a semi-supervised pair by their names."""
    return x, y, unlabelled
