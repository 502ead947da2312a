"""Networks and distributions of which the methods of the command line build their pairs."""

__all__ = [
    "bernoulli",
    "categorical",
    "decoder",
    "deterministic_pair",
    "encoder",
    "family_named",
    "mlp",
    "normal",
    "standard_normal",
    "trunks",
    "with_scale",
]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tarspyro

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from torch import nn

    from tarspyro import Conditional, guides, models
    from tarspyro.distributions import Prior
    from tarspyro.nn import MLP

# The shape of an input of a network, or of a latent variable.
Shape = int | tuple[int, ...]


def mlp(hidden: Sequence[int], *inputs: Shape, **options: Any) -> "MLP":
    """Returns a network of one input or of several, with options of ``MLP``."""
    shapes = inputs[0] if len(inputs) == 1 else list(inputs)
    return tarspyro.nn.MLP(shapes, list(hidden), **options)


def encoder(hidden: Sequence[int], *inputs: Shape) -> "MLP":
    """Returns the network of a guide."""
    return mlp(hidden, *inputs)


def decoder(hidden: Sequence[int], *inputs: Shape) -> "MLP":
    """Returns the network of a model, with the layers of the encoder in reverse."""
    return mlp(hidden[::-1], *inputs)


def trunks(
    kind: str, shape: tuple[int, ...], latent: int, hidden: Sequence[int]
) -> "tuple[nn.Module, nn.Module]":
    """Returns an encoder and a decoder of the kind that ``--trunk`` names."""
    if kind == "mlp":
        return encoder(hidden, shape), decoder(hidden, latent)
    return (
        tarspyro.nn.ConvEncoder(shape, [32, 64]),
        tarspyro.nn.ConvDecoder(latent, shape, [64, 32]),
    )


def bernoulli(trunk: "nn.Module", shape: tuple[int, ...], *, grey: bool) -> "Conditional":
    """Returns a Bernoulli distribution of pixels."""
    from pyro.distributions import Bernoulli

    if grey:
        # The log-probability of a grey value is a cross-entropy. It is outside the support.
        return tarspyro.Conditional(Bernoulli, trunk, shape, validate_args=False)
    return tarspyro.Conditional(Bernoulli, trunk, shape)


def with_scale(
    trunk: "nn.Module", shape: tuple[int, ...], scale: float | None, *, initial: float = 0.1
) -> "Conditional":
    """Returns a Normal distribution with one scale for all elements. A scale of None is
    learned, from ``initial`` on.
    """
    import torch
    from pyro.distributions import Normal

    value = torch.nn.Parameter(torch.tensor(initial)) if scale is None else scale
    return tarspyro.Conditional(Normal, trunk, shape, scale=value)


def normal(trunk: "nn.Module", latent: Shape) -> "Conditional":
    """Returns a Normal distribution of the latent variable, given the inputs of the trunk."""
    from pyro.distributions import Normal

    return tarspyro.Conditional(Normal, trunk, latent)


def standard_normal(latent: int) -> "Prior":
    """Returns the standard Normal prior of the latent variable."""
    from pyro.distributions import Normal

    return tarspyro.distributions.default_prior(Normal, latent)


def categorical(trunk: "nn.Module", num_classes: int) -> "Conditional":
    """Returns a distribution of one-hot labels, given the inputs of the trunk."""
    from pyro.distributions import OneHotCategorical

    return tarspyro.Conditional(OneHotCategorical, trunk, num_classes)


def deterministic_pair(
    shape: tuple[int, ...], latent: int, hidden: Sequence[int], scale: float
) -> "tuple[models.VAE, guides.VAE]":
    """Returns a VAE whose guide is deterministic, for losses that match codes with the prior."""
    posterior = tarspyro.Deterministic(encoder(hidden, shape), latent)
    likelihood = with_scale(decoder(hidden, latent), shape, scale)
    model = tarspyro.models.VAE(standard_normal(latent), likelihood)
    return model, tarspyro.guides.VAE(posterior)


def family_named(name: str) -> "type[TorchDistribution]":
    """Returns the latent family that ``--family`` names.

    Raises:
        ValueError: If there is none of this name.
    """
    import pyro.distributions as dist

    found = getattr(tarspyro.distributions, name, None) or getattr(dist, name, None)
    if found is None:
        raise ValueError(
            f"--family {name}: neither tarspyro.distributions nor pyro.distributions has it."
        )
    family: type[TorchDistribution] = found
    return family
