"""Posteriors with an auxiliary variable that is integrated out."""

__all__ = ["SemiImplicit"]

from collections.abc import Callable

from torch import Tensor, nn
from torch.distributions import Distribution

from tarspyro.arguments import as_count, check_module
from tarspyro.conditional import Interface
from tarspyro.distributions import as_prior
from tarspyro.distributions.semi_implicit import SemiImplicitDistribution
from tarspyro.modules import Configurable


class SemiImplicit(Configurable, Interface):
    r"""A posterior with an auxiliary variable that is integrated out.

    .. math:: q(z \mid x) = \int q(z \mid \psi, x) \, q(\psi \mid x) \, \mathrm{d} \psi

    A mixture of infinitely many simple posteriors, it may be skewed, or have several modes. Its
    density is estimated from K draws of a reverse model :math:`\tau(\psi \mid z, x)`, too large
    in the mean. So ``ELBO`` stays a lower bound, which grows with K to that of q(z | x) itself;
    ``IWAE`` too (doubly importance weighted). Without a reverse model the draws come from
    :math:`q(\psi \mid x)`, and more of them are needed.

    Losses and evaluations that need the density of a given z refuse it, because the auxiliary
    variable of a copy is not known: ``"stl"``, ``"dreg"``, ``PIWAE``, ``ReweightedWakeSleep``,
    ``FDivergence``, ``TVO``, and of ``impute`` all but pseudo-Gibbs.

    The reverse model is trained with the guide. There is no mean in closed form, so ``embed``
    needs ``num_samples``.

    Arguments:
        auxiliary: :math:`q(\psi \mid x)`: a ``Conditional`` of x; or :math:`q(\psi)`, a
            distribution or a module that returns one. Reparameterized.
        posterior: :math:`q(z \mid \psi, x)`, such as a ``Conditional`` of an ``MLP`` with two
            inputs. Reparameterized.
        reverse: :math:`\tau(\psi \mid z, x)`, likewise; None for :math:`q(\psi \mid x)`.
        num_draws: K, the number of draws from the reverse model for each draw of z. With none,
            and a reverse model, this is a hierarchical variational model.

    Raises:
        TypeError: If ``posterior`` or ``reverse`` is not a module, or ``num_draws`` is not a
            whole number.
        ValueError: If ``num_draws`` is negative, or there are no draws and no reverse model.

    References:
        Ranganath et al. (2016), Hierarchical Variational Models, arXiv:1511.02386; Yin and Zhou
        (2018), Semi-Implicit Variational Inference, arXiv:1805.11183; Sobolev and Vetrov (2019),
        Importance Weighted Hierarchical Variational Inference, arXiv:1905.03290.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from tarspyro import Conditional, guides
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> posterior = Conditional(dist.Normal, MLP([3, 64], [32]), 2)
        >>> reverse = Conditional(dist.Normal, MLP([2, 64], [32]), 3)
        >>> q = guides.VAE(SemiImplicit(default_prior(dist.Normal, 3), posterior, reverse))
        >>> q(torch.zeros(5, 64)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        auxiliary: Distribution | Callable[..., Distribution],
        posterior: nn.Module,
        reverse: nn.Module | None = None,
        num_draws: int = 10,
    ) -> None:
        super().__init__()
        check_module("posterior", posterior)
        if reverse is not None:
            check_module("reverse", reverse)
        self.num_draws = as_count("num_draws", num_draws, 0 if reverse is not None else 1)
        self.auxiliary = as_prior(auxiliary, "auxiliary")
        self.posterior = posterior
        self.reverse = reverse

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution given the context values."""
        return SemiImplicitDistribution(
            self.auxiliary(*context),
            _Given(self.posterior, context),
            None if self.reverse is None else _Given(self.reverse, context),
            self.num_draws,
        )

    def __repr__(self) -> str:
        reverse = "" if self.reverse is None else f", reverse {self.reverse!r}"
        return f"{self.posterior!r}, auxiliary {self.auxiliary!r}{reverse}"


class _Given:
    """A conditional distribution as a function of its first value.

    Arguments:
        conditional: The distribution.
        context: The values that come after the first.
    """

    def __init__(
        self, conditional: Callable[..., Distribution], context: tuple[Tensor, ...]
    ) -> None:
        self.conditional = conditional
        self.context = context

    def __call__(self, value: Tensor) -> Distribution:
        return self.conditional(value, *self.context)
