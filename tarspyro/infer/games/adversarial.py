"""Generative adversarial networks: a generator against a discriminator."""

__all__ = ["Adversarial", "AdversarialGame"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, check_module, check_number, format_value
from tarspyro.infer.games.average import MovingAverage
from tarspyro.infer.games.base import Game, LossAndTerms, Player
from tarspyro.infer.games.draws import Rows, check_conditions, draw
from tarspyro.infer.games.losses import Divergence, JensenShannon
from tarspyro.infer.traces import PairError, name_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program


class AdversarialGame(Game):
    """The base class of games with a discriminator, which tells real values from fakes.

    If there are several kinds of fakes, their mean counts, so that all of them together weigh
    as much as the real values. Otherwise a score without bounds, such as that of
    ``Wasserstein``, would fall for ever.

    Arguments:
        discriminator: A network from a data point and its conditions to its score, or to
            several scores.
        divergence: The losses of both sides; ``JensenShannon()`` if None.
        patience: The training ends after so many moves in a row of a discriminator that has
            won; None for never.
        r1: The weight of the penalty on the discriminator's gradient at real values.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        divergence: Divergence | None,
        patience: int | None,
        r1: float = 0.0,
    ) -> None:
        super().__init__()
        check_module("discriminator", discriminator)
        if divergence is not None and not isinstance(divergence, Divergence):
            raise TypeError(
                "divergence must be one of tarspyro.infer, such as Hinge(), got"
                f" {format_value(divergence)}."
            )
        check_number("r1", r1, 0)
        self.discriminator = discriminator
        self.r1 = r1
        self.divergence: Divergence = divergence or JensenShannon()
        self.patience = None if patience is None else as_count("patience", patience)

    def discriminator_player(self, loss: Callable[..., LossAndTerms]) -> Player:
        """Returns the discriminator as a player with the given loss."""
        return self.player(
            "discriminator",
            loss,
            self.discriminator.parameters(),
            floor=self.divergence.floor,
            patience=self.patience,
        )

    def detection_loss(
        self, real: Tensor, fakes: Sequence[Tensor], rows: Rows
    ) -> LossAndTerms:
        """Returns the discriminator's loss of real values and of fakes, and its mean outputs
        for both.
        """
        divergence = self.divergence

        def score(x: Tensor) -> Tensor:
            found: Tensor = self.discriminator(x, *rows.conditions)
            return found

        real_scores = score(real)
        losses: list[Tensor] = []
        outputs: list[Tensor] = []
        for fake in fakes:
            fake_scores = score(fake)
            loss = rows.total(divergence.fake(fake_scores))
            penalty = divergence.penalty(score, real, fake)
            if penalty is not None:
                loss = loss + rows.total(penalty)
            losses.append(loss)
            outputs.append(rows.total(divergence.output(fake_scores.detach())))
        terms = {
            "real": rows.total(divergence.output(real_scores.detach())),
            "fake": _mean(outputs),
        }
        total = rows.total(divergence.real(real_scores)) + _mean(losses)
        if not self.r1:
            return total, terms
        penalty = rows.total(self._slope(real, rows))
        return total + self.r1 / 2 * penalty, {**terms, "r1": penalty.detach()}

    def _slope(self, real: Tensor, rows: Rows) -> Tensor:
        """Returns the squared norm of the discriminator's gradient at each real value."""
        with torch.enable_grad():  # an evaluation needs this gradient, too
            x = real.detach().requires_grad_()
            scores = self.discriminator(x, *rows.conditions).reshape(len(x), -1).mean(1)
            (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        squares: Tensor = gradient.flatten(1).square().sum(1)
        return squares

    def fooling_loss(self, fakes: Sequence[Tensor], rows: Rows) -> Tensor:
        """Returns the generator's loss of fakes."""
        scores = [self.discriminator(fake, *rows.conditions) for fake in fakes]
        return _mean([rows.total(self.divergence.generator(score)) for score in scores])


def _mean(totals: Sequence[Tensor]) -> Tensor:
    return totals[0] if len(totals) == 1 else torch.stack(tuple(totals)).mean()


class Adversarial(AdversarialGame):
    r"""A generative adversarial network: the model generates, the discriminator tells real
    data from fakes.

    .. math:: \min_G \max_D \; \mathbb{E}_x[\log \sigma(D(x))]
              + \mathbb{E}_{z \sim p(z)}[\log(1 - \sigma(D(G(z))))]

    or the losses of another ``divergence``. The generator is any model that observes x with a
    ``Deterministic`` likelihood, or with any distribution whose draws have gradients. Its
    likelihood is never evaluated, and it needs no guide. Data that the model takes and does
    not observe, such as a label y, are conditions, which the discriminator sees too: D(x, y).

    In every step the discriminator moves first, then the generator, each with noise of its own
    (Algorithm 1 of the paper). The history has ``discriminator_loss`` and ``generator_loss``;
    ``real`` and ``fake``, the discriminator's mean outputs before its move, which are
    probabilities of being real with ``JensenShannon``; and the norms of the gradients,
    ``discriminator_gradient`` and ``generator_gradient``.

    Arguments:
        discriminator: A network from a data point (and conditions) to its score, such as
            ``nn.Discriminator``. Of several scores, such as those of the patches of an image,
            the mean loss counts.
        divergence: The losses of both: ``JensenShannon()`` if not given, ``LeastSquares()``,
            ``Hinge()`` or ``Wasserstein()``.
        site: The observed site whose draws the discriminator tells from the data.
        every: The generator moves in one of so many steps, after as many moves of the
            discriminator on new batches.
        l1: The weight of the mean absolute difference between x and its fake in the
            generator's loss: pix2pix, whose paper has 100. (Isola et al. 2017,
            arXiv:1611.07004, eq. 4.)
        r1: The weight gamma of a penalty on the gradient at real data, gamma / 2
            :math:`\|\nabla_x D(x)\|^2`, with which the game converges where it would circle
            (Mescheder et al. 2018, arXiv:1801.04406, eq. 9). The discriminator must have no
            batch normalization. The history has ``r1``.
        average: The moving average of the model's weights, ``MovingAverage(model)``.
        patience: The training ends after so many moves in a row in which the discriminator's
            mean loss was below 0.001; None for never. ``Wasserstein`` has no such limit.

    Two time scales (Heusel et al. 2017, arXiv:1706.08500) are two learning rates,
    ``optimizer=Optimizer(torch.optim.Adam, discriminator={"lr": 4e-4})``. A bound on the
    discriminator's slope comes from ``nn.spectrally_normalized``, and statistics of the batch,
    by which it sees that fakes are too much alike, from ``nn.BatchDeviation``.

    Raises:
        TypeError: If ``discriminator`` is not a module, or ``divergence`` or ``average`` is of
            another type.
        ValueError: If ``every`` is below 1, or ``l1`` or ``r1`` negative.
        PairError: In ``fit``, if the model observes nothing at the site, or its draws there
            have no gradients.

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
        >>> x = torch.randn(200, 3)
        >>> history = fit(p, data=x, loss=loss, epochs=2, seed=0, progress=False)
        >>> [name for name in history.rows[0] if name.endswith("_loss")]
        ['discriminator_loss', 'generator_loss']
    """

    def __init__(
        self,
        discriminator: nn.Module,
        divergence: Divergence | None = None,
        *,
        site: str = "x",
        every: int = 1,
        l1: float = 0.0,
        r1: float = 0.0,
        average: MovingAverage | None = None,
        patience: int | None = 1000,
    ) -> None:
        super().__init__(discriminator, divergence, patience, r1)
        check_number("l1", l1, 0)
        if average is not None and not isinstance(average, MovingAverage):
            raise TypeError(
                f"average must be a MovingAverage(model), got {format_value(average)}."
            )
        self.average = average
        self.site = site
        self.every = as_count("every", every)
        self.l1 = l1

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        return [
            self.discriminator_player(self.discriminator_loss),
            self.player("generator", self.generator_loss, model, every=self.every),
        ]

    def discriminator_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns the loss of telling x from a fake."""
        if self.average is not None and self.training and isinstance(model, nn.Module):
            self.average.update(model)
        with torch.no_grad():
            draws = draw(model, self.site, args, kwargs)
        return self.detection_loss(draws.real, [draws.fake], draws)

    def generator_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns the loss of a fake, and of its distance from x if ``l1`` is not 0."""
        draws = draw(model, self.site, args, kwargs)
        loss = self.fooling_loss([draws.fake], draws)
        if not self.l1:
            return loss, {}
        distance = draws.total((draws.fake - draws.real).abs())
        return loss + self.l1 * distance, {"l1": distance.detach()}

    def check(self, model: Program, guide: Program, *args: object, **kwargs: object) -> None:
        """Checks before the first step that the model's draws at the site have gradients.

        Raises:
            PairError: If they have none, or a player's loss does not run.
        """
        with preserved_rng(), evaluating(model, self):
            draws = draw(model, self.site, args, kwargs)
            check_conditions(model, args, kwargs)
        family = draws.site["fn"]
        if not family.has_rsample:
            family = getattr(family, "base_dist", family)
            raise PairError(
                f"{name_of(model)} draws {self.site!r} from a {type(family).__name__}, without"
                " a derivative: take a Deterministic as its likelihood."
            )
        self.rehearse(model, guide, *args, **kwargs)
