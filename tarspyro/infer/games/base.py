"""Games of several players, each with parameters and a loss of its own."""

__all__ = ["Game", "LossAndTerms", "Player", "PlayerLoss"]

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyro
import torch
from torch import Tensor, nn

from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.matching import check_pair
from tarspyro.infer.traces import PairError
from tarspyro.modules import Configurable
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program

# A loss, and the terms that ``fit`` records beside it, detached; all summed over the data.
LossAndTerms: TypeAlias = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Player:
    """A player of a game: its parameters, its loss, and how often it moves.

    Attributes:
        name: The name of the player, a prefix of its columns in the history. The only player
            of a bound has the name "".
        loss: The loss, with the interface of a bound.
        parameters: The parameters that the player changes.
        every: The player moves in one of so many steps, the last of them.
        floor: A mean loss below which the player has won, and the others no longer learn
            from it.
        patience: The training ends after so many moves in a row below the floor; None for
            never.
    """

    name: str
    loss: Any
    parameters: list[Tensor]
    every: int = 1
    floor: float = -math.inf
    patience: int | None = None

    def moves(self, step: int) -> bool:
        """Whether the player moves in a step, counted from 0."""
        return (step + 1) % self.every == 0

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients of the parameters that have one."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients together."""
        gradients = [
            gradient.coalesce().values() if gradient.is_sparse else gradient
            for gradient in self.gradients
        ]
        if not gradients:
            return self.parameters[0].new_zeros(()) if self.parameters else torch.zeros(())
        # Two operations, which take half the time of torch's own function.
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return norm


class Game(Configurable):
    r"""A loss with several players, which ``fit`` lets move in turn.

    .. math:: \theta_i \leftarrow \arg\min_{\theta_i}
              \mathcal{L}_i(\theta_1, \dots, \theta_n), \quad i = 1, \dots, n

    Subclasses define ``players``. The loss of a player is a method of the game. It takes the
    model, the guide and the data, as a bound does, and returns the loss and the terms that
    ``fit`` records beside it, summed over the data points. It may depend on all parameters,
    but a gradient reaches those of its player alone. Further networks, such as a
    discriminator, are modules of the game: they are moved, saved and restored with the pair.

    Attributes:
        adjustable: The names of the attributes that may change from step to step, by
            ``schedules`` of ``fit``.
        has_likelihood: Whether a loss holds the log-density of the data under the model.
            ``fit`` then starts a new pair near the data, as for a bound.

    Example:
        >>> import torch
        >>> class Tug(Game):  # two players pull at the product a * b
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.b = torch.nn.Parameter(torch.ones(()))
        ...     def players(self, model, guide):
        ...         up = self.player("up", self.up, [self.b])
        ...         down = self.player("down", self.down, model)
        ...         return [up, down]
        ...     def up(self, model, guide, x):
        ...         return -(model.a * self.b - self.b**2 / 2) * len(x), {}
        ...     def down(self, model, guide, x):
        ...         return model.a * self.b * len(x), {}
        >>> [player.name for player in Tug().players([], [])]
        ['up', 'down']
    """

    adjustable: tuple[str, ...] = ()
    has_likelihood: bool = False

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        """Returns the players in the order in which they move.

        Arguments:
            model: The parameters of the model.
            guide: The parameters of the guide.
        """
        raise NotImplementedError

    def player(
        self,
        name: str,
        loss: Callable[..., LossAndTerms],
        parameters: Iterable[Tensor],
        *,
        every: int = 1,
        floor: float = -math.inf,
        patience: int | None = None,
    ) -> Player:
        """Returns a player whose loss is a method of this game, see ``Player``."""
        own = list(parameters)
        return Player(name, PlayerLoss(self, loss, own), own, every, floor, patience)

    def check(self, model: Program, guide: Program, *args: object, **kwargs: object) -> None:
        """Checks before the first step that the game can be played with a pair.

        Raises:
            PairError: If the halves do not match, or a player's loss does not run.
        """
        check_pair(model, guide, *args, **kwargs)
        self.rehearse(model, guide, *args, **kwargs)

    def rehearse(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> None:
        """Computes the loss of every player once, so that errors come before the first step
        and lazy layers get their sizes.

        Parameters, statistics and random states stay as they are.

        Raises:
            PairError: If a player's loss does not run on the data.
        """
        of_model = list[Tensor](model.parameters()) if isinstance(model, nn.Module) else []
        of_guide = list[Tensor](guide.parameters()) if isinstance(guide, nn.Module) else []
        # A penalty needs gradients, at points that may be outside a distribution's support.
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
                        raise  # out of memory, or not implemented
                    reason = str(error).partition("\n")[0]
                    shapes = ", ".join(
                        str(tuple(part.shape)) for part in args if torch.is_tensor(part)
                    )
                    raise PairError(
                        f"The loss of the {player.name} does not run on data of shape"
                        f" {shapes}: {reason}"
                    ) from error

    def prepare(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        """Does what the losses do only once for a pair, before a step is recorded."""


class PlayerLoss(Bound):
    """The loss of one player, a method of the game, with the interface of a bound."""

    def __init__(
        self, game: Game, method: Callable[..., LossAndTerms], parameters: list[Tensor]
    ) -> None:
        super().__init__(1)
        self.game = game
        self.method = method
        self.parameters = parameters
        self.adjustable = game.adjustable
        self.programs = (game,)

    @property
    def settings(self) -> Game:
        return self.game

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        return self.method(model, guide, *args, **kwargs)

    def loss_and_grads(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> float:
        """Computes the gradients of the player's own parameters; returns its loss, a float."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(inputs=self.parameters)
        return loss.item()

    def prepare(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        self.game.prepare(model, guide, args, kwargs)
