"""Noise on inputs in training mode: the corruption of denoising autoencoders."""

__all__ = ["GaussianNoise", "MaskingNoise"]

import torch
from torch import Tensor

from tarspyro.arguments import check_number
from tarspyro.modules import Configurable


class GaussianNoise(Configurable):
    r"""Gaussian noise in training mode; in evaluation mode the identity.

    .. math:: \tilde{x} = x + \sigma \epsilon, \qquad \epsilon \sim \mathcal{N}(0, I)

    Arguments:
        scale: :math:`\sigma`, the standard deviation.

    Raises:
        ValueError: If ``scale`` is negative.

    Example:
        >>> GaussianNoise(0.5).eval()(torch.ones(3))
        tensor([1., 1., 1.])
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        check_number("scale", scale, 0)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input with noise."""
        return x + self.scale * torch.randn_like(x) if self.training else x

    def extra_repr(self) -> str:
        """Returns the standard deviation as text."""
        return f"scale={self.scale}"


class MaskingNoise(Configurable):
    r"""Masking noise in training mode, which sets inputs to zero; in evaluation mode the identity.

    .. math:: \tilde{x}_i = m_i x_i, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)

    (Vincent et al. 2008, section 2.3.) Unlike ``torch.nn.Dropout`` it does not rescale the
    other inputs.

    Arguments:
        p: The probability that an input is set to zero.

    Raises:
        ValueError: If ``p`` is not from 0 to 1.

    Example:
        >>> MaskingNoise(0.25)(torch.ones(1000)).unique()
        tensor([0., 1.])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        check_number("p", p, 0, 1)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input with masked entries set to zero."""
        return x * torch.bernoulli(torch.full_like(x, 1 - self.p)) if self.training else x

    def extra_repr(self) -> str:
        """Returns the probability as text."""
        return f"p={self.p}"
