"""Losses: every kind that ``fit`` takes, behind the one interface of ``Objective``.

A loss is a bound, an ELBO of Pyro, a function, or a game with several players, each of them
compiled or not. No other module of the training depends on the kind.
"""

__all__ = ["Loss", "Objective", "Step", "prefixed"]

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.nn import PyroModule
from torch import Tensor, nn

from tarspyro import infer
from tarspyro.arguments import constructor_parameters, format_value
from tarspyro.infer import ELBO, Compiled, Game, InputError, PairError, Player
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.diagnosis import explained
from tarspyro.inputs import check_bounds, check_inputs
from tarspyro.modules import StochasticModule
from tarspyro.runs.description import describe
from tarspyro.training.updates import Update
from tarspyro.types import Arguments, Json, Program

Loss: TypeAlias = PyroELBO | Game | Callable[..., Tensor]
Terms: TypeAlias = dict[str, Tensor]
Inspect: TypeAlias = Callable[[Tensor], None]

_JITTED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


class Step(NamedTuple):
    """The result of a forward and a backward pass.

    Attributes:
        loss: The loss, summed over the data points that it stands for.
        terms: What the history holds beside it, summed likewise.
        updated: Whether the parameters have been updated already.
    """

    loss: Tensor
    terms: Terms
    updated: bool = False


class Objective:
    """The loss of a training with the pair that it trains.

    Arguments:
        loss: The loss; ``ELBO()`` if it is None.
        model: The model.
        guide: The guide.

    Attributes:
        loss: The loss; if it is compiled, the bound inside.
        players: The players of a game, or one player without a name. ``add_players`` fills
            them in.

    Raises:
        TypeError: If the loss is of a kind that cannot be trained.
    """

    def __init__(self, loss: "Loss | None", model: Program, guide: Program) -> None:
        if loss is None:
            loss = ELBO()
        _check_kind(loss)
        self.given = loss
        self.loss = loss.original if isinstance(loss, Compiled) else loss
        self.pair = (model, guide)
        self.players: list[Player] = []
        self._kinds: dict[str, _Differentiable] = {}

    @property
    def ranks_epochs(self) -> bool:
        """Whether a lower loss means better weights, which no loss of a game does."""
        return not isinstance(self.loss, Game)

    @property
    def has_likelihood(self) -> bool:
        """Whether the loss holds log-densities of the data, which may start near the data."""
        return not isinstance(self.loss, Game) or self.loss.has_likelihood

    @property
    def needs_store(self) -> bool:
        """Whether the loss finds the parameters in Pyro's store alone."""
        return _only_fills_gradients(self.loss)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules beside the pair: a game, under the name ``"loss"``."""
        return {"loss": self.loss} if isinstance(self.loss, Game) else {}

    @property
    def halves(self) -> dict[str, Program]:
        """The programs of the training by name: the pair and ``modules``."""
        return {"model": self.pair[0], "guide": self.pair[1], **self.modules}

    def check_data(self, arguments: Arguments, data: Arguments | None) -> None:
        """Compares the halves with each other, and the data with the likelihood.

        Arguments:
            arguments: The first batch.
            data: All of the data, if it is in memory.
        """
        match: str | None = "whole"
        if isinstance(self.loss, Game):
            match = None  # a game compares the halves itself
        elif isinstance(self.loss, PyroELBO) and not isinstance(self.loss, Bound):
            match = "names"
        check_inputs(*self.pair, arguments, data, pair=match)
        check_bounds(self.pair[0], arguments)

    def check_players(self, arguments: Arguments) -> None:
        """Raises a ``PairError`` unless a game can be played with the pair and the batch."""
        if not isinstance(self.loss, Game):
            return
        try:
            with pyro.validation_enabled(True):
                self.loss.check(*self.pair, *arguments)
            return
        except (InputError, PairError):
            raise
        except (ValueError, RuntimeError, TypeError) as error:
            failure = error
        found, cause = explained((*self.pair, self.loss), arguments, failure)
        raise found from cause

    def add_players(
        self, model: list[Tensor], guide: list[Tensor], frozen: Sequence[Tensor] = ()
    ) -> None:
        """Fills in ``players``.

        Arguments:
            model: The parameters of the model.
            guide: The parameters of the guide.
            frozen: Parameters of both that are frozen now. They may be unfrozen during the
                training; until then an optimizer leaves them alone.

        Raises:
            PairError: If a player has no parameters to train.
        """
        if isinstance(self.loss, Game):
            self.players = self.loss.players(model, guide)
        else:
            self.players = [Player("", self.given, [*model, *guide, *frozen])]
        for player in self.players:
            if not any(parameter.requires_grad for parameter in player.parameters):
                who = (
                    f"The {player.name} has" if player.name else "The model and the guide have"
                )
                raise PairError(
                    f"{who} no parameters to train: make networks attributes of a module, or"
                    " declare numbers with pyro.param."
                )
        self._find_kinds()

    def compile(self, **options: Any) -> None:
        """Compiles the steps of all players, unless the given loss is compiled.

        Arguments:
            options: Options of ``Compiled``.
        """
        if isinstance(self.given, Compiled):
            return
        self.players = [
            replace(player, loss=Compiled(player.loss, **options)) for player in self.players
        ]
        self._find_kinds()

    @contextlib.contextmanager
    def unchanging(self) -> Iterator[None]:
        """Promises that only the data changes between the steps within, see ``Compiled``."""
        with contextlib.ExitStack() as stack:
            for player in self.players:
                if isinstance(player.loss, Compiled):
                    stack.enter_context(player.loss.unchanging())
            yield

    def release_graphs(self) -> None:
        """Drops the graphs that compiled steps have captured on a GPU."""
        for player in self.players:
            if isinstance(player.loss, Compiled):
                player.loss.release_graphs()

    def is_compiled(self, player: Player) -> bool:
        """Whether the steps of a player are compiled."""
        return isinstance(player.loss, Compiled)

    def step(
        self,
        player: Player,
        arguments: Arguments,
        size: int,
        *,
        new_shape: bool = False,
        inspect: Inspect | None = None,
        update: Update | None = None,
    ) -> Step:
        """Computes the loss of a player and adds the gradients of ``loss / size``.

        Arguments:
            player: The player.
            arguments: The batch.
            size: How many data points the loss stands for.
            new_shape: Whether the batch has shapes that the player has not seen before. A
                compiled loss runs eagerly then.
            inspect: A function that is called with the loss before its gradients are computed,
                in the first step of a player.
            update: The update of the parameters. A compiled step may include it.
        """
        kind = self._kinds[player.name]
        if isinstance(kind, _Recorded) and not new_shape:
            return kind.recorded_step(arguments, size, update)
        return kind.step(arguments, size, inspect)

    def evaluate(self, player: Player, arguments: Arguments) -> tuple[Tensor, Terms]:
        """Returns the loss of a player and its terms, for a model in evaluation mode."""
        return self._kinds[player.name].evaluate(arguments)

    def has(self, name: str) -> bool:
        """Whether the loss has an attribute that a schedule may set, such as ``"beta"``."""
        return hasattr(self.loss, name)

    def get(self, name: str) -> object:
        """Returns an attribute of the loss, or None if it has none of this name."""
        return getattr(self.loss, name, None)

    def set(self, name: str, value: float) -> None:
        """Sets an attribute of the loss."""
        setattr(self.loss, name, value)

    def describe(self) -> Json:
        """Returns the description of the loss in ``config.json``."""
        try:
            return describe(self.loss)
        except TypeError:
            return {"unavailable": repr(self.loss)}

    def _find_kinds(self) -> None:
        self._kinds = {player.name: _kind_of(player, self.pair) for player in self.players}


def prefixed(player: Player, name: str) -> str:
    """Returns a name with the player's name before it, as ``"generator_loss"``."""
    return f"{player.name}_{name}" if player.name else name


class _Differentiable:
    """A loss that returns a tensor: a bound, the loss of a player, or a function."""

    def __init__(self, player: Player, pair: tuple[Program, Program]) -> None:
        self.player = player
        self.loss: Any = player.loss
        self.pair = pair

    def forward(self, arguments: Arguments) -> tuple[Tensor, Terms]:
        """Returns the loss, to be differentiated, and its terms."""
        if hasattr(self.loss, "loss_and_terms"):
            loss, terms = self.loss.loss_and_terms(*self.pair, *arguments)
            return loss, _with_elbo(terms)
        compute = getattr(self.loss, "differentiable_loss", self.loss)
        return compute(*self.pair, *arguments), {}

    def evaluate(self, arguments: Arguments) -> tuple[Tensor, Terms]:
        """Returns the loss and its terms, where nothing requires gradients."""
        return self.forward(arguments)

    def step(self, arguments: Arguments, size: int, inspect: Inspect | None) -> Step:
        """Computes the loss and its gradients, see ``Objective.step``."""
        loss, terms = self.forward(arguments)
        if inspect is not None:
            inspect(loss)
        inputs = self.loss.parameters if isinstance(self.loss, Bound) else None
        (loss / size).backward(inputs=inputs)
        return Step(loss, terms)


class _OfPyro(_Differentiable):
    """An ELBO of Pyro that returns a tensor.

    Its value comes from the method ``loss``, since ``differentiable_loss`` of some of Pyro's
    classes fails where nothing requires gradients.
    """

    def __init__(self, player: Player, pair: tuple[Program, Program]) -> None:
        super().__init__(player, pair)
        self.registered = [
            _registering(name, half)
            for name, half in zip(("model", "guide"), pair, strict=True)
        ]

    def evaluate(self, arguments: Arguments) -> tuple[Tensor, Terms]:
        return self._as_tensors(self.loss.loss(*self.registered, *arguments))

    def step(self, arguments: Arguments, size: int, inspect: Inspect | None) -> Step:
        try:
            return super().step(arguments, size, inspect)
        except (ValueError, RuntimeError) as error:
            if "\n" not in str(error):
                raise
            # Pyro's sentence has several lines, and does not name the loss.
            reason = "; ".join(line.strip() for line in str(error).splitlines())
            raise PairError(
                f"{type(self.loss).__name__} does not run on this pair: {reason}."
            ) from None

    def _as_tensors(self, losses: object) -> tuple[Tensor, Terms]:
        """Numbers as tensors: a loss, or the loss of the model and that of the guide."""
        like = self.player.parameters[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        loss, *others = torch.as_tensor(losses, dtype=dtype, device=like.device).reshape(-1)
        return loss, dict(zip(("guide_loss",), others, strict=False))


class _FillsGradients(_OfPyro):
    """A loss of Pyro that returns a number and fills in the gradients itself."""

    def step(self, arguments: Arguments, size: int, inspect: Inspect | None) -> Step:
        numbers = self.loss.loss_and_grads(*self.registered, *arguments)
        loss, terms = self._as_tensors(numbers)
        if inspect is not None and not self.player.gradients:
            raise PairError(
                f"{type(self.loss).__name__} has no gradient of any parameter: use"
                " tarspyro.infer.ELBO() as the loss."
            )
        torch._foreach_div_(self.player.gradients, size)
        return Step(loss, terms)


class _Recorded(_Differentiable):
    """A compiled loss. It runs eagerly on new shapes and where nothing requires gradients."""

    def __init__(self, player: Player, pair: tuple[Program, Program]) -> None:
        super().__init__(player, pair)
        self.compiled: Compiled = player.loss
        self.loss = self.compiled.original

    def recorded_step(self, arguments: Arguments, size: int, update: Update | None) -> Step:
        """Makes a step as it was recorded, and the update if one is given."""
        loss, terms = self.compiled.accumulate_gradients(
            *self.pair,
            *arguments,
            scale=1 / size,
            update=update,
            capture_update=update is not None and update.capturable,
        )
        return Step(loss, _with_elbo(terms), updated=update is not None)


def _kind_of(player: Player, pair: tuple[Program, Program]) -> _Differentiable:
    """The kind of a player's loss."""
    if isinstance(player.loss, Compiled):
        return _Recorded(player, pair)
    if _only_fills_gradients(player.loss):
        return _FillsGradients(player, pair)
    if isinstance(player.loss, PyroELBO) and not hasattr(player.loss, "loss_and_terms"):
        return _OfPyro(player, pair)
    return _Differentiable(player, pair)


def _only_fills_gradients(loss: object) -> bool:
    """Whether a loss fills in the gradients itself and has no tensor to differentiate."""
    return hasattr(loss, "loss_and_grads") and not hasattr(loss, "differentiable_loss")


def _check_kind(loss: object) -> None:
    """Raises a ``TypeError`` if a loss is of a kind that cannot be trained."""
    trainable = callable(loss) or isinstance(loss, Game) or hasattr(loss, "loss_and_grads")
    if isinstance(loss, type):
        raise TypeError(
            f"loss must be a bound or a game, got the class {loss.__name__}: give an instance,"
            f" {loss.__name__}{'(...)' if _needs_arguments(loss) else '()'}."
        )
    if not trainable:
        raise TypeError(
            f"loss must be a bound or a game, got {format_value(loss)}: give an object, such as"
            f" {_meant_by(loss)}."
        )
    if isinstance(loss, nn.modules.loss._Loss):
        raise TypeError(
            f"loss must be a bound or a game, such as ELBO(), got {format_value(loss)}: choose"
            " the likelihood of the model in its place, such as dist.Normal for squared errors"
            " or dist.Bernoulli for a binary cross-entropy."
        )
    if isinstance(loss, _JITTED):
        name = type(loss).__name__
        raise TypeError(
            f"loss is a {name}, which Pyro compiles in its own way: use"
            f" pyro.infer.{name.removeprefix('Jit')}(), or tarspyro.infer.ELBO() with"
            " compile=True."
        )
    if isinstance(loss, TraceTailAdaptive_ELBO):
        raise TypeError(
            "loss is a TraceTailAdaptive_ELBO, which has gradients but no value: use"
            " tarspyro.infer.Renyi(0.5)."
        )


def _needs_arguments(cls: type) -> bool:
    """Whether a class cannot be called without arguments."""
    return any(
        parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in constructor_parameters(cls)
    )


def _meant_by(loss: object) -> str:
    """The bound or game that a text names, or else the usual bound."""
    names = {name.lower(): name for name in infer.__all__}
    name = names.get(loss.lower(), "ELBO") if isinstance(loss, str) else "ELBO"
    return f"tarspyro.infer.{name}()"


def _registering(name: str, half: Program) -> Program:
    """A half whose parameters Pyro's store has, for losses that find them there alone."""
    if not isinstance(half, nn.Module) or isinstance(half, (StochasticModule, PyroModule)):
        return half

    def registered(*args: object, **kwargs: object) -> object:
        pyro.module(name, half)
        return half(*args, **kwargs)

    return registered


def _with_elbo(terms: Terms) -> Terms:
    """The terms of a loss, with the ELBO if it has both terms of one."""
    if {"reconstruction", "kl"} <= set(terms):
        return {"elbo": terms["reconstruction"] - terms["kl"], **terms}
    return terms
