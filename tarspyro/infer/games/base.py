"""Games: losses of several players, each of whom changes parameters of its own by a loss of
its own.
"""

__all__ = ["Game", "Player", "PlayerLoss"]

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.matching import check_pair
from tarspyro.infer.traces import PairError
from tarspyro.modules import Configurable
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program

Method = Callable[..., tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Player:
    """What one player of a game changes, what it minimizes, and how often it moves.

    Attributes:
        name: Its name, a prefix of what the history holds about it; a bound's only player has
            none.
        loss: Its loss, with the interface of a bound.
        parameters: What it changes.
        every: It moves in one of so many steps, the last of them.
        floor: A loss below which it has won, and the others learn nothing from it any more.
        patience: How many moves in a row below the floor end a training; None for any number.
    """

    name: str
    loss: Any
    parameters: list[Tensor]
    every: int = 1
    floor: float = -math.inf
    patience: int | None = None

    def moves(self, step: int) -> bool:
        """Whether it moves in the given step, counted from 0."""
        return (step + 1) % self.every == 0

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients that its parameters have."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together; in two operations, half of what torch's own
        function takes.
        """
        gradients = [g.coalesce().values() if g.is_sparse else g for g in self.gradients]
        return (
            torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            if gradients
            else torch.zeros(())
        )


class Game(Configurable):
    r"""A loss with several players, which ``fit`` lets move in turn, where a bound has only
    one.

    .. math:: \theta_i \leftarrow \arg\min_{\theta_i} \mathcal{L}_i(\theta_1, \dots, \theta_n), \quad i = 1, \dots, n

    Subclasses define ``players``. A player's loss is a method of the game that is called as a
    bound is, with the model, the guide and the data, and returns minus what it maximizes,
    summed over the data points, and what ``fit`` writes down beside it. It may depend on all
    parameters: a gradient reaches the player's own alone. Networks that the game has beside
        the pair, such as a discriminator, are modules of it: they are moved, saved and
        restored with the pair.

    Attributes:
        adjustable: The numbers among the attributes that may change from step to step, by
            ``schedules`` of ``fit``.

    Example:
        >>> import torch
        >>> class Tug(Game):  # two players pull at one product
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.b = torch.nn.Parameter(torch.ones(()))
        ...     def players(self, model, guide):
        ...         return [self.player("up", self.up, [self.b]), self.player("down", self.down, model)]
        ...     def up(self, model, guide, x):
        ...         return -(model.a * self.b - self.b**2 / 2) * len(x), {}
        ...     def down(self, model, guide, x):
        ...         return model.a * self.b * len(x), {}
        >>> [player.name for player in Tug().players([], [])]
        ['up', 'down']
    """

    adjustable: tuple[str, ...] = ()

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        """Returns the players in the order in which they move.

        Arguments:
            model: The parameters of the model.
            guide: The parameters of the guide.
        """
        raise NotImplementedError

    def check(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
        """Raises a ``PairError`` unless the game can be played with the pair, before the first
        step.
        """
        check_pair(model, guide, *args, **kwargs)
        self.rehearse(model, guide, *args, **kwargs)

    def rehearse(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
        """Computes the loss of every player once, so that errors come, and lazy layers have
        sizes, before a step.

        Nothing else changes: neither parameters and statistics nor random states.

        Raises:
            PairError: If a player's loss does not run on the data.
        """
        of_model, of_guide = (
            list[Tensor](half.parameters()) if isinstance(half, nn.Module) else []
            for half in (model, guide)
        )
        # A penalty takes slopes, and what it takes them of may be no draw of the
        # distributions.
        with (
            preserved_rng(),
            evaluating(model, guide, self),
            torch.enable_grad(),
            pyro.validation_enabled(False),
        ):
            for player in self.players(of_model, of_guide):
                try:
                    player.loss.differentiable_loss(model, guide, *args, **kwargs)
                except RuntimeError as error:
                    if type(error) is not RuntimeError:
                        raise  # no memory, or not implemented
                    reason = str(error).partition("\n")[0]
                    shapes = ", ".join(
                        str(tuple(part.shape)) for part in args if torch.is_tensor(part)
                    )
                    raise PairError(
                        f"The loss of the {player.name} does not run on data of shape"
                        f" {shapes}: {reason}"
                    ) from error

    def prepare(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Does what a loss does only once for a pair, before its step is recorded."""

    def player(
        self, name: str, loss: Method, parameters: Iterable[Tensor], **options: Any
    ) -> Player:
        """Returns a player whose loss is a method of this game."""
        parameters = list(parameters)
        return Player(name, PlayerLoss(self, loss, parameters), parameters, **options)


class PlayerLoss(Bound):
    """A method of a game with the interface of a bound: what one player minimizes."""

    def __init__(self, game: Game, method: Method, parameters: list[Tensor]) -> None:
        super().__init__(1)
        self.game, self.method, self.parameters = game, method, parameters
        self.adjustable, self.programs = game.adjustable, (game,)

    @property
    def settings(self) -> Any:
        return self.game

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the player's loss, and what ``fit`` writes down beside it."""
        return self.method(model, guide, *args, **kwargs)

    def loss_and_grads(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> float:
        """Computes the gradients of the player's parameters, and of no others; returns its
        loss, a float.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(inputs=self.parameters)
        return loss.item()

    def prepare(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.game.prepare(model, guide, args, kwargs)
