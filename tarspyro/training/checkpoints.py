"""Where a training is, written so that it goes on as if it had never stopped."""

__all__ = ["Checkpoints", "Means", "Progress"]

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tarspyro.runs.folder import Run, RunError
from tarspyro.runs.history import History, States, set_states
from tarspyro.training.distributed import Processes
from tarspyro.training.optimizers import load_states, states_of


class Means:
    """Means over the data points of an epoch, in single precision or better.

    Not every player of a game moves in every step.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor], rows: int) -> None:
        """Adds what is summed over so many data points."""
        for name, value in values.items():
            value = value.to(torch.promote_types(value.dtype, torch.float32))
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.rows[name] = self.rows.get(name, 0) + rows

    def clear(self) -> None:
        """Forgets everything, for the next epoch."""
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
    """How far a training is.

    Attributes:
        epoch: Epochs done.
        step: Steps done in all.
        position: Batches done in the epoch that is under way.
        seconds: What they took.
        epochs_since_best: Epochs since the best one.
        judged_under: The scheduled values that epochs must share to be compared.
        stage: How often these have changed.
        skipped: Steps of this epoch that were left out, as their loss or gradient was not
            finite.
        skipped_in_a_row: The last ones of them.
        below: For how many moves in a row the losses of players were below their floors.
        shapes: The shapes of data that each player has met. The first step of a shape is
            validated, which changes the last bits of some families' gradients.
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


class Checkpoints:
    """Writes where a training is to its run folder, and puts it back there.

    A checkpoint holds weights, optimizers, the random states of all processes, the order of
    the epoch's data and how many of its batches are done. It is one file, written beside the
    one before and moved over it. The best and the last weights follow; what a crash in between
    leaves is mended by the next start.

    Arguments:
        run: The folder; None writes nothing.
        halves: What has weights.
        optimizers: The optimizers.
        history: The history.
        keep: How many checkpoints to keep, the newest included.
        processes: Those that train together; the first one writes.
    """

    def __init__(
        self,
        run: Run | None,
        halves: Mapping[str, Any],
        optimizers: Sequence[Optimizer],
        history: History,
        keep: int,
        processes: Processes,
    ) -> None:
        self.run, self.halves, self.optimizers, self.history = run, halves, optimizers, history
        self.keep, self.processes = keep, processes
        self.order = torch.Generator()
        self.saved: str | None = None  # what the newest checkpoint holds
        self._start: dict[str, Tensor] = {}  # random states at the start of the epoch

    def begin_epoch(self) -> None:
        """Notes the random states from which an epoch starts."""
        self._start = self._random()

    def save(
        self, progress: Progress, means: Means, states: States, *, best: bool = False
    ) -> None:
        """Writes a checkpoint; where that fails, says so, and the training goes on.

        Arguments:
            progress: How far the training is.
            means: The sums of the epoch that is under way.
            states: The weights.
            best: Whether these are the best weights.
        """
        if self.run is None:
            return
        tensors = {
            f"weights.{half}.{name}": t
            for half, state in states.items()
            for name, t in state.items()
        }
        for moment, random in {
            "now": self._random(),
            **({"start": self._start} if progress.position else {}),
        }.items():
            for name, state in random.items():
                gathered = self.processes.gather(state)
                tensors |= {
                    f"rng.{moment}.{rank}.{name}": state for rank, state in enumerate(gathered)
                }
        tensors |= {
            f"sums.{name}": self.processes.total(value.clone())
            for name, value in means.sums.items()
        }
        rows = self.processes.total(torch.tensor(list(means.rows.values())))
        name = f"step {progress.step}" if progress.position else f"epoch {progress.epoch}"
        if not self.processes.first:
            self.saved = name
            return
        tensors["step_losses"] = torch.tensor(self.history.step_losses, dtype=torch.float64)
        states_of_optimizers, values = states_of(self.optimizers)
        tensors |= {
            f"optimizer.{name}": tensor for name, tensor in states_of_optimizers.items()
        }
        described = {
            "progress": asdict(progress),
            "rows_of_sums": dict(zip(means.rows, rows.tolist(), strict=True)),
            "best_epoch": self.history.best_epoch,
            "rows": self.history.rows,
            "optimizer": values,
        }
        try:
            self.run.save_state(tensors, described, keep=self.keep)
            if progress.position == 0:
                if best:
                    self.run.save_weights("best", states, epoch=progress.epoch)
                self.run.save_weights("last", states, epoch=progress.epoch)
                self.run.write_metrics(self.history.rows)
            self.saved = name
        except RunError as error:
            warnings.warn(
                f"{error} Training goes on after step {progress.step}, and tries again with"
                " the next checkpoint.",
                stacklevel=2,
            )

    def restore(self, progress: Progress, means: Means) -> None:
        """Puts everything back: weights, optimizers, the history, random states, and how far
        the training was.
        """
        assert self.run is not None
        tensors, values = self.run.load_state()
        groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            groups[kind][rest] = tensor
        states: States = {}
        for key, tensor in groups["weights"].items():
            half, _, name = key.partition(".")
            states.setdefault(half, {})[name] = tensor
        set_states(self.halves, states)
        load_states(self.optimizers, groups["optimizer"], values["optimizer"])
        history = self.history
        vars(progress).update(values["progress"])
        self.saved = (
            f"step {progress.step}" if progress.position else f"epoch {progress.epoch}"
        )
        history.rows, history.best_epoch = values["rows"], values["best_epoch"]
        history.step_losses = tensors["step_losses"].tolist()
        # Sums over all processes go on in the first one.
        device = next(
            (
                p.device
                for optimizer in self.optimizers
                for p in optimizer.param_groups[0]["params"]
            ),
            None,
        )
        means.rows = {
            name: rows * self.processes.first for name, rows in values["rows_of_sums"].items()
        }
        means.sums = {
            name: (groups["sums"][name] * self.processes.first).to(device)
            for name in means.rows
        }
        self._restore_weights(progress, states)
        self._start = self._own(groups["rng"], "start")
        self._set_random(self._own(groups["rng"], "now"))

    def _own(self, states: Mapping[str, Tensor], moment: str) -> dict[str, Tensor]:
        """This process's part of the random states of all; empty for a process more than there
        were.
        """
        prefix = f"{moment}.{self.processes.rank}."
        return {
            key.removeprefix(prefix): state
            for key, state in states.items()
            if key.startswith(prefix)
        }

    @contextlib.contextmanager
    def at_the_start(self) -> Iterator[None]:
        """Inside, the random states are those of the epoch's start again; then what they were."""
        now = self._random()
        self._set_random(self._start)
        yield
        self._set_random({**now, "order": self.order.get_state()})

    def _restore_weights(self, progress: Progress, states: States) -> None:
        """Puts the best and the last weights into the history; writes what a crash after the
        checkpoint left out.
        """
        assert self.run is not None
        epochs = {"last": progress.epoch, "best": self.history.best_epoch}
        for which, epoch in epochs.items():
            if progress.position or epoch != progress.epoch:
                if epoch:
                    self.history.states[which] = self.run.load_weights(which)
                continue
            self.history.states[which] = states
            if self.processes.first and self.run.epoch_of(which) != epoch:
                self.run.save_weights(which, states, epoch=epoch)

    def _random(self) -> dict[str, Tensor]:
        """The random states of this process."""
        states = {"order": self.order.get_state(), "cpu": torch.get_rng_state()}
        return states | (
            {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
        )

    def _set_random(self, states: Mapping[str, Tensor]) -> None:
        if states:
            self.order.set_state(states["order"])
            torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
