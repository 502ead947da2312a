"""The generative adversarial network: the generator."""

__all__ = ["GAN"]

from tarspyro.models.vae import VAE


class GAN(VAE):
    r"""The generator of a generative adversarial network.

    .. math:: p(x, z) = p(x \mid z) \, p(z), \qquad p(x \mid z) = \delta(x - G(z))

    The model has the form of ``VAE``. ``infer.Adversarial`` trains it without a guide and
    without a density: it needs only a likelihood with reparameterized samples. Sites, in the
    plate ``data`` of size :math:`B`:

    - ``z``: the noise, of the prior's event shape;
    - ``x``: the generated data, of the likelihood's event shape.

    Arguments:
        prior: The distribution of the noise, p(z), such as a Normal or a Uniform, or a module
            that returns one.
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
