"""Guards: skip or stop on non-finite losses and gradients, and stop when a player has won."""

__all__ = ["FiniteGuard"]

import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tarspyro.infer import Player
from tarspyro.runs.history import States
from tarspyro.training.advice import remedy_of
from tarspyro.training.checks import CollapseError, NonFiniteError, describe_nonfinite
from tarspyro.training.state import TrainingState
from tarspyro.types import Arguments

# An accelerator waits for the host whenever a loss is read back, so losses are read together.
_STEPS_BETWEEN_READINGS = 50

# If so many steps in a row were skipped, skipping one more will not help.
_MOST_SKIPPED_IN_A_ROW = 20


class _Unread(NamedTuple):
    """A loss that has not been read back from the device, and when it was computed."""

    player: Player
    step: int
    batch: int
    loss: Tensor
    norm: Tensor | None


class FiniteGuard:
    """Checks that losses, gradients and weights are finite, and that no player has won.

    On a CPU every step is checked before it changes the weights. On a GPU the losses are read
    every 50 steps, unless steps may be skipped.

    Arguments:
        state: The state of the training. The guard adds every loss to its history.
        on_nonfinite: ``"stop"`` or ``"skip"``, see ``Optimizer``.
    """

    def __init__(self, state: TrainingState, on_nonfinite: str) -> None:
        self.state = state
        self.skips = on_nonfinite == "skip"
        self._unread: list[_Unread] = []

    def allows(
        self,
        player: Player,
        loss: Tensor,
        norm: Tensor | None,
        arguments: Arguments,
        noise: Tensor | None,
    ) -> bool:
        """Notes a loss and the norm of its gradient; returns whether to make the step.

        Arguments:
            player: The player whose loss it is.
            loss: The loss, per data point.
            norm: The norm, if it is known.
            arguments: The batch.
            noise: The random state of the CPU from which the loss was drawn, if it is known.

        Raises:
            NonFiniteError: If one of them is not finite, and the training has to stop.
            CollapseError: If the player has won the game.
        """
        now = self.state.progress
        self._unread.append(_Unread(player, now.step + 1, now.position + 1, loss, norm))
        at_once = loss.device.type == "cpu" or self.skips
        if at_once or len(self._unread) >= _STEPS_BETWEEN_READINGS:
            return self.read(arguments, noise)
        return True

    def read(self, arguments: Arguments | None = None, noise: Tensor | None = None) -> bool:
        """Reads the losses that were noted; returns whether all were finite.

        Raises the same errors as ``allows``.
        """
        unread = self._unread
        self._unread = []
        pairs = [
            torch.stack([one.loss, one.loss if one.norm is None else one.norm.to(one.loss)])
            for one in unread
        ]
        values = torch.stack(pairs).tolist() if pairs else []
        for one, (loss, norm) in zip(unread, values, strict=True):
            epoch = self.state.progress.epoch + 1
            when = f"step {one.step} (epoch {epoch}, batch {one.batch})"
            if not (math.isfinite(loss) and math.isfinite(norm)):
                cause = "" if arguments is None else f": {self._cause(arguments, noise)}"
                self._skip_or_stop(
                    f"The {_what(one.player, loss, norm)} at {when}{cause}.",
                    functools.partial(self._remedy, arguments, first=one.step == 1),
                )
                return False
            self._check_winner(one.player, loss, when)
        return True

    def check(self, weights: States) -> None:
        """Raises a ``NonFiniteError`` if a weight is not finite."""
        for half, state in weights.items():
            for name, tensor in state.items():
                if not tensor.isfinite().all():
                    step = self.state.progress.step
                    raise NonFiniteError(
                        f"The {half}'s {name} is not finite after step {step}."
                    )

    def keep(self, weights: States) -> None:
        """Keeps weights to go back to when a step goes wrong."""
        self.state.keep(weights, optimizers=self.skips)

    def go_back(self) -> str:
        """Restores the weights that were kept; returns a part of a sentence about them."""
        return f"the weights are those after {self.state.go_back()}"

    def _check_winner(self, player: Player, loss: float, when: str) -> None:
        """Adds a finite loss to the history, and raises if its player has won."""
        below = self.state.add_loss(player, loss)
        if player.patience is not None and below >= player.patience:
            raise CollapseError(
                f"The {player.name} has won: its loss was below {player.floor:g} in"
                f" {player.patience} moves in a row, until {when}, and the others learn nothing"
                " from it any more."
            )

    def _cause(self, arguments: Arguments, noise: Tensor | None) -> str:
        return describe_nonfinite(*self.state.pair, arguments, self.state.modules, noise)

    def _remedy(self, arguments: Arguments | None, *, first: bool) -> str:
        groups = [
            group for optimizer in self.state.optimizers for group in optimizer.param_groups
        ]
        rate = max(float(group["lr"]) for group in groups)
        return remedy_of(*self.state.pair, arguments, first=first, rate=rate)

    def _skip_or_stop(self, sentence: str, remedy: Callable[[], str]) -> None:
        if not self.skips:
            raise NonFiniteError(sentence, remedy())
        in_a_row = self.state.add_skipped_step()
        if in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{sentence} It was the last of {in_a_row} such steps in a row.", remedy()
            )
        weights = [
            tensor for state in self.state.weights().values() for tensor in state.values()
        ]
        spoiled = not all(tensor.isfinite().all() for tensor in weights)
        back = f", and {self.go_back()}" if spoiled else ""
        warnings.warn(f"{sentence} The step was skipped{back}.", stacklevel=2)


def _what(player: Player, loss: float, norm: float) -> str:
    """The loss or the gradient that was not finite, for a message."""
    whose = f"{player.name}'s " if player.name else ""
    if math.isfinite(loss):
        return f"{whose}gradient's norm was {norm}"
    return f"{whose}loss was {loss}"
