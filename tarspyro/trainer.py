"""The steps and epochs of a training, its measurements and its checkpoints."""

__all__ = ["Trainer", "is_differentiable"]

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from tarspyro.batches import Arguments, Batches, count_rows
from tarspyro.checks import CollapseError, NonFiniteError, check_trained, describe_nonfinite
from tarspyro.infer import Compiled, Player
from tarspyro.infer.recording import tensors_of
from tarspyro.modules import evaluating, preserved_rng
from tarspyro.optimizers import load_states, states_of
from tarspyro.runs import History, Run, RunError, get_states, set_states

# On an accelerator the losses are read back only so often: each reading makes the device wait for the host.
_STEPS_BETWEEN_READINGS = 50


def is_differentiable(loss: Any) -> bool:
    """Whether the loss is a tensor to differentiate; some of Pyro's bounds only fill in the gradients themselves."""
    return hasattr(loss, "differentiable_loss") or not hasattr(loss, "loss_and_grads")


class Trainer:
    """What ``fit`` runs: one step after the other, in each of which every player moves whose turn it is.

    Arguments:
        halves: The model and the guide, and what else has a state.
        loss: The bound or the game.
        players: Who moves, each with an optimizer of its parameters; of a bound, its one player without a name.
        schedules: See ``fit``.
        clip_norm: See ``fit``.
        clip_value: See ``fit``.
        data_size: How many data points a loss stands for, if not the rows of its batch.
        held_out_size: The same of held-out data.
        autocast: See ``fit``.
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
        data_size: int | None = None,
        held_out_size: int | None = None,
        autocast: torch.dtype | None = None,
        callback: Callable[[dict[str, float]], Any] | None = None,
    ) -> None:
        self.callback = callback
        self.data_size, self.held_out_size, self.autocast = data_size, held_out_size, autocast
        # Beside the halves there may be "params", which functions declared, and "loss", a game's networks.
        self.halves, self.model, self.guide = halves, halves["model"], halves["guide"]
        self.loss, self.players = loss, players
        self.schedules = {name: (self._setter(name), schedule) for name, schedule in schedules.items()}
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.history = History(others={name: halves[name] for name in halves if name not in ("model", "guide")})
        self.epoch = self.step_count = self.epochs_since_best = 0
        self.run: Run | None = None
        self._order = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self._shapes: dict[str, set[tuple[torch.Size, ...]]] = {player.name: set() for player, _ in players}
        self._unread: list[tuple[Player, int, Tensor]] = []
        self._below: dict[str, int] = {}  # for how many moves in a row the losses of players were below their floors

    def open(self, run: Run, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Makes the run's folder, or goes on where the run in it stopped."""
        self.run = run
        if not resume:
            run.create(config, overwrite=overwrite)
            return
        stored = run.config()
        for half in ("model", "guide"):
            if stored[half] != config[half]:
                raise RunError(
                    f"{run.folder} holds a run of another {half}: resume it with the pair that load_run returns."
                )
        self._restore()

    def train(
        self, batches: Batches, held_out: Batches | None, epochs: int, patience: int | None, progress: bool
    ) -> None:
        """Trains until so many epochs are done in all, a stream ends, or none of the last ``patience`` was the best."""
        last_good = get_states(self.halves)
        bar = tqdm(
            total=epochs * len(batches) or None, initial=self.step_count, disable=not progress, unit="step", leave=True
        )
        with bar:
            while not (self.epoch >= epochs or patience and self.epochs_since_best >= patience or batches.exhausted):
                try:
                    row = self._train_epoch(batches, bar)
                    states = get_states(self.halves)
                    self._check_finite(states)
                except (NonFiniteError, CollapseError) as error:
                    set_states(self.halves, last_good)
                    kept = f"the weights are those after epoch {self.epoch}"
                    raise type(error)(
                        f"{error} Training stopped; {kept}. Try a smaller learning rate or clip_norm."
                    ) from None
                except KeyboardInterrupt:
                    if self.run is not None:
                        tqdm.write(f"interrupted; {self.run.folder} holds epoch {self.epoch}: go on with resume=True")
                    raise
                if held_out is not None:
                    row |= {f"validation_{name}": value for name, value in self._judge(held_out).items()}
                last_good = states
                self._finish_epoch(row, states)
                if self.callback is not None:
                    with preserved_rng():  # what it draws changes nothing in the training
                        self.callback(dict(row))
                bar.set_postfix({name: f"{row[name]:.2f}" for name in _SHOWN if name in row})

    def _train_epoch(self, batches: Batches, bar: Any) -> dict[str, float]:
        for program in self.halves.values():
            if isinstance(program, nn.Module):
                program.train()
        start, means = time.perf_counter(), _Means()
        for arguments in batches.epoch(self._order):
            means.add(self.step(arguments), count_rows(arguments))
            bar.update()
        self._read_losses()
        seconds = time.perf_counter() - start
        return {"epoch": self.epoch + 1, "steps": self.step_count, **means.read(), "seconds": round(seconds, 3)}

    def step(self, arguments: Arguments) -> dict[str, Tensor]:
        """One step; returns the losses and their terms, per data point times the rows, on the device."""
        for assign, schedule in self.schedules.values():
            assign(schedule(self.step_count))
        values: dict[str, Tensor] = {}
        for player, optimizer in self.players:
            if player.moves(self.step_count):
                values |= self._move(player, optimizer, arguments)
        self.step_count += 1
        return values

    def _move(self, player: Player, optimizer: Optimizer, arguments: Arguments) -> dict[str, Tensor]:
        """One player changes its parameters once."""
        tensors, loss_of = tensors_of(arguments), player.loss
        rows = len(tensors[0])
        size = self.data_size or rows
        shapes, known = tuple(tensor.shape for tensor in tensors), self._shapes[player.name]
        new_shape, updated = shapes not in known, False
        optimizer.zero_grad()
        device_type = tensors[0].device.type
        cast = contextlib.nullcontext() if self.autocast is None else torch.autocast(device_type, self.autocast)
        with cast, pyro.validation_enabled(True) if new_shape else contextlib.nullcontext():
            if isinstance(loss_of, Compiled) and not new_shape:
                # On a GPU the update is part of the compiled step; on a CPU the loss is looked at before it.
                update = functools.partial(self._update, player, optimizer) if tensors[0].is_cuda else None
                loss, terms = loss_of.accumulate_gradients(
                    self.model, self.guide, *arguments, scale=1 / size, update=update
                )
                updated, terms = update is not None, _with_elbo(terms)
                self._watch(player, loss / size, arguments)
            elif is_differentiable(loss_of):
                loss, terms = self._evaluate_loss(loss_of, arguments)
                if not known:
                    self._check_trained(player, loss)
                mean = loss / size
                self._watch(player, mean.detach(), arguments)
                mean.backward(inputs=getattr(_original(loss_of), "parameters", None))
            else:
                loss, terms = torch.tensor(loss_of.loss_and_grads(self.model, self.guide, *arguments)), {}
                self._watch(player, loss / size, arguments)
                torch._foreach_div_([p.grad for p in player.parameters if p.grad is not None], size)
        known.add(shapes)
        if not updated:
            self._update(player, optimizer)
        values = _by_rows({_named(player, "loss"): loss.detach(), **terms}, rows, self.data_size)
        if player.name:  # where several pull, the balance of their forces tells more than their losses
            gradients = [p.grad for p in player.parameters if p.grad is not None]
            values[_named(player, "gradient")] = nn.utils.get_total_norm(gradients) * rows
        return values

    def _update(self, player: Player, optimizer: Optimizer) -> None:
        """Changes a player's parameters by their gradients."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(player.parameters, self.clip_norm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(player.parameters, self.clip_value)
        optimizer.step()

    def _evaluate_loss(self, loss_of: Any, arguments: Arguments) -> tuple[Tensor, dict[str, Tensor]]:
        bound = _original(loss_of)
        if hasattr(bound, "loss_and_terms"):
            loss, terms = bound.loss_and_terms(self.model, self.guide, *arguments)
            return loss, _with_elbo(terms)
        compute = getattr(bound, "differentiable_loss", bound)
        return compute(self.model, self.guide, *arguments), {}

    def _check_trained(self, player: Player, loss: Tensor) -> None:
        everyone = [p for other, _ in self.players for p in other.parameters] if player.name else None
        unreached = check_trained(loss, player.parameters, list(self.halves.values()), everyone)
        # A warm-up from 0 leaves out, for a step, what only the latent terms depend on.
        if unreached and not ("beta" in self.schedules and _original(self.loss).beta == 0):
            whose = f"of the {player.name} " if player.name else ""
            warnings.warn(
                f"The loss {whose}does not depend on {', '.join(unreached)}: they keep their values.", stacklevel=6
            )

    def _watch(self, player: Player, loss: Tensor, arguments: Arguments) -> None:
        """Notes the loss, and on a CPU stops before a step that would spoil the weights."""
        self._unread.append((player, self.step_count + 1, loss))
        if loss.device.type == "cpu" or len(self._unread) >= _STEPS_BETWEEN_READINGS:
            self._read_losses(arguments)

    def _read_losses(self, arguments: Arguments | None = None) -> None:
        losses = torch.stack([loss for *_, loss in self._unread]).tolist() if self._unread else []
        moves = [(player, step) for player, step, _ in self._unread]
        self._unread.clear()
        for (player, step), value in zip(moves, losses, strict=True):
            self.history.step_losses.append(value)
            whose, when = f"The {player.name}'s loss" if player.name else "The loss", f"(epoch {self.epoch + 1})"
            if not math.isfinite(value):
                reason = "" if arguments is None else f": {describe_nonfinite(self.model, self.guide, arguments)}"
                raise NonFiniteError(f"{whose} was {value} at step {step} {when}{reason}.")
            self._below[player.name] = self._below.get(player.name, 0) + 1 if value < player.floor else 0
            if player.patience is not None and self._below[player.name] >= player.patience:
                raise CollapseError(
                    f"The {player.name} has won: its loss was below {player.floor:g} in {player.patience} moves in a "
                    f"row, until step {step} {when}, and the others learn nothing from it any more."
                )

    def _check_finite(self, states: dict[str, dict[str, Tensor]]) -> None:
        """Finds weights that an epoch's last step spoiled, before they are kept as good ones."""
        for half, state in states.items():
            for name, tensor in state.items():
                if not tensor.isfinite().all():
                    raise NonFiniteError(f"The {half}'s {name} is not finite after step {self.step_count}.")

    def _judge(self, held_out: Batches) -> dict[str, float]:
        """The loss and its terms on held-out data, with the same noise every time."""
        means = _Means()
        with preserved_rng(seed=0), evaluating(*self.halves.values()):
            for arguments in held_out.epoch(self._order):
                values: dict[str, Tensor] = {}
                for player, _ in self.players:
                    if is_differentiable(player.loss):
                        loss, terms = self._evaluate_loss(player.loss, arguments)
                    else:
                        loss, terms = torch.tensor(player.loss.loss(self.model, self.guide, *arguments)), {}
                    values |= {_named(player, "loss"): loss.detach(), **terms}
                rows = count_rows(arguments)
                means.add(_by_rows(values, rows, self.held_out_size), rows)
        return means.read()

    def _finish_epoch(self, row: dict[str, float], states: dict[str, dict[str, Tensor]]) -> None:
        """Notes the epoch, keeps its weights if they are the best, and writes the checkpoint."""
        # With an annealed weight the losses of different epochs are not comparable, the bound itself is.
        annealed = "beta" in self.schedules and "elbo" in row
        prefix = "validation_" if "validation_loss" in row else ""
        if "loss" not in row:  # no loss of a game tells which of its weights are the best: the last ones are taken
            row["objective"] = float(row["epoch"])
        else:
            row["objective"] = row[f"{prefix}elbo"] if annealed else -row[f"{prefix}loss"]
        if math.isnan(row["objective"]):
            row["objective"] = -math.inf  # never the best
        best = max((earlier["objective"] for earlier in self.history.rows), default=-math.inf)
        self.epoch += 1
        self.history.rows.append(row)
        self.history.states["last"] = states
        self.epochs_since_best += 1
        if row["objective"] > best or "best" not in self.history.states:
            self.epochs_since_best, self.history.best_epoch = 0, self.epoch
            self.history.states["best"] = states
        if self.run is not None:
            if self.epochs_since_best == 0:
                self.run.save_weights("best", states)
            self._checkpoint(states)

    def _checkpoint(self, states: dict[str, dict[str, Tensor]]) -> None:
        assert self.run is not None
        tensors = {f"weights.{half}.{name}": t for half, state in states.items() for name, t in state.items()}
        tensors |= {"rng.order": self._order.get_state(), "rng.cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            tensors |= {f"rng.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
        tensors["step_losses"] = torch.tensor(self.history.step_losses, dtype=torch.float64)
        states_of_optimizers, values = states_of([optimizer for _, optimizer in self.players])
        tensors |= {f"optimizer.{name}": tensor for name, tensor in states_of_optimizers.items()}
        self.run.save_state(
            tensors,
            {
                "epoch": self.epoch,
                "step": self.step_count,
                "epochs_since_best": self.epochs_since_best,
                "best_epoch": self.history.best_epoch,
                "rows": self.history.rows,
                "optimizer": values,
            },
        )
        self.run.save_weights("last", states)
        self.run.write_metrics(self.history.rows)

    def _restore(self) -> None:
        assert self.run is not None
        tensors, values = self.run.load_state()
        states: dict[str, dict[str, Tensor]] = {}
        optimizer: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            owner, _, name = rest.partition(".")
            if kind == "weights":
                states.setdefault(owner, {})[name] = tensor
            elif kind == "optimizer":
                optimizer[rest] = tensor
        set_states(self.halves, states)
        load_states([optimizer for _, optimizer in self.players], optimizer, values["optimizer"])
        self._order.set_state(tensors["rng.order"])
        torch.set_rng_state(tensors["rng.cpu"])
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                if f"rng.cuda.{index}" in tensors:
                    torch.cuda.set_rng_state(tensors[f"rng.cuda.{index}"], index)
        self.epoch, self.step_count = values["epoch"], values["step"]
        self.epochs_since_best = values["epochs_since_best"]
        self.history.rows, self.history.best_epoch = values["rows"], values["best_epoch"]
        self.history.step_losses = tensors["step_losses"].tolist()
        self.history.states = {"last": states, "best": self.run.load_weights("best")}

    def _setter(self, name: str) -> Callable[[float], None]:
        """Returns what assigns a scheduled value."""
        rated = [optimizer for player, optimizer in self.players if name in ("lr", _named(player, "lr"))]
        if rated:

            def set_rate(value: float) -> None:
                for group in (group for optimizer in rated for group in optimizer.param_groups):
                    if torch.is_tensor(group["lr"]):  # what a captured step reads
                        group["lr"].fill_(value)
                    else:
                        group["lr"] = value

            return set_rate
        bound = _original(self.loss)
        if hasattr(bound, name):
            return lambda value: setattr(bound, name, value)
        modules = [m for half in self.halves.values() if isinstance(half, nn.Module) for m in half.modules()]
        buffers = [getattr(module, f"fixed_{name}") for module in modules if hasattr(module, f"fixed_{name}")]
        if not buffers:
            raise ValueError(
                f"schedules has {name!r}, which is neither 'lr', nor an attribute of {type(bound).__name__}, "
                "nor a fixed parameter in the pair."
            )

        def fill(value: float) -> None:
            for buffer in buffers:
                buffer.fill_(value)

        return fill


_SHOWN = ("loss", "elbo", "real", "fake", "validation_loss", "validation_elbo")


def _with_elbo(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"elbo": terms["reconstruction"] - terms["kl"], **terms} if {"reconstruction", "kl"} <= set(terms) else terms


def _by_rows(values: dict[str, Tensor], rows: int, size: int | None) -> dict[str, Tensor]:
    """What is summed over so many data points as if it were summed over the rows."""
    return values if size is None else {name: value * rows / size for name, value in values.items()}


def _original(loss: Any) -> Any:
    return loss.original if isinstance(loss, Compiled) else loss


def _named(player: Player, what: str) -> str:
    return f"{player.name}_{what}" if player.name else what


class _Means:
    """Means over the data points; not every player moves in every step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor], rows: int) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.rows[name] = self.rows.get(name, 0) + rows

    def read(self) -> dict[str, float]:
        return {name: float(value) / self.rows[name] for name, value in self.sums.items()}
