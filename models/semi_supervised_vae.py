"""The semi-supervised variational autoencoder: the model."""

__all__ = ["SemiSupervisedVAE"]

from collections.abc import Callable

import pyro
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.distributions import as_conditional, as_discrete, as_prior
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class SemiSupervisedVAE(StochasticModule):
    r"""The generative half of a semi-supervised variational autoencoder (M2).

    .. math:: p(x, y, z) = p(x \mid z, y) \, p(y) \, p(z)

    A label y is observed if given, else latent. Sites:

    - ``y``, ``z``, ``x``: a one-hot label of K classes, the latent variable, the observation;
      in the plate ``labelled`` if labels are given, else in the plate ``unlabelled``;
    - ``y_unlabelled``, ``z_unlabelled``, ``x_unlabelled``: the same for the rows
      ``unlabelled``, in the plate ``unlabelled``.

    Under a bound on log p(x, y) and log p(x), given labels do not train the guide's
    classifier. The loss ``infer.SemiSupervised(ELBO())`` trains it on them too.

    Arguments:
        prior: The prior p(z): a distribution, or a module that returns one.
        label_prior: The prior p(y), likewise: of one-hot vectors, or of points of the simplex
            such as ``GumbelSoftmax``. A given label is scored by the one-hot distribution.
        likelihood: The likelihood p(x | z, y), such as a ``Conditional`` with the trunk
            ``MLP([50, 10], [500])``.
        num_labelled: The number of labelled data points, of which x is a subsample; by default
            the rows of x.
        num_unlabelled: The number of data points without labels, likewise. The guide needs
            both numbers too.

    Raises:
        ValueError: When called, if labels are not one-hot, or missing beside ``unlabelled``.

    References:
        Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised Learning with Deep
        Generative Models, arXiv:1406.5298.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> label_prior = default_prior(dist.OneHotCategorical, 10)
        >>> likelihood = Conditional(dist.Bernoulli, MLP([2, 10], [32]), 64)
        >>> p = SemiSupervisedVAE(default_prior(dist.Normal, 2), label_prior, likelihood)
        >>> p
        SemiSupervisedVAE: p(x, y, z) = p(x | z, y) p(y) p(z)
          likelihood: p(x | z, y) = Bernoulli(logits) of shape (64,) from MLP(12 -> 32, ReLU)
          label_prior: p(y) = OneHotCategorical(logits=0) of shape (10,)
          prior: p(z) = Normal(loc=0, scale=1) of shape (2,)
        >>> p(batch_size=5).shape
        torch.Size([5, 64])
    """

    density = "p"
    factors = {"likelihood": "x | z, y", "label_prior": "y", "prior": "z"}

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        label_prior: Distribution | Callable[..., Distribution],
        likelihood: Callable[[Tensor, Tensor], Distribution],
        *,
        num_labelled: int = 0,
        num_unlabelled: int = 0,
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.label_prior = as_prior(label_prior)
        self.likelihood = as_conditional("likelihood", likelihood)
        self.num_labelled = as_count("num_labelled", num_labelled, 0)
        self.num_unlabelled = as_count("num_unlabelled", num_unlabelled, 0)

    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        unlabelled: Tensor | None = None,
        *,
        batch_size: int = 1,
    ) -> Tensor | None:
        """Samples z and the missing labels, and observes x and the rows ``unlabelled``.

        Without any rows, it generates x: one for each row of y, or ``batch_size``.
        """
        _check_labels(x, y, unlabelled)
        if unlabelled is not None:
            with self._rows(unlabelled, labelled=False):
                self.joint(unlabelled, suffix="_unlabelled")
        elif x is None:
            with pyro.plate("labelled", batch_size if y is None else len(y)):
                return self.joint(y=y)

        if x is None:
            return None
        with self._rows(x, labelled=y is not None):
            return self.joint(x, y)

    def joint(
        self, x: Tensor | None = None, y: Tensor | None = None, suffix: str = ""
    ) -> Tensor:
        """Samples or observes y, z and x, in the plate that is open."""
        label_prior = self.label_prior()
        if y is not None:
            label_prior = as_discrete(label_prior)
        y = pyro.sample(f"y{suffix}", label_prior, obs=y)
        z = pyro.sample(f"z{suffix}", self.prior())
        return pyro.sample(f"x{suffix}", self.likelihood(z, y), obs=x)

    def _rows(self, x: Tensor, labelled: bool) -> pyro.plate:
        """Returns the plate of rows x, a subsample of the data with or without labels."""
        if labelled:
            return pyro.plate("labelled", max(self.num_labelled, len(x)), subsample=x)
        return pyro.plate("unlabelled", max(self.num_unlabelled, len(x)), subsample=x)


def _check_labels(x: Tensor | None, y: Tensor | None, unlabelled: Tensor | None) -> None:
    if y is not None and y.dim() != 2:
        raise ValueError(
            f"y must be one-hot, of shape (B, K), got {tuple(y.shape)}: give"
            " one_hot(y, K).float()."
        )
    if x is not None and y is None and unlabelled is not None:
        raise ValueError(
            "y is missing for the rows x beside unlabelled: give the labels y, or all rows as"
            " unlabelled."
        )
