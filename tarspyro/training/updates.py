"""Updates of the parameters of a player by their gradients."""

__all__ = ["Update"]

from collections.abc import Callable

import torch
from torch import Tensor

from tarspyro.infer import Player
from tarspyro.training.adam import FusedAdam
from tarspyro.training.optimizers import Optimizer, is_capturable


class Update:
    """The update of a player: its gradients are clipped, and its optimizer makes a step.

    It is one object for a whole training, so that a compiled step which has captured it can be
    used again.

    Arguments:
        player: The player.
        optimizer: Its torch optimizer.
        limits: Clipping.

    Attributes:
        capturable: Whether it may be captured with a step of the loss.
        norm: The norm of the whole gradient before the last update.
    """

    def __init__(
        self, player: Player, optimizer: torch.optim.Optimizer, limits: Optimizer
    ) -> None:
        self.player = player
        self.optimizer = optimizer
        self.limits = limits
        self.capturable = is_capturable(optimizer)
        self.norm = torch.zeros(())
        lean = FusedAdam.suits(optimizer)
        self._update: Callable[[], object] = FusedAdam(optimizer) if lean else optimizer.step

    def __call__(self) -> None:
        """Notes the norm of the gradient, and updates the parameters."""
        norm = self.player.gradient_norm()
        if self.norm.device == norm.device:
            self.norm.copy_(norm)  # a captured update writes to this memory at every replay
        else:
            self.norm = norm
        self.step(norm)

    def step(self, norm: Tensor) -> None:
        """Updates the parameters, whose gradient has a known norm."""
        self.limits.clip(self.player.parameters, norm)
        self._update()

    def clear(self) -> None:
        """Drops the gradients."""
        for parameter in self.player.parameters:
            parameter.grad = None
