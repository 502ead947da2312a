"""Pairs as the command line builds them: for each method a function from options and data to its halves and loss."""

__all__ = ["LOSSES", "Built", "bound_of"]

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
from tarspyro.infer import (
    ELBO,
    FIVO,
    IWAE,
    VAEGAN,
    WAE,
    Adversarial,
    AdversarialAutoencoder,
    Hinge,
    JensenShannon,
    LeastSquares,
    ModalityKL,
    ModalitySubsets,
    Renyi,
    Wasserstein,
)
from tarspyro.nn import (
    MLP,
    Backward,
    ConvDecoder,
    ConvEncoder,
    Discriminator,
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
_DIVERGENCES: dict[str, Callable[[], Any]] = {
    "jensen-shannon": JensenShannon,
    "least-squares": LeastSquares,
    "hinge": Hinge,
    "wasserstein": Wasserstein,
}
# The paper's number of moves of the discriminator for one of the generator, under the Wasserstein distance.
_CRITIC_STEPS = 5


class Built(NamedTuple):
    """The halves of a method, and its loss."""

    model: Any
    guide: Any
    loss: Any


def bound_of(o: Any) -> Any:
    """Returns the bound that ``--loss`` names, with what was said about it."""
    loss, takes = LOSSES[o.loss]
    given = {name: getattr(o, name) for name in ("num_particles", "beta", "alpha") if getattr(o, name) is not None}
    for name in given:
        if name not in takes:
            having = [other for other, (_, options) in LOSSES.items() if name in options]
            raise ValueError(
                f"--{name.replace('_', '-')} is not for --loss {o.loss}: leave it out, or take --loss {having[0]}."
            )
    if "alpha" in takes:
        given.setdefault("alpha", 0.5)
    return loss(**given)


# --- parts


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


def _network(hidden: Sequence[int], *inputs: Any, **options: Any) -> MLP:
    return MLP(inputs[0] if len(inputs) == 1 else list(inputs), hidden, **options)


def _encoder(o: Any, *inputs: Any) -> MLP:
    return _network(o.hidden, *inputs)


def _decoder(o: Any, *inputs: Any) -> MLP:
    return _network(o.hidden[::-1], *inputs)


def _trunks(o: Any, m: Material) -> tuple[nn.Module, nn.Module]:
    if o.trunk == "mlp":
        return _encoder(o, m.shape), _decoder(o, o.latent)
    return ConvEncoder(m.shape, [32, 64]), ConvDecoder(o.latent, m.shape, [64, 32])


def likelihood(o: Any, shape: tuple[int, ...], trunk: nn.Module) -> Conditional:
    """Returns p(x | what the trunk sees), of the family that ``--likelihood`` names."""
    if o.likelihood == "Bernoulli":
        # Grey values under a Bernoulli are a cross-entropy, which the user asked for with --grey.
        grey: dict[str, Any] = {"validate_args": False} if o.grey else {}
        return Conditional(dist.Bernoulli, trunk, shape, **grey)
    return Conditional(dist.Normal, trunk, shape, scale=nn.Parameter(torch.tensor(0.1)) if o.scale is None else o.scale)


def family_of(o: Any) -> Any:
    """Returns the latent family that ``--family`` names."""
    family = getattr(tarspyro.distributions, o.family, None) or getattr(dist, o.family, None)
    if family is None:
        raise ValueError(f"--family {o.family}: neither tarspyro.distributions nor pyro.distributions has it.")
    return family


def _normal(trunk: nn.Module, o: Any) -> Conditional:
    return Conditional(dist.Normal, trunk, o.latent)


def _corruption(o: Any) -> nn.Module | None:
    if o.masking_noise is not None and o.gaussian_noise is not None:
        raise ValueError("--masking-noise and --gaussian-noise are two kinds of corruption: give one of them.")
    if o.masking_noise is not None:
        return MaskingNoise(o.masking_noise)
    return None if o.gaussian_noise is None else GaussianNoise(o.gaussian_noise)


def _prior(o: Any, m: Material, posterior: nn.Module) -> Any:
    if o.prior == "vamp":
        count = min(100, len(m.train[0]))
        mean = m.batches[0].mean(0)
        return VampPrior(posterior, (mean + 0.02 * torch.randn(count, *m.shape)).clamp(0.001, 0.999))
    if o.prior == "standard":
        return default_prior(family_of(o), o.latent)
    if o.latent < 2 or o.family != "Normal":
        raise ValueError(
            f"--prior flow is for --family Normal and a --latent of 2 or more, got {o.family} and {o.latent}."
        )
    swap = transforms.Permute(torch.arange(o.latent).flip(0))
    layers = [transforms.affine_coupling(o.latent, [32]) for _ in range(3)]
    return Transformed(default_prior(dist.Normal, o.latent), [layers[0], swap, layers[1], swap, layers[2]])


def _posterior(o: Any, encoder: nn.Module) -> nn.Module:
    posterior = Conditional(family_of(o), encoder, o.latent)
    if o.posterior == "diagonal":
        return posterior
    if o.latent < 2 or o.family != "Normal":
        raise ValueError(
            f"--posterior flow is for --family Normal and a --latent of 2 or more, got {o.family} and {o.latent}."
        )
    return Transformed(posterior, [transforms.affine_autoregressive(o.latent, [32]) for _ in range(2)])


# --- autoencoders


def vae(o: Any, m: Material) -> Built:
    """VAE."""
    encoder, decoder = _trunks(o, m)
    posterior = _posterior(o, encoder)
    model = models.VAE(_prior(o, m, posterior), likelihood(o, m.shape, decoder))
    return Built(model, guides.VAE(posterior, _corruption(o)), bound_of(o))


def autoencoder(o: Any, m: Material) -> Built:
    """Autoencoder."""
    encoder, decoder = _trunks(o, m)
    model = models.Autoencoder(likelihood(o, m.shape, decoder), o.latent)
    return Built(model, guides.Autoencoder(Deterministic(encoder, o.latent), _corruption(o)), ELBO())


def _layers(o: Any) -> Callable[..., nn.Module]:
    """Networks between latent variables, with features in bounds, so that scales stay in the range of numbers."""
    return lambda inputs: MLP(inputs, o.hidden, activation=nn.Tanh)


def _chain(o: Any, m: Material, kind: type[models.HierarchicalVAE]) -> models.HierarchicalVAE:
    network, latent = _layers(o), o.latent
    between = [
        Conditional(dist.Normal, network(above), below) for below, above in zip(latent, latent[1:], strict=False)
    ]
    return kind(default_prior(dist.Normal, latent[-1]), between, likelihood(o, m.shape, network(latent[0])))


def hierarchical_vae(o: Any, m: Material) -> Built:
    """HierarchicalVAE."""
    network, inputs = _layers(o), [m.shape, *o.latent]
    posteriors = [Conditional(dist.Normal, network(x), z) for x, z in zip(inputs, o.latent, strict=False)]
    model = _chain(o, m, models.HierarchicalVAE)
    return Built(model, guides.HierarchicalVAE(posteriors, chain=o.chain), bound_of(o))


def ladder_vae(o: Any, m: Material) -> Built:
    """LadderVAE."""
    network, width = _layers(o), o.hidden[-1]
    encoders = [network(m.shape if i == 0 else width) for i in range(len(o.latent))]
    posteriors = [Conditional(dist.Normal, MLP(width, []), size) for size in o.latent]
    model = _chain(o, m, models.LadderVAE)
    return Built(model, guides.LadderVAE(encoders, posteriors, list(model.conditionals)), bound_of(o))


# --- with labels


def conditional_vae(o: Any, m: Material) -> Built:
    """ConditionalVAE."""
    standard = o.prior == "standard"
    prior = default_prior(dist.Normal, o.latent) if standard else _normal(_decoder(o, m.num_classes), o)
    model = models.ConditionalVAE(prior, likelihood(o, m.shape, _decoder(o, o.latent, m.num_classes)))
    return Built(model, guides.ConditionalVAE(_normal(_encoder(o, m.shape, m.num_classes), o)), bound_of(o))


def cmma(o: Any, m: Material) -> Built:
    """CMMA."""
    prior = _normal(_decoder(o, m.num_classes), o)
    model = models.CMMA(prior, likelihood(o, m.shape, _decoder(o, o.latent)))
    return Built(model, guides.CMMA(_normal(_encoder(o, m.shape, m.num_classes), o)), bound_of(o))


def semi_supervised_vae(o: Any, m: Material) -> Built:
    """SemiSupervisedVAE."""
    classifier = Conditional(dist.OneHotCategorical, _encoder(o, m.shape), m.num_classes)
    sizes: Any = dict(zip(("num_labelled", "num_unlabelled"), m.sizes, strict=True))
    model = models.SemiSupervisedVAE(
        default_prior(dist.Normal, o.latent),
        default_prior(dist.OneHotCategorical, m.num_classes),
        likelihood(o, m.shape, _decoder(o, o.latent, m.num_classes)),
        classifier=classifier,
        alpha=o.classifier_weight,
        **sizes,
    )
    posterior = _normal(_encoder(o, m.shape, m.num_classes), o)
    return Built(model, guides.SemiSupervisedVAE(classifier, posterior, **sizes), bound_of(o))


def _modalities(o: Any, m: Material) -> tuple[list[nn.Module], list[nn.Module]]:
    """The likelihoods of image and label, and the posteriors given one of them."""
    label = Conditional(dist.OneHotCategorical, _decoder(o, o.latent), m.num_classes)
    singles: list[nn.Module] = [_normal(_encoder(o, size), o) for size in (m.shape, m.num_classes)]
    return [likelihood(o, m.shape, _decoder(o, o.latent)), label], singles


def jmvae(o: Any, m: Material) -> Built:
    """JMVAE, with a posterior of its own for each modality."""
    likelihoods, singles = _modalities(o, m)
    joint = _normal(_encoder(o, m.shape, m.num_classes), o)
    model = models.JMVAE(default_prior(dist.Normal, o.latent), likelihoods)
    return Built(model, guides.JMVAE(joint, singles), ModalityKL(bound_of(o), alpha=o.modality_weight))


def mvae(o: Any, m: Material) -> Built:
    """MVAE: a product of experts is trained on each modality alone too, a mixture meets each by itself."""
    likelihoods, experts = _modalities(o, m)
    model = models.MVAE(default_prior(dist.Normal, o.latent), likelihoods)
    bound = bound_of(o)
    loss = ModalitySubsets(bound) if o.experts == "product" else bound
    return Built(model, guides.MVAE(experts, model.prior, o.experts), loss)


def classifier(o: Any, m: Material) -> Built:
    """Classifier."""
    return Built(
        models.Classifier(Conditional(dist.OneHotCategorical, _encoder(o, m.shape), m.num_classes)), None, ELBO()
    )


def bayesian_regression(o: Any, m: Material) -> Built:
    """BayesianRegression: of a number, with noise that is learned, or of a class."""
    if m.num_classes:
        target = Conditional(dist.OneHotCategorical, _encoder(o, m.shape), m.num_classes)
    else:
        target = Conditional(dist.Normal, _encoder(o, m.shape), (), scale=nn.Parameter(torch.tensor(1.0)))
    random = RandomWeights(target)
    size = random.num_weights
    loc, scale = nn.Parameter(0.1 * torch.randn(size)), nn.Parameter(torch.full((size,), math.exp(-5)))
    model = models.BayesianRegression(default_prior(dist.Normal, size), random, len(m.train[0]))
    return Built(model, guides.BayesianRegression(Prior(dist.Normal, size, loc=loc, scale=scale)), bound_of(o))


# --- sequences


def _steps(o: Any, m: Material, trunk: nn.Module) -> Conditional:
    """The likelihood of a step, which starts from how often each of its numbers is one."""
    steps = likelihood(o, m.shape, trunk)
    if o.likelihood == "Bernoulli":
        x, *lengths = m.train
        inside = torch.arange(x.shape[1]) < (lengths[0] if lengths else torch.full((len(x),), x.shape[1]))[:, None]
        with torch.no_grad():
            bias: Any = steps.heads["logits"].bias
            bias.copy_(torch.logit(x[inside].mean(0), 1e-3))
    return steps


def vrnn(o: Any, m: Material) -> Built:
    """VRNN."""
    cell = Recurrence(nn.GRUCell(m.shape[0] + o.latent, o.units))
    model = models.VRNN(cell, _normal(_encoder(o, o.units), o), _steps(o, m, _decoder(o, o.latent, o.units)))
    return Built(model, guides.VRNN(cell, _normal(_encoder(o, m.shape[0], o.units), o)), bound_of(o))


def deep_markov_model(o: Any, m: Material) -> Built:
    """DeepMarkovModel, whose guide reads from the end."""

    def step(*inputs: int) -> Conditional:
        return _normal(_network(o.hidden, *inputs, activation=nn.Tanh), o)

    model = models.DeepMarkovModel(
        default_prior(dist.Normal, o.latent), step(o.latent), _steps(o, m, _decoder(o, o.latent))
    )
    encoder = Backward(nn.GRU(m.shape[0], o.units))
    return Built(model, guides.DeepMarkovModel(step(o.units), step(o.units, o.latent), encoder), bound_of(o))


# --- games


def _discriminator(o: Any, *inputs: Any, dropout: float = 0.0) -> Discriminator:
    return Discriminator(_network(o.hidden, *inputs, activation=_leaky, dropout=dropout))


def _generator(o: Any, m: Material, *inputs: Any) -> Deterministic:
    """A network of noise: of images with values between 0 and 1, and of points anywhere."""
    if m.image_shape is None:
        return Deterministic(_decoder(o, *inputs), m.shape)
    network = _network(o.hidden[::-1], *inputs, normalization=nn.BatchNorm1d)
    return Deterministic(network, m.shape, transform=nn.Sigmoid())


def _against(o: Any, discriminator: Discriminator) -> Adversarial:
    every = _CRITIC_STEPS if o.divergence == "wasserstein" else 1
    return Adversarial(discriminator, _DIVERGENCES[o.divergence](), every=every)


def gan(o: Any, m: Material) -> Built:
    """GAN."""
    model = models.GAN(default_prior(dist.Normal, o.latent), _generator(o, m, o.latent))
    discriminator = _discriminator(o, m.shape, dropout=0.0 if m.image_shape is None else 0.3)
    return Built(model, None, _against(o, discriminator))


def conditional_gan(o: Any, m: Material) -> Built:
    """ConditionalGAN."""
    generator = _generator(o, m, o.latent, m.num_classes)
    model = models.ConditionalGAN(default_prior(dist.Normal, o.latent), generator)
    discriminator = _discriminator(o, m.shape, m.num_classes, dropout=0.3)
    return Built(model, None, _against(o, discriminator))


def _plain_vae(o: Any, m: Material, posterior: Any) -> tuple[models.VAE, guides.VAE]:
    model = models.VAE(default_prior(dist.Normal, o.latent), likelihood(o, m.shape, _decoder(o, o.latent)))
    return model, guides.VAE(posterior)


def vae_gan(o: Any, m: Material) -> Built:
    """The pair of a VAE, trained by VAEGAN."""
    pair = _plain_vae(o, m, _normal(_encoder(o, m.shape), o))
    divergence = _DIVERGENCES[o.divergence]()
    return Built(*pair, VAEGAN(_discriminator(o, m.shape), divergence, gamma=o.gamma))


def adversarial_autoencoder(o: Any, m: Material) -> Built:
    """The pair of a VAE whose guide is deterministic, trained by AdversarialAutoencoder."""
    pair = _plain_vae(o, m, Deterministic(_encoder(o, m.shape), o.latent))
    game = AdversarialAutoencoder(_discriminator(o, o.latent), _DIVERGENCES[o.divergence](), weight=o.weight)
    return Built(*pair, game)


def wasserstein_autoencoder(o: Any, m: Material) -> Built:
    """The pair of a VAE whose guide is deterministic, trained by WAE."""
    return Built(*_plain_vae(o, m, Deterministic(_encoder(o, m.shape), o.latent)), WAE(weight=o.weight))
