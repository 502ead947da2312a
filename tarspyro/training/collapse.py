"""An alarm for a posterior that collapses in the first epochs."""

__all__ = ["CollapseAlarm", "both"]

import warnings
from collections.abc import Callable, Mapping

import torch

from tarspyro.infer import ELBO, WeightedBound
from tarspyro.inputs import count_rows
from tarspyro.programs import PROGRAM_ERRORS
from tarspyro.scopes import evaluating, kept_buffers
from tarspyro.training.checks import warn_user
from tarspyro.training.losses import Objective
from tarspyro.types import Arguments

# The epochs, steps and data points after which the KL is looked at, whichever take longer.
# Earlier than that, the KL of a model that trains well may fall at first, and then grow.
_EPOCHS = 2
_STEPS = 100
_POINTS = 2_000
# A KL below the first number that does not grow, or below the second, is collapsed (nats).
_SMALL = 0.1
_NOTHING = 0.03
# A KL that falls below this is looked at again after the next epoch.
_UNSURE = 0.5


class CollapseAlarm:
    """Warns if the guide is the prior, whatever the data point.

    It looks after the second epoch, or after a hundred steps and two thousand data points if
    epochs are short; and again after each epoch as long as the KL is small and falls.

    The measure is the mean KL of a batch, summed over all latent units. A model that uses its
    code pays nats for it, and the KL grows from the start. The alarm is for bounds alone, and
    not for a loss whose ``beta`` is scheduled, because a warm-up begins without the KL.

    Arguments:
        objective: The loss with its pair.
        batch: The batch whose KL is looked at.
        schedules: The schedules of ``fit``.
    """

    def __init__(
        self,
        objective: Objective,
        batch: Arguments,
        schedules: Mapping[str, object] | None = None,
    ) -> None:
        self.pair = objective.pair
        self.batch = batch
        bound = isinstance(objective.loss, ELBO | WeightedBound)
        self.watching = bound and "beta" not in (schedules or {})
        self.seen: list[float] = []

    def __call__(self, row: Mapping[str, float]) -> None:
        """Looks at the pair after an epoch, whose number is ``row["epoch"]``."""
        if not self.watching:
            return
        kl = self._kl()
        if kl is None:
            self.watching = False
            return
        self.seen.append(kl)
        points = row["steps"] * count_rows(self.batch)
        if len(self.seen) < _EPOCHS or row["steps"] < _STEPS or points < _POINTS:
            return
        falls = kl <= self.seen[-2]
        collapsed = kl < _NOTHING or (falls and kl < _SMALL)
        self.watching = falls and kl < _UNSURE and not collapsed
        if collapsed:
            warn_user(
                f"The posterior has collapsed: after {len(self.seen)} epochs the KL of all latent"
                f" units together is {kl:.2g} nats, so the code says nothing about the data. Try"
                " loss=ELBO(free_bits=0.25), a warm-up of beta by schedules, a smaller beta, or"
                " a weaker decoder; evaluate.diagnose(model, guide, x) says more."
            )

    def _kl(self) -> float | None:
        """Returns the mean KL of a data point; None if the pair has none, or no latent site."""
        bound = ELBO()
        with (
            warnings.catch_warnings(),
            evaluating(*self.pair),
            kept_buffers(*self.pair),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            try:
                structure = bound.structure(*self.pair, *self.batch)
                if not structure.latent or structure.enumerated:
                    return None
                _, kl = bound.terms_per_point(
                    *self.pair, self.batch, num_particles=1, structure=structure
                )
            except PROGRAM_ERRORS:
                # A loss may train a pair in ways that have no ELBO; the training goes on.
                return None
        return float(kl.mean())


def both(
    first: Callable[[Mapping[str, float]], object],
    second: Callable[[dict[str, float]], object] | None,
) -> Callable[[dict[str, float]], object]:
    """Returns a callback that calls two."""
    if second is None:
        return first

    def call(row: dict[str, float]) -> None:
        first(row)
        second(row)

    return call
