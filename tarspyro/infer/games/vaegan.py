"""The VAE-GAN: a pair whose likelihood of x is measured in a layer of a discriminator, which
tells its means from x.
"""

__all__ = ["VAEGAN"]

from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from tarspyro.arguments import check_choice, check_number, format_value
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.games.adversarial import AdversarialGame, Draws, check_conditions, draw
from tarspyro.infer.games.base import Player
from tarspyro.infer.games.losses import Divergence
from tarspyro.infer.matching import check_pair
from tarspyro.infer.traces import PairError, name_of, trace_pair
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program


class VAEGAN(AdversarialGame):
    r"""A variational autoencoder whose decoder is also a generator, with a likelihood learned
    by the discriminator.

    With D the discriminator, :math:`D_l` a layer of it and :math:`\tilde{x}(z)` the mean of
    the model's p(x | z):

    .. math:: \mathcal{L}_\mathrm{guide} &= \mathrm{KL}(q(z \mid x) \,\|\, p(z)) - \mathcal{S}, \qquad
              \mathcal{S} = \mathbb{E}_{q(z \mid x)}[\log \mathcal{N}(D_l(x);
              D_l(\tilde{x}(z)), I)] \\ \mathcal{L}_\mathrm{generator} &= \mathrm{KL}(q(z \mid
              x) \,\|\, p(z)) - \gamma \, \mathcal{S} +
              \mathbb{E}_{\tilde{x}}[\mathcal{L}_G(\tilde{x})] \\
              \mathcal{L}_\mathrm{discriminator} &= \mathcal{L}_D(x) +
              \mathbb{E}_{\tilde{x}}[\mathcal{L}_D(\tilde{x})]

    The fakes are one half means given codes from the model's own prior p(z) and one half means
    given codes of the guide. (The paper adds up both kinds against x counted once. Here their
    mean counts, which has its balance where D is one half, and is a divergence for every
    choice of ``divergence``.) A gradient reaches a player's own parameters alone: the KL in
    the generator's loss is for priors with parameters.

    The first two losses are minus a ``bound`` of the pair, in which the model observes D_l(x)
    in the place of x, so that everything else is as in that bound: a KL in closed form, labels
    that are summed out, further modalities with likelihoods of their own. The pair of a
    ``ConditionalVAE`` gives a conditional VAE-GAN, whose discriminator sees the label, that of
    a ``CMMA`` a CMMA-GAN, and that of a ``JMVAE`` with ``site="x_1"`` a JMVAE-GAN.

    In every step the discriminator moves first, then the guide, then the model. The history
    has the loss and the gradient's norm of each (``guide_loss``, ``generator_gradient``), the
    outputs ``real`` and ``fake`` as with ``Adversarial``, and the terms of the bound: those of
    an ``ELBO``, the reconstruction being called ``similarity`` where it is measured in a
    layer.

    Arguments:
        discriminator: A network from x (and conditions) to its score, such as
            ``nn.Discriminator``.
        divergence: ``JensenShannon()`` if not given, or another of this module.
        site: The observed site that is told from the data, and whose likelihood is replaced.
        layer: The name of the module in the discriminator whose output is compared, such as
            ``"trunk.layers.1"``; or None for the model's own p(x | z).
        gamma: The weight of the similarity for the model, beside that of its fakes; may be
            scheduled.
        bound: A bound of the pair, ``ELBO()`` if not given; its numbers such as ``beta`` may
            be scheduled here.
        patience: See ``Adversarial``.

    Raises:
        TypeError: If ``discriminator``, ``divergence`` or ``bound`` is none.
        ValueError: If the discriminator has no such layer, or ``gamma`` is negative.
        PairError: In ``fit``, if the halves do not match, the model observes nothing at the
            site, or its distribution there has no mean, or with ``layer=None`` no density.

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
        >>> history = fit(p, q, torch.randn(200, 3), loss=loss, epochs=2, seed=0, progress=False)
        >>> sorted(name for name in history.rows[0] if "_" in name and "gradient" not in name)
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
        bound: Bound | None = None,
        patience: int | None = 1000,
    ) -> None:
        super().__init__(discriminator, divergence, patience)
        names = [name for name, _ in discriminator.named_modules() if name]
        if layer is not None:
            check_choice("layer of the discriminator", layer, names)
        check_number("gamma", gamma, 0)
        if bound is not None and not isinstance(bound, Bound):
            raise TypeError(
                "bound must be one of tarspyro.infer, such as ELBO(), got"
                f" {format_value(bound)}."
            )
        self.site, self.layer, self.gamma, self.bound = site, layer, gamma, bound or ELBO()
        self.adjustable = ("gamma", *self.bound.adjustable)
        for name in self.bound.adjustable:
            setattr(self, name, getattr(self.bound, name))
        self._views: tuple[
            _View, ...
        ] = ()  # in a tuple, past what would make the model a part of the game

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        return [
            self.against(self.discriminator_loss),
            self.player("guide", self.guide_loss, guide),
            self.player("generator", self.generator_loss, model),
        ]

    def discriminator_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of telling x from the means given codes of the prior and of the guide."""
        with torch.no_grad():
            draws, fakes = self._fakes(model, guide, args, kwargs)
        return self.tell_apart(draws.real, fakes, draws.conditions, draws.total)

    def guide_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the bound with the similarity in the place of the likelihood of x, and its
        terms.
        """
        loss, terms = self._minus_bound(1.0, model, guide, args, kwargs)
        if self.layer is not None and "reconstruction" in terms:
            terms = {"similarity": terms.pop("reconstruction"), **terms}
        return loss, terms

    def generator_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same with gamma times the similarity, and the loss of fakes that do not pass for
        real.
        """
        loss, _ = self._minus_bound(self.gamma, model, guide, args, kwargs)
        draws, fakes = self._fakes(model, guide, args, kwargs)
        return loss + self.convince(fakes, draws.conditions, draws.total), {}

    def check(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
        """Raises a ``PairError`` unless the halves match and the model's distribution at the
        site has what it needs.
        """
        check_pair(model, guide, *args, **kwargs)
        with preserved_rng(), evaluating(model, self):
            family: Any = draw(model, self.site, args, kwargs).site["fn"]
            check_conditions(model, args, kwargs)
        if self.layer is None and isinstance(family, dist.Delta):
            raise PairError(
                f"{name_of(model)} has a Deterministic likelihood at {self.site!r}, without a"
                " density: give the name of a layer of the discriminator, layer='trunk', or"
                " take another likelihood."
            )
        try:
            _ = family.mean
        except NotImplementedError:
            raise PairError(
                f"{name_of(model)}'s distribution of {self.site!r} has no mean to generate."
            ) from None
        self.rehearse(model, guide, *args, **kwargs)

    def prepare(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        view = self._view(model, 1.0)
        view.conditions(args, kwargs)
        self.bound.prepare(view, guide, args, kwargs)

    def _fakes(
        self, model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Draws, list[Tensor]]:
        """What the model generates from codes of its prior, and both kinds of fakes."""
        draws = draw(model, self.site, args, kwargs)
        nodes: Any = trace_pair(model, guide, args, kwargs)[0].nodes
        return draws, [draws.site["fn"].mean, nodes[self.site]["fn"].mean]

    def _minus_bound(
        self,
        weight: Any,
        model: Program,
        guide: Program,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        for name in self.bound.adjustable:
            setattr(self.bound, name, getattr(self, name))
        return self.bound.loss_and_terms(self._view(model, weight), guide, *args, **kwargs)

    def _view(self, model: Program, weight: Any) -> "_View":
        # One for all players, so that the bound has to find out the pair's structure only
        # once.
        if not self._views or self._views[0].model != model:
            self._views = (_View(self, model),)
        self._views[0].weight = weight
        return self._views[0]


class _View(nn.Module):
    """A model as the discriminator sees it: it observes a layer's output for x, with a weight.

    A module, so that whoever looks at a program in evaluation mode has all networks in it.
    """

    def __init__(self, game: VAEGAN, model: Program) -> None:
        super().__init__()
        self.game, self.model, self.weight = game, model, 1.0
        self.__name__ = name_of(model)
        self._places: dict[Any, list[int]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Observing(self.game, self.weight, self.conditions(args, kwargs)):
            return self.model(*args, **kwargs)

    def conditions(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The data that no site observes. Which they are is found by a run of its own, once
        for each kind of call.
        """
        data = (*args, *kwargs.values())
        key = (*(Tensor if torch.is_tensor(value) else type(value) for value in args), *kwargs)
        if key not in self._places:
            with preserved_rng(), evaluating(self), poutine.block():  # nobody sees this run
                found = {
                    id(value)
                    for value in draw(self.model, self.game.site, args, kwargs).conditions
                }
            self._places[key] = [
                place for place, value in enumerate(data) if id(value) in found
            ]
        return [data[place] for place in self._places[key]]


class _Observing(Messenger):
    """Puts the layer's output for x, and a Normal around that for the mean, in the place of x
    and its distribution.
    """

    def __init__(self, game: VAEGAN, weight: Any, conditions: Sequence[Tensor]) -> None:
        super().__init__()
        self.game, self.weight, self.given = game, weight, conditions

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.game.site or not msg["is_observed"]:
            return
        msg["scale"] = msg["scale"] * self.weight
        if self.game.layer is None:
            return
        mean, ndims = msg["fn"].mean, msg["fn"].event_dim
        with torch.no_grad():
            target = self._features(msg["value"], ndims)
        msg["value"] = target
        # Not validated: a loss that is not finite has a sentence of its own.
        normal = dist.Normal(
            self._features(mean, ndims), torch.ones_like(target), validate_args=False
        )
        msg["fn"] = normal.to_event(1)

    def _features(self, x: Tensor, ndims: int) -> Tensor:
        found: list[Tensor] = []
        layer = self.game.discriminator.get_submodule(str(self.game.layer))
        with layer.register_forward_hook(
            lambda _module, _inputs, output: found.append(output)
        ):
            self.game.discriminator(x, *self.given)
        return found[-1].reshape(*x.shape[: x.dim() - ndims], -1)
