"""The steps and epochs of a training, its measurements and its checkpoints."""

__all__ = ["Trainer", "is_differentiable"]

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from tarspyro.infer import Compiled, PairError, Player
from tarspyro.modules import StochasticModule
from tarspyro.programs import tensors_of
from tarspyro.runs.folder import Run, RunError
from tarspyro.runs.history import History, get_states, rank
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.training.batches import Batches
from tarspyro.training.checkpoints import Checkpoints, Means, Progress
from tarspyro.training.checks import (
    CollapseError,
    NonFiniteError,
    check_trained,
    hidden_parameters,
)
from tarspyro.training.counts import Counts, rows_of
from tarspyro.training.distributed import ProcessError, Processes
from tarspyro.training.guards import Watch
from tarspyro.training.interrupts import Interrupts
from tarspyro.types import Arguments


def is_differentiable(loss: Any) -> bool:
    """Whether the loss is a tensor to differentiate; some of Pyro's bounds only fill in the
    gradients themselves.
    """
    return hasattr(loss, "differentiable_loss") or not hasattr(loss, "loss_and_grads")


def _registering(name: str, half: Any) -> Any:
    """A half for bounds that find parameters in Pyro's store alone: networks that are no
    programs are put there.
    """
    if not isinstance(half, nn.Module) or isinstance(half, (StochasticModule, PyroModule)):
        return half

    def registering(*args: Any, **kwargs: Any) -> Any:
        pyro.module(name, half)
        return half(*args, **kwargs)

    return registering


class Trainer:
    """What ``fit`` runs: one step after the other, in each of which every player moves whose
    turn it is.

    Arguments:
        halves: The model and the guide, and what else has a state.
        loss: The bound or the game.
        players: Who moves, each with an optimizer of its parameters; of a bound, its one
            player without a name.
        schedules: See ``fit``.
        clip_norm: See ``fit``.
        clip_value: See ``fit``.
        count: Returns how many data points a batch holds, and how many its loss stands for;
            its rows if not given.
        autocast: See ``fit``.
        on_nonfinite: See ``fit``.
        checkpoint_steps: See ``fit``.
        keep_checkpoints: See ``fit``.
        run: The folder to write.
        processes: Those that train together.
        callback: See ``fit``.
    """

    def __init__(
        self,
        halves: Mapping[str, Any],
        loss: Any,
        players: Sequence[tuple[Player, Optimizer]],
        *,
        schedules: Mapping[str, Callable[[int], float]],
        clip_norm: float | None = None,
        clip_value: float | None = None,
        count: Callable[[Arguments], Counts] = rows_of,
        autocast: torch.dtype | None = None,
        on_nonfinite: str = "stop",
        checkpoint_steps: int | None = None,
        keep_checkpoints: int = 1,
        run: Run | None = None,
        processes: Processes | None = None,
        callback: Callable[[dict[str, float]], Any] | None = None,
    ) -> None:
        self.callback = callback
        self.autocast = autocast
        # Beside the halves there may be "params", which functions declared, and "loss", a
        # game's networks.
        self.halves, self.model, self.guide = halves, halves["model"], halves["guide"]
        self.count = count
        self._registered = [_registering(name, halves[name]) for name in ("model", "guide")]
        self.loss, self.players = loss, players
        self._values: dict[str, float] = {}  # what the schedules said last
        self.schedules = {
            name: (self._setter(name), schedule) for name, schedule in schedules.items()
        }
        self.clip_norm, self.clip_value, self.on_nonfinite = (
            clip_norm,
            clip_value,
            on_nonfinite,
        )
        self.checkpoint_steps, self.processes = checkpoint_steps, processes or Processes()
        self.history = History(
            others={name: halves[name] for name in halves if name not in ("model", "guide")}
        )
        self.progress, self.means, self.run = Progress(), Means(), run
        optimizers = [optimizer for _, optimizer in players]
        self.checkpoints = Checkpoints(
            run, halves, optimizers, self.history, keep_checkpoints, self.processes
        )
        self.watch = Watch(halves, optimizers, self.history, self.progress, on_nonfinite)
        seed = torch.randint(2**62, (), dtype=torch.int64)
        self.processes.broadcast([seed])
        self.checkpoints.order.manual_seed(int(seed))
        self._interrupts: Interrupts | None = None
        self._agreed = False  # whether all processes know that one of them shall stop

    def open(self, config: Mapping[str, Any], *, resume: bool | str, overwrite: bool) -> None:
        """Makes the run's folder, or goes on where the run in it stopped."""
        assert self.run is not None
        begins = not resume or (resume == "auto" and not self.run.exists)
        found = torch.tensor([begins, not begins and self.run.has_state])
        self.processes.broadcast(
            [found]
        )  # what the first process sees in the folder, before it writes there
        if found[0]:
            if self.processes.first:
                self.run.create(config, overwrite=overwrite)
            self.processes.wait()
            return
        stored = self.run.config()
        for half in ("model", "guide"):
            if stored[half] != config[half]:
                raise RunError(
                    f"{self.run.folder} holds a run of another {half}: resume it with the pair"
                    " that load_run returns."
                )
        if found[1]:  # a run may have stopped before its first checkpoint
            self.checkpoints.restore(self.progress, self.means)
            self._follow_schedules(
                max(self.progress.step - 1, 0)
            )  # the epoch's end may need no step

    def train(
        self,
        batches: Batches,
        held_out: Batches | None,
        epochs: int,
        patience: int | None,
        progress: bool,
    ) -> None:
        """Trains until so many epochs are done in all, a stream ends, or none of the last
        ``patience`` was the best.
        """
        declared = self.halves["params"].tensors.values() if "params" in self.halves else ()
        self.processes.broadcast(
            [
                *(
                    t
                    for half in self._modules()
                    for t in (*half.parameters(), *half.buffers())
                ),
                *declared,
            ]
        )
        self.processes.check_equal("The number of batches of an epoch", len(batches))
        now = self.progress
        bar = tqdm(
            total=epochs * len(batches) or None,
            initial=now.step,
            disable=not (progress and self.processes.first),
            unit="step",
            leave=True,
        )
        self.watch.keep_good(get_states(self.halves))
        with bar, contextlib.ExitStack() as stack:
            if self.run is not None:
                self._interrupts = stack.enter_context(Interrupts())
            while not (
                now.epoch >= epochs
                or patience
                and now.epochs_since_best >= patience
                or batches.exhausted
            ):
                try:
                    row = self._train_epoch(batches, bar)
                    states = get_states(self.halves)
                    self.watch.check(states)
                    if held_out is not None:
                        row |= {
                            f"validation_{name}": value
                            for name, value in self._judge(held_out).items()
                        }
                    self._finish_epoch(row, states)
                    if self.callback is not None and self.processes.first:
                        with preserved_rng():  # what it draws changes nothing in the training
                            self.callback(dict(row))
                    self._stop_if_asked()
                except (NonFiniteError, CollapseError) as error:
                    raise type(error)(
                        f"{error} Training stopped; {self.watch.go_back()}. Try a smaller"
                        " learning rate or clip_norm."
                    ) from None
                except ProcessError as error:
                    raise ProcessError(f"{error} Training stopped{self._way_on()}.") from error
                except (KeyboardInterrupt, SystemExit):
                    tqdm.write(f"interrupted{self._way_on()}")
                    raise
                bar.set_postfix({name: f"{row[name]:.2f}" for name in _SHOWN if name in row})

    def _train_epoch(self, batches: Batches, bar: Any) -> dict[str, float]:
        now = self.progress
        start = time.perf_counter() - now.seconds
        for arguments, rows in self._epoch(batches):
            counts = self._count(arguments, rows)
            self.means.add(self.step(arguments, counts), counts.held)
            now.position += 1
            now.seconds = time.perf_counter() - start
            bar.update()
            if (
                self._stopping
                or self.checkpoint_steps
                and now.step % self.checkpoint_steps == 0
            ):
                self.watch.read()
                states = get_states(self.halves)
                self.watch.check(states)
                self.watch.keep_good(states)
                self.checkpoints.save(now, self.means, states)
            self._stop_if_asked()
        self.watch.read()
        self.processes.broadcast(
            buffer for half in self._modules() for buffer in half.buffers()
        )
        row = {"epoch": now.epoch + 1, "steps": now.step, **self.means.read(self.processes)}
        return (
            row
            | ({"skipped": now.skipped} if now.skipped else {})
            | {"seconds": round(now.seconds, 3)}
        )

    def _modules(self) -> list[nn.Module]:
        return [half for half in self.halves.values() if isinstance(half, nn.Module)]

    def _epoch(self, batches: Batches) -> Iterator[tuple[Arguments, int]]:
        """The batches of an epoch, or those that are left of the one in which a run was
        stopped.
        """
        now, order = self.progress, self.checkpoints.order
        if now.position == 0:
            self.checkpoints.begin_epoch()
            return batches.epoch(order, now.epoch)
        with self.checkpoints.at_the_start():  # what drew the order of the data draws it again
            return batches.epoch(order, now.epoch, now.position)

    @property
    def _stopping(self) -> bool:
        """Whether this process, or with several all of them, shall stop after this step."""
        asked = self._interrupts is not None and self._interrupts.received is not None
        return asked if self.processes.size == 1 else self._agreed

    def _stop_if_asked(self) -> None:
        if self._interrupts is not None and self._stopping:
            self._interrupts.stop()

    def _way_on(self) -> str:
        if self.run is None:
            return ""
        return (
            f"; {self.run.folder} holds {self.checkpoints.saved or 'no step yet'}: go on with"
            " resume=True"
        )

    def _count(self, arguments: Arguments, rows: int) -> Counts:
        """The counts of a batch, of which all rows count, or none in a process that has no
        share of it.
        """
        counts = self.count(arguments)
        return counts if rows else counts._replace(held=0)

    def step(self, arguments: Arguments, counts: Counts | None = None) -> dict[str, Tensor]:
        """One step; returns the losses and their terms, per data point times those held, on
        the device.

        Arguments:
            arguments: The batch, or this process's share of it.
            counts: How many data points it holds, and how many the loss stands for, if they
                are known.
        """
        self._follow_schedules(self.progress.step)
        counts = self.count(arguments) if counts is None else counts
        values: dict[str, Tensor] = {}
        for player, optimizer in self.players:
            if player.moves(self.progress.step):
                values |= self._move(player, optimizer, arguments, counts)
        self.progress.step += 1
        return values

    def _follow_schedules(self, step: int) -> None:
        for name, (assign, schedule) in self.schedules.items():
            self._values[name] = schedule(step)
            assign(self._values[name])

    def _move(
        self, player: Player, optimizer: Optimizer, arguments: Arguments, counts: Counts
    ) -> dict[str, Tensor]:
        """One player changes its parameters once."""
        tensors, loss_of, size = tensors_of(arguments), player.loss, counts.meant
        shapes = str([tuple(tensor.shape) for tensor in tensors])
        known = self.progress.shapes.setdefault(player.name, [])
        new_shape, updated = shapes not in known, False
        optimizer.zero_grad()
        device = tensors[0].device.type
        noise = torch.get_rng_state() if device == "cpu" else None
        cast = (
            contextlib.nullcontext()
            if self.autocast is None
            else torch.autocast(device, self.autocast)
        )
        with cast, pyro.validation_enabled(True) if new_shape else contextlib.nullcontext():
            if isinstance(loss_of, Compiled) and not new_shape:
                # On a GPU the update is part of the compiled step, unless the gradient is
                # looked at or sent before it.
                fused = (
                    device == "cuda"
                    and self.on_nonfinite == "stop"
                    and self.processes.size == 1
                )
                loss, terms = loss_of.accumulate_gradients(
                    self.model,
                    self.guide,
                    *arguments,
                    scale=1 / size,
                    update=(
                        functools.partial(self._update, player, optimizer) if fused else None
                    ),
                )
                updated, terms = fused, _with_elbo(terms)
            elif is_differentiable(loss_of):
                loss, terms = self._evaluate_loss(loss_of, arguments)
                if not known:
                    self._check_trained(player, loss, arguments)
                (loss / size).backward(inputs=getattr(_original(loss_of), "parameters", None))
            else:
                loss, terms = _numbers(
                    loss_of.loss_and_grads(*self._registered, *arguments), player.parameters[0]
                )
                if not known and not player.gradients:
                    raise PairError(
                        f"{type(loss_of).__name__} has no gradient of any parameter: take"
                        " tarspyro.infer.ELBO()."
                    )
                torch._foreach_div_(player.gradients, size)
        if new_shape:
            known.append(shapes)
        mean = self._averaged(player, _precise(loss) / size, counts.held)
        norm = None if updated else player.gradient_norm()
        if not self.watch.note(player, mean, norm, arguments, noise):
            optimizer.zero_grad()
            return {}
        if norm is not None:
            self._update(player, optimizer, norm)
        values = _of_held({_named(player, "loss"): loss, **terms}, counts)
        if (
            player.name and norm is not None
        ):  # where several pull, the balance of forces tells more than their losses
            values[_named(player, "gradient")] = norm * counts.held
        return values

    def _averaged(self, player: Player, mean: Tensor, held: int) -> Tensor:
        """Makes the gradients, and a loss, those of all processes; and learns whether one of
        them shall stop.
        """
        if self.processes.size == 1:
            return mean
        asked = self._interrupts is not None and self._interrupts.received is not None
        trained = [parameter for parameter in player.parameters if parameter.requires_grad]
        mean, asked_by = self.processes.average(
            trained, torch.stack([mean, mean.new_tensor(asked)]), held
        )
        self._agreed = self._agreed or bool(asked_by > 0)
        return mean

    def _update(
        self, player: Player, optimizer: Optimizer, norm: Tensor | None = None
    ) -> None:
        """Changes a player's parameters by their gradients, whose norm may be known."""
        if self.clip_norm is not None:
            norm = norm if norm is not None else player.gradient_norm()
            nn.utils.clip_grads_with_norm_(player.parameters, self.clip_norm, norm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(player.parameters, self.clip_value)
        optimizer.step()

    def _evaluate_loss(
        self, loss_of: Any, arguments: Arguments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        bound = _original(loss_of)
        if hasattr(bound, "loss_and_terms"):
            loss, terms = bound.loss_and_terms(self.model, self.guide, *arguments)
            return loss, _with_elbo(terms)
        compute = getattr(bound, "differentiable_loss", bound)
        return compute(self.model, self.guide, *arguments), {}

    def _judge_loss(
        self, player: Player, arguments: Arguments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        bound: Any = _original(player.loss)
        of_pyro = isinstance(bound, ELBO) and not hasattr(bound, "loss_and_terms")
        if (
            of_pyro
        ):  # the differentiable loss of some of them fails where nothing requires gradients
            return _numbers(bound.loss(*self._registered, *arguments), player.parameters[0])
        return self._evaluate_loss(bound, arguments)

    def _check_trained(self, player: Player, loss: Tensor, arguments: Arguments) -> None:
        everyone = (
            [p for other, _ in self.players for p in other.parameters] if player.name else None
        )
        hidden = hidden_parameters(self.model, self.guide, arguments)
        trained = [parameter for parameter in player.parameters if parameter.requires_grad]
        unreached = check_trained(loss, trained, list(self.halves.values()), everyone, hidden)
        # A warm-up from 0 leaves out, for a step, what only the latent terms depend on.
        if unreached and not ("beta" in self.schedules and _original(self.loss).beta == 0):
            whose = f"of the {player.name} " if player.name else ""
            warnings.warn(
                f"The loss {whose}does not depend on {', '.join(unreached)}: they keep their"
                " values.",
                stacklevel=6,
            )

    def _judge(self, held_out: Batches) -> dict[str, float]:
        """The loss and its terms on held-out data, with the same noise every time."""
        means = Means()
        with preserved_rng(seed=0), evaluating(*self.halves.values()):
            for arguments, rows in held_out.epoch(self.checkpoints.order):
                counts = self._count(arguments, rows)
                values: dict[str, Tensor] = {}
                for player, _ in self.players:
                    loss, terms = self._judge_loss(player, arguments)
                    values |= {_named(player, "loss"): loss, **terms}
                means.add(_of_held(values, counts), counts.held)
        return means.read(self.processes)

    def _finish_epoch(
        self, row: dict[str, float], states: dict[str, dict[str, Tensor]]
    ) -> None:
        """Notes the epoch, keeps its weights if they are the best, and writes the checkpoint."""
        prefix = "validation_" if "validation_loss" in row else ""
        now = self.progress
        of_loss, of_pair = self._scheduled()
        if (
            "loss" not in row
        ):  # no loss of a game tells which of its weights are the best: the last ones are taken
            row["objective"] = float(row["epoch"])
        elif of_loss and "elbo" in row:  # the bound itself stays what it is
            row["objective"], of_loss = row[f"{prefix}elbo"], {}
        else:
            row["objective"] = -row[f"{prefix}loss"]
        if math.isnan(row["objective"]):
            row["objective"] = -math.inf  # never the best
        # Under other values of a schedule the objective is another one: what follows is not
        # compared with what was.
        changed, now.judged_under = now.judged_under != of_loss | of_pair, of_loss | of_pair
        if now.judged_under:
            row["stage"] = now.stage = now.stage + changed
        best = max((rank(earlier) for earlier in self.history.rows), default=(0, -math.inf))
        now.epoch, now.position, now.seconds, now.skipped = now.epoch + 1, 0, 0.0, 0
        self.means.clear()
        self.history.rows.append(row)
        self.history.states["last"] = states
        now.epochs_since_best += 1
        if rank(row) > best or "best" not in self.history.states:
            now.epochs_since_best, self.history.best_epoch = 0, now.epoch
            self.history.states["best"] = states
        self.watch.keep_good(states)
        self.checkpoints.save(now, self.means, states, best=now.epochs_since_best == 0)

    def _scheduled(self) -> tuple[dict[str, float], dict[str, float]]:
        """What schedules said in the last step: of the loss's attributes, and of the pair's
        fixed parameters.
        """
        values = {
            name: float(value) for name, value in self._values.items() if not self._rated(name)
        }
        of_loss = {
            name: value
            for name, value in values.items()
            if hasattr(_original(self.loss), name)
        }
        return of_loss, {name: value for name, value in values.items() if name not in of_loss}

    def _rated(self, name: str) -> list[Optimizer]:
        """The optimizers whose learning rate a schedule is of."""
        return [
            optimizer
            for player, optimizer in self.players
            if name in ("lr", _named(player, "lr"))
        ]

    def _setter(self, name: str) -> Callable[[float], None]:
        """Returns what assigns a scheduled value."""
        rated = self._rated(name)
        if rated:

            def set_rate(value: float) -> None:
                for group in (
                    group for optimizer in rated for group in optimizer.param_groups
                ):
                    if torch.is_tensor(group["lr"]):  # what a captured step reads
                        group["lr"].fill_(value)
                    else:
                        group["lr"] = value

            return set_rate
        bound = _original(self.loss)
        if hasattr(bound, name):
            return lambda value: setattr(bound, name, value)
        modules = [
            m
            for half in self.halves.values()
            if isinstance(half, nn.Module)
            for m in half.modules()
        ]
        buffers = [
            getattr(module, f"fixed_{name}")
            for module in modules
            if hasattr(module, f"fixed_{name}")
        ]
        if not buffers:
            raise ValueError(
                f"schedules has {name!r}, which is neither 'lr', nor an attribute of"
                f" {type(bound).__name__}, nor a fixed parameter in the pair."
            )

        def fill(value: float) -> None:
            for buffer in buffers:
                buffer.fill_(value)

        return fill


_SHOWN = ("loss", "elbo", "real", "fake", "validation_loss", "validation_elbo")


def _with_elbo(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return (
        {"elbo": terms["reconstruction"] - terms["kl"], **terms}
        if {"reconstruction", "kl"} <= set(terms)
        else terms
    )


def _precise(value: Tensor) -> Tensor:
    """A number to write down, in single precision or better."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def _of_held(values: dict[str, Tensor], counts: Counts) -> dict[str, Tensor]:
    """What is summed over the data points that are meant as if it were summed over those held."""
    precise = {name: _precise(value) for name, value in values.items()}
    if counts.held == counts.meant:
        return precise
    return {name: value * counts.held / counts.meant for name, value in precise.items()}


def _numbers(losses: Any, like: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What a bound of Pyro's returns that fills in gradients itself: a loss, or the model's
    and the guide's.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    loss, *others = torch.as_tensor(losses, dtype=dtype, device=like.device).reshape(-1)
    return loss, dict(zip(("guide_loss",), others, strict=False))


def _original(loss: Any) -> Any:
    return loss.original if isinstance(loss, Compiled) else loss


def _named(player: Player, what: str) -> str:
    return f"{player.name}_{what}" if player.name else what
