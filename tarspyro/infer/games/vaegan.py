"""VAE-GAN: a VAE whose likelihood compares layers of a discriminator."""

__all__ = ["VAEGAN"]

from collections.abc import Hashable, Mapping, Sequence
from typing import cast

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from tarspyro.arguments import check_choice, check_number, format_value
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.games.adversarial import AdversarialGame
from tarspyro.infer.games.base import LossAndTerms, Player
from tarspyro.infer.games.draws import Draws, check_conditions, draw
from tarspyro.infer.games.losses import Divergence
from tarspyro.infer.matching import check_pair
from tarspyro.infer.traces import PairError, Site, name_of, trace_pair
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program


class VAEGAN(AdversarialGame):
    r"""A variational autoencoder whose decoder is also a generator, with a likelihood that the
    discriminator learns.

    With the discriminator D, its layer :math:`D_l` and the mean :math:`\tilde{x}(z)` of the
    model's p(x | z):

    .. math:: \mathcal{S} &= \mathbb{E}_{q(z \mid x)}
              [\log \mathcal{N}(D_l(x); D_l(\tilde{x}(z)), I)] \\
              \mathcal{L}_\mathrm{guide} &= \mathrm{KL}(q(z \mid x) \,\|\, p(z)) - \mathcal{S} \\
              \mathcal{L}_\mathrm{generator} &= \mathrm{KL}(q(z \mid x) \,\|\, p(z))
              - \gamma \, \mathcal{S} + \mathbb{E}_{\tilde{x}}[\mathcal{L}_G(\tilde{x})] \\
              \mathcal{L}_\mathrm{discriminator} &= \mathcal{L}_D(x)
              + \mathbb{E}_{\tilde{x}}[\mathcal{L}_D(\tilde{x})]

    Half of the fakes are means given codes from the model's prior p(z), half are means given
    codes from the guide. (The paper adds up the losses of both halves, against x counted once.
    Here their mean counts, which is in balance where D is one half, and is a divergence for
    every choice of ``divergence``.) Each loss gives gradients to its player's parameters
    alone; the KL in the generator's loss is there for priors with parameters.

    The first two losses are minus a ``bound`` of the pair, in which the model observes D_l(x)
    in place of x. Everything else is as in that bound: KL divergences in closed form, labels
    that are summed out, further modalities with likelihoods of their own. The pair of a
    ``ConditionalVAE`` gives a conditional VAE-GAN, whose discriminator sees the label; that of
    a ``CMMA`` a CMMA-GAN; and that of a ``JMVAE`` with ``site="x_1"`` a JMVAE-GAN.

    The discriminator and its layers do not depend on a pixel that is the same in all images,
    until it differs in a fake; and at 1 the derivative of its sigmoid is zero, so that it would
    stay there. A small weight of the model's own log-density, ``likelihood``, brings it back:
    the derivative in the logit is x - 1 there. It is added to the generator's loss alone, with
    codes from the guide.

    Batch normalization in the decoder has running statistics of both halves of the fakes, while
    samples have codes from the prior alone. ``MovingAverage(p).renew_statistics()`` gives a copy
    of the model the statistics of samples; on MNIST its Frechet distance is three fifths.

    In every step the discriminator moves first, then the guide, then the model. The history
    has the loss of each and the norm of its gradient (``guide_loss``, ``generator_gradient``),
    the outputs ``real`` and ``fake`` as with ``Adversarial``, and the terms of the bound. With
    an ``ELBO``, ``reconstruction`` is called ``similarity`` if it compares a layer.

    Arguments:
        discriminator: A network from x (and conditions) to its score, such as
            ``nn.Discriminator``.
        divergence: The losses of discriminator and generator, such as ``Hinge()``;
            ``JensenShannon()`` if not given.
        site: The observed site whose likelihood is replaced, and whose fakes the discriminator
            tells from the data.
        layer: The name of the module in the discriminator whose output is compared, such as
            ``"trunk.layers.1"``; or None for the model's own p(x | z).
        gamma: The weight of the similarity in the generator's loss; may be scheduled.
        likelihood: The weight of the model's own log p(x | z) in the generator's loss, which
            then has minus that much more.
        r1: The weight of a penalty on the discriminator's gradient at x, as in ``Adversarial``.
        bound: A bound of the pair, ``ELBO()`` if not given. Its adjustable numbers, such as
            ``beta``, become attributes of this loss and may be scheduled.
        patience: See ``Adversarial``.

    Raises:
        TypeError: If ``discriminator``, ``divergence`` or ``bound`` is of another type.
        ValueError: If the discriminator has no such layer, or ``gamma``, ``likelihood`` or
            ``r1`` is negative.
        PairError: In ``fit``, if the halves do not match, the model observes nothing at the
            site, or its distribution there has no mean, or with ``layer=None`` or a ``likelihood``
            no density.

    References:
        Larsen et al. (2015), Autoencoding beyond pixels using a learned similarity metric,
        arXiv:1512.09300, Algorithm 1.

    Example:
        >>> from tarspyro import Conditional, Deterministic, fit, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP, Discriminator
        >>> p = models.VAE(default_prior(dist.Normal, 2), Deterministic(MLP(2, [16]), 3))
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(3, [16]), 2))
        >>> loss = VAEGAN(Discriminator(MLP(3, [16])), gamma=0.1)
        >>> x = torch.randn(200, 3)
        >>> history = fit(p, q, x, loss=loss, epochs=2, seed=0, progress=False)
        >>> sorted(name for name in history.rows[0] if name.endswith("_loss"))
        ['discriminator_loss', 'generator_loss', 'guide_loss']
    """

    def __init__(
        self,
        discriminator: nn.Module,
        divergence: Divergence | None = None,
        *,
        site: str = "x",
        layer: str | None = "trunk",
        gamma: float = 1.0,
        likelihood: float = 0.0,
        r1: float = 0.0,
        bound: Bound | None = None,
        patience: int | None = 1000,
    ) -> None:
        super().__init__(discriminator, divergence, patience, r1)
        if layer is not None:
            names = [name for name, _ in discriminator.named_modules() if name]
            check_choice("layer of the discriminator", layer, names)
        check_number("gamma", gamma, 0)
        check_number("likelihood", likelihood, 0)
        if bound is not None and not isinstance(bound, Bound):
            raise TypeError(
                "bound must be one of tarspyro.infer, such as ELBO(), got"
                f" {format_value(bound)}."
            )
        self.site = site
        self.layer = layer
        self.gamma = gamma
        self.likelihood = likelihood
        self.bound = bound or ELBO()
        self.adjustable = ("gamma", *self.bound.adjustable)
        for name in self.bound.adjustable:
            setattr(self, name, getattr(self.bound, name))
        # In a tuple, since nn.Module would make the model of a view a part of the game.
        self._views: tuple[_FeatureView, ...] = ()

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        return [
            self.discriminator_player(self.discriminator_loss),
            self.player("guide", self.guide_loss, guide),
            self.player("generator", self.generator_loss, model),
        ]

    def discriminator_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns the loss of telling x from the means given codes of the prior and of the
        guide.
        """
        with torch.no_grad():
            draws, given = self._draw_both(model, guide, args, kwargs)
            fakes = [draws.site["fn"].mean, given.mean]
        return self.detection_loss(draws.real, fakes, draws)

    def guide_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns minus the bound with the similarity in place of the likelihood of x."""
        loss, terms = self._minus_bound(1.0, model, guide, args, kwargs)
        if self.layer is not None and "reconstruction" in terms:
            terms = {"similarity": terms.pop("reconstruction"), **terms}
        return loss, terms

    def generator_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns minus the bound with gamma times the similarity, plus the generator's loss of
        the fakes, less the weighted log p(x | z).
        """
        loss, _ = self._minus_bound(self.gamma, model, guide, args, kwargs)
        draws, given = self._draw_both(model, guide, args, kwargs)
        loss = loss + self.fooling_loss([draws.site["fn"].mean, given.mean], draws)
        if not self.likelihood:
            return loss, {}
        log_density = draws.total(given.log_prob(draws.real))
        return loss - self.likelihood * log_density, {"likelihood": log_density.detach()}

    def check(self, model: Program, guide: Program, *args: object, **kwargs: object) -> None:
        """Checks before the first step that the halves match, and that the model's
        distribution at the site has a mean and, if needed, a density.

        Raises:
            PairError: If they do not, or a player's loss does not run.
        """
        check_pair(model, guide, *args, **kwargs)
        with preserved_rng(), evaluating(model, self):
            family = draw(model, self.site, args, kwargs).site["fn"]
            check_conditions(model, args, kwargs)
        if self.layer is None and isinstance(family, dist.Delta):
            raise PairError(
                f"{name_of(model)} has a Deterministic likelihood at {self.site!r}, without a"
                " density: give the name of a layer of the discriminator, layer='trunk', or"
                " take another likelihood."
            )
        if self.likelihood and isinstance(family, dist.Delta):
            raise PairError(
                f"{name_of(model)} has a Deterministic likelihood at {self.site!r}, whose"
                f" density cannot have the weight likelihood={self.likelihood}: leave the weight"
                " at 0, or take another likelihood."
            )
        if not _has_mean(family):
            raise PairError(
                f"{name_of(model)}'s distribution of {self.site!r} has no mean to generate:"
                " take another likelihood, such as a Normal or a Deterministic."
            )
        self.rehearse(model, guide, *args, **kwargs)

    def prepare(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        view = self._view(model, 1.0)
        view.conditions(args, kwargs)
        self.bound.prepare(view, guide, args, kwargs)

    def _draw_both(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> tuple[Draws, TorchDistributionMixin]:
        """The model's draws given codes of the prior, and p(x | z) given codes of the guide."""
        draws = draw(model, self.site, args, kwargs)
        model_trace, _ = trace_pair(model, guide, args, kwargs)
        given: TorchDistributionMixin = cast(Site, model_trace.nodes[self.site])["fn"]
        return draws, given

    def _minus_bound(
        self,
        weight: float | Tensor,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> LossAndTerms:
        for name in self.bound.adjustable:
            setattr(self.bound, name, getattr(self, name))
        return self.bound.loss_and_terms(self._view(model, weight), guide, *args, **kwargs)

    def _view(self, model: Program, weight: float | Tensor) -> "_FeatureView":
        # One view for all players, so that the bound finds the pair's structure only once.
        if not self._views or self._views[0].model != model:
            self._views = (_FeatureView(self, model),)
        self._views[0].weight = weight
        return self._views[0]


def _has_mean(family: TorchDistributionMixin) -> bool:
    """Returns whether a distribution has a mean; torch returns NaN for a Cauchy."""
    try:
        return not bool(family.mean.isnan().all())
    except NotImplementedError:
        return False


class _FeatureView(nn.Module):
    """A model that observes a layer's output for x in place of x, with a weight.

    It is a module, so that contexts such as ``evaluating`` find all networks in it.
    """

    def __init__(self, game: VAEGAN, model: Program) -> None:
        super().__init__()
        self.game = game
        self.model = model
        self.weight: float | Tensor = 1.0
        self.__name__ = name_of(model)
        self._places: dict[tuple[Hashable, ...], list[int]] = {}

    def forward(self, *args: object, **kwargs: object) -> object:
        with _ObservedFeatures(self.game, self.weight, self.conditions(args, kwargs)):
            return self.model(*args, **kwargs)

    def conditions(self, args: Sequence[object], kwargs: Mapping[str, object]) -> list[Tensor]:
        """Returns the data that no site observes.

        Their positions are found by a run of the model, once for each kind of call.
        """
        data = (*args, *kwargs.values())
        key = (*(Tensor if torch.is_tensor(value) else type(value) for value in args), *kwargs)
        if key not in self._places:
            # No handler outside, such as a trace, may see this run.
            with preserved_rng(), evaluating(self), poutine.block():
                found = draw(self.model, self.game.site, args, kwargs).conditions
            known = {id(value) for value in found}
            self._places[key] = [
                place for place, value in enumerate(data) if id(value) in known
            ]
        given = (data[place] for place in self._places[key])
        return [value for value in given if torch.is_tensor(value)]


class _ObservedFeatures(Messenger):
    """Replaces an observed x by the layer's output for x, and its distribution by a Normal
    around the layer's output for the mean.
    """

    def __init__(
        self, game: VAEGAN, weight: float | Tensor, conditions: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self.game = game
        self.weight = weight
        self.given = conditions

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] != self.game.site or not msg["is_observed"]:
            return
        msg["scale"] = msg["scale"] * self.weight
        if self.game.layer is None:
            return
        mean = msg["fn"].mean
        ndims = msg["fn"].event_dim
        with torch.no_grad():
            target = self._features(msg["value"], ndims)
        features = self._features(mean, ndims)
        # Not validated: ``fit`` reports a loss that is not finite with an error of its own.
        normal = dist.Normal(features, torch.ones_like(target), validate_args=False)
        msg["value"] = target
        msg["fn"] = normal.to_event(1)

    def _features(self, x: Tensor, ndims: int) -> Tensor:
        """The layer's output as one vector for each row."""
        discriminator = self.game.discriminator
        layer = discriminator.get_submodule(str(self.game.layer))
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            found.append(output)

        with layer.register_forward_hook(keep):
            discriminator(x, *self.given)
        return found[-1].reshape(*x.shape[: x.dim() - ndims], -1)
