"""Pairs as the command line builds them: for each method a function from options and data to
its halves and loss.
"""

__all__ = [
    "LOSSES",
    "Built",
    "bound_of",
    "decoder_of",
    "encoder_of",
    "likelihood",
    "mlp",
    "normal",
]

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import nn

import tarspyro.distributions
from tarspyro import Conditional, Deterministic, Transformed, guides, models
from tarspyro.commands.material import Material
from tarspyro.distributions import Prior, VampPrior, default_prior
from tarspyro.infer import ELBO, FIVO, IWAE, ModalityKL, ModalitySubsets, Renyi, SemiSupervised
from tarspyro.nn import (
    MLP,
    Backward,
    ConvDecoder,
    ConvEncoder,
    GaussianNoise,
    MaskingNoise,
    RandomWeights,
    Recurrence,
)

# By the name of a bound its class, and the options that it takes.
LOSSES: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "elbo": (ELBO, ("num_particles", "beta")),
    "iwae": (IWAE, ("num_particles",)),
    "renyi": (Renyi, ("alpha", "num_particles")),
    "fivo": (FIVO, ("num_particles",)),
}


class Built(NamedTuple):
    """The halves of a method, and its loss."""

    model: Any
    guide: Any
    loss: Any


def bound_of(o: Any) -> Any:
    """Returns the bound that ``--loss`` names, with what was said about it."""
    loss, takes = LOSSES[o.loss]
    given = {
        name: getattr(o, name)
        for name in ("num_particles", "beta", "alpha")
        if getattr(o, name) is not None
    }
    for name in given:
        if name not in takes:
            having = [other for other, (_, options) in LOSSES.items() if name in options]
            raise ValueError(
                f"--{name.replace('_', '-')} is not for --loss {o.loss}: leave it out, or take"
                f" --loss {having[0]}."
            )
    if "alpha" in takes:
        given.setdefault("alpha", 0.5)
    return loss(**given)


# --- parts


def mlp(hidden: Sequence[int], *inputs: Any, **options: Any) -> MLP:
    """Returns a network of one input or of several."""
    return MLP(inputs[0] if len(inputs) == 1 else list(inputs), hidden, **options)


def encoder_of(o: Any, *inputs: Any) -> MLP:
    """Returns the network of a guide's half."""
    return mlp(o.hidden, *inputs)


def decoder_of(o: Any, *inputs: Any) -> MLP:
    """Returns the network of a model's half, with the layers in reverse."""
    return mlp(o.hidden[::-1], *inputs)


def _trunks(o: Any, m: Material) -> tuple[nn.Module, nn.Module]:
    if o.trunk == "mlp":
        return encoder_of(o, m.shape), decoder_of(o, o.latent)
    return ConvEncoder(m.shape, [32, 64]), ConvDecoder(o.latent, m.shape, [64, 32])


def likelihood(o: Any, shape: tuple[int, ...], trunk: nn.Module) -> Conditional:
    """Returns p(x | what the trunk sees), of the family that ``--likelihood`` names."""
    if o.likelihood == "Bernoulli":
        # Grey values under a Bernoulli are a cross-entropy, which the user asked for with
        # --grey.
        grey: dict[str, Any] = {"validate_args": False} if o.grey else {}
        return Conditional(dist.Bernoulli, trunk, shape, **grey)
    return Conditional(
        dist.Normal,
        trunk,
        shape,
        scale=nn.Parameter(torch.tensor(0.1)) if o.scale is None else o.scale,
    )


def family_of(o: Any) -> Any:
    """Returns the latent family that ``--family`` names."""
    family = getattr(tarspyro.distributions, o.family, None) or getattr(dist, o.family, None)
    if family is None:
        raise ValueError(
            f"--family {o.family}: neither tarspyro.distributions nor pyro.distributions"
            " has it."
        )
    return family


def normal(trunk: nn.Module, o: Any) -> Conditional:
    """Returns a Normal distribution of the latent variable."""
    return Conditional(dist.Normal, trunk, o.latent)


def _corruption(o: Any) -> nn.Module | None:
    if o.masking_noise is not None and o.gaussian_noise is not None:
        raise ValueError(
            "--masking-noise and --gaussian-noise are two kinds of corruption: give one of"
            " them."
        )
    if o.masking_noise is not None:
        return MaskingNoise(o.masking_noise)
    return None if o.gaussian_noise is None else GaussianNoise(o.gaussian_noise)


def _prior(o: Any, m: Material, posterior: nn.Module) -> Any:
    if o.prior == "vamp":
        count = min(100, len(m.train[0]))
        mean = m.batches[0].mean(0)
        return VampPrior(
            posterior, (mean + 0.02 * torch.randn(count, *m.shape)).clamp(0.001, 0.999)
        )
    if o.prior == "standard":
        return default_prior(family_of(o), o.latent)
    if o.latent < 2 or o.family != "Normal":
        raise ValueError(
            f"--prior flow is for --family Normal and a --latent of 2 or more, got {o.family}"
            f" and {o.latent}."
        )
    swap = transforms.Permute(torch.arange(o.latent).flip(0))
    layers = [transforms.affine_coupling(o.latent, [32]) for _ in range(3)]
    return Transformed(
        default_prior(dist.Normal, o.latent), [layers[0], swap, layers[1], swap, layers[2]]
    )


def _posterior(o: Any, encoder: nn.Module) -> nn.Module:
    posterior = Conditional(family_of(o), encoder, o.latent)
    if o.posterior == "diagonal":
        return posterior
    if o.latent < 2 or o.family != "Normal":
        raise ValueError(
            "--posterior flow is for --family Normal and a --latent of 2 or more, got"
            f" {o.family} and {o.latent}."
        )
    return Transformed(
        posterior, [transforms.affine_autoregressive(o.latent, [32]) for _ in range(2)]
    )


# --- autoencoders


def vae(o: Any, m: Material) -> Built:
    """Builds the pair of ``VAE``."""
    encoder, decoder = _trunks(o, m)
    posterior = _posterior(o, encoder)
    model = models.VAE(_prior(o, m, posterior), likelihood(o, m.shape, decoder))
    return Built(model, guides.VAE(posterior, _corruption(o)), bound_of(o))


def autoencoder(o: Any, m: Material) -> Built:
    """Builds the pair of ``Autoencoder``."""
    encoder, decoder = _trunks(o, m)
    model = models.Autoencoder(likelihood(o, m.shape, decoder), o.latent)
    return Built(
        model, guides.Autoencoder(Deterministic(encoder, o.latent), _corruption(o)), ELBO()
    )


def _layers(o: Any) -> Callable[..., nn.Module]:
    """Networks between latent variables, with features in bounds, so that scales stay in the
    range of numbers.
    """
    return lambda inputs: MLP(inputs, o.hidden, activation=nn.Tanh)


def _chain(o: Any, m: Material, kind: type[models.HierarchicalVAE]) -> models.HierarchicalVAE:
    network, latent = _layers(o), o.latent
    between = [
        Conditional(dist.Normal, network(above), below)
        for below, above in zip(latent, latent[1:], strict=False)
    ]
    return kind(
        default_prior(dist.Normal, latent[-1]),
        between,
        likelihood(o, m.shape, network(latent[0])),
    )


def hierarchical_vae(o: Any, m: Material) -> Built:
    """Builds the pair of ``HierarchicalVAE``."""
    network, inputs = _layers(o), [m.shape, *o.latent]
    posteriors = [
        Conditional(dist.Normal, network(x), z) for x, z in zip(inputs, o.latent, strict=False)
    ]
    model = _chain(o, m, models.HierarchicalVAE)
    return Built(model, guides.HierarchicalVAE(posteriors, chain=o.chain), bound_of(o))


def ladder_vae(o: Any, m: Material) -> Built:
    """Builds the pair of ``LadderVAE``."""
    network, width = _layers(o), o.hidden[-1]
    encoders = [network(m.shape if i == 0 else width) for i in range(len(o.latent))]
    posteriors = [Conditional(dist.Normal, MLP(width, []), size) for size in o.latent]
    model = _chain(o, m, models.LadderVAE)
    return Built(
        model, guides.LadderVAE(encoders, posteriors, list(model.conditionals)), bound_of(o)
    )


# --- with labels


def conditional_vae(o: Any, m: Material) -> Built:
    """Builds the pair of ``ConditionalVAE``."""
    standard = o.prior == "standard"
    prior = (
        default_prior(dist.Normal, o.latent)
        if standard
        else normal(decoder_of(o, m.num_classes), o)
    )
    model = models.ConditionalVAE(
        prior, likelihood(o, m.shape, decoder_of(o, o.latent, m.num_classes))
    )
    return Built(
        model,
        guides.ConditionalVAE(normal(encoder_of(o, m.shape, m.num_classes), o)),
        bound_of(o),
    )


def cmma(o: Any, m: Material) -> Built:
    """Builds the pair of ``CMMA``."""
    prior = normal(decoder_of(o, m.num_classes), o)
    model = models.CMMA(prior, likelihood(o, m.shape, decoder_of(o, o.latent)))
    return Built(
        model, guides.CMMA(normal(encoder_of(o, m.shape, m.num_classes), o)), bound_of(o)
    )


def semi_supervised_vae(o: Any, m: Material) -> Built:
    """Builds the pair of ``SemiSupervisedVAE``."""
    classifier = Conditional(dist.OneHotCategorical, encoder_of(o, m.shape), m.num_classes)
    sizes: Any = dict(zip(("num_labelled", "num_unlabelled"), m.sizes, strict=True))
    model = models.SemiSupervisedVAE(
        default_prior(dist.Normal, o.latent),
        default_prior(dist.OneHotCategorical, m.num_classes),
        likelihood(o, m.shape, decoder_of(o, o.latent, m.num_classes)),
        **sizes,
    )
    posterior = normal(encoder_of(o, m.shape, m.num_classes), o)
    loss = SemiSupervised(bound_of(o), alpha=o.classifier_weight)
    return Built(model, guides.SemiSupervisedVAE(classifier, posterior, **sizes), loss)


def _modalities(o: Any, m: Material) -> tuple[list[nn.Module], list[nn.Module]]:
    """The likelihoods of image and label, and the posteriors given one of them."""
    label = Conditional(dist.OneHotCategorical, decoder_of(o, o.latent), m.num_classes)
    singles: list[nn.Module] = [
        normal(encoder_of(o, size), o) for size in (m.shape, m.num_classes)
    ]
    return [likelihood(o, m.shape, decoder_of(o, o.latent)), label], singles


def jmvae(o: Any, m: Material) -> Built:
    """Builds the pair of ``JMVAE``, with a posterior of its own for each modality."""
    likelihoods, singles = _modalities(o, m)
    joint = normal(encoder_of(o, m.shape, m.num_classes), o)
    model = models.JMVAE(default_prior(dist.Normal, o.latent), likelihoods)
    return Built(
        model, guides.JMVAE(joint, singles), ModalityKL(bound_of(o), alpha=o.modality_weight)
    )


def mvae(o: Any, m: Material) -> Built:
    """MVAE: a product of experts is trained on each modality alone too, a mixture meets each
    by itself.
    """
    likelihoods, experts = _modalities(o, m)
    model = models.MVAE(default_prior(dist.Normal, o.latent), likelihoods)
    bound = bound_of(o)
    loss = ModalitySubsets(bound) if o.experts == "product" else bound
    return Built(model, guides.MVAE(experts, model.prior, o.experts), loss)


def classifier(o: Any, m: Material) -> Built:
    """Builds the pair of ``Classifier``."""
    return Built(
        models.Classifier(
            Conditional(dist.OneHotCategorical, encoder_of(o, m.shape), m.num_classes)
        ),
        None,
        ELBO(),
    )


def bayesian_regression(o: Any, m: Material) -> Built:
    """BayesianRegression: of a number, with noise that is learned, or of a class."""
    if m.num_classes:
        target = Conditional(dist.OneHotCategorical, encoder_of(o, m.shape), m.num_classes)
    else:
        target = Conditional(
            dist.Normal, encoder_of(o, m.shape), (), scale=nn.Parameter(torch.tensor(1.0))
        )
    random = RandomWeights(target)
    size = random.num_weights
    loc, scale = (
        nn.Parameter(0.1 * torch.randn(size)),
        nn.Parameter(torch.full((size,), math.exp(-5))),
    )
    model = models.BayesianRegression(
        default_prior(dist.Normal, size), random, len(m.train[0])
    )
    return Built(
        model,
        guides.BayesianRegression(Prior(dist.Normal, size, loc=loc, scale=scale)),
        bound_of(o),
    )


# --- sequences


def _steps(o: Any, m: Material, trunk: nn.Module) -> Conditional:
    """The likelihood of a step, which starts from how often each of its numbers is one."""
    steps = likelihood(o, m.shape, trunk)
    if o.likelihood == "Bernoulli":
        x, *lengths = m.train
        inside = (
            torch.arange(x.shape[1])
            < (lengths[0] if lengths else torch.full((len(x),), x.shape[1]))[:, None]
        )
        with torch.no_grad():
            bias: Any = steps.heads["logits"].bias
            bias.copy_(torch.logit(x[inside].mean(0), 1e-3))
    return steps


def vrnn(o: Any, m: Material) -> Built:
    """Builds the pair of ``VRNN``."""
    cell = Recurrence(nn.GRUCell(m.shape[0] + o.latent, o.units))
    model = models.VRNN(
        cell, normal(encoder_of(o, o.units), o), _steps(o, m, decoder_of(o, o.latent, o.units))
    )
    return Built(
        model, guides.VRNN(cell, normal(encoder_of(o, m.shape[0], o.units), o)), bound_of(o)
    )


def deep_markov_model(o: Any, m: Material) -> Built:
    """Builds the pair of ``DeepMarkovModel``, whose guide reads from the end."""

    def step(*inputs: int) -> Conditional:
        return normal(mlp(o.hidden, *inputs, activation=nn.Tanh), o)

    model = models.DeepMarkovModel(
        default_prior(dist.Normal, o.latent),
        step(o.latent),
        _steps(o, m, decoder_of(o, o.latent)),
    )
    encoder = Backward(nn.GRU(m.shape[0], o.units))
    return Built(
        model,
        guides.DeepMarkovModel(step(o.units), step(o.units, o.latent), encoder),
        bound_of(o),
    )
