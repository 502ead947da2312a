"""Adversarial training: a generator against a discriminator."""

__all__ = [
    "Adversarial",
    "AdversarialGame",
    "Draws",
    "check_conditions",
    "conditions_of",
    "draw",
]

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor, nn

from tarspyro.arguments import as_count, check_module, check_number, format_value
from tarspyro.infer.games.base import Game, Player
from tarspyro.infer.games.losses import Divergence, JensenShannon
from tarspyro.infer.games.masks import counted_rows
from tarspyro.infer.gradients import reachable_leaves
from tarspyro.infer.traces import PairError, Site, name_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program


class Draws(NamedTuple):
    """What a model draws at a site in place of what it observes there."""

    site: Site
    real: Tensor  # what it observes
    conditions: tuple[Tensor, ...]  # the rest of the data, which no site observes

    def total(self, values: Tensor) -> Tensor:
        """Adds up the rows, with the site's scale and masks; of several numbers in a row, such
        as patches, the mean.
        """
        rows = (
            values
            if values.shape == (len(self.real),)
            else values.reshape(len(self.real), -1).mean(1)
        )
        scaled: Tensor = scale_and_mask(rows, self.site["scale"], self.counted)
        return scaled.sum()

    @property
    def counted(self) -> Tensor | None:
        """Which rows are not masked; None for all of them."""
        return counted_rows(self.site)


def draw(model: Program, site: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Draws:
    """Runs a model on data that it does not look at, and returns what it draws in its place.

    Raises:
        PairError: If the model observes nothing at the site.
    """
    with _Redrawn() as redrawn:
        model(*args, **kwargs)
    observed = {name: node["infer"]["obs"] for name, node in redrawn.sites.items()}
    if site not in observed:
        raise PairError(
            f"{name_of(model)} observes nothing at {site!r}: site must be one of"
            f" {sorted(observed)}."
        )
    return Draws(
        redrawn.sites[site], observed[site], conditions_of(observed.values(), args, kwargs)
    )


class _Redrawn(UnconditionMessenger):
    """Has a program draw what it observes, and keeps those sites; a whole trace would take
    longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Site] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["infer"].get("was_observed") and not msg["infer"].get("_deterministic"):
            self.sites[msg["name"]] = msg


def conditions_of(
    observed: Iterable[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    """Returns the tensors among the data of which none is observed, nor a view of it, such as
    an image in one row.
    """
    known = {id(_root(value)) for value in observed}
    data = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
    return tuple(value for value in data if id(_root(value)) not in known)


def check_conditions(model: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises if a model observes what it computes from a part of the data, which then looks
    like a condition.

    Raises:
        PairError: If an observed value depends on a part of the data, and is neither that part
            nor a view of it.
    """
    leaves = [a.detach().clone().requires_grad_() if _is_float(a) else a for a in args]
    with torch.enable_grad(), _Redrawn() as redrawn:
        model(*leaves, **kwargs)
    observed = {name: node["infer"]["obs"] for name, node in redrawn.sites.items()}
    known = {id(_root(value)) for value in observed.values()}
    apart = {
        id(leaf): place
        for place, leaf in enumerate(leaves)
        if _is_float(leaf) and id(leaf) not in known
    }
    reached = reachable_leaves([leaf for leaf in leaves if id(leaf) in apart])
    for name, value in observed.items():
        found = sorted(apart[key] for key in reached(value)) if torch.is_tensor(value) else []
        if found:
            raise PairError(
                f"{name_of(model)} observes at {name!r} what it computes from part {found[0]}"
                " of the data, and a game would show that part to the discriminator as a"
                " condition: compute it before, and give it as data."
            )


def _is_float(value: Any) -> bool:
    return torch.is_tensor(value) and value.is_floating_point()


def _root(value: Any) -> Any:
    return value if not torch.is_tensor(value) or value._base is None else value._base


class AdversarialGame(Game):
    """What games with a discriminator have in common: telling real from fake.

    Fakes of several kinds count by their mean, so that all of them together weigh as much as
    what is real: otherwise a score without bounds, such as that of a Wasserstein distance,
    would go down for ever.

    Arguments:
        discriminator: A network from a data point and its conditions to a number, or to
            several.
        divergence: What both sides minimize; ``JensenShannon()`` if not given.
        patience: After so many moves in a row of a discriminator that has won, a training
            stops; None for never.
    """

    def __init__(
        self, discriminator: nn.Module, divergence: Divergence | None, patience: int | None
    ) -> None:
        super().__init__()
        check_module("discriminator", discriminator)
        if divergence is not None and not isinstance(divergence, Divergence):
            raise TypeError(
                "divergence must be one of tarspyro.infer, such as Hinge(), got"
                f" {format_value(divergence)}."
            )
        self.discriminator = discriminator
        self.patience = None if patience is None else as_count("patience", patience)
        self.divergence: Divergence = divergence or JensenShannon()

    def against(self, loss: Callable[..., Any]) -> Player:
        """The discriminator as a player with the given loss."""
        floor = self.divergence.floor
        return self.player(
            "discriminator",
            loss,
            self.discriminator.parameters(),
            floor=floor,
            patience=self.patience,
        )

    def tell_apart(
        self,
        real: Tensor,
        fakes: Sequence[Tensor],
        conditions: Sequence[Tensor],
        total: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, and its outputs for real data and for fakes."""
        divergence, scores = self.divergence, self.discriminator(real, *conditions)
        losses, outputs = [], []
        for fake in fakes:
            fake_scores = self.discriminator(fake, *conditions)
            loss = total(divergence.fake(fake_scores))
            penalty = divergence.penalty(
                lambda x: self.discriminator(x, *conditions), real, fake
            )
            losses.append(loss if penalty is None else loss + total(penalty))
            outputs.append(total(divergence.output(fake_scores.detach())))
        loss = total(divergence.real(scores)) + _mean(losses)
        return loss, {
            "real": total(divergence.output(scores.detach())),
            "fake": _mean(outputs),
        }

    def convince(
        self,
        fakes: Sequence[Tensor],
        conditions: Sequence[Tensor],
        total: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The generator's loss."""
        return _mean(
            [
                total(self.divergence.generator(self.discriminator(fake, *conditions)))
                for fake in fakes
            ]
        )


def _mean(totals: Sequence[Tensor]) -> Tensor:
    return totals[0] if len(totals) == 1 else torch.stack(tuple(totals)).mean()


class Adversarial(AdversarialGame):
    r"""A generative adversarial network: the model generates, the discriminator tells what is
    real.

    .. math:: \min_G \max_D \; \mathbb{E}_x[\log \sigma(D(x))] + \mathbb{E}_{z \sim p(z)}[\log(1 - \sigma(D(G(z))))]

    or another ``divergence``. The generator is any model that observes x, with a
    ``Deterministic`` likelihood, or any other whose draws have a derivative; it is drawn from
    and never scored, and needs no guide. What it takes and does not observe, such as a label
    y, is a condition, which the discriminator sees too: D(x, y).

    In every step the discriminator moves first, then the generator, each against noise of its
    own (Algorithm 1 of the paper). The history has ``discriminator_loss`` and
    ``generator_loss``, the discriminator's mean outputs ``real`` and ``fake`` before its moves
    (probabilities of being real in a game of ``JensenShannon``), and the norms of the
    gradients, ``discriminator_gradient`` and ``generator_gradient``.

    Arguments:
        discriminator: A network from a data point (and conditions) to its score, such as
            ``nn.Discriminator``. Of several scores, such as those of the patches of an image,
            the mean loss counts.
        divergence: ``JensenShannon()`` if not given, ``LeastSquares()``, ``Hinge()`` or
            ``Wasserstein()``.
        site: The observed site that is told from the data.
        every: The generator moves in one of so many steps, after as many moves of the
            discriminator on fresh data.
        l1: The weight of the mean absolute difference between x and its fake in the
            generator's loss: pix2pix, whose paper has 100. (Isola et al. 2017,
            arXiv:1611.07004, eq. 4.)
        patience: A training stops after so many moves in a row of a discriminator with a loss
            below 0.001 (of a Wasserstein distance there is no such limit); None for never.

    Raises:
        TypeError: If ``discriminator`` or ``divergence`` is none.
        ValueError: If ``every`` is below 1, or ``l1`` negative.
        PairError: In ``fit``, if the model observes nothing at the site, or draws there
            without a derivative.

    References:
        Goodfellow et al. (2014), Generative Adversarial Networks, arXiv:1406.2661; Mirza and
        Osindero (2014), Conditional Generative Adversarial Nets, arXiv:1411.1784.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Deterministic, fit, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.infer import Hinge
        >>> from tarspyro.nn import MLP, Discriminator
        >>> p = models.GAN(default_prior(dist.Normal, 2), Deterministic(MLP(2, [16]), 3))
        >>> loss = Adversarial(Discriminator(MLP(3, [16])), Hinge())
        >>> history = fit(p, data=torch.randn(200, 3), loss=loss, epochs=2, seed=0, progress=False)
        >>> sorted(name for name in history.rows[0] if "_" in name)
        ['discriminator_gradient', 'discriminator_loss', 'generator_gradient',
        'generator_loss']
    """

    def __init__(
        self,
        discriminator: nn.Module,
        divergence: Divergence | None = None,
        *,
        site: str = "x",
        every: int = 1,
        l1: float = 0.0,
        patience: int | None = 1000,
    ) -> None:
        super().__init__(discriminator, divergence, patience)
        check_number("l1", l1, 0)
        self.site, self.every, self.l1 = site, as_count("every", every), l1

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        generator = self.player("generator", self.generator_loss, model, every=self.every)
        return [self.against(self.discriminator_loss), generator]

    def discriminator_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of telling x from a fake."""
        with torch.no_grad():
            draws = draw(model, self.site, args, kwargs)
        return self.tell_apart(
            draws.real, [draws.site["value"]], draws.conditions, draws.total
        )

    def generator_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a fake that does not pass for real, and of its distance from x."""
        draws = draw(model, self.site, args, kwargs)
        fake = draws.site["value"]
        loss, terms = self.convince([fake], draws.conditions, draws.total), {}
        if self.l1:
            terms["l1"] = draws.total((fake - draws.real).abs())
            loss = loss + self.l1 * terms["l1"]
        return loss, {name: term.detach() for name, term in terms.items()}

    def check(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
        """Raises a ``PairError`` unless the model's draws at the site have a derivative."""
        with preserved_rng(), evaluating(model, self):
            draws = draw(model, self.site, args, kwargs)
            check_conditions(model, args, kwargs)
        family: Any = draws.site["fn"]
        if not family.has_rsample:
            family = getattr(family, "base_dist", family)
            raise PairError(
                f"{name_of(model)} draws {self.site!r} from a {type(family).__name__}, without"
                " a derivative: take a Deterministic as its likelihood."
            )
        self.rehearse(model, guide, *args, **kwargs)
