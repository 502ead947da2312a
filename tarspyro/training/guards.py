"""Guards: skip or stop on non-finite losses and gradients, and stop when a player has won."""

__all__ = ["FiniteGuard"]

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tarspyro.accelerators import is_accelerator
from tarspyro.infer import Player
from tarspyro.programs import tensors_of
from tarspyro.runs.history import States
from tarspyro.training.advice import remedy_of
from tarspyro.training.checks import CollapseError, NonFiniteError, describe_nonfinite
from tarspyro.training.state import TrainingState
from tarspyro.types import Arguments

# An accelerator waits for the host whenever a loss is read back, so losses are read together.
_STEPS_BETWEEN_READINGS = 50

# Until then their batches are kept, unless these are large.
_MOST_BYTES_UNREAD = 1 << 27

# If so many steps in a row were skipped, skipping one more will not help.
_MOST_SKIPPED_IN_A_ROW = 20


class _Unread(NamedTuple):
    """A loss that has not been read back from the device, and when it was computed."""

    player: Player
    step: int
    batch: int
    loss: Tensor
    norm: Tensor
    arguments: Arguments
    noise: Tensor | None


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
        norm: Tensor,
        arguments: Arguments,
        noise: Tensor | None,
    ) -> bool:
        """Notes a loss and the norm of its gradient; returns whether to make the step.

        Arguments:
            player: The player whose loss it is.
            loss: The loss, per data point.
            norm: The norm.
            arguments: The batch.
            noise: The random state of the CPU from which the loss was drawn, if it is known.

        Raises:
            NonFiniteError: If one of them is not finite, and the training has to stop.
            CollapseError: If the player has won the game.
        """
        now = self.state.progress
        step = now.step + 1
        self._unread.append(
            _Unread(player, step, now.position + 1, loss, norm, arguments, noise)
        )
        if self._reads_at_once(loss) or self._is_time_to_read():
            return self.read()
        return True

    def _reads_at_once(self, loss: Tensor) -> bool:
        return not is_accelerator(loss.device) or self.skips

    def _is_time_to_read(self) -> bool:
        kept = sum(
            tensor.numel() * tensor.element_size()
            for tensor in tensors_of(self._unread[-1].arguments)
        )
        steps = min(_STEPS_BETWEEN_READINGS, 1 + _MOST_BYTES_UNREAD // max(kept, 1))
        return len(self._unread) >= steps

    def read(self) -> bool:
        """Reads the losses that were noted; returns whether all were finite.

        Raises the same errors as ``allows``.
        """
        unread = self._unread
        self._unread = []
        for one, (loss, norm) in zip(unread, _values(unread), strict=True):
            epoch = self.state.progress.epoch + 1
            when = f"step {one.step} (epoch {epoch}, batch {one.batch})"
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._skip_or_stop(
                    f"The {_what(one.player, loss, norm)} at {when}: {self._cause(one)}.",
                    functools.partial(self._remedy, one.arguments, first=one.step == 1),
                )
                return False
            self._check_winner(one.player, loss, when)
        return True

    def check(self, weights: States) -> None:
        """Raises a ``NonFiniteError`` if the training has made a weight infinite or NaN."""
        for half, name in self._spoiled(weights):
            step = self.state.progress.step
            raise NonFiniteError(f"The {half}'s {name} is not finite after step {step}.")

    def _spoiled(self, weights: States) -> Iterator[tuple[str, str]]:
        """Yields the weights that are not finite where those that were kept are.

        Those that never were, such as a buffer with the mask of an attention, are as they should
        be.
        """
        kept = self.state.kept
        for half, state in weights.items():
            for name, tensor in state.items():
                finite = tensor.isfinite()
                before = kept.get(half, {}).get(name)
                if before is not None and before.shape == tensor.shape:
                    finite = finite | ~before.isfinite()
                if not finite.all():
                    yield half, name

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

    def _cause(self, one: _Unread) -> str:
        """The cause of a loss or gradient that is not finite, as a part of a sentence.

        If the step was made before the loss was read, it has spoiled the weights. Then the
        cause is looked for with the last good ones.
        """
        others = self.state.modules
        if self._reads_at_once(one.loss):
            return describe_nonfinite(*self.state.pair, one.arguments, others, one.noise)
        weights = self.state.go_back()
        for optimizer in self.state.optimizers:
            optimizer.zero_grad()
        cause = describe_nonfinite(*self.state.pair, one.arguments, others)
        return f"with the weights after {weights}, {cause}"

    def _remedy(self, arguments: Arguments, *, first: bool) -> str:
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
        spoiled = any(self._spoiled(self.state.weights()))
        back = f", and {self.go_back()}" if spoiled else ""
        warnings.warn(f"{sentence} The step was skipped{back}.", stacklevel=2)


def _values(unread: Sequence[_Unread]) -> list[list[float]]:
    """The losses and the norms, read at once from an accelerator."""
    if not any(is_accelerator(one.loss.device) for one in unread):
        return [[one.loss.item(), one.norm.item()] for one in unread]
    pairs = [torch.stack([one.loss, one.norm.to(one.loss)]) for one in unread]
    values: list[list[float]] = torch.stack(pairs).tolist()
    return values


def _what(player: Player, loss: float, norm: float) -> str:
    """The loss or the gradient that was not finite, for a message."""
    whose = f"{player.name}'s " if player.name else ""
    if math.isfinite(loss):
        return f"{whose}gradient's norm was {norm}"
    return f"{whose}loss was {loss}"
