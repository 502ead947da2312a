"""What a training looks at in every step: whether losses and gradients are finite, and whether
a game goes on.
"""

__all__ = ["Watch"]

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tarspyro.infer import Player
from tarspyro.runs.history import History, States, get_states, set_states
from tarspyro.training.checkpoints import Progress
from tarspyro.training.checks import CollapseError, NonFiniteError, describe_nonfinite
from tarspyro.training.optimizers import load_states, states_of
from tarspyro.types import Arguments

# On an accelerator the losses are read back only so often: each reading makes the device wait
# for the host.
_STEPS_BETWEEN_READINGS = 50

# When so many steps in a row were not finite, leaving out one more will not help.
_MOST_SKIPPED_IN_A_ROW = 20


@dataclass
class _Good:
    """What a step that goes wrong is undone with."""

    states: States
    optimizers: tuple[dict[str, Tensor], dict[str, Any]] | None
    name: str


class Watch:
    """Looks at losses, gradients and weights, and undoes or ends what went wrong.

    Arguments:
        halves: What has weights.
        optimizers: The optimizers.
        history: The history, which gets every loss.
        progress: How far the training is.
        on_nonfinite: ``"stop"`` or ``"skip"``, see ``fit``.
    """

    def __init__(
        self,
        halves: Mapping[str, Any],
        optimizers: Sequence[Optimizer],
        history: History,
        progress: Progress,
        on_nonfinite: str,
    ) -> None:
        self.halves, self.optimizers, self.history = halves, optimizers, history
        self.progress, self.on_nonfinite = progress, on_nonfinite
        self._unread: list[tuple[Player, int, int, Tensor, Tensor | None]] = []
        self._good: _Good | None = None

    def note(
        self,
        player: Player,
        loss: Tensor,
        norm: Tensor | None,
        arguments: Arguments,
        noise: Tensor | None,
    ) -> bool:
        """Notes a loss and the norm of its gradient; on a CPU, says whether a step may be made
        with them.

        Arguments:
            player: Whose they are.
            loss: The loss, per data point.
            norm: The norm, if it is known.
            arguments: The batch.
            noise: The random state of the CPU from which the loss was drawn, if it is known.

        Raises:
            NonFiniteError: If one of them is not finite and that ends the training.
            CollapseError: If the player has won a game.
        """
        self._unread.append(
            (player, self.progress.step + 1, self.progress.position + 1, loss, norm)
        )
        soon = (
            loss.device.type == "cpu"
            or self.on_nonfinite == "skip"
            or len(self._unread) >= _STEPS_BETWEEN_READINGS
        )
        return self.read(arguments, noise) if soon else True

    def read(self, arguments: Arguments | None = None, noise: Tensor | None = None) -> bool:
        """Reads what was noted, and says whether all of it was finite; raises as ``note``
        does.
        """
        unread, self._unread = self._unread, []
        pairs = [
            torch.stack([loss, loss if norm is None else norm.to(loss)])
            for *_, loss, norm in unread
        ]
        values = torch.stack(pairs).tolist() if pairs else []
        for (player, step, batch, *_), (loss, norm) in zip(unread, values, strict=True):
            whose = f"{player.name}'s " if player.name else ""
            when = f"at step {step} (epoch {self.progress.epoch + 1}, batch {batch})"
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = (
                    f"loss was {loss}"
                    if not math.isfinite(loss)
                    else f"gradient's norm was {norm}"
                )
                reason = "" if arguments is None else f": {self._describe(arguments, noise)}"
                self._skip_or_stop(f"The {whose}{what} {when}{reason}.")
                return False
            self.history.step_losses.append(loss)
            self.progress.skipped_in_a_row = 0
            below = self.progress.below
            below[player.name] = below.get(player.name, 0) + 1 if loss < player.floor else 0
            if player.patience is not None and below[player.name] >= player.patience:
                raise CollapseError(
                    f"The {player.name} has won: its loss was below {player.floor:g} in"
                    f" {player.patience} moves in a row, until {when.removeprefix('at ')}, and"
                    " the others learn nothing from it any more."
                )
        return True

    def _describe(self, arguments: Arguments, noise: Tensor | None) -> str:
        others = [half for half in self.halves.values() if isinstance(half, nn.Module)]
        return describe_nonfinite(
            self.halves["model"], self.halves["guide"], arguments, others, noise
        )

    def _skip_or_stop(self, sentence: str) -> None:
        now = self.progress
        if self.on_nonfinite == "stop":
            raise NonFiniteError(sentence)
        now.skipped, now.skipped_in_a_row = now.skipped + 1, now.skipped_in_a_row + 1
        if now.skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{sentence} It was the last of {now.skipped_in_a_row} such steps in a row."
            )
        back = ""
        if not all(
            t.isfinite().all()
            for state in get_states(self.halves).values()
            for t in state.values()
        ):
            back = f", and {self.go_back()}"
        warnings.warn(f"{sentence} The step was skipped{back}.", stacklevel=2)

    def keep_good(self, states: States) -> None:
        """Keeps what a step that goes wrong is undone with."""
        kept = (
            copy.deepcopy(states_of(self.optimizers)) if self.on_nonfinite == "skip" else None
        )
        now = self.progress
        name = f"step {now.step}" if now.position else f"epoch {now.epoch}"
        self._good = _Good(states, kept, name)

    def go_back(self) -> str:
        """Puts the last good weights back, and says which they are."""
        assert self._good is not None
        set_states(self.halves, self._good.states)
        if self._good.optimizers is not None:
            load_states(self.optimizers, *self._good.optimizers)
        return f"the weights are those after {self._good.name}"

    def check(self, states: States) -> None:
        """Raises a ``NonFiniteError`` if a step has spoiled weights, before they are kept as
        good ones.
        """
        for half, state in states.items():
            for name, tensor in state.items():
                if not tensor.isfinite().all():
                    raise NonFiniteError(
                        f"The {half}'s {name} is not finite after step {self.progress.step}."
                    )
