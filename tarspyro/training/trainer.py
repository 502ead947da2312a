"""The training loop: steps, epochs, evaluation of held-out data."""

__all__ = ["Trainer"]

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn

from tarspyro.accelerators import can_capture, is_accelerator
from tarspyro.data import Stream
from tarspyro.infer import Player
from tarspyro.programs import tensors_of
from tarspyro.runs.folder import Run, RunError
from tarspyro.runs.history import Declared, States
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.training.batches import Batches
from tarspyro.training.checkpoints import Checkpoints
from tarspyro.training.checks import (
    CollapseError,
    NonFiniteError,
    describe_nonfinite,
    warn_user,
)
from tarspyro.training.comparison import check_settings, describe_batches
from tarspyro.training.counts import Counts, rows_of
from tarspyro.training.distributed import ProcessError, Processes
from tarspyro.training.guards import FiniteGuard
from tarspyro.training.interrupts import Interrupts
from tarspyro.training.losses import Objective, Step, prefixed
from tarspyro.training.optimizers import Optimizer
from tarspyro.training.parameters import hidden_parameters, untrained_names
from tarspyro.training.schedules import Schedule, Schedules
from tarspyro.training.screen import progress_bar, say
from tarspyro.training.state import Means, TrainingState
from tarspyro.training.updates import Update
from tarspyro.types import Arguments

if TYPE_CHECKING:
    from tqdm.auto import tqdm

Callback = Callable[[dict[str, float]], object]

# What the progress bar shows of an epoch.
_SHOWN = ("loss", "elbo", "real", "fake", "validation_loss", "validation_elbo")


class Trainer:
    """The training loop of ``fit``: in every step each player moves whose turn it is.

    Arguments:
        objective: The loss with the pair, and with its players.
        state: The state of the training.
        optimizer: Clipping, and what to do about non-finite losses.
        schedules: See ``fit``.
        count: A function that returns how many data points a batch holds, and how many its
            loss stands for; its rows if not given.
        autocast: See ``fit``.
        run: The run folder to write.
        processes: The processes that train together.
    """

    def __init__(
        self,
        objective: Objective,
        state: TrainingState,
        *,
        optimizer: Optimizer | None = None,
        schedules: Mapping[str, Schedule] | None = None,
        count: Callable[[Arguments], Counts] = rows_of,
        autocast: torch.dtype | None = None,
        run: Run | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.objective = objective
        self.state = state
        self.optimizer = optimizer or Optimizer()
        self.schedules = Schedules(schedules or {}, objective, state)
        self.count = count
        self.autocast = autocast
        self.run = run
        self.processes = processes or Processes()
        self.updates = [
            Update(player, torch_optimizer, self.optimizer)
            for player, torch_optimizer in zip(
                objective.players, state.optimizers, strict=True
            )
        ]
        self.guard = FiniteGuard(state, self.optimizer.on_nonfinite)
        self.checkpoints = Checkpoints(run, state, self.processes)
        seed = torch.randint(2**62, (), dtype=torch.int64)
        self.processes.broadcast([seed])
        state.order.manual_seed(int(seed))
        self._interrupts: Interrupts | None = None
        self._all_stop = False  # whether one of several processes was asked to stop

    # --- the run

    def open(self, config: Mapping[str, Any], batches: Batches) -> None:
        """Creates the run folder, or restores the training that stopped in it.

        Arguments:
            config: The configuration. Its part ``"training"`` has what a resumed run shares.
            batches: The training data.

        Raises:
            RunError: If the folder holds a run already, or a run of another pair or other
                data.
            ValueError: If a run with these data could not be resumed.
        """
        assert self.run is not None
        run = self.run
        if getattr(batches.source, "persistent_workers", False):
            raise ValueError(
                "data is a DataLoader with persistent_workers=True, whose workers have random"
                " states that no checkpoint can hold: leave persistent_workers or folder out."
            )
        self.checkpoints.of_loader = batches.generators
        begins = not run.resume or (run.resume == "auto" and not run.exists)
        # All processes act on what the first one sees in the folder before it writes there.
        found = torch.tensor([begins, not begins and run.has_state])
        self.processes.broadcast([found])
        if found[0]:
            if self.processes.first:
                run.create(config)
            self.processes.wait()
            return
        stored = run.config()
        for half in ("model", "guide"):
            if stored[half] != config[half]:
                raise RunError(
                    f"{run.folder} holds a run of another {half}: resume it with the pair that"
                    " load_run returns."
                )
        settings: dict[str, Any] = dict(config.get("training", {}))
        earlier = stored.get("training")
        earlier = earlier if isinstance(earlier, dict) else {}
        check_settings(run.folder, earlier, settings)
        if settings.get("seed") is None:
            settings["seed"] = earlier.get("seed")
        if found[1]:  # a run may have stopped before its first checkpoint
            self.checkpoints.restore()
            if self.state.progress.position > len(batches) > 0:
                raise RunError(
                    f"{run.folder} stopped after {self.state.progress.position} batches of an"
                    f" epoch, and an epoch has {len(batches)}: resume it with the same data."
                )
            # The last step's values hold on, in case the epoch ends without another step.
            self._apply_again(run)
        elif run.has_weights:
            raise RunError(
                f"{run.folder} holds weights but no state.safetensors to resume from: give"
                " another folder, and start from the weights of load_run there."
            )
        if self.processes.first and earlier != json.loads(json.dumps(settings)):
            run.update({**stored, "training": settings})

    def _apply_again(self, run: Run) -> None:
        """Applies the scheduled values of the last step.

        Raises:
            RunError: If they are not those that the run had.
        """
        had = dict(self.state.progress.scheduled)
        self.schedules.apply(max(self.state.progress.step - 1, 0))
        has = self._scheduled()
        if had and had != has:
            raise RunError(
                f"{run.folder} holds a run whose schedules gave {had} at its last step, and"
                f" these give {has}: resume it with the same, or train in another folder."
            )

    def _scheduled(self) -> dict[str, float]:
        """The scheduled values of the last step, without learning rates."""
        return self.schedules.of_loss() | self.schedules.of_pair()

    def train(
        self,
        batches: Batches,
        held_out: Batches | None,
        *,
        epochs: int,
        patience: int | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> None:
        """Trains the pair.

        Arguments:
            batches: The training data. The training ends with a stream.
            held_out: The held-out data.
            epochs: The number of epochs in all.
            patience: How many epochs without improvement end the training.
            callback: A function that is called with the row of every epoch.
            progress: Whether to show a progress bar.
        """
        self.processes.is_asked = lambda: self._asked_to_stop
        self.processes.check_equal("The number of batches of an epoch", len(batches))
        self._check_same(batches, held_out)
        self.processes.broadcast(self.state.tensors)
        bar = progress_bar(
            total=epochs * len(batches) or None,
            initial=self.state.progress.step,
            disable=not (progress and self.processes.first),
        )
        self.guard.keep(self.state.weights())
        with bar, contextlib.ExitStack() as stack:
            stack.callback(self.objective.release_graphs)
            if self.run is not None:
                self._interrupts = stack.enter_context(Interrupts())
            while not (self._is_done(epochs, patience) or self._has_ended(batches)):
                with self._explained():
                    row = self._run_epoch(batches, held_out, bar)
                    if callback is not None and self.processes.first:
                        with preserved_rng():  # so that its draws do not change the training
                            callback(dict(row))
                    self._stop_if_asked()
                bar.set_postfix({name: f"{row[name]:.2f}" for name in _SHOWN if name in row})

    def _check_same(self, batches: Batches, held_out: Batches | None) -> None:
        """Raises a ``ProcessError`` if the processes train different things."""
        if self.processes.size == 1:
            return
        parameters = {
            half: [
                (name, tuple(tensor.shape), tensor.dtype)
                for name, tensor in program.state_dict().items()
            ]
            for half, program in self.state.halves.items()
            if isinstance(program, (nn.Module, Declared))
        }
        self.processes.check_same(
            parameters=parameters,
            kind_of_data=[type(batches.source).__name__, batches.parts is None],
            training_data=describe_batches(batches),
            held_out_data=describe_batches(held_out),
        )

    def _has_ended(self, batches: Batches) -> bool:
        """Whether a stream has ended; then it has in all processes."""
        if not isinstance(batches.source, Stream):
            return False
        return not self.processes.have_all("a next batch", not batches.exhausted)

    def _is_done(self, epochs: int, patience: int | None) -> bool:
        now = self.state.progress
        return now.epoch >= epochs or (
            patience is not None and now.epochs_since_best >= patience
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Adds to an error where the training stopped, and how to go on."""
        try:
            yield
        except (NonFiniteError, CollapseError) as error:
            remedy = (
                getattr(error, "remedy", "") or "Try a smaller learning rate or clip_norm."
            )
            raise type(error)(
                f"{error} Training stopped; {self.guard.go_back()}. {remedy}"
            ) from None
        except ProcessError as error:
            if self._interrupts is not None and self._asked_to_stop:
                say(f"interrupted{self._how_to_go_on()}")
                self._interrupts.stop()
            raise ProcessError(f"{error} Training stopped{self._how_to_go_on()}.") from error
        except (KeyboardInterrupt, SystemExit):
            say(f"interrupted{self._how_to_go_on()}")
            raise

    def _how_to_go_on(self) -> str:
        if self.run is None:
            return ""
        folder = str(self.run.folder)
        return (
            f"; {folder} holds {self.checkpoints.saved or 'no step yet'}: go on with"
            f" folder=Run({folder!r}, resume=True)"
        )

    @property
    def _asked_to_stop(self) -> bool:
        """Whether this process has received a signal."""
        return self._interrupts is not None and self._interrupts.received is not None

    @property
    def _stopping(self) -> bool:
        """Whether the training stops after this step."""
        return self._asked_to_stop if self.processes.size == 1 else self._all_stop

    def _stop_if_asked(self) -> None:
        if self._interrupts is not None and self._stopping:
            self._interrupts.stop()

    # --- epochs

    def _run_epoch(
        self, batches: Batches, held_out: Batches | None, bar: "tqdm[None]"
    ) -> dict[str, float]:
        """Trains and evaluates an epoch; returns its row of the history."""
        row = self._train_epoch(batches, bar)
        weights = self.state.weights()
        self.guard.check(weights)
        if held_out is not None:
            for name, value in self._evaluate(held_out).items():
                row[f"validation_{name}"] = value
        self._end_epoch(row, weights)
        return row

    def _train_epoch(self, batches: Batches, bar: "tqdm[None]") -> dict[str, float]:
        now = self.state.progress
        start = time.perf_counter() - now.seconds
        with self._steadily(batches):
            for arguments, rows in self._remaining(batches):
                counts = self._count(arguments, rows)
                values = self.step(arguments, counts)
                self.state.end_batch(values, counts.held, time.perf_counter() - start)
                bar.update()
                self._save_within_epoch()
                self._stop_if_asked()
        self.guard.read()
        self.processes.broadcast(
            buffer for half in self.state.modules for buffer in half.buffers()
        )
        row: dict[str, float] = {"epoch": now.epoch + 1, "steps": now.step}
        row |= self.state.means.read(self.processes)
        if now.skipped:
            row["skipped"] = now.skipped
        return row | {"seconds": round(now.seconds, 3)}

    @contextlib.contextmanager
    def _steadily(self, batches: Batches) -> Iterator[None]:
        """Lets compiled steps skip the check for changes between them, unless a schedule, a data
        set or a loader runs code of the user there.
        """
        if self.schedules.schedules or batches.parts is None:
            yield
            return
        with self.objective.unchanging():
            yield

    def _save_within_epoch(self) -> None:
        """Writes a checkpoint in the middle of an epoch, if it is time or the training stops."""
        every = None if self.run is None else self.run.checkpoint_steps
        due = every is not None and self.state.progress.step % every == 0
        if due or self._stopping:
            self.guard.read()
            weights = self.state.weights()
            self.guard.check(weights)
            self.guard.keep(weights)
            self._save(weights)

    def _remaining(self, batches: Batches) -> Iterator[tuple[Arguments, int]]:
        """The batches of an epoch, or the rest of the epoch in which a run was stopped."""
        now = self.state.progress
        if now.position == 0:
            self.checkpoints.begin_epoch()
            return self._together(batches, batches.epoch(self.state.order, now.epoch))
        with self.checkpoints.at_epoch_start():
            rest = batches.epoch(self.state.order, now.epoch, now.position)
        return self._together(batches, rest)

    def _together(
        self, batches: Batches, each: Iterator[tuple[Arguments, int]]
    ) -> Iterator[tuple[Arguments, int]]:
        """The batches; of several processes, all have as many, or all get an error."""
        if self.processes.size == 1 or not batches.is_read:
            yield from each
            return
        while True:
            batch = next(each, None)
            if not self.processes.have_all("a next batch", batch is not None):
                return
            assert batch is not None
            yield batch

    def _evaluate(self, held_out: Batches) -> dict[str, float]:
        """Returns the loss and its terms on held-out data, with the same noise every time."""
        means = Means()
        with preserved_rng(seed=0), evaluating(*self.state.halves.values()):
            for arguments, rows in held_out.epoch(self.state.order):
                counts = self._count(arguments, rows)
                values: dict[str, Tensor] = {}
                for player in self.objective.players:
                    loss, terms = self.objective.evaluate(player, arguments)
                    values |= {prefixed(player, "loss"): loss, **terms}
                means.add(_per_held(values, counts), counts.held)
        self.processes.have_all("held-out batches", bool(means.sums))
        found = means.read(self.processes)
        self._check_held_out(found, held_out)
        return found

    def _check_held_out(self, found: Mapping[str, float], held_out: Batches) -> None:
        """Raises a ``NonFiniteError`` that names the row if a held-out loss is not finite."""
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        if not bad:
            return
        what = f"The held-out {bad[0].replace('_', ' ')} was {found[bad[0]]}"
        epoch = self.state.progress.epoch + 1
        before = 0
        with preserved_rng(seed=0), evaluating(*self.state.halves.values()):
            for number, (arguments, rows) in enumerate(held_out.epoch(self.state.order), 1):
                noise = torch.get_rng_state()
                losses = [
                    self.objective.evaluate(player, arguments)[0]
                    for player in self.objective.players
                ]
                if not all(bool(loss.isfinite().all()) for loss in losses):
                    cause = describe_nonfinite(
                        *self.state.pair, arguments, self.state.modules, noise
                    )
                    raise NonFiniteError(
                        f"{what} after epoch {epoch}, in batch {number} of the held-out data,"
                        f" which starts at row {before}: {cause}."
                    )
                before += rows
        raise NonFiniteError(f"{what} after epoch {epoch}.")

    def _end_epoch(self, row: dict[str, float], weights: States) -> None:
        """Adds the epoch to the history and writes a checkpoint."""
        prefix = "validation_" if "validation_loss" in row else ""
        scheduled = self._scheduled()
        if not self.objective.ranks_epochs:
            row["objective"] = float(row["epoch"])  # the last epoch counts as the best
        elif self.schedules.of_loss() and "elbo" in row:
            # The schedule changes the loss but not the ELBO, so epochs stay comparable.
            row["objective"] = row[f"{prefix}elbo"]
            scheduled = self.schedules.of_pair()
        else:
            row["objective"] = -row.get(f"{prefix}loss", math.inf)
        self.state.compare_under(scheduled)
        if scheduled:
            row["stage"] = self.state.progress.stage
        best = self.state.end_epoch(row, weights)
        self.guard.keep(weights)
        self._save(weights, best=best)

    def _save(self, weights: States, *, best: bool = False) -> None:
        """Writes a checkpoint, with the scheduled values of the last step."""
        self.state.progress.scheduled = self._scheduled()
        self.checkpoints.save(weights, best=best)

    # --- steps

    def step(self, arguments: Arguments, counts: Counts | None = None) -> dict[str, Tensor]:
        """Makes one step.

        Arguments:
            arguments: The batch, or the share of this process in it.
            counts: How many data points it holds, and how many the loss stands for, if they
                are known.

        Returns:
            The losses and their terms on the device, summed over the data points of the batch.
        """
        counts = self.count(arguments) if counts is None else counts
        now = self.state.progress
        self.schedules.apply(now.step)
        values: dict[str, Tensor] = {}
        for update in self.updates:
            if update.player.moves(now.step):
                values |= self._move(update, arguments, counts)
        self.state.end_step()
        return values

    def _count(self, arguments: Arguments, rows: int) -> Counts:
        """The counts of a batch; no rows count in a process that has no share of it."""
        counts = self.count(arguments)
        return counts if rows else counts._replace(held=0)

    def _move(self, update: Update, arguments: Arguments, counts: Counts) -> dict[str, Tensor]:
        """Updates the parameters of a player once; returns its loss and terms."""
        player = update.player
        update.clear()
        on_cpu = not is_accelerator(tensors_of(arguments)[0].device)
        noise = torch.get_rng_state() if on_cpu else None
        made = self._add_gradients(update, arguments, counts.meant)
        mean = self._averaged(player, _precise(made.loss) / counts.meant, counts.held)
        norm = update.norm.clone() if made.updated else player.gradient_norm()
        if not self.guard.allows(player, mean, norm, arguments, noise):
            update.clear()
            return {}
        if not made.updated:
            update.step(norm)
        values = _per_held({prefixed(player, "loss"): made.loss, **made.terms}, counts)
        if player.name:
            # In a game the balance of the gradients shows more than the losses.
            values[prefixed(player, "gradient")] = norm * counts.held
        return values

    def _add_gradients(self, update: Update, arguments: Arguments, size: int) -> Step:
        """Computes the loss of a player and its gradients."""
        player = update.player
        tensors = tensors_of(arguments)
        device = tensors[0].device
        shapes = str([tuple(tensor.shape) for tensor in tensors])
        new_shape = self.state.is_new_shape(player, shapes)
        inspect = None
        if new_shape and not self.state.has_moved(player):
            inspect = functools.partial(self._check_trained, player, arguments)
        # A compiled step may include the update, unless the gradient is needed before it.
        needed = self.processes.size > 1 or self.guard.skips
        included = update if can_capture(device) and not needed else None
        with contextlib.ExitStack() as stack:
            if self.autocast is not None:
                stack.enter_context(torch.autocast(device.type, self.autocast))
            if new_shape:
                stack.enter_context(pyro.validation_enabled(True))
            made = self.objective.step(
                player, arguments, size, new_shape=new_shape, inspect=inspect, update=included
            )
        if new_shape:
            self.state.add_shape(player, shapes)
        return made

    def _averaged(self, player: Player, mean: Tensor, held: int) -> Tensor:
        """Averages a loss and its gradients over the processes.

        On the way each process learns whether another one was asked to stop.
        """
        if self.processes.size == 1:
            return mean
        trained = [parameter for parameter in player.parameters if parameter.requires_grad]
        numbers = torch.stack([mean, mean.new_tensor(self._asked_to_stop)])
        mean, asked = self.processes.average(trained, numbers, held)
        self._all_stop = self._all_stop or bool(asked > 0)
        return mean

    def _check_trained(self, player: Player, arguments: Arguments, loss: Tensor) -> None:
        """Compares what the first loss of a player depends on with what its optimizer holds."""
        everyone = None
        if player.name:
            everyone = [p for other in self.objective.players for p in other.parameters]
        trained = [parameter for parameter in player.parameters if parameter.requires_grad]
        hidden = hidden_parameters(*self.objective.pair, arguments)
        programs = list(self.state.halves.values())
        unreached = untrained_names(loss, trained, programs, everyone, hidden)
        # A warm-up that starts at 0 leaves out the latent terms in the first step.
        warming_up = "beta" in self.schedules and self.objective.get("beta") == 0
        if unreached and not warming_up:
            whose = f"of the {player.name} " if player.name else ""
            warn_user(
                f"The loss {whose}does not depend on {', '.join(unreached)}: they keep their"
                " values."
            )


def _precise(value: Tensor) -> Tensor:
    """A number for the history, in single precision or better."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def _per_held(values: dict[str, Tensor], counts: Counts) -> dict[str, Tensor]:
    """Rescales sums over the data points of the loss to sums over those of the batch."""
    precise = {name: _precise(value) for name, value in values.items()}
    if counts.held == counts.meant:
        return precise
    return {name: value * counts.held / counts.meant for name, value in precise.items()}
