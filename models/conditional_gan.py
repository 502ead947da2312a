"""The conditional generative adversarial network: the generator."""

__all__ = ["ConditionalGAN"]

from tarspyro.models.conditional_vae import ConditionalVAE


class ConditionalGAN(ConditionalVAE):
    r"""The generator of a conditional generative adversarial network.

    .. math:: p(x, z \mid y) = p(x \mid z, y) \, p(z), \qquad p(x \mid z, y) = \delta(x - G(z, y))

    The model has the form of ``ConditionalVAE``. The condition y (one-hot labels, an image to
    be translated) is not a site; ``infer.Adversarial`` passes it to the discriminator too.
    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the noise, of the prior's event shape;
    - ``x``: the generated data, of the likelihood's event shape.

    Arguments:
        prior: The distribution of the noise, p(z): a distribution, a ``Prior``, or a
            ``Conditional`` of y.
        likelihood: The generator, such as a ``Deterministic`` whose trunk takes z and y.

    Raises:
        ValueError: When called, if y is not given.

    References:
        Mirza and Osindero (2014), Conditional Generative Adversarial Nets, arXiv:1411.1784;
        Isola et al. (2017), Image-to-Image Translation with Conditional Adversarial Networks,
        arXiv:1611.07004.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from tarspyro import Deterministic
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> generator = Deterministic(MLP([8, 10], [32]), 64)
        >>> p = ConditionalGAN(default_prior(dist.Normal, 8), generator)
        >>> p
        ConditionalGAN: p(x, z | y) = p(x | z, y) p(z)
          likelihood: p(x | z, y) = Deterministic of shape (64,) from MLP(18 -> 32, ReLU)
          prior: p(z) = Normal(loc=0, scale=1) of shape (8,)
        >>> p(y=torch.eye(10)).shape  # one for each label
        torch.Size([10, 64])
    """
