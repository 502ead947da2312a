"""The conditional multimodal autoencoder: the guide."""

__all__ = ["CMMA"]

from tarspyro.guides.conditional_vae import ConditionalVAE


class CMMA(ConditionalVAE):
    r"""The inference half of a conditional multimodal autoencoder.

    .. math:: q(z \mid x, y)

    The guide is that of ``ConditionalVAE``. Sites, in the plate ``data`` of size :math:`B`:
    ``z``, of the posterior's event shape.

    Arguments:
        posterior: The approximate posterior q(z | x, y), such as a ``Conditional`` whose trunk
            takes x and y.

    References:
        Pandey and Dukkipati (2016), Variational Methods for Conditional Multimodal Deep
        Learning, arXiv:1603.01801.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> CMMA(Conditional(dist.Normal, MLP([64, 10], [32]), 2)).formula
        'q(z | x, y)'
    """
