"""The measurements and weights of a training."""

__all__ = [
    "Declared",
    "History",
    "States",
    "get_states",
    "rank",
    "set_states",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

States = dict[str, dict[str, Tensor]]  # "model", "guide", and "loss" of a game -> state_dict


@dataclass
class History:
    """What a training measured: one row an epoch, in nats per data point.

    Attributes:
        rows: One dictionary an epoch, with the epoch, the steps done and the means of the
            epoch's metrics.
        step_losses: The loss of every step, per data point.
        best_epoch: The epoch with the best validation (else training) objective.
        in_hand: Which weights the model and guide hold now, ``"best"`` or ``"last"``.
        states: Both weights, to change what is in hand with ``use``.
        others: What was trained beside the model and the guide: parameters that functions
            declared, a game's networks.

    Example:
        >>> history = History(rows=[{"epoch": 1, "elbo": -20.0}, {"epoch": 2, "elbo": -15.0}])
        >>> history["elbo"]
        [-20.0, -15.0]
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    in_hand: str = "last"
    states: dict[str, States] = field(default_factory=dict, repr=False)
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]

    def __len__(self) -> int:
        return len(self.rows)

    def use(self, which: str, model: Any, guide: Any) -> None:
        """Puts the ``"best"`` or the ``"last"`` weights into the model and guide.

        Raises:
            KeyError: If there are no such weights.
        """
        if which not in self.states:
            raise KeyError(
                f"This history holds the weights {sorted(self.states)}, not {which!r}."
            )
        set_states({**self.others, "model": model, "guide": guide}, self.states[which])
        self.in_hand = which


class Declared:
    """The parameters that functions declare with ``pyro.param`` or ``pyro.module``, saved and
    restored like modules.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the parameters by name, unconstrained."""
        return dict(self.tensors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts values into the parameters."""
        for name, value in state.items():
            self.tensors[name].data.copy_(value)


def rank(row: Mapping[str, float]) -> tuple[Any, Any]:
    """What epochs are ordered by: the newest values of the schedules first, and under the same
    ones the objective.
    """
    return row.get("stage", 0), row.get("objective")


def get_states(halves: Mapping[str, Any]) -> States:
    """Returns copies of the halves' parameters and buffers, on the CPU."""
    return {
        half: {
            name: tensor.detach().cpu().clone()
            for name, tensor in program.state_dict().items()
        }
        for half, program in halves.items()
        if isinstance(program, (nn.Module, Declared))
    }


def set_states(halves: Mapping[str, Any], states: States) -> None:
    """Puts parameters and buffers back into the halves."""
    for half, state in states.items():
        halves[half].load_state_dict(state)
