"""The semi-supervised variational autoencoder: the model."""

__all__ = ["SemiSupervisedVAE"]

from collections.abc import Callable
from typing import Any

import pyro
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.distributions import as_conditional, as_discrete, as_prior
from tarspyro.modules import StochasticModule


class SemiSupervisedVAE(StochasticModule):
    r"""The generative half of a semi-supervised variational autoencoder (M2), whose labels are
    latent where missing.

    .. math:: p(x, y, z) = p(x \mid z, y) \, p(y) \, p(z)

    Sites:

    - ``y``, ``z``, ``x``: a one-hot label of K classes, the latent variable, the observation;
      in the plate ``labelled`` where labels are given, else in the plate ``unlabelled``, with
      ``y`` latent;
    - ``y_unlabelled``, ``z_unlabelled``, ``x_unlabelled``: the same of the rows
      ``unlabelled``, in the plate ``unlabelled``.

    A given label teaches the guide's classifier nothing under a bound of log p(x, y) and log
    p(x): the loss that also trains it on the labels is ``infer.SemiSupervised(ELBO())``.

    Arguments:
        prior: The prior p(z): a distribution, or a module that returns one.
        label_prior: The prior p(y), likewise: of one-hot vectors, or of points of the simplex
            such as ``GumbelSoftmax``, which stands for the one-hot vector where the label is
            given.
        likelihood: The likelihood p(x | z, y), such as a ``Conditional`` with the trunk
            ``MLP([50, 10], [500])``.
        num_labelled: How many labelled data points there are, of which x is a subsample; the
            rows of x if not given.
        num_unlabelled: How many there are without labels, likewise. The guide needs both
            numbers too.

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
        >>> likelihood = Conditional(dist.Bernoulli, MLP([2, 10], [32]), 64)
        >>> p = SemiSupervisedVAE(default_prior(dist.Normal, 2), default_prior(dist.OneHotCategorical, 10), likelihood)
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
        prior: Any,
        label_prior: Any,
        likelihood: Callable[[Tensor, Tensor], Any],
        *,
        num_labelled: int = 0,
        num_unlabelled: int = 0,
    ) -> None:
        super().__init__()
        self.prior, self.label_prior = as_prior(prior), as_prior(label_prior)
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
        """Samples z, and y where it is not given, and observes x; without any x generates it,
        also from given y.
        """
        if y is not None and y.dim() != 2:
            raise ValueError(
                f"y must be one-hot, of shape (B, K), got {tuple(y.shape)}: one_hot(y,"
                " K).float()."
            )
        if unlabelled is not None:
            if x is not None and y is None:
                raise ValueError(
                    "y is missing: give the labels of x, or all rows as unlabelled."
                )
            with pyro.plate(
                "unlabelled", max(self.num_unlabelled, len(unlabelled)), subsample=unlabelled
            ):
                self.joint(unlabelled, suffix="_unlabelled")
        if x is None:
            if unlabelled is not None:
                return None
            with pyro.plate("labelled", batch_size if y is None else len(y)):
                return self.joint(y=y)
        if y is None:
            with pyro.plate("unlabelled", max(self.num_unlabelled, len(x)), subsample=x):
                return self.joint(x)
        with pyro.plate("labelled", max(self.num_labelled, len(x)), subsample=x):
            return self.joint(x, y)

    def joint(
        self, x: Tensor | None = None, y: Tensor | None = None, suffix: str = ""
    ) -> Tensor:
        """Samples or observes y, z and x of the rows of a plate."""
        label_prior = self.label_prior()
        y = pyro.sample(
            f"y{suffix}", label_prior if y is None else as_discrete(label_prior), obs=y
        )
        z = pyro.sample(f"z{suffix}", self.prior())
        return pyro.sample(f"x{suffix}", self.likelihood(z, y), obs=x)
