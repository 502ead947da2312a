"""Optimizers: the public description of one, its instances for the players, and their state."""

__all__ = [
    "Optimizer",
    "check_optimizer",
    "check_optimizer_states",
    "is_capturable",
    "load_states",
    "rates_of",
    "states_of",
]

import copy
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from tarspyro.accelerators import accelerator, can_capture
from tarspyro.arguments import (
    check_choice,
    check_number,
    check_positive,
    format_value,
    suggestion,
)
from tarspyro.programs import layers_of
from tarspyro.scopes import preserved_rng

OptimizerClass: TypeAlias = Callable[..., torch.optim.Optimizer]

DEFAULT_RATE = 1e-3

# The classes of torch that take sparse gradients.
_TAKE_SPARSE = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam)


class Optimizer:
    """A torch optimizer with its options, for ``fit(..., optimizer=Optimizer(...))``.

    It makes one torch optimizer for all parameters, or for a game one for each player.

    Arguments:
        optimizer: The class of a torch optimizer, or a ``functools.partial`` of it.
        clip_norm: The largest norm of the whole gradient, or in a game of each player's
            gradient. It is applied before ``clip_value``.
        clip_value: The largest absolute value of an entry of the gradient.
        on_nonfinite: What to do when a loss or a gradient is not finite. ``"stop"`` ends the
            training with the last good weights. ``"skip"`` leaves the step out, with a warning
            that names the cause, and first restores the last good weights if the step has
            spoiled them. Twenty such steps in a row end the training too. On a GPU ``"skip"``
            reads every loss back before the step, where ``"stop"`` reads now and then.
        options: Options of the class, such as ``weight_decay=1e-2``. A mapping under the name
            of a player holds options for that player alone. ``lr`` wins over the learning rate
            of ``fit``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> adam = Optimizer(torch.optim.AdamW, weight_decay=1e-2, clip_norm=5.0)
        >>> adam
        Optimizer(AdamW, weight_decay=0.01, clip_norm=5.0)
        >>> game = Optimizer(torch.optim.Adam, betas=(0.5, 0.999), discriminator={"lr": 1e-4})
    """

    def __init__(
        self,
        optimizer: OptimizerClass = torch.optim.Adam,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        on_nonfinite: str = "stop",
        **options: Any,
    ) -> None:
        _check_class(optimizer)
        limits = {"clip_norm": clip_norm, "clip_value": clip_value}
        for name, limit in limits.items():
            if limit is not None:
                check_positive(name, limit)
        check_choice("on_nonfinite", on_nonfinite, ("stop", "skip"))
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.on_nonfinite = on_nonfinite
        self.rate_is_given = False
        self.options: dict[str, Any] = {}
        self.of_players: dict[str, Mapping[str, Any]] = {}
        for name, value in options.items():
            if isinstance(value, Mapping):
                self.of_players[name] = value
            else:
                self.options[name] = value

    @property
    def name(self) -> str:
        """The name of the class, for messages."""
        return getattr(_class_of(self.optimizer), "__name__", "the optimizer")

    def __repr__(self) -> str:
        shown = {**self.options, **self.of_players}
        if self.clip_norm is not None:
            shown["clip_norm"] = self.clip_norm
        if self.clip_value is not None:
            shown["clip_value"] = self.clip_value
        if self.on_nonfinite != "stop":
            shown["on_nonfinite"] = self.on_nonfinite
        arguments = [self.name, *(f"{name}={value!r}" for name, value in shown.items())]
        return f"Optimizer({', '.join(arguments)})"

    def with_rate(self, lr: float | None) -> "Optimizer":
        """Returns the same optimizer with a learning rate, unless it has its own.

        Arguments:
            lr: The learning rate; None stands for the usual one.

        Raises:
            ValueError: If both are given, and differ.
        """
        own = self.options.get("lr", _keywords(self.optimizer).get("lr"))
        if own is not None and lr not in (None, DEFAULT_RATE, own):
            raise ValueError(
                f"lr={lr:g} of fit and lr={own} of the optimizer differ: give the learning"
                " rate in one place."
            )
        renewed = copy.copy(self)
        renewed.rate_is_given = own is not None or lr is not None
        rate = DEFAULT_RATE if lr is None else lr
        renewed.options = {**self.options, "lr": rate if own is None else own}
        return renewed

    def gives_rate(self, player: str) -> bool:
        """Whether the user has given the learning rate of a player."""
        return self.rate_is_given or "lr" in self.of_players.get(player, {})

    def check_players(self, names: Sequence[str]) -> None:
        """Raises a ``ValueError`` if there are options for a player that does not exist."""
        for name in self.of_players:
            if name not in names:
                known = (
                    f"the players are {', '.join(names)}"
                    if any(names)
                    else "only a game has players"
                )
                raise ValueError(
                    f"optimizer has options for {name!r}, which is not a player: {known}."
                )

    def make(
        self, player: str, parameters: Sequence[Tensor], *, captured: bool
    ) -> torch.optim.Optimizer:
        """Returns a torch optimizer of a player's parameters.

        Arguments:
            player: The name of the player.
            parameters: The parameters.
            captured: Whether its step may be captured with a step of the loss.

        Raises:
            TypeError: If the class does not take an option.
            ValueError: If an option is out of range.
        """
        options = {"lr": DEFAULT_RATE, **self.options, **self.of_players.get(player, {})}
        given = options.keys() | _keywords(self.optimizer).keys()
        if (
            _class_of(self.optimizer) in (torch.optim.Adam, torch.optim.AdamW)
            and not {"foreach", "fused", "capturable"} & given
        ):
            # A fused step visits all parameters once instead of a dozen times.
            options["fused"] = all(
                p.is_floating_point() and p.device.type in ("cpu", accelerator())
                for p in parameters
            )
        device = parameters[0].device
        takes = inspect.signature(self.optimizer).parameters
        if captured and can_capture(device) and "capturable" in takes:
            # A captured step reads the learning rate and the number of steps on the device.
            options["capturable"] = True
            options["lr"] = torch.tensor(float(options["lr"]), device=device)
        self._check_options(takes)
        try:
            return self.optimizer(parameters, **options)
        except (TypeError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise type(error)(
                f"optimizer has options that do not suit {self.name}: {reason}."
            ) from error

    def _check_options(self, takes: Mapping[str, inspect.Parameter]) -> None:
        """Raises a ``TypeError`` if the class does not take an option.

        Arguments:
            takes: The parameters of the class.
        """
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
            return
        known = [name for name in takes if name != "params"]
        for options in (self.options, *self.of_players.values()):
            for name in options:
                if name not in takes:
                    raise TypeError(
                        f"optimizer has options that do not suit {self.name}: it has no"
                        f" {name!r}, {suggestion(name, known)}"
                    )

    def check_networks(self, *programs: object) -> None:
        """Raises if a network has sparse gradients and the optimizer takes none."""
        cls = _class_of(self.optimizer)
        if cls in _TAKE_SPARSE or not str(cls.__module__).startswith("torch.optim"):
            return
        for layer in layers_of(*programs):
            if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.sparse:
                raise ValueError(
                    f"optimizer={self.name} takes no sparse gradients, and a network has a layer"
                    f" {layer}: leave out sparse=True."
                )

    def clip(self, parameters: Sequence[Tensor], norm: Tensor | None) -> None:
        """Clips the gradients of parameters; ``norm`` is the norm of their whole gradient."""
        if self.clip_norm is not None and norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.clip_value)


def _check_class(optimizer: object) -> None:
    """Raises a ``TypeError`` unless something may be the class of a torch optimizer."""
    wanted = "optimizer must be the class of a torch optimizer, such as torch.optim.Adam"
    if isinstance(optimizer, torch.optim.Optimizer):
        name = type(optimizer).__name__
        rate = float(optimizer.param_groups[0]["lr"])
        raise TypeError(
            f"{wanted}, got an instance of {name}: give optimizer=torch.optim.{name} and"
            f" lr={rate:g}, since fit makes the instance."
        )
    if (
        isinstance(optimizer, PyroOptim)
        or getattr(optimizer, "__module__", "") == "pyro.optim"
    ):
        raise TypeError(
            f"{wanted}, got an optimizer of pyro.optim: give the class of the same name in"
            " torch.optim, and lr=..."
        )
    if isinstance(optimizer, str):
        names = {name.lower(): name for name in vars(torch.optim)}
        name = names.get(optimizer.lower(), "Adam")
        raise TypeError(f"{wanted}, got {optimizer!r}: give torch.optim.{name}.")
    is_other = isinstance(optimizer, type) and not issubclass(optimizer, torch.optim.Optimizer)
    if not callable(optimizer) or is_other:
        raise TypeError(f"{wanted}, got {format_value(optimizer)}.")
    step = getattr(_class_of(optimizer), "step", None)
    closure = inspect.signature(step).parameters.get("closure") if callable(step) else None
    if closure is not None and closure.default is closure.empty:
        name = getattr(_class_of(optimizer), "__name__", "the optimizer")
        raise TypeError(
            f"{wanted}, got {name}, which computes the loss several times in a step: fit"
            " computes it once, so use another optimizer."
        )


def check_optimizer(optimizer: "Optimizer | OptimizerClass", lr: float | None) -> Optimizer:
    """Returns the optimizer and the learning rate of ``fit`` as an ``Optimizer``."""
    if lr is not None:
        check_number("lr", lr, 0)
    if not isinstance(optimizer, Optimizer):
        optimizer = Optimizer(optimizer)
    return optimizer.with_rate(lr)


def _class_of(optimizer: OptimizerClass) -> OptimizerClass:
    """The class that a ``functools.partial`` calls, or the class itself."""
    cls: OptimizerClass = getattr(optimizer, "func", optimizer)
    return cls


def _keywords(optimizer: OptimizerClass) -> Mapping[str, Any]:
    """The options that a ``functools.partial`` holds; none for a class."""
    keywords: Mapping[str, Any] = getattr(optimizer, "keywords", {})
    return keywords


def states_of(
    optimizers: Sequence[torch.optim.Optimizer],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the states of several optimizers as the state of one.

    Parameters are numbered through all optimizers.

    Returns:
        The tensors of the state, such as averages of gradients, and its other values.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    start = 0
    for optimizer in optimizers:
        state = optimizer.state_dict()
        for group in state["param_groups"]:
            groups.append(
                _plain(group) | {"params": [start + index for index in group["params"]]}
            )
        for index, entries in state["state"].items():
            for name, value in entries.items():
                if torch.is_tensor(value):
                    tensors[f"{start + index}.{name}"] = value
                else:
                    numbers[f"{start + index}.{name}"] = value
        start += sum(len(group["params"]) for group in state["param_groups"])
    return tensors, {"param_groups": groups, "numbers": numbers}


def is_capturable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a captured step of an optimizer finds what changes, such as the learning rate and
    the number of steps, in memory. Otherwise the graph would hold their first values.
    """
    return all(
        group.get("capturable") and torch.is_tensor(group["lr"])
        for group in optimizer.param_groups
    )


def rates_of(optimizers: Sequence[torch.optim.Optimizer]) -> list[float]:
    """Returns the learning rates of all groups of parameters."""
    return [float(group["lr"]) for each in optimizers for group in each.param_groups]


def check_optimizer_states(
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Raises a ``ValueError`` unless a state is one of these optimizers.

    A fused step writes to the memory of its state without looking at shapes. So every entry
    has to be what a step of this optimizer makes of this parameter.

    Arguments:
        optimizers: The optimizers, before they load the state.
        tensors: The tensors that ``states_of`` returned.
        values: Its other values.
    """
    own = states_of(optimizers)[1]["param_groups"]
    found = list(values["param_groups"])
    if len(found) != len(own):
        raise ValueError(f"it has {len(found)} groups of parameters, the optimizer {len(own)}")
    for group, own_group in zip(found, own, strict=True):
        _check_group(group, own_group)

    entries = _by_parameter(tensors, values)
    parameters = [
        parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    unknown = entries.keys() - set(range(len(parameters)))
    if unknown:
        raise ValueError(f"it has a parameter {min(unknown)} that no optimizer has")
    expected = _entries_after_a_step(optimizers)
    for index, of_parameter in entries.items():
        own_entries = None if expected is None else expected.get(index, {})
        _check_entries(of_parameter, own_entries, parameters[index])


# What an optimizer decides by itself, such as by the device.
_OWN_OPTIONS = ("lr", "foreach", "fused", "capturable", "differentiable")


def _check_group(group: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises a ``ValueError`` if options of a group of parameters are others."""
    rate = group["lr"]
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1e30:
        raise ValueError(f"its learning rate is {format_value(rate)}")
    for name, value in own.items():
        if name in group and name not in _OWN_OPTIONS:
            if json.dumps(group[name], default=repr) != json.dumps(value, default=repr):
                what = "the parameters" if name == "params" else f"the optimizer's {name}"
                raise ValueError(
                    f"{what} were {format_value(group[name])} and are {format_value(value)}"
                )


def _entries_after_a_step(
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[int, dict[str, object]] | None:
    """The entries that copies of the optimizers have after a step with gradients of zero.

    Returns:
        For each parameter, by its number, its entries by name; None if a step needs more than
        gradients.
    """
    try:
        copies = copy.deepcopy(list(optimizers))
        with preserved_rng():  # some optimizers draw noise
            for optimizer in copies:
                # What a copy forgets: that PyTorch need not warn of steps without a graph.
                optimizer._warned_capturable_if_run_uncaptured = True
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = torch.zeros_like(parameter)
                optimizer.step()
    except Exception:  # an optimizer of the user may raise anything
        return None
    return _by_parameter(*states_of(copies))


def _by_parameter(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> dict[int, dict[str, object]]:
    """The entries of a state by the number of the parameter, and by name."""
    entries: dict[int, dict[str, object]] = {}
    for key, value in {**values["numbers"], **tensors}.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    return entries


def _check_entries(
    entries: Mapping[str, object],
    expected: Mapping[str, object] | None,
    parameter: Tensor,
) -> None:
    """Raises a ``ValueError`` unless the entries of a parameter have the shapes of its own."""
    if expected is not None and expected.keys() != entries.keys():
        raise ValueError(
            f"its optimizer keeps {sorted(entries)} for a parameter, and this one keeps"
            f" {sorted(expected)}"
        )
    for name, value in entries.items():
        own = parameter if expected is None else expected[name]
        if not isinstance(value, Tensor):
            if not (value is None or isinstance(value, (bool, int, float))):
                raise ValueError(f"its optimizer's {name} is no number")
            if isinstance(own, Tensor) and expected is not None:
                raise ValueError(f"its optimizer's {name} is no tensor")
            continue
        shape = tuple(own.shape) if isinstance(own, Tensor) else ()
        if value.numel() == 1 and (expected is None or math.prod(shape) == 1):
            continue
        if tuple(value.shape) != shape:
            raise ValueError(
                f"its optimizer's {name} has the shape {tuple(value.shape)}, and its parameter"
                f" needs {shape}"
            )
        if isinstance(own, Tensor) and value.dtype != own.dtype:
            raise ValueError(
                f"its optimizer's {name} is of {value.dtype}, and its parameter needs"
                f" {own.dtype}"
            )


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group of parameters, with numbers for tensors."""
    return {
        name: float(value) if torch.is_tensor(value) else value
        for name, value in group.items()
    }


def load_states(
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Loads what ``states_of`` returned into optimizers of the same parameters."""
    states = _by_parameter(tensors, values)
    rates = [group["lr"] for group in values["param_groups"]]
    start = 0
    for optimizer in optimizers:
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        own_states = {
            index - start: entries
            for index, entries in states.items()
            if 0 <= index - start < count
        }
        # The options are those of this training, which may run on another device.
        groups = optimizer.state_dict()["param_groups"]
        own_groups = list(optimizer.param_groups)
        own_rates = [group["lr"] for group in own_groups]
        optimizer.load_state_dict({"state": own_states, "param_groups": groups})
        # Schedules hold these dictionaries, which torch has replaced by others.
        for group, loaded in zip(own_groups, optimizer.param_groups, strict=True):
            group.update(loaded)
        optimizer.param_groups[:] = own_groups
        for group, own_rate in zip(own_groups, own_rates, strict=True):
            rate = rates.pop(0)
            # A captured step reads this tensor, so it has to stay the same object.
            group["lr"] = own_rate.fill_(rate) if torch.is_tensor(own_rate) else rate
        start += count
