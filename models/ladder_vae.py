"""The ladder variational autoencoder: the model."""

__all__ = ["LadderVAE"]

from tarspyro.models.hierarchical_vae import HierarchicalVAE


class LadderVAE(HierarchicalVAE):
    r"""The generative half of a ladder variational autoencoder, a chain of latent variables as
    ``HierarchicalVAE``.

    .. math:: p(x, z_1, \dots, z_L) = p(x \mid z_1) \, p(z_1 \mid z_2) \cdots p(z_{L-1} \mid z_L) \, p(z_L)

    Sites, in the plate ``data`` of size :math:`B`: ``z_L``, ..., ``z_1`` and ``x``. What makes
    it a ladder is the guide, which takes ``conditionals`` of this half as its own.

    Arguments:
        prior: The prior of the top layer, p(z_L): a distribution, or a module that returns
            one.
        conditionals: The Normal layers between, p(z_1 | z_2) first, such as ``Conditional``
            modules; L is one more.
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
        >>> p = LadderVAE(default_prior(dist.Normal, 2), [between], Conditional(dist.Bernoulli, MLP(4, [32]), 64))
        >>> p.formula
        'p(x, z_1, z_2) = p(x | z_1) p(z_1 | z_2) p(z_2)'
    """
