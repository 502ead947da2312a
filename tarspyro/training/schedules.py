"""Schedules: learning rates, attributes of the loss and fixed parameters that change by step."""

__all__ = ["Schedule", "Schedules"]

import difflib
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from tarspyro.arguments import format_value
from tarspyro.training.losses import Objective, prefixed
from tarspyro.training.state import TrainingState

Schedule: TypeAlias = Callable[[int], float]


class Schedules:
    """Assigns the scheduled values before every step.

    A name is looked up in this order: ``"lr"`` for all learning rates, or ``"generator_lr"``
    for the one of a player; an attribute of the loss, such as ``"beta"``; a fixed parameter of
    the pair, such as ``"temperature"``.

    Arguments:
        schedules: For each name, a function of the step (0, 1, ...).
        objective: The loss, with its players.
        state: The state of the training.

    Raises:
        ValueError: If a name is not found.
    """

    def __init__(
        self, schedules: Mapping[str, Schedule], objective: Objective, state: TrainingState
    ) -> None:
        self.schedules = schedules
        self.objective = objective
        self.state = state
        self._setters = {name: self._setter(name) for name in schedules}
        self._values: dict[str, float] = {}  # the values of the last step

    def __contains__(self, name: str) -> bool:
        return name in self.schedules

    def apply(self, step: int) -> None:
        """Assigns the values of a step.

        Raises:
            TypeError: If a schedule returns something else than a number.
        """
        for name, schedule in self.schedules.items():
            value = schedule(step)
            if not isinstance(value, (int, float)) and not _is_number(value):
                raise TypeError(
                    f"schedules[{name!r}] must return a number, got {format_value(value)} at"
                    f" step {step}."
                )
            self._values[name] = value
            self._setters[name](value)

    def of_loss(self) -> dict[str, float]:
        """Returns the last values of attributes of the loss."""
        return self._last(lambda name: not self._groups(name) and self.objective.has(name))

    def of_pair(self) -> dict[str, float]:
        """Returns the last values of fixed parameters of the pair."""
        return self._last(lambda name: not self._groups(name) and not self.objective.has(name))

    def _last(self, chosen: Callable[[str], bool]) -> dict[str, float]:
        return {name: float(value) for name, value in self._values.items() if chosen(name)}

    def _groups(self, name: str) -> list[dict[str, object]]:
        """The parameter groups whose learning rate has this name."""
        players = zip(self.objective.players, self.state.optimizers, strict=True)
        return [
            group
            for player, optimizer in players
            if name in ("lr", prefixed(player, "lr"))
            for group in optimizer.param_groups
        ]

    def _setter(self, name: str) -> Callable[[float], None]:
        """Returns a function that assigns a value."""
        groups = self._groups(name)
        if groups:
            return lambda value: _set_rate(groups, value)
        if self.objective.has(name):
            return lambda value: self.objective.set(name, value)
        modules = [part for half in self.state.modules for part in half.modules()]
        buffers = [
            getattr(module, f"fixed_{name}")
            for module in modules
            if hasattr(module, f"fixed_{name}")
        ]
        if not buffers:
            raise ValueError(
                f"schedules has {name!r}, which is neither 'lr', nor an attribute of"
                f" {type(self.objective.loss).__name__}, nor a fixed parameter in the pair"
                f"{self._meant_by(name)}"
            )

        def fill(value: float) -> None:
            for buffer in buffers:
                buffer.fill_(value)

        return fill

    def _meant_by(self, name: str) -> str:
        """The end of a sentence about a name that is not found."""
        adjustable = getattr(self.objective.loss, "adjustable", ())
        close = difflib.get_close_matches(name, ["lr", *adjustable], n=1)
        return f": did you mean {close[0]!r}?" if close else "."


def _is_number(value: object) -> bool:
    """Whether a value is a number of another library than Python's."""
    return getattr(value, "shape", None) == () and hasattr(value, "__float__")


def _set_rate(groups: list[dict[str, object]], value: float) -> None:
    for group in groups:
        rate = group["lr"]
        if isinstance(rate, torch.Tensor):
            rate.fill_(value)  # a captured step reads this tensor
        else:
            group["lr"] = value
