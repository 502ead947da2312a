"""``vae`` with its variants, and ``autoencoder``."""

__all__ = ["VAE", "Autoencoder", "BetaTCVAE", "SphericalVAE"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tarspyro
from tarspyro.commands.methods import pictures, reports, samples
from tarspyro.commands.methods.forms import IMAGES, PreparedData
from tarspyro.commands.methods.method import (
    Built,
    EarlyStopping,
    Loss,
    Pixels,
    Variational,
)
from tarspyro.commands.methods.networks import family_named, standard_normal, trunks
from tarspyro.commands.methods.settings import (
    BOUND,
    PAIR,
    hidden_layers,
    latent_units,
    setting,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class _Denoising:
    """Methods whose guide may see a corrupted input."""

    masking_noise: float | None = setting(
        None,
        PAIR,
        "hide so large a share of the input from the guide, which makes it denoising",
    )
    gaussian_noise: float | None = setting(
        None, PAIR, "add noise of this standard deviation to the guide's input, likewise"
    )

    def corruption(self) -> "nn.Module | None":
        """Returns the noise of the guide's input, if there is any."""
        if self.masking_noise is not None and self.gaussian_noise is not None:
            raise ValueError(
                "--masking-noise and --gaussian-noise are two kinds of corruption: give one of"
                " them."
            )
        if self.masking_noise is not None:
            return tarspyro.nn.MaskingNoise(self.masking_noise)
        if self.gaussian_noise is not None:
            return tarspyro.nn.GaussianNoise(self.gaussian_noise)
        return None


@dataclass(frozen=True, kw_only=True)
class VAE(_Denoising, Variational):
    """Variational autoencoder."""

    name = "vae"
    title = "variational autoencoder, also denoising, with a VampPrior or with flows"
    paper = "Kingma and Welling 2013, arXiv:1312.6114"
    pair = "VAE"
    form = IMAGES
    whole_input = True

    latent: int = latent_units(2)
    hidden: Sequence[int] = hidden_layers(256, 256)
    trunk: Literal["mlp", "conv"] | None = setting(
        None, PAIR, "the kind of network; conv for images of your own, else mlp"
    )
    family: str = setting(
        "Normal", PAIR, "the latent family, such as Normal, Gamma or Dirichlet"
    )
    prior: Literal["standard", "vamp", "flow"] = setting(
        "standard", PAIR, "the prior of the latent variable"
    )
    posterior: Literal["diagonal", "flow"] = setting(
        "diagonal", PAIR, "the posterior, diagonal or sent through an autoregressive flow"
    )

    report = (reports.bound, reports.likelihood_of("x"), reports.active_units)
    figures = (*pictures.WITH_CODES, pictures.manifold)
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        encoder, decoder = trunks(self.trunk, data, self.latent, self.hidden)
        posterior = self._posterior(encoder)
        prior = self._prior(data, posterior)
        return Built(
            tarspyro.models.VAE(prior, self.observed(data, decoder)),
            tarspyro.guides.VAE(posterior, self.corruption()),
            self.bound(),
        )

    def _posterior(self, encoder: "nn.Module") -> "nn.Module":
        from pyro.distributions import transforms

        posterior = tarspyro.Conditional(family_named(self.family), encoder, self.latent)
        if self.posterior == "diagonal":
            return posterior

        self._check_flow("--posterior flow")
        flow = [transforms.affine_autoregressive(self.latent, [32]) for _ in range(2)]
        return tarspyro.Transformed(posterior, flow)

    def _prior(self, data: PreparedData, posterior: "nn.Module") -> "nn.Module":
        import torch
        from pyro.distributions import transforms

        if self.prior == "vamp":
            return tarspyro.distributions.VampPrior(posterior, _pseudo_inputs(data))

        if self.prior == "standard":
            return tarspyro.distributions.default_prior(family_named(self.family), self.latent)

        self._check_flow("--prior flow")
        swap = transforms.Permute(torch.arange(self.latent).flip(0))
        first, second, third = (
            transforms.affine_coupling(self.latent, [32]) for _ in range(3)
        )
        flow = [first, swap, second, swap, third]
        return tarspyro.Transformed(standard_normal(self.latent), flow)

    def _check_flow(self, option: str) -> None:
        if self.latent < 2 or self.family != "Normal":
            raise ValueError(
                f"{option} is for --family Normal and a --latent of 2 or more, got"
                f" {self.family} and {self.latent}."
            )


@dataclass(frozen=True, kw_only=True)
class SphericalVAE(VAE):
    """Variational autoencoder whose codes are directions, on a sphere."""

    name = "spherical-vae"
    title = "variational autoencoder with codes on a sphere (S-VAE)"
    paper = "Davidson et al. 2018, arXiv:1804.00891; De Cao and Aziz 2020, arXiv:2006.04437"

    latent: int = latent_units(3)
    family: str = setting(
        "PowerSpherical",
        PAIR,
        "the latent family",
        choices=("PowerSpherical", "VonMisesFisher"),
    )
    prior: Literal["standard", "vamp", "flow"] = setting(
        "standard", PAIR, "the prior of the latent variable", choices=("standard", "vamp")
    )
    posterior: Literal["diagonal", "flow"] = setting(
        "diagonal", PAIR, "the posterior", choices=("diagonal",)
    )


@dataclass(frozen=True, kw_only=True)
class BetaTCVAE(VAE):
    """Variational autoencoder whose total correlation has a weight."""

    name = "beta-tcvae"
    title = (
        "variational autoencoder with a weight for the dependence of its units (beta-TCVAE)"
    )
    paper = "Chen et al. 2018, arXiv:1802.04942"

    latent: int = latent_units(10)
    loss: Loss = setting("elbo", BOUND, "the bound", choices=("elbo",))
    correlation_weight: float = setting(6.0, BOUND, "the weight of the total correlation")

    def build(self, data: PreparedData) -> Built:
        model, guide, _ = super().build(data)
        beta = 1.0 if self.beta is None else self.beta
        loss = tarspyro.infer.BetaTCVAE(
            data.sizes_of_parts[0],
            self.correlation_weight,
            alpha=beta,
            gamma=beta,
            num_particles=self.num_particles or 1,
        )
        return Built(model, guide, loss)


def _pseudo_inputs(data: PreparedData) -> "Tensor":
    """Returns the initial pseudo-inputs, near the mean of the data."""
    import torch

    if data.layout is not None and data.layout.gaps:
        raise ValueError(
            "--prior vamp has inputs of its own, which no gaps suit: leave it out."
        )
    x = data.train[0]
    if isinstance(data.batches, tuple) and torch.is_tensor(data.batches[0]):
        x = data.batches[0]  # grey pixels
    noise = 0.02 * torch.randn(min(100, data.sizes_of_parts[0]), *data.shape)
    inputs = x.mean(0) + noise
    return inputs.clamp(0.001, 0.999) if data.image_shape else inputs


@dataclass(frozen=True, kw_only=True)
class Autoencoder(_Denoising, EarlyStopping, Pixels):
    """Autoencoder, with neither a prior nor noise in its code."""

    name = "autoencoder"
    title = "autoencoder, also denoising"
    paper = "Hinton and Salakhutdinov 2006; denoising: Vincent et al. 2008"
    pair = "Autoencoder"
    form = IMAGES
    whole_input = True

    latent: int = latent_units(2)
    hidden: Sequence[int] = hidden_layers(256, 256)
    trunk: Literal["mlp", "conv"] | None = setting(
        None, PAIR, "the kind of network; conv for images of your own, else mlp"
    )

    report = (reports.bound,)
    figures = (pictures.reconstructions, pictures.latents, pictures.curves)

    def build(self, data: PreparedData) -> Built:
        encoder, decoder = trunks(self.trunk, data, self.latent, self.hidden)
        return Built(
            tarspyro.models.Autoencoder(self.observed(data, decoder), self.latent),
            tarspyro.guides.Autoencoder(
                tarspyro.Deterministic(encoder, self.latent), self.corruption()
            ),
            tarspyro.infer.ELBO(),
        )
