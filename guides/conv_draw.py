"""Convolutional DRAW: the guide."""

__all__ = ["ConvDRAW"]

from tarspyro.guides.draw import DRAW


class ConvDRAW(DRAW):
    r"""The inference half of convolutional DRAW.

    .. math:: q(z_{0:T} \mid x) = \prod_{t=0}^{T-1} q(z_t \mid g_t)

    States and latent variables are maps. The class is ``DRAW`` with the same arguments and
    sites, and other parts: a ``ConvLSTMCell``, ``ConvRead``, and a posterior whose parameters
    are convolutions of the encoder's hidden maps.

    References:
        Gregor et al. (2016), Towards Conceptual Compression, arXiv:1604.08772, section 2.2.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import Canvas, ConvLSTMCell, ConvRead, ConvWrite
        >>> from tarspyro.nn import FeatureMap, IdentityTrunk, Recurrence
        >>> write = ConvWrite((16, 4, 4), (1, 8, 8))
        >>> canvas = Canvas(Recurrence(ConvLSTMCell(2, (16, 4, 4))), write)
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> encoder = Recurrence(ConvLSTMCell(8 + 16, (16, 4, 4)))
        >>> read = ConvRead((1, 8, 8), 8, stride=2)
        >>> posterior = Conditional(dist.Normal, FeatureMap((16, 4, 4)), (2, 4, 4))
        >>> q = ConvDRAW(posterior, encoder, read, canvas, likelihood, steps=4)
        >>> pyro.poutine.trace(q).get_trace(torch.zeros(5, 64)).nodes["z_3"]["value"].shape
        torch.Size([5, 2, 4, 4])
    """
