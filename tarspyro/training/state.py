"""The state of a training, shared by the trainer, the guard and the checkpoints."""

__all__ = ["Means", "Progress", "TrainingState"]

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tarspyro.arguments import format_value
from tarspyro.infer import Player
from tarspyro.programs import modules_of
from tarspyro.runs.history import (
    Declared,
    History,
    States,
    check_states,
    get_states,
    is_ranked,
    rank,
    set_states,
)
from tarspyro.training.distributed import Processes
from tarspyro.training.optimizers import (
    check_optimizer_states,
    load_states,
    rates_of,
    states_of,
)
from tarspyro.types import Program


class Means:
    """Means of losses and their terms over the data points of an epoch.

    The sums are in single precision or better. Each name has its own count of data points,
    since not every player of a game moves in every step.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor], rows: int) -> None:
        """Adds values that are summed over ``rows`` data points."""
        for name, value in values.items():
            value = value.to(torch.promote_types(value.dtype, torch.float32))
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.rows[name] = self.rows.get(name, 0) + rows

    def clear(self) -> None:
        """Starts a new epoch."""
        self.sums.clear()
        self.rows.clear()

    def read(self, processes: Processes) -> dict[str, float]:
        """Returns the means over the data points of all processes."""
        if not self.sums:
            return {}
        rows = torch.tensor(list(self.rows.values()), dtype=torch.float64)
        sums = torch.stack([value.detach().cpu().double() for value in self.sums.values()])
        sums, rows = processes.total(torch.stack([sums, rows]))
        return dict(zip(self.sums, (sums / rows).tolist(), strict=True))


@dataclass
class Progress:
    """The counters of a training, which every checkpoint holds.

    Attributes:
        epoch: The number of finished epochs.
        step: The number of steps in all.
        position: The number of batches of the current epoch that are done.
        seconds: How long these batches took.
        epochs_since_best: The number of epochs since the best one.
        judged_under: The scheduled values that epochs must share to be compared.
        stage: How often these values have changed.
        skipped: The number of steps of this epoch that were left out because a loss or a
            gradient was not finite.
        skipped_in_a_row: The number of such steps just before the next one.
        below: For each player, how many losses in a row were below its floor.
        shapes: For each player, the shapes of data that it has seen. Pyro validates the first
            step of a shape, which changes the last bits of the gradients of some families.
        scheduled: The scheduled values of the last step, without learning rates.
    """

    epoch: int = 0
    step: int = 0
    position: int = 0
    seconds: float = 0.0
    epochs_since_best: int = 0
    judged_under: dict[str, float] = field(default_factory=dict)
    stage: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    below: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, list[str]] = field(default_factory=dict)
    scheduled: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"step {self.step}" if self.position else f"epoch {self.epoch}"


@dataclass
class _Snapshot:
    """Weights to go back to when a step goes wrong, and the optimizers' state if it is kept."""

    weights: States
    optimizers: tuple[dict[str, Tensor], dict[str, Any]] | None
    name: str


class TrainingState:
    """The weights, optimizers, history and counters of a training.

    Only the methods of this class change the history and the counters.

    Arguments:
        halves: The programs with weights: ``"model"``, ``"guide"``, for functions with
            parameters of their own ``"params"``, and for a game ``"loss"``.
        optimizers: The optimizers, one for each player.
        given_rates: For each optimizer, whether the user has given its learning rate. A
            resumed run then goes on with it, if the run was made with another one.

    Attributes:
        progress: The counters.
        means: The means of the current epoch.
        history: The history.
        order: The generator of the order of the data.
    """

    def __init__(
        self,
        halves: Mapping[str, "Program | Declared"],
        optimizers: Sequence[torch.optim.Optimizer],
        given_rates: Sequence[bool] | None = None,
    ) -> None:
        self.halves = halves
        self.optimizers = optimizers
        self.rates = rates_of(optimizers)
        given = [False] * len(optimizers) if given_rates is None else given_rates
        self._given_rates = [
            one
            for one, optimizer in zip(given, optimizers, strict=True)
            for _ in optimizer.param_groups
        ]
        self.progress = Progress()
        self.means = Means()
        others = {name: halves[name] for name in halves if name not in ("model", "guide")}
        self.history = History(others=others)
        self.order = torch.Generator()
        self._snapshot: _Snapshot | None = None

    @property
    def pair(self) -> tuple[Program, Program]:
        """The model and the guide."""
        return self.halves["model"], self.halves["guide"]  # type: ignore[return-value]

    @property
    def modules(self) -> list[nn.Module]:
        """The halves that are modules, and the modules that the other halves read."""
        halves = [half for half in self.halves.values() if not isinstance(half, Declared)]
        return list(dict.fromkeys(module for half in halves for module in modules_of(half)))

    @property
    def tensors(self) -> list[Tensor]:
        """All parameters and buffers."""
        tensors: list[Tensor] = []
        for half in self.halves.values():
            if isinstance(half, nn.Module):
                tensors += [*half.parameters(), *half.buffers()]
            elif isinstance(half, Declared):
                tensors += half.state_dict().values()
        return tensors

    def weights(self) -> States:
        """Returns copies of all weights, on the CPU."""
        return get_states(self.halves)

    # --- steps

    def is_new_shape(self, player: Player, shapes: str) -> bool:
        """Whether a player sees data of these shapes for the first time."""
        return shapes not in self.progress.shapes.setdefault(player.name, [])

    def has_moved(self, player: Player) -> bool:
        """Whether a player has made a step."""
        return bool(self.progress.shapes.get(player.name))

    def add_shape(self, player: Player, shapes: str) -> None:
        """Notes that a player has seen data of these shapes."""
        self.progress.shapes[player.name].append(shapes)

    def add_loss(self, player: Player, loss: float) -> int:
        """Adds a finite loss to the history.

        Returns:
            How many losses of the player in a row were below its floor.
        """
        now = self.progress
        self.history.step_losses.append(loss)
        now.skipped_in_a_row = 0
        now.below[player.name] = (
            now.below.get(player.name, 0) + 1 if loss < player.floor else 0
        )
        return now.below[player.name]

    def add_skipped_step(self) -> int:
        """Counts a step that was left out; returns how many there were in a row."""
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        return self.progress.skipped_in_a_row

    def end_step(self) -> None:
        """Counts a step."""
        self.progress.step += 1

    def end_batch(self, values: Mapping[str, Tensor], rows: int, seconds: float) -> None:
        """Adds the values of a batch to the means of the epoch.

        Arguments:
            values: The losses and their terms, summed over the rows.
            rows: The number of rows.
            seconds: How long the batches of the epoch took so far.
        """
        self.means.add(values, rows)
        self.progress.position += 1
        self.progress.seconds = seconds

    # --- epochs

    def end_epoch(self, row: dict[str, float], weights: States) -> bool:
        """Adds an epoch to the history; returns whether it is the best so far.

        Arguments:
            row: The row of the history, with ``"objective"``, the number to compare.
            weights: The weights after the epoch.
        """
        now = self.progress
        history = self.history
        best = max((rank(earlier) for earlier in history.rows), default=(0, -math.inf))
        now.epoch += 1
        now.position = 0
        now.seconds = 0.0
        now.skipped = 0
        now.epochs_since_best += 1
        self.means.clear()
        history.rows.append(row)
        history.states["last"] = weights
        is_best = rank(row) > best or "best" not in history.states
        if is_best:
            now.epochs_since_best = 0
            history.best_epoch = now.epoch
            history.states["best"] = weights
        return is_best

    def compare_under(self, scheduled: dict[str, float]) -> None:
        """Starts a new stage if scheduled values that change the objective have changed.

        Epochs of different stages are not compared.
        """
        now = self.progress
        changed = now.judged_under != scheduled
        now.judged_under = scheduled
        if scheduled:
            now.stage += changed

    # --- going back

    def keep(self, weights: States, *, optimizers: bool) -> None:
        """Keeps weights to go back to when a step goes wrong.

        Arguments:
            weights: The weights.
            optimizers: Whether to keep the state of the optimizers too.
        """
        kept = copy.deepcopy(states_of(self.optimizers)) if optimizers else None
        self._snapshot = _Snapshot(weights, kept, str(self.progress))

    @property
    def kept(self) -> States:
        """The weights that were kept last."""
        return {} if self._snapshot is None else self._snapshot.weights

    def go_back(self) -> str:
        """Restores the weights that were kept last; returns their name, such as ``"step 12"``."""
        assert self._snapshot is not None
        set_states(self.halves, self._snapshot.weights)
        if self._snapshot.optimizers is not None:
            load_states(self.optimizers, *self._snapshot.optimizers)
        return self._snapshot.name

    # --- checkpoints

    def pack(
        self, weights: States, processes: Processes
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the state as tensors by name, and values for JSON; all processes must call.

        Arguments:
            weights: The weights.
            processes: The processes that train together.
        """
        tensors = {
            f"weights.{half}.{name}": tensor
            for half, state in weights.items()
            for name, tensor in state.items()
        }
        for name, value in self.means.sums.items():
            tensors[f"sums.{name}"] = processes.total(value.clone())
        rows = processes.total(torch.tensor(list(self.means.rows.values())))
        losses = torch.tensor(self.history.step_losses, dtype=torch.float64)
        tensors["step_losses"] = losses
        of_optimizers, values = states_of(self.optimizers)
        for name, value in of_optimizers.items():
            tensors[f"optimizer.{name}"] = value
        return tensors, {
            "progress": asdict(self.progress),
            "rows_of_sums": dict(zip(self.means.rows, rows.tolist(), strict=True)),
            "best_epoch": self.history.best_epoch,
            "rows": self.history.rows,
            "optimizer": values,
            "rates": self.rates,
        }

    def unpack(
        self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], processes: Processes
    ) -> States:
        """Restores what ``pack`` returned; returns the weights in it.

        Nothing is changed before all of it has been checked.

        Raises:
            ValueError: If it is not a state of this training.
            KeyError: If something is missing.
            TypeError: If something has the wrong type.
        """
        groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            groups[kind][rest] = tensor
        weights: States = {}
        for key, tensor in groups["weights"].items():
            half, _, name = key.partition(".")
            weights.setdefault(half, {})[name] = tensor
        check_states(self.halves, weights)
        check_optimizer_states(self.optimizers, groups["optimizer"], values["optimizer"])
        progress = _progress(values["progress"])
        rows = _rows(values["rows"], progress.epoch)
        best = _count("best_epoch", values["best_epoch"], progress.epoch)
        losses: list[float] = tensors["step_losses"].double().reshape(-1).tolist()
        rates = self._rates(values)
        _check_named("rows of sums", values["rows_of_sums"], int)
        for name in values["rows_of_sums"]:
            if groups["sums"][name].numel() != 1:
                raise ValueError(f"its sum of {name} is not one number")

        set_states(self.halves, weights)
        load_states(self.optimizers, groups["optimizer"], values["optimizer"])
        self._set_rates(rates)
        vars(self.progress).update(vars(progress))
        self.history.rows = rows
        self.history.best_epoch = best
        self.history.step_losses = losses
        self._unpack_means(groups["sums"], values["rows_of_sums"], processes.first)
        return weights

    def _rates(self, values: Mapping[str, Any]) -> list[float | None]:
        """For each group of parameters the rate that the user has changed, else None."""
        own = rates_of(self.optimizers)
        earlier = values.get("rates")  # a run of an earlier version holds the current ones
        if earlier is None:
            earlier = [group["lr"] for group in values["optimizer"]["param_groups"]]
        if len(earlier) != len(own) or not all(isinstance(r, (int, float)) for r in earlier):
            raise ValueError("its learning rates are not those of the optimizers")
        return [
            now if given and now != before else None
            for now, before, given in zip(own, earlier, self._given_rates, strict=True)
        ]

    def _set_rates(self, rates: Sequence[float | None]) -> None:
        """Puts the learning rates that the user has changed into the optimizers."""
        remaining = list(rates)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                rate = remaining.pop(0)
                if rate is None:
                    continue
                held = group["lr"]
                group["lr"] = held.fill_(rate) if torch.is_tensor(held) else rate
        self.rates = rates_of(self.optimizers)

    def _unpack_means(
        self, sums: Mapping[str, Tensor], rows: Mapping[str, int], first: bool
    ) -> None:
        """Restores the means: sums over all processes go on in the first process."""
        device = next(
            (
                parameter.device
                for optimizer in self.optimizers
                for parameter in optimizer.param_groups[0]["params"]
            ),
            None,
        )
        self.means.rows = {name: count * first for name, count in rows.items()}
        self.means.sums = {name: (sums[name] * first).to(device) for name in rows}


def _progress(values: Mapping[str, Any]) -> Progress:
    """The counters of a checkpoint.

    Raises:
        ValueError: If they are none.
    """
    fresh = Progress()
    for name, value in values.items():
        own = getattr(fresh, name)
        if isinstance(own, dict):
            _check_named(name, value, list if name == "shapes" else (int, float))
        elif isinstance(own, float):
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"its {name} is {format_value(value)}")
        else:
            _count(name, value)
    vars(fresh).update(values)
    return fresh


def _check_named(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    """Raises a ``ValueError`` unless a value is a dictionary of values of a kind."""
    if not isinstance(value, dict) or not all(isinstance(v, kind) for v in value.values()):
        raise ValueError(f"its {name} are {format_value(value)}")


def _count(name: str, value: object, most: float = math.inf) -> int:
    """A number that counts something.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"its {name} is {format_value(value)}")
    return value


def _rows(rows: object, epochs: int) -> list[dict[str, float]]:
    """The rows of a history.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(rows, list) or len(rows) != epochs:
        raise ValueError(f"its history does not have a row for each of {epochs} epochs")
    for row in rows:
        if not isinstance(row, dict) or not is_ranked(row):
            raise ValueError("its history has a row that is none")
    return rows
