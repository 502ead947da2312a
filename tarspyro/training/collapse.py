"""An alarm for a posterior that collapses in the first epochs."""

__all__ = ["CollapseAlarm", "both"]

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tarspyro.evaluate.diagnosis import decoder_gains
from tarspyro.infer import ELBO, WeightedBound
from tarspyro.inputs import count_rows
from tarspyro.programs import PROGRAM_ERRORS, tensors_of
from tarspyro.scopes import evaluating, kept_buffers
from tarspyro.training.checks import warn_user
from tarspyro.training.losses import Objective
from tarspyro.types import Arguments

# The epochs, steps and data points after which the alarm looks, whichever take longer. Earlier
# than that, the KL of a model that trains well may fall at first, and then grow.
_EPOCHS = 2
_STEPS = 100
_POINTS = 2_000
# A KL below the first number is collapsed. A KL above the second is not, nor is a gain that may
# be above it within its standard error (nats).
_NOTHING = 0.03
_SOME = 1.0
# The gain from the own code is none if it is below so many standard errors.
_ERRORS = 3.0


class _Look(NamedTuple):
    """The use of the code: means over data points, in nats.

    Attributes:
        kl: The KL, summed over all latent units.
        gain: What a data point's own code gains over the code of another one, in
            reconstruction.
        error: The standard error of the gain.
    """

    kl: float
    gain: float
    error: float


class CollapseAlarm:
    """Warns if the code holds no information on the data.

    It looks after the second epoch, or after a hundred steps and two thousand data points if
    epochs are short; and again after each epoch as long as the code is of no use.

    The posterior has collapsed if the KL is nearly zero; or if it is small and does not grow,
    and a data point is reconstructed as well from the code of another one as from its own. The
    alarm is for bounds alone, and not for a loss whose ``beta`` is scheduled, because a warm-up
    begins without the KL; nor for data whose rows are all equal, which need no code of their
    own.

    Arguments:
        objective: The loss with its pair.
        examples: Yields batches that stand for all of the data.
        schedules: The schedules of ``fit``.
    """

    def __init__(
        self,
        objective: Objective,
        examples: Callable[[], Iterable[Arguments]],
        schedules: Mapping[str, object] | None = None,
    ) -> None:
        self.pair = objective.pair
        self.examples = examples
        bound = isinstance(objective.loss, ELBO | WeightedBound)
        self.watching = bound and "beta" not in (schedules or {})
        self.seen: list[float] = []
        self._elbo = ELBO()  # it keeps the structure of the pair

    def __call__(self, row: Mapping[str, float]) -> None:
        """Looks at the pair after an epoch, whose number is ``row["epoch"]``."""
        if not self.watching or row["steps"] * (1 + 1 / row["epoch"]) < _STEPS:
            return  # a look before the last of those that may alarm would decide nothing
        batches = list(self.examples())
        look = None if _are_equal(batches[0]) else self._look(batches)
        if look is None:
            self.watching = False
            return
        self.seen.append(look.kl)
        points = row["steps"] * count_rows(batches[0])
        if len(self.seen) < _EPOCHS or row["steps"] < _STEPS or points < _POINTS:
            return
        unread = look.gain == look.error == 0  # the decoder leaves the code out
        falls = unread or look.kl <= self.seen[-2]
        useless = look.gain <= _ERRORS * look.error
        small = max(look.kl, look.gain + _ERRORS * look.error) < _SOME
        collapsed = look.kl < _NOTHING or (falls and useless and small)
        self.watching = useless and not collapsed
        if collapsed:
            warn_user(
                f"The posterior has collapsed: after {row['epoch']} epochs the KL of all latent"
                f" units together is {look.kl:.2g} nats, and a data point is reconstructed from"
                " the code of another one as well as from its own (gain"
                f" {look.gain:.2g} +- {look.error:.2g} nats). Try loss=ELBO(free_bits=0.25), a"
                " warm-up of beta by schedules, a smaller beta, or a weaker decoder;"
                " evaluate.diagnose(model, guide, x) says more."
            )

    def _look(self, batches: Sequence[Arguments]) -> _Look | None:
        """Looks at the code; None if the pair has none, or no latent variable of a data point."""
        divergences: list[Tensor] = []
        gains: list[Tensor] = []
        with (
            warnings.catch_warnings(),
            evaluating(*self.pair),
            kept_buffers(*self.pair),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            try:
                for batch in batches:
                    structure = self._elbo.structure(*self.pair, *batch)
                    if not structure.latent or structure.enumerated:
                        return None
                    _, kl = self._elbo.terms_per_point(
                        *self.pair, batch, num_particles=1, structure=structure
                    )
                    divergences.append(kl.flatten())
                    gains.append(decoder_gains(*self.pair, batch, structure))
            except PROGRAM_ERRORS:
                # A loss may train a pair in ways that have no ELBO; the training goes on.
                return None
        gain = torch.cat(gains)
        error = gain.std() / len(gain) ** 0.5
        return _Look(float(torch.cat(divergences).mean()), float(gain.mean()), float(error))


def _are_equal(batch: Arguments) -> bool:
    """Whether all rows of a batch are equal."""
    return all(torch.equal(part, part[:1].expand_as(part)) for part in tensors_of(batch))


def both(
    first: Callable[[Mapping[str, float]], object],
    second: Callable[[dict[str, float]], object] | None,
) -> Callable[[dict[str, float]], object]:
    """Returns one callback that calls both."""
    if second is None:
        return first

    def call(row: dict[str, float]) -> None:
        first(row)
        second(row)

    return call
