"""The steps and epochs of a training, its measurements and its checkpoints."""

__all__ = ["Trainer", "is_differentiable"]

import contextlib
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
from tarspyro.checks import NonFiniteError, check_trained, describe_nonfinite
from tarspyro.infer import Compiled
from tarspyro.infer.recording import tensors_of
from tarspyro.modules import evaluating, preserved_rng
from tarspyro.runs import History, Run, RunError, get_states, set_states

# On an accelerator the losses are read back only so often: each reading makes the device wait for the host.
_STEPS_BETWEEN_READINGS = 50


def is_differentiable(loss: Any) -> bool:
    """Whether the loss is a tensor to differentiate; some of Pyro's bounds only fill in the gradients themselves."""
    return hasattr(loss, "differentiable_loss") or not hasattr(loss, "loss_and_grads")


class Trainer:
    """What ``fit`` runs: one step after the other on a pair and a loss, with one optimizer.

    Arguments:
        halves: The model and the guide.
        loss: The bound.
        parameters: What the optimizer holds.
        optimizer: The optimizer.
        schedules: See ``fit``.
        clip_norm: See ``fit``.
        clip_value: See ``fit``.
        data_size: How many data points a loss stands for, if not the rows of its batch.
        held_out_size: The same of held-out data.
        autocast: See ``fit``.
    """

    def __init__(
        self,
        halves: Mapping[str, Any],
        loss: Any,
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        *,
        schedules: Mapping[str, Callable[[int], float]],
        clip_norm: float | None = None,
        clip_value: float | None = None,
        data_size: int | None = None,
        held_out_size: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.data_size, self.held_out_size, self.autocast = data_size, held_out_size, autocast
        self.halves, self.model, self.guide = halves, halves["model"], halves["guide"]  # and "params" of functions
        self.loss, self.parameters, self.optimizer = loss, parameters, optimizer
        self.schedules = {name: (self._setter(name), schedule) for name, schedule in schedules.items()}
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.history = History(declared=halves.get("params"))
        self.epoch = self.step_count = self.epochs_since_best = 0
        self.run: Run | None = None
        self._order = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self._shapes: set[tuple[torch.Size, ...]] = set()
        self._unread: list[Tensor] = []

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
                except NonFiniteError as error:
                    set_states(self.halves, last_good)
                    kept = f"the weights are those after epoch {self.epoch}"
                    raise NonFiniteError(
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
                bar.set_postfix({name: f"{row[name]:.2f}" for name in _SHOWN if name in row})

    def _train_epoch(self, batches: Batches, bar: Any) -> dict[str, float]:
        for program in self.halves.values():
            if isinstance(program, nn.Module):
                program.train()
        start, rows = time.perf_counter(), 0
        sums: dict[str, Tensor] = {}
        for arguments in batches.epoch(self._order):
            _add(sums, self.step(arguments))
            rows += count_rows(arguments)
            bar.update()
        self._read_losses()
        seconds = time.perf_counter() - start
        return {"epoch": self.epoch + 1, "steps": self.step_count, **_means(sums, rows), "seconds": round(seconds, 3)}

    def step(self, arguments: Arguments) -> dict[str, Tensor]:
        """One step; returns the loss and its terms, per data point times the rows, on the device."""
        for assign, schedule in self.schedules.values():
            assign(schedule(self.step_count))
        tensors = tensors_of(arguments)
        rows = len(tensors[0])
        size = self.data_size or rows
        shapes = tuple(tensor.shape for tensor in tensors)
        new_shape = shapes not in self._shapes
        updated = False
        self.optimizer.zero_grad()
        device_type = tensors[0].device.type
        cast = contextlib.nullcontext() if self.autocast is None else torch.autocast(device_type, self.autocast)
        with cast, pyro.validation_enabled(True) if new_shape else contextlib.nullcontext():
            if isinstance(self.loss, Compiled) and not new_shape:
                # On a GPU the update is part of the compiled step; on a CPU the loss is looked at before it.
                update = self._update if tensors[0].is_cuda else None
                loss, terms = self.loss.accumulate_gradients(
                    self.model, self.guide, *arguments, scale=1 / size, update=update
                )
                updated, terms = update is not None, _with_elbo(terms)
                self._watch(loss / size, arguments)
            elif is_differentiable(self.loss):
                loss, terms = self._evaluate_loss(arguments)
                if not self._shapes:
                    self._check_trained(loss)
                mean = loss / size
                self._watch(mean.detach(), arguments)
                mean.backward()
            else:
                loss, terms = torch.tensor(self.loss.loss_and_grads(self.model, self.guide, *arguments)), {}
                self._watch(loss / size, arguments)
                torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], size)
        self._shapes.add(shapes)
        if not updated:
            self._update()
        self.step_count += 1
        return _by_rows({"loss": loss.detach(), **terms}, rows, self.data_size)

    def _update(self) -> None:
        """Changes the parameters by their gradients."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters, self.clip_value)
        self.optimizer.step()

    @property
    def _bound(self) -> Any:
        return self.loss.original if isinstance(self.loss, Compiled) else self.loss

    def _evaluate_loss(self, arguments: Arguments) -> tuple[Tensor, dict[str, Tensor]]:
        bound = self._bound
        if hasattr(bound, "loss_and_terms"):
            loss, terms = bound.loss_and_terms(self.model, self.guide, *arguments)
            return loss, _with_elbo(terms)
        compute = getattr(bound, "differentiable_loss", bound)
        return compute(self.model, self.guide, *arguments), {}

    def _check_trained(self, loss: Tensor) -> None:
        unreached = check_trained(loss, self.parameters, (self.model, self.guide))
        # A warm-up from 0 leaves out, for a step, what only the latent terms depend on.
        if unreached and not ("beta" in self.schedules and self._bound.beta == 0):
            warnings.warn(f"The loss does not depend on {', '.join(unreached)}: they keep their values.", stacklevel=5)

    def _watch(self, loss: Tensor, arguments: Arguments) -> None:
        """Notes the loss, and on a CPU stops before a step that would spoil the weights."""
        self._unread.append(loss)
        if loss.device.type == "cpu" or len(self._unread) >= _STEPS_BETWEEN_READINGS:
            self._read_losses(arguments)

    def _read_losses(self, arguments: Arguments | None = None) -> None:
        losses = torch.stack(self._unread).tolist() if self._unread else []
        self._unread.clear()
        for value in losses:
            self.history.step_losses.append(value)
            if not math.isfinite(value):
                step = len(self.history.step_losses)
                reason = "" if arguments is None else f": {describe_nonfinite(self.model, self.guide, arguments)}"
                raise NonFiniteError(f"The loss was {value} at step {step} (epoch {self.epoch + 1}){reason}.")

    def _check_finite(self, states: dict[str, dict[str, Tensor]]) -> None:
        """Finds weights that an epoch's last step spoiled, before they are kept as good ones."""
        for half, state in states.items():
            for name, tensor in state.items():
                if not tensor.isfinite().all():
                    raise NonFiniteError(f"The {half}'s {name} is not finite after step {self.step_count}.")

    def _judge(self, held_out: Batches) -> dict[str, float]:
        """The loss and its terms on held-out data, with the same noise every time."""
        rows, sums = 0, dict[str, Tensor]()
        with preserved_rng(seed=0), evaluating(self.model, self.guide):
            for arguments in held_out.epoch(self._order):
                if is_differentiable(self.loss):
                    loss, terms = self._evaluate_loss(arguments)
                else:
                    loss, terms = torch.tensor(self.loss.loss(self.model, self.guide, *arguments)), {}
                rows_here = count_rows(arguments)
                _add(sums, _by_rows({"loss": loss, **terms}, rows_here, self.held_out_size))
                rows += rows_here
        return _means(sums, rows)

    def _finish_epoch(self, row: dict[str, float], states: dict[str, dict[str, Tensor]]) -> None:
        """Notes the epoch, keeps its weights if they are the best, and writes the checkpoint."""
        # With an annealed weight the losses of different epochs are not comparable, the bound itself is.
        annealed = "beta" in self.schedules and "elbo" in row
        prefix = "validation_" if "validation_loss" in row else ""
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
        optimizer, numbers = self.optimizer.state_dict(), {}
        groups = [
            {name: float(value) if torch.is_tensor(value) else value for name, value in group.items()}
            for group in optimizer["param_groups"]
        ]
        for index, entries in optimizer["state"].items():
            for name, value in entries.items():
                if torch.is_tensor(value):
                    tensors[f"optimizer.{index}.{name}"] = value
                else:
                    numbers[f"{index}.{name}"] = value
        self.run.save_state(
            tensors,
            {
                "epoch": self.epoch,
                "step": self.step_count,
                "epochs_since_best": self.epochs_since_best,
                "best_epoch": self.history.best_epoch,
                "rows": self.history.rows,
                "optimizer": {"param_groups": groups, "numbers": numbers},
            },
        )
        self.run.save_weights("last", states)
        self.run.write_metrics(self.history.rows)

    def _restore(self) -> None:
        assert self.run is not None
        tensors, values = self.run.load_state()
        states: dict[str, dict[str, Tensor]] = {}
        optimizer: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            owner, _, name = rest.partition(".")
            if kind == "weights":
                states.setdefault(owner, {})[name] = tensor
            elif kind == "optimizer":
                optimizer.setdefault(int(owner), {})[name] = tensor
        for key, value in values["optimizer"]["numbers"].items():
            owner, _, name = key.partition(".")
            optimizer.setdefault(int(owner), {})[name] = value
        set_states(self.halves, states)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": values["optimizer"]["param_groups"]})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if torch.is_tensor(rate):
                group["lr"] = rate.fill_(group["lr"])
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
        if name == "lr":

            def set_rate(value: float) -> None:
                for group in self.optimizer.param_groups:
                    if torch.is_tensor(group["lr"]):  # what a captured step reads
                        group["lr"].fill_(value)
                    else:
                        group["lr"] = value

            return set_rate
        bound = self._bound
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


_SHOWN = ("loss", "elbo", "validation_loss", "validation_elbo")


def _with_elbo(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"elbo": terms["reconstruction"] - terms["kl"], **terms} if "kl" in terms else terms


def _by_rows(values: dict[str, Tensor], rows: int, size: int | None) -> dict[str, Tensor]:
    """What is summed over so many data points as if it were summed over the rows."""
    return values if size is None else {name: value * rows / size for name, value in values.items()}


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


def _means(sums: Mapping[str, Tensor], rows: int) -> dict[str, float]:
    return {name: float(value) / rows for name, value in sums.items()}
