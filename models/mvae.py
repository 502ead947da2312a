"""The multimodal variational autoencoder: the model."""

__all__ = ["MVAE"]

from tarspyro.models.jmvae import JMVAE


class MVAE(JMVAE):
    r"""The generative half of a multimodal variational autoencoder.

    .. math:: p(x_1, \dots, x_M, z) = p(z) \prod_{m=1}^M p(x_m \mid z)

    The model is that of ``JMVAE``. The guides differ: that of ``MVAE`` combines one expert for
    each modality, so any modality may be missing. Sites, in the plate ``data`` of size
    :math:`B`: ``z`` and ``x_1``, ..., ``x_M``.

    Arguments:
        prior: The prior p(z): a distribution, or a module that returns one.
        likelihoods: The likelihoods p(x_1 | z), ..., p(x_M | z), such as ``Conditional``
            modules.

    Raises:
        TypeError: If ``likelihoods`` is not a list of modules.
        ValueError: When called, if there is not one modality for each likelihood.

    References:
        Wu and Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised
        Learning, arXiv:1802.05335; Shi et al. (2019), Variational Mixture-of-Experts
        Autoencoders, arXiv:1911.03393.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> image = Conditional(dist.Bernoulli, MLP(2, [32]), 64)
        >>> label = Conditional(dist.OneHotCategorical, MLP(2, [8]), 10)
        >>> MVAE(default_prior(dist.Normal, 2), [image, label]).formula
        'p(x_1, x_2, z) = p(x_1 | z) p(x_2 | z) p(z)'
    """
