"""Histories: the measurements and weights of a training."""

__all__ = [
    "Declared",
    "History",
    "States",
    "check_states",
    "get_states",
    "has_best_epoch",
    "is_ranked",
    "rank",
    "set_states",
]

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tarspyro.programs import modules_of

if TYPE_CHECKING:
    from pandas import DataFrame

# The state_dict of "model", "guide", "params" (of functions) and "loss" (of a game).
States: TypeAlias = dict[str, dict[str, Tensor]]

# The size of a history in print: all rows if they are few, else the first and the last ones.
_MOST_ROWS = 10
_WIDEST = 95


@dataclass(repr=False)
class History:
    """The history of a training: one row for each epoch, in nats per data point.

    ``history["elbo"]`` is a column, a number for each epoch in which it was measured.
    ``"elbo" in history`` says whether there is such a column, ``history.columns`` names all,
    and ``len(history)`` is the number of epochs. In print, a history is a table of its last
    rows.

    Attributes:
        rows: For each epoch a dictionary with the epoch, the number of steps, and the means of
            the losses and their terms.
        step_losses: The loss of every step, per data point.
        best_epoch: The epoch with the best objective: the held-out one if there is one.
        in_hand: The weights that the model and the guide have now, ``"best"`` or ``"last"``.
        states: The best and the last weights; ``use`` puts them into the model and the guide.
        others: What was trained beside the model and the guide: parameters that functions
            declare, the networks of a game.

    Example:
        >>> history = History(rows=[{"epoch": 1, "elbo": -20.0}, {"epoch": 2, "elbo": -15.0}])
        >>> history["elbo"]
        [-20.0, -15.0]
        >>> history
        History of 2 epochs, the last weights in hand
        epoch  elbo
            1   -20
            2   -15
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    in_hand: str = "last"
    states: dict[str, States] = field(default_factory=dict, repr=False)
    others: Mapping[str, object] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> list[float]:
        """Returns a column: a number for each epoch in which it was measured.

        Raises:
            KeyError: If there is no such column.
        """
        column = [row[name] for row in self.rows if name in row]
        if not column:
            raise KeyError(self._unknown(name))
        return column

    def __contains__(self, name: object) -> bool:
        return any(name in row for row in self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        epochs = f"{len(self)} epoch{'' if len(self) == 1 else 's'}"
        best = f", of which {self.best_epoch} is the best" if self.best_epoch else ""
        title = f"History of {epochs}{best}, the {self.in_hand} weights in hand"
        return "\n".join([title, *self._table()])

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order in which they were first measured."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def to_frame(self) -> "DataFrame":
        """Returns the rows as a DataFrame of pandas, NaN where a column was not measured.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "to_frame needs pandas, which is not installed: pip install pandas, or take"
                " history.rows, a list of dictionaries."
            ) from None
        return pandas.DataFrame(self.rows, columns=self.columns)

    def _unknown(self, name: object) -> str:
        """Returns the sentence about a column that does not exist, with those that do."""
        columns = self.columns
        if not columns:
            return f"The history has no column {name!r}: it has no epochs yet."
        if isinstance(name, int):
            return f"The history has no column {name}: history.rows[{name}] is a row of it."
        near = difflib.get_close_matches(str(name), columns, n=1, cutoff=0.5)
        hint = f": did you mean {near[0]!r}?" if near else "."
        held_out = any(column.startswith("validation_") for column in columns)
        if str(name).startswith("validation_") and not held_out:
            hint = ", as fit got no validation data."
        return f"The history has no column {name!r}{hint} It has {', '.join(columns)}."

    def _table(self) -> list[str]:
        """Returns the lines of the table: the columns that fit, of the rows that fit."""
        rows = self.rows
        if len(rows) > _MOST_ROWS:
            rows = [rows[0], {}, *rows[2 - _MOST_ROWS :]]
        cells = {
            name: [name, *(_cell(row.get(name)) for row in rows)] for name in self.columns
        }
        widths = {name: max(map(len, column)) for name, column in cells.items()}
        shown: list[str] = []
        for name in cells:
            if sum(widths[other] + 2 for other in [*shown, name]) <= _WIDEST + 2:
                shown.append(name)
        lines = [
            "  ".join(cells[name][line].rjust(widths[name]) for name in shown).rstrip()
            for line in range(len(rows) + 1 if shown else 0)
        ]
        if len(self.rows) > _MOST_ROWS:
            lines[2] = "...".rjust(widths[shown[0]])
        left = [name for name in cells if name not in shown]
        return lines + _more(left)

    def use(self, which: str, model: object, guide: object) -> None:
        """Puts the ``"best"`` or the ``"last"`` weights into the model and the guide.

        Raises:
            KeyError: If the history has no such weights.
        """
        if which not in self.states:
            raise KeyError(
                f"This history holds the weights {sorted(self.states)}, not {which!r}."
            )
        set_states({**self.others, "model": model, "guide": guide}, self.states[which])
        self.in_hand = which


def _cell(value: float | None) -> str:
    """Returns a number in five digits, nothing if it was not measured."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _more(names: Sequence[str]) -> list[str]:
    """Returns the line that counts the columns that do not fit, if any."""
    if not names:
        return []
    text = f"and {len(names)} more columns: {', '.join(names)}"
    return [text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."]


class Declared:
    """The parameters that functions declare with ``pyro.param`` or ``pyro.module``, and the
    buffers of the modules that they read.

    They are saved and restored like those of modules. A function is here every half that is
    no module, such as a method.

    Arguments:
        parameters: The parameters by name, unconstrained.
        functions: The functions.
        halves: The halves that are modules, whose buffers are their own.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        functions: Sequence[object] = (),
        halves: Sequence[nn.Module] = (),
    ) -> None:
        self.parameters = dict(parameters)
        self._layers: dict[str, nn.Module] = {}
        known = {part for half in halves for part in half.modules()}
        for number, module in enumerate(
            dict.fromkeys(each for f in functions for each in modules_of(f))
        ):
            for path, part in module.named_modules(prefix=f"modules.{number}"):
                if part not in known:
                    known.add(part)
                    self._layers[path] = part

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers by name, as they are now: a module may bind another tensor to its own."""
        return {
            f"{path}.{name}": buffer
            for path, module in self._layers.items()
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the parameters and the buffers by name."""
        return {**self.parameters, **self.buffers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts values into the parameters and the buffers.

        Raises:
            ValueError: If names or shapes are not those of the parameters and the buffers.
        """
        _check_state("params", self, state)
        tensors = self.state_dict()
        for name, value in state.items():
            tensors[name].data.copy_(value)


def rank(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the key by which epochs are compared.

    Epochs under the newest scheduled values come first, and among them those with the better
    objective.
    """
    return row.get("stage", 0), row.get("objective")


def is_ranked(row: Mapping[str, object]) -> bool:
    """Returns whether a row has the numbers by which epochs are compared."""
    return all(isinstance(number, (int, float)) for number in rank(row))


def has_best_epoch(rows: Sequence[Mapping[str, object]]) -> bool:
    """Returns whether the epochs of a history are compared. Those of a game are not: the number
    of the epoch stands for its objective.
    """
    return any(row.get("objective") != row["epoch"] for row in rows)


def get_states(halves: Mapping[str, object]) -> States:
    """Returns copies of the parameters and buffers of the halves, on the CPU."""
    return {
        half: {
            name: tensor.detach().cpu().clone()
            for name, tensor in program.state_dict().items()
        }
        for half, program in halves.items()
        if isinstance(program, (nn.Module, Declared))
    }


def check_states(halves: Mapping[str, object], states: States) -> None:
    """Raises a ``ValueError`` unless states have the names, shapes and types of all halves.

    It is called before anything is written: a state of another pair would leave half of the
    weights untrained, or reach memory that belongs to something else.
    """
    for half in states:
        if not isinstance(halves.get(half), (nn.Module, Declared)):
            raise ValueError(f"it holds weights of a {half}, and there is none")
    for half, program in halves.items():
        if isinstance(program, (nn.Module, Declared)):
            _check_state(half, program, states.get(half, {}))


def _check_state(
    half: str, program: "nn.Module | Declared", state: Mapping[str, Tensor]
) -> None:
    expected: Mapping[str, Tensor] = program.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        found = f"lacks {half}.{missing[0]}" if missing else f"holds {half}.{unknown[0]}"
        others = len(missing or unknown) - 1
        raise ValueError(f"it {found}{f' and {others} more' if others else ''}")
    for name, tensor in expected.items():
        if is_lazy(tensor):
            continue  # the first batch would give it its size
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{half}.{name} has the shape {tuple(tensor.shape)}, the file holds"
                f" {tuple(state[name].shape)}"
            )
        if state[name].dtype != tensor.dtype:
            raise ValueError(
                f"{half}.{name} is of {tensor.dtype}, the file holds {state[name].dtype}: "
                "see torch.set_default_dtype"
            )


def set_states(halves: Mapping[str, object], states: States) -> None:
    """Puts parameters and buffers into the halves."""
    for half, state in states.items():
        cast("nn.Module | Declared", halves[half]).load_state_dict(state)
