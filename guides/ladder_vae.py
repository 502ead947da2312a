"""The ladder variational autoencoder: the guide."""

__all__ = ["LadderVAE"]

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from tarspyro.arguments import as_module_list
from tarspyro.distributions import ProductOfExperts
from tarspyro.modules import StochasticModule


class LadderVAE(StochasticModule):
    r"""The inference half of a ladder variational autoencoder.

    .. math:: q(z_1, \dots, z_L \mid x) = q(z_L \mid x) \, q(z_{L-1} \mid z_L, x) \cdots
              q(z_1 \mid z_2, x)

    A deterministic upward pass computes features d_i of the data, and a Normal
    :math:`\hat q_i` from the features of each layer. The downward pass multiplies it with the
    model's conditional and samples the product:

    .. math:: d_0 = x, \quad d_i = \mathrm{encoder}_i(d_{i-1}), \qquad
              q(z_L \mid x) = \hat q_L(z_L \mid d_L), \quad
              q(z_i \mid z_{i+1}, x) \propto \hat q_i(z_i \mid d_i) \, p(z_i \mid z_{i+1})

    The layers are sampled in the model's order, so the ELBO can use the KL of every layer in
    closed form. The paper trains with batch normalization, ``MLP(...,
    normalization=nn.BatchNorm1d)``, and warm-up, ``fit(..., schedules={"beta": lambda step:
    min(1.0, step / num_steps)})``.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z_L``, ..., ``z_1``: the latent variables, of the posteriors' event shapes; ``z_1`` is
      next to the data.

    Arguments:
        encoders: The networks of the upward pass, that of :math:`d_1` first: any modules.
        posteriors: The Normal distributions :math:`\hat q_1, \dots, \hat q_L`, such as
            ``Conditional`` modules; linear in the features in the paper, ``Conditional(Normal,
            MLP(512, []), 64)``.
        conditionals: The layers p(z_1 | z_2), ..., p(z_{L-1} | z_L): the model's own modules,
            not copies.

    Raises:
        TypeError: If an argument is not a list of modules.
        ValueError: If their lengths are not L, L and L - 1; when called, if a distribution is
            not Normal.

    References:
        Sonderby et al. (2016), Ladder Variational Autoencoders, arXiv:1602.02282, section 2.1.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> between = Conditional(dist.Normal, MLP(2, [16]), 4)
        >>> likelihood = Conditional(dist.Bernoulli, MLP(4, [32]), 64)
        >>> p = models.LadderVAE(default_prior(dist.Normal, 2), [between], likelihood)
        >>> encoders = [MLP(64, [32]), MLP(32, [16])]
        >>> lower = Conditional(dist.Normal, MLP(32, []), 4)
        >>> posteriors = [lower, Conditional(dist.Normal, MLP(16, []), 2)]
        >>> q = LadderVAE(encoders, posteriors, p.conditionals)
        >>> q.formula
        'q(z_2, z_1 | x) = q(z_2 | x) q(z_1 | z_2, x)'
        >>> q.conditionals[0] is p.conditionals[0]
        True
    """

    density = "q"

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        posteriors: Sequence[nn.Module],
        conditionals: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.encoders = as_module_list("encoders", encoders)
        self.posteriors = as_module_list("posteriors", posteriors)
        self.conditionals = as_module_list("conditionals", conditionals)
        top = len(self.posteriors)
        if not top or len(self.encoders) != top or len(self.conditionals) != top - 1:
            raise ValueError(
                "encoders, posteriors and conditionals must have L, L and L - 1 modules for L"
                f" layers, got {len(self.encoders)}, {top} and {len(self.conditionals)}."
            )
        factors = {f"posteriors.{top - 1}": f"z_{top} | x"}
        for i in reversed(range(top - 1)):
            factors[f"posteriors.{i} * conditionals.{i}"] = f"z_{i + 1} | z_{i + 2}, x"
        self.factors = factors

    def forward(self, x: Tensor) -> list[Tensor]:
        """Samples z_L, ..., z_1 given x; returns the draws, z_1 first."""
        d = x
        features = []
        for encoder in self.encoders:
            d = encoder(d)
            features.append(d)

        # The top layer has no conditional, so ``zip`` stops before it.
        below = list(zip(features, self.posteriors, self.conditionals, strict=False))
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{len(features)}", self.posteriors[-1](d))
            draws = [z]
            for i, (d, posterior, conditional) in reversed(list(enumerate(below, start=1))):
                prior = conditional(z)
                z = pyro.sample(f"z_{i}", ProductOfExperts([posterior(d)], prior=prior))
                draws.append(z)
        return draws[::-1]
