"""Networks and distributions of which the methods of the command line build their pairs."""

__all__ = [
    "bernoulli_likelihood",
    "decoder",
    "deterministic_pair",
    "encoder",
    "family_named",
    "mlp",
    "normal",
    "normal_likelihood",
    "standard_normal",
    "trunks",
]

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn

import tarspyro.distributions
from tarspyro import Conditional, Deterministic, guides, models
from tarspyro.distributions import Prior, default_prior
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder

# The shape of an input of a network, or of a latent variable.
Shape = int | tuple[int, ...]


def mlp(hidden: Sequence[int], *inputs: Shape, **options: Any) -> MLP:
    """Returns a network of one input or of several, with options of ``MLP``."""
    return MLP(inputs[0] if len(inputs) == 1 else list(inputs), list(hidden), **options)


def encoder(hidden: Sequence[int], *inputs: Shape) -> MLP:
    """Returns the network of a guide."""
    return mlp(hidden, *inputs)


def decoder(hidden: Sequence[int], *inputs: Shape) -> MLP:
    """Returns the network of a model, with the layers of the encoder in reverse."""
    return mlp(hidden[::-1], *inputs)


def trunks(
    kind: str, shape: tuple[int, ...], latent: int, hidden: Sequence[int]
) -> tuple[nn.Module, nn.Module]:
    """Returns an encoder and a decoder of the kind that ``--trunk`` names."""
    if kind == "mlp":
        return encoder(hidden, shape), decoder(hidden, latent)
    return ConvEncoder(shape, [32, 64]), ConvDecoder(latent, shape, [64, 32])


def bernoulli_likelihood(
    trunk: nn.Module, shape: tuple[int, ...], *, grey: bool
) -> Conditional:
    """Returns a Bernoulli distribution of pixels."""
    if grey:
        # The log-probability of a grey value is a cross-entropy. It is outside the support.
        return Conditional(dist.Bernoulli, trunk, shape, validate_args=False)
    return Conditional(dist.Bernoulli, trunk, shape)


def normal_likelihood(
    trunk: nn.Module, shape: tuple[int, ...], scale: float | None
) -> Conditional:
    """Returns a Normal distribution of pixels; a scale of None is learned."""
    return Conditional(
        dist.Normal,
        trunk,
        shape,
        scale=nn.Parameter(torch.tensor(0.1)) if scale is None else scale,
    )


def normal(trunk: nn.Module, latent: Shape) -> Conditional:
    """Returns a Normal distribution of the latent variable, given the inputs of the trunk."""
    return Conditional(dist.Normal, trunk, latent)


def standard_normal(latent: int) -> Prior:
    """Returns the standard Normal prior of the latent variable."""
    return default_prior(dist.Normal, latent)


def deterministic_pair(
    shape: tuple[int, ...], latent: int, hidden: Sequence[int], scale: float
) -> tuple[models.VAE, guides.VAE]:
    """Returns a VAE whose guide is deterministic, for losses that match codes with the prior."""
    posterior = Deterministic(encoder(hidden, shape), latent)
    likelihood = normal_likelihood(decoder(hidden, latent), shape, scale)
    return models.VAE(standard_normal(latent), likelihood), guides.VAE(posterior)


def family_named(name: str) -> type[TorchDistribution]:
    """Returns the latent family that ``--family`` names.

    Raises:
        ValueError: If there is none of this name.
    """
    found = getattr(tarspyro.distributions, name, None) or getattr(dist, name, None)
    if found is None:
        raise ValueError(
            f"--family {name}: neither tarspyro.distributions nor pyro.distributions has it."
        )
    family: type[TorchDistribution] = found
    return family
