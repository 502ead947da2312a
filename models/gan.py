"""The generative adversarial network: the generator."""

__all__ = ["GAN"]

from tarspyro.models.vae import VAE


class GAN(VAE):
    r"""The generator of a generative adversarial network, a model of the same form as ``VAE``.

    .. math:: p(x, z) = p(x \mid z) \, p(z), \qquad p(x \mid z) = \delta(x - G(z))

    It is trained without a guide by ``infer.Adversarial``, which draws from it and never asks
    for a density; the likelihood may be any whose draws have a derivative. Sites, in the plate
    ``data`` of size :math:`B`:

    - ``z``: the noise, of the prior's event shape;
    - ``x``: what is generated, of the likelihood's event shape.

    Arguments:
        prior: The law of the noise p(z): any distribution, such as a Normal or a Uniform, or a
            module that returns one.
        likelihood: The generator, such as a ``Deterministic``.

    References:
        Goodfellow et al. (2014), Generative Adversarial Networks, arXiv:1406.2661.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from tarspyro import Deterministic
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> generator = Deterministic(MLP(10, [32]), 64, transform=torch.nn.Sigmoid())
        >>> p = GAN(default_prior(dist.Normal, 10), generator)
        >>> p
        GAN: p(x, z) = p(x | z) p(z)
          likelihood: p(x | z) = Deterministic of shape (64,) from MLP(10 -> 32, ReLU)
          prior: p(z) = Normal(loc=0, scale=1) of shape (10,)
        >>> p(batch_size=5).shape
        torch.Size([5, 64])
    """
