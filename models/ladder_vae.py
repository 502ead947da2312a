"""The ladder variational autoencoder: the model."""

__all__ = ["LadderVAE"]

from tarspyro.models.hierarchical_vae import HierarchicalVAE


class LadderVAE(HierarchicalVAE):
    r"""The generative half of a ladder variational autoencoder.

    .. math:: p(x, z_1, \dots, z_L) = p(x \mid z_1) \, p(z_1 \mid z_2) \cdots
              p(z_{L-1} \mid z_L) \, p(z_L)

    The model is a ``HierarchicalVAE``. The ladder is in the guide, which shares the model's
    ``conditionals``. Sites, in the plate ``data`` of size :math:`B`: ``z_L``, ..., ``z_1`` and
    ``x``.

    Arguments:
        prior: The prior of the top layer, p(z_L): a distribution, or a module that returns
            one.
        conditionals: The L - 1 Normal layers in between, p(z_1 | z_2) first, such as
            ``Conditional`` modules.
        likelihood: The likelihood p(x | z_1), such as a ``Conditional``.

    Raises:
        TypeError: If ``conditionals`` is not a list of modules.

    References:
        Sonderby et al. (2016), Ladder Variational Autoencoders, arXiv:1602.02282, section 2.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> between = Conditional(dist.Normal, MLP(2, [16]), 4)
        >>> likelihood = Conditional(dist.Bernoulli, MLP(4, [32]), 64)
        >>> p = LadderVAE(default_prior(dist.Normal, 2), [between], likelihood)
        >>> p.formula
        'p(x, z_1, z_2) = p(x | z_1) p(z_1 | z_2) p(z_2)'
    """
