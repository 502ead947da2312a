"""Checkpoints for exact resume."""

__all__ = ["Checkpoints"]

import contextlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tarspyro.accelerators import get_random_state, set_random_state
from tarspyro.runs.folder import Run, RunError
from tarspyro.runs.history import States
from tarspyro.training.distributed import Processes
from tarspyro.training.state import TrainingState


class Checkpoints:
    """Writes the state of a training to its run folder, and restores it.

    A checkpoint holds the weights, the optimizers, the random states of all processes, the
    order of the epoch's data and the number of its batches that are done. It is one file,
    written beside the one before and moved over it. The files with the best and the last
    weights are written after it; if a crash comes in between, the next start writes them.

    Arguments:
        run: The folder; None writes nothing.
        state: The state of the training.
        processes: The processes that train together; the first one writes.

    Attributes:
        of_loader: The generators of a loader of the user.
        saved: What the newest checkpoint holds, such as ``"step 12"``; None before the first.
    """

    def __init__(self, run: Run | None, state: TrainingState, processes: Processes) -> None:
        self.run = run
        self.state = state
        self.processes = processes
        self.saved: str | None = None
        self.of_loader: list[torch.Generator] = []
        self._start: dict[str, Tensor] = {}  # the random states at the start of the epoch

    def begin_epoch(self) -> None:
        """Notes the random states at the start of an epoch."""
        self._start = self._random()

    def save(self, weights: States, *, best: bool = False) -> None:
        """Writes a checkpoint; if that fails, it warns and the training goes on.

        Arguments:
            weights: The weights.
            best: Whether they are the best so far.
        """
        if self.run is None:
            return
        now = self.state.progress
        tensors = self._gather_random()
        packed, values = self.state.pack(weights, self.processes)
        tensors |= packed
        if not self.processes.first:
            self.saved = str(now)
            return
        try:
            self.run.save_state(tensors, values)
            if now.position == 0:
                if best:
                    self.run.save_weights("best", weights, epoch=now.epoch)
                self.run.save_weights("last", weights, epoch=now.epoch)
                self.run.write_metrics(self.state.history.rows)
            self.saved = str(now)
        except RunError as error:
            warnings.warn(
                f"{error} The training goes on after step {now.step}, and the next checkpoint"
                " will try again.",
                stacklevel=2,
            )

    def restore(self) -> None:
        """Restores the whole state of the training from the newest checkpoint."""
        assert self.run is not None
        tensors, values = self.run.load_state()
        try:
            start = self._own_random(tensors, "start")
            now = self._own_random(tensors, "now")
            self._check_random(start, now)
            weights = self.state.unpack(tensors, values, self.processes)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            reason = " ".join(reason.split()).rstrip(".")
            raise RunError(
                f"{self.run.folder / 'state.safetensors'} is not a state of this training"
                f" ({reason}): resume the run with the pair and the optimizer that it was made"
                " with, or train in another folder."
            ) from error
        self.saved = str(self.state.progress)
        self._restore_best_and_last(weights)
        self._start = start
        self._set_random(now)

    @contextlib.contextmanager
    def at_epoch_start(self) -> Iterator[None]:
        """Sets the random states to those of the epoch's start, and back afterwards.

        Inside, the order of the data is drawn again as it was drawn before the stop.
        """
        now = self._random()
        self._set_random(self._start)
        yield
        # The generators of the order have drawn it, and go on from there.
        drawn = {name: each.get_state() for name, each in self._generators().items()}
        self._set_random({**now, **drawn})

    def _restore_best_and_last(self, weights: States) -> None:
        """Fills in the best and the last weights of the history.

        It also writes their files if a crash prevented that after the checkpoint.
        """
        assert self.run is not None
        now = self.state.progress
        history = self.state.history
        epochs = {"last": now.epoch, "best": history.best_epoch}
        for which, epoch in epochs.items():
            if now.position or epoch != now.epoch:
                if epoch:
                    history.states[which] = self.run.load_weights(which)
                continue
            history.states[which] = weights
            if self.processes.first and self.run.epoch_of(which) != epoch:
                self.run.save_weights(which, weights, epoch=epoch)

    def _gather_random(self) -> dict[str, Tensor]:
        """The random states of all processes, by their names in the file."""
        moments = {"now": self._random()}
        if self.state.progress.position:
            moments["start"] = self._start
        tensors: dict[str, Tensor] = {}
        for moment, states in moments.items():
            for name, state in states.items():
                for rank, own in enumerate(self.processes.gather(state)):
                    tensors[f"rng.{moment}.{rank}.{name}"] = own
        return tensors

    def _own_random(self, tensors: Mapping[str, Tensor], moment: str) -> dict[str, Tensor]:
        """The random states of this process; empty if the checkpoint had fewer processes."""
        prefix = f"rng.{moment}.{self.processes.rank}."
        return {
            key.removeprefix(prefix): state
            for key, state in tensors.items()
            if key.startswith(prefix)
        }

    def _generators(self) -> dict[str, torch.Generator]:
        """The generators of the order of the data: our own, and those of a loader."""
        own = {f"loader{i}": each for i, each in enumerate(self.of_loader)}
        return {"order": self.state.order, **own}

    def _check_random(self, *moments: Mapping[str, Tensor]) -> None:
        """Raises a ``ValueError`` if random states are none, or of another loader.

        A run may go on on another kind of device, whose random state it does not hold.
        """
        own = self._random()
        of_device = get_random_state().keys()
        for states in filter(None, moments):
            missing = sorted(own.keys() - of_device - states.keys())
            if missing:
                raise ValueError(f"it lacks the random state of {missing[0]}")
            for name in own.keys() & states.keys():
                state = states[name]
                if state.shape != own[name].shape or state.dtype != own[name].dtype:
                    raise ValueError(f"its random state of {name} has another size")
                # What is no random state is refused when it is set.
                if name in of_device:
                    set_random_state({name: state})
                    set_random_state(own)
                else:
                    torch.Generator().set_state(state)

    def _random(self) -> dict[str, Tensor]:
        """The random states of this process."""
        states = {name: each.get_state() for name, each in self._generators().items()}
        return {**states, "cpu": torch.get_rng_state(), **get_random_state()}

    def _set_random(self, states: Mapping[str, Tensor]) -> None:
        if states:
            for name, generator in self._generators().items():
                generator.set_state(states[name])
            torch.set_rng_state(states["cpu"])
            set_random_state(states)
