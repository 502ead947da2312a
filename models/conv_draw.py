"""Convolutional DRAW: the model."""

__all__ = ["ConvDRAW"]

from tarspyro.models.draw import DRAW


class ConvDRAW(DRAW):
    r"""The generative half of convolutional DRAW.

    .. math:: p(x, z_{0:T}) = p(x \mid c_{T-1}) \prod_{t=0}^{T-1} p(z_t \mid h_{t-1}), \qquad
              h_t = \mathrm{cell}(z_t, c_{t-1}, h_{t-1}), \quad
              c_t = c_{t-1} + \mathrm{write}(h_t)

    States and latent variables are maps, and the prior is learned. The class is ``DRAW`` with
    the same arguments and sites, and other parts: a ``ConvLSTMCell``, ``ConvWrite``, and a
    ``view`` of the canvas if the cell takes c_{t-1}.

    References:
        Gregor et al. (2016), Towards Conceptual Compression, arXiv:1604.08772, section 2.2.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import Canvas, ConvLSTMCell, ConvWrite
        >>> from tarspyro.nn import FeatureMap, IdentityTrunk, Recurrence
        >>> write = ConvWrite((16, 4, 4), (1, 8, 8))
        >>> canvas = Canvas(Recurrence(ConvLSTMCell(2, (16, 4, 4))), write)
        >>> prior = Conditional(dist.Normal, FeatureMap((16, 4, 4)), (2, 4, 4))
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> p = ConvDRAW(prior, canvas, likelihood, steps=4)
        >>> p
        ConvDRAW: p(x, z_t, c_t | h_{t-1}, c_{t-1}) = p(x | c_t) p(z_t | h_{t-1}) p(c_t | z_t,
            c_{t-1})
          likelihood: p(x | c_t) = Bernoulli(logits) of shape (64,) from IdentityTrunk(1x8x8)
          prior: p(z_t | h_{t-1}) = Normal(loc, scale) of shape (2, 4, 4) from
              FeatureMap(16x4x4)
          canvas: p(c_t | z_t, c_{t-1}) = ConvWrite(16x4x4 -> 1x8x8) after ConvLSTMCell(2x4x4
              -> 16x4x4)
    """
