"""The semi-supervised variational autoencoder: the guide."""

__all__ = ["SemiSupervisedVAE"]

from collections.abc import Callable

import pyro
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class SemiSupervisedVAE(StochasticModule):
    r"""The inference half of a semi-supervised variational autoencoder (M2).

    .. math:: q(y, z \mid x) = q(y \mid x) \, q(z \mid x, y)

    If the classifier gives one-hot vectors, the ``ELBO`` sums over missing labels, and other
    bounds sample them. If it gives points of the simplex, such as ``GumbelSoftmax``, all bounds
    sample them with pathwise gradients. ``infer.SemiSupervised`` trains the classifier on
    given labels.

    Sites:

    - ``y``: the label, of K classes, if not given; ``z``: the latent variable; in the plate
      ``labelled`` if labels are given, else in the plate ``unlabelled``;
    - ``y_unlabelled``, ``z_unlabelled``: the same for the rows ``unlabelled``, in the plate
      ``unlabelled``.

    Arguments:
        classifier: The classifier q(y | x), such as a ``Conditional`` of the family
            ``OneHotCategorical``.
        posterior: The approximate posterior q(z | x, y), such as one with the trunk
            ``MLP([784, 10], [500])``.
        num_labelled: See the model.
        num_unlabelled: See the model.
        enumerate: Whether labels may be summed out; False samples them under every bound.

    References:
        Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised Learning with Deep
        Generative Models, arXiv:1406.5298.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> classifier = Conditional(dist.OneHotCategorical, MLP(64, [32]), 10)
        >>> SemiSupervisedVAE(classifier, Conditional(dist.Normal, MLP([64, 10], [32]), 2))
        SemiSupervisedVAE: q(y, z | x) = q(y | x) q(z | x, y)
          classifier: q(y | x) = OneHotCategorical(logits) of shape (10,) from MLP(64 -> 32,
              ReLU)
          posterior: q(z | x, y) = Normal(loc, scale) of shape (2,) from MLP(74 -> 32, ReLU)
    """

    density = "q"
    factors = {"classifier": "y | x", "posterior": "z | x, y"}

    def __init__(
        self,
        classifier: Callable[[Tensor], Distribution],
        posterior: Callable[[Tensor, Tensor], Distribution],
        *,
        num_labelled: int = 0,
        num_unlabelled: int = 0,
        enumerate: bool = True,
    ) -> None:
        super().__init__()
        self.classifier = as_conditional("classifier", classifier)
        self.posterior = as_conditional("posterior", posterior)
        self.num_labelled = as_count("num_labelled", num_labelled, 0)
        self.num_unlabelled = as_count("num_unlabelled", num_unlabelled, 0)
        self.enumerate = enumerate

    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        unlabelled: Tensor | None = None,
    ) -> Tensor | None:
        """Samples z given x and y, and the missing labels given x."""
        if unlabelled is not None:
            with self._rows(unlabelled, labelled=False):
                self.latent(unlabelled, suffix="_unlabelled")

        if x is None:
            return None
        with self._rows(x, labelled=y is not None):
            return self.latent(x, y)

    def latent(self, x: Tensor, y: Tensor | None = None, suffix: str = "") -> Tensor:
        """Samples z, and y if it is not given, in the plate that is open."""
        if y is None:
            classes = self.classifier(x)
            summed = self.enumerate and classes.has_enumerate_support
            y = pyro.sample(
                f"y{suffix}", classes, infer={"enumerate": "parallel"} if summed else None
            )
        return pyro.sample(f"z{suffix}", self.posterior(x, y))

    def _rows(self, x: Tensor, labelled: bool) -> pyro.plate:
        """Returns the plate of rows x, a subsample of the data with or without labels."""
        if labelled:
            return pyro.plate("labelled", max(self.num_labelled, len(x)), subsample=x)
        return pyro.plate("unlabelled", max(self.num_unlabelled, len(x)), subsample=x)
