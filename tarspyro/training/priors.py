"""Priors that are fitted to the codes of a trained guide."""

__all__ = ["fit_prior"]

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform, Permute, Spline, spline_coupling
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, as_seed, check_choice
from tarspyro.conditional import Transformed
from tarspyro.distributions import NormalMixture, default_prior
from tarspyro.models.density import Density
from tarspyro.scopes import preserved_rng
from tarspyro.training.fit import fit

_FLOOR = 1e-6  # This is added to variances, in units of the codes' own.


def fit_prior(
    codes: Any,
    kind: str = "gmm",
    *,
    components: int = 10,
    layers: int = 4,
    epochs: int = 50,
    seed: int = 0,
) -> NormalMixture | Transformed:
    r"""Returns a prior that is fitted to codes by maximum likelihood.

    .. math:: \max_p \sum_n \log p(z_n), \qquad z_n \sim q(z \mid x_n)

    Codes that are draws of the guide follow the aggregate posterior, the mean of q(z | x) over
    the data. Samples of a model are better, the closer its prior is to that, and an autoencoder
    without a prior can be sampled at all. The result takes the place of any prior::

        codes = embed(q, x, num_samples=1)[0]
        fitted = models.VAE(fit_prior(codes, "gmm"), p.likelihood)

    The bounds and log-likelihoods of this pair are right: those of the model with the fitted
    prior. They are not what joint training would reach, since likelihood and guide were trained
    with the old prior. And a prior that was fitted to the codes of the training data is too good
    on these data: compare on held-out ones. The prior is on the device of the codes.

    - ``"gmm"``: a ``NormalMixture`` with full covariances, by scikit-learn's EM algorithm.
    - ``"flow"``: rational splines (Durkan et al. 2019, arXiv:1906.04032), each of one half of
      the code given the other, in units of the codes' standard deviations, by ``fit``.

    Arguments:
        codes: The codes, of shape ``(N, D)``: a tensor or an array.
        kind: ``"gmm"`` or ``"flow"``.
        components: The number of Normals of a mixture.
        layers: The number of splines of a flow.
        epochs: The number of passes of a flow over the codes.
        seed: The seed.

    Raises:
        ValueError: If the codes have another shape, are not finite, or fewer than the
            components, or ``kind`` is another word.

    Example:
        >>> codes = torch.randn(200, 2) + 3 * torch.randint(2, (200, 1))
        >>> prior = fit_prior(codes, "gmm", components=2)
        >>> prior
        mixture of 2 Normals of shape (2,)
        >>> prior().log_prob(codes).shape
        torch.Size([200])
    """
    check_choice("kind", kind, ("gmm", "flow"))
    # Codes of a pair in double precision need a prior in it.
    real = torch.is_tensor(codes) and codes.is_floating_point()
    dtype = codes.dtype if real else torch.get_default_dtype()
    z = as_numbers("codes", codes, dtype).detach()
    needed = max(2, as_count("components", components) if kind == "gmm" else 2)
    if z.dim() != 2 or len(z) < needed or not bool(z.isfinite().all()):
        raise ValueError(
            f"codes must be at least {needed} finite rows of shape (D,), got a tensor of shape"
            f" {tuple(z.shape)}{'' if bool(z.isfinite().all()) else ' with NaN or infinities'}."
        )
    if kind == "gmm":
        return _mixture(z, components, as_seed(seed))
    return _flow(z, as_count("layers", layers), epochs, as_seed(seed))


def _mixture(z: Tensor, components: int, seed: int) -> NormalMixture:
    from sklearn.mixture import GaussianMixture

    scale = z.std(0)
    units = scale.masked_fill(scale == 0, 1.0)  # of a dead unit, whose codes are all the same
    mixture = GaussianMixture(components, reg_covar=_FLOOR, random_state=seed % 2**32)
    mixture.fit((z / units).cpu().double().numpy())
    weights, loc, covariance = (
        torch.as_tensor(values).to(z)
        for values in (mixture.weights_, mixture.means_, mixture.covariances_)
    )
    with preserved_rng():
        prior = NormalMixture(z.shape[1], components).to(z)
    factors = torch.linalg.cholesky(covariance)
    prior.set(weights, loc * units, units.unsqueeze(-1) * factors)
    return prior


def _flow(z: Tensor, layers: int, epochs: int, seed: int) -> Transformed:
    size = z.shape[1]
    scale = z.std(0)
    units = AffineTransform(z.mean(0), scale.masked_fill(scale == 0, 1.0), event_dim=1)
    with preserved_rng(seed):
        transforms: list[Any] = []
        for _ in range(layers):
            if size == 1:
                transforms.append(Spline(1, bound=5.0))
            else:
                turned = torch.arange(size - 1, -1, -1)
                transforms += [spline_coupling(size, bound=5.0), Permute(turned)]
        base = default_prior(dist.Normal, size)
        prior = Transformed(base, [*transforms, units]).to(z)
        steps = epochs * math.ceil(len(z) / 100)
        fit(
            Density(prior),
            data=z,
            epochs=epochs,
            batch_size=100,
            schedules={"lr": lambda step: 0.02 * (1 - step / (steps + 1))},
            seed=seed,
            device=z.device,
            progress=False,
        )
    return prior
