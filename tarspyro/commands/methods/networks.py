"""Networks and distributions of which the methods of the command line build their pairs."""

__all__ = [
    "bernoulli",
    "categorical",
    "decoder",
    "deterministic_pair",
    "encoder",
    "family_named",
    "grey_pair",
    "likelihood_of",
    "mlp",
    "normal",
    "seeing",
    "standard_normal",
    "trunks",
    "with_scale",
]

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tarspyro
from tarspyro.commands.methods.forms import PreparedData

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from torch import Tensor, nn

    from tarspyro import Conditional, guides, models
    from tarspyro.distributions import Prior
    from tarspyro.nn import MLP

# The shape of an input of a network, or of a latent variable.
Shape = int | tuple[int, ...]
# Makes a distribution of a family, a trunk, a shape and parameters: a class such as Conditional.
Make = Callable[..., "nn.Module"]


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


def seeing(
    data: PreparedData, network: "Callable[..., nn.Module]", dim: int | None = None
) -> "nn.Module":
    """Returns a network of x, whose first layers suit a file of the user's own: counts come as
    logarithms, columns of several kinds standardized, gaps with a mask.

    Arguments:
        data: The data.
        network: Makes the network for an x of a shape; for gaps it is given the shape of a
            mask too, or more channels if there is a ``dim``.
        dim: The dimension of x along which values and mask are laid side by side.
    """
    from torch import nn

    shape = data.shape
    layout = data.layout
    if layout is None:
        return network(shape)
    if not layout.gaps:
        built = network(shape)
    elif dim is None:
        built = tarspyro.nn.WithGaps(network(shape, shape), shape)
    else:
        built = tarspyro.nn.WithGaps(network((2 * shape[0], *shape[1:])), shape, dim=dim)
    if layout.family in ("Poisson", "NegativeBinomial"):
        return nn.Sequential(tarspyro.nn.Log1p(), built)
    if layout.family == "Blocks":
        return nn.Sequential(tarspyro.nn.Standardize.of(data.train[0]), built)
    return built


def trunks(
    kind: str | None, data: PreparedData, latent: int, hidden: Sequence[int]
) -> "tuple[nn.Module, nn.Module]":
    """Returns an encoder and a decoder of the kind that ``--trunk`` names; by default
    convolutions for images of the user's own, and else perceptrons.
    """
    image = data.image_shape
    if kind is None:
        kind = "conv" if data.own is not None and image is not None else "mlp"
    if kind == "mlp":
        return seeing(data, lambda *x: encoder(hidden, *x)), decoder(hidden, latent)
    if image is None:
        raise ValueError(
            f"--trunk conv is for images, and {data.name} holds rows of shape {data.shape}:"
            " leave it out."
        )
    # Small images are halved twice at most, large ones to a side below eight.
    halvings = min(2 if data.own is None else 5, int(math.log2(max(4, min(image[1:]) / 2))))
    channels = [min(32 * 2**layer, 128) for layer in range(max(1, halvings))]
    if data.own is None:
        channels = [32, 64]
    return (
        seeing(data, lambda x: tarspyro.nn.ConvEncoder(x, channels), dim=0),
        tarspyro.nn.ConvDecoder(latent, image, channels[::-1]),
    )


def likelihood_of(
    family: str,
    trunk: "nn.Module",
    data: PreparedData,
    *,
    scale: float | None = None,
    grey: bool = False,
    make: Make | None = None,
) -> "nn.Module":
    """Returns p(x | inputs of the trunk).

    Arguments:
        family: The name of the family, or ``Blocks`` for columns of several kinds.
        trunk: The network.
        data: The data.
        scale: The scale of a Normal; learned if None.
        grey: Whether a Bernoulli takes grey values.
        make: What is made of a family, a trunk and a shape, ``Conditional`` if not given.
    """
    layout = data.layout
    make = make or tarspyro.Conditional
    if family == "Blocks":
        assert layout is not None, "only a file has columns of several kinds"
        built: nn.Module = _blocks(trunk, data, scale)
    elif family == "Normal":
        initial = 1.0 if layout is not None and layout.kind != "images" else 0.1
        built = with_scale(trunk, data.shape, scale, initial=initial, make=make)
    elif family == "Bernoulli":
        built = bernoulli(trunk, data.shape, grey=grey, make=make)
    elif family == "DiscretizedLogistic":
        logistic = tarspyro.distributions.DiscretizedLogistic
        built = make(logistic, trunk, data.shape)
    else:
        built = _counts(family, trunk, data.shape, data.train[0], make)

    gaps = layout is not None and layout.gaps
    return tarspyro.IncompleteLikelihood(built) if gaps else built


def _blocks(trunk: "nn.Module", data: PreparedData, scale: float | None) -> "nn.Module":
    """Returns the likelihood of a table with columns of several kinds."""
    assert data.layout is not None, "only a file has columns of several kinds"
    blocks: list[nn.Module] = []
    start = 0
    for kind, size in data.layout.blocks():
        part = data.train[0][:, start : start + size]
        start += size
        if kind == "category":
            blocks.append(categorical(trunk, size))
            continue
        if kind == "real":
            blocks.append(with_scale(trunk, (size,), scale, initial=1.0))
        elif kind == "binary":
            blocks.append(bernoulli(trunk, (size,), grey=False))
        else:
            blocks.append(_counts("NegativeBinomial", trunk, (size,), part))
    return tarspyro.Blocks(*blocks) if len(blocks) > 1 else blocks[0]


def _counts(
    family: str,
    trunk: "nn.Module",
    shape: tuple[int, ...],
    x: "Tensor",
    make: Make | None = None,
) -> "nn.Module":
    """Returns a Poisson, or a negative binomial with a learned dispersion of each element.

    The dispersion r starts at that of the data: the variance is the mean m plus m^2 / r.
    """
    import pyro.distributions as dist
    import torch

    make = make or tarspyro.Conditional
    if family == "Poisson":
        return make(dist.Poisson, trunk, shape)
    rows = x.reshape(-1, *shape)  # of sequences, their steps
    mean = rows.nanmean(0).nan_to_num(1.0)
    variance = (rows - mean).square().nanmean(0).nan_to_num(1.0)
    start = mean.square() / (variance - mean).clamp(min=1e-6)
    dispersion = torch.nn.Parameter(start.clamp(0.1, 100.0))
    return make(dist.NegativeBinomial, trunk, shape, total_count=dispersion)


def bernoulli(
    trunk: "nn.Module", shape: tuple[int, ...], *, grey: bool, make: Make | None = None
) -> "nn.Module":
    """Returns a Bernoulli distribution of pixels."""
    from pyro.distributions import Bernoulli

    # The log-probability of a grey value is a cross-entropy. It is outside the support.
    options: dict[str, Any] = {"validate_args": False} if grey else {}
    return (make or tarspyro.Conditional)(Bernoulli, trunk, shape, **options)


def with_scale(
    trunk: "nn.Module",
    shape: tuple[int, ...],
    scale: float | None,
    *,
    initial: float = 0.1,
    make: Make | None = None,
) -> "nn.Module":
    """Returns a Normal distribution with one scale for all elements. A scale of None is
    learned, from ``initial`` on.
    """
    import torch
    from pyro.distributions import Normal

    value = torch.nn.Parameter(torch.tensor(initial)) if scale is None else scale
    return (make or tarspyro.Conditional)(Normal, trunk, shape, scale=value)


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


def grey_pair(
    shape: tuple[int, ...], latent: int, hidden: Sequence[int]
) -> "tuple[models.VAE, guides.VAE]":
    """Returns a VAE of grey pixels with a Normal code."""
    likelihood = bernoulli(decoder(hidden, latent), shape, grey=True)
    posterior = normal(encoder(hidden, shape), latent)
    return (
        tarspyro.models.VAE(standard_normal(latent), likelihood),
        tarspyro.guides.VAE(posterior),
    )


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
