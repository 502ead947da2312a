"""The moving average of a generator's weights."""

__all__ = ["MovingAverage"]

import copy

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import check_module, check_number
from tarspyro.modules import Configurable


class MovingAverage(Configurable):
    r"""A copy of a model whose weights are the moving average of the model's.

    .. math:: \bar\theta_t = \bar\theta_{t-1} + w_t (\theta_t - \bar\theta_{t-1}), \qquad
              w_t = \max(1 - \beta, 1 / t)

    A generator circles around the equilibrium of a game, and the average lies inside. The first
    averages are plain means, so the start is soon forgotten. Buffers, such as running
    statistics, are those of the model. ``Adversarial(..., average=...)`` takes in the weights
    once in each step of the training, before the discriminator moves.

    Arguments:
        model: The generator.
        decay: beta, between 0 and 1.

    Attributes:
        model: The averaged copy, a model as any other.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``decay`` is out of range, or a lazy layer of the model has no size yet.

    References:
        Yazici et al. (2018), The Unusual Effectiveness of Averaging in GAN Training,
        arXiv:1806.04498.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(model, 0.5)
        >>> for value in (1.0, 3.0, 5.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update(model)
        >>> average.model.weight.item()  # the mean of 1 and 3, then half way to 5
        3.5
    """

    updates: torch.Tensor

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        check_module("model", model)
        check_number("decay", decay, 0, 1)
        if any(isinstance(weight, UninitializedParameter) for weight in model.parameters()):
            raise ValueError(
                f"model has lazy layers without sizes, so there is nothing to average: call"
                f" {type(model).__name__} once before."
            )
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.register_buffer("updates", torch.zeros(()))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights of the model."""
        self.updates.add_(1.0)
        weight = (1 / self.updates).clamp(min=1 - self.decay)
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.add_(weight.to(mean.dtype) * (value - mean))
        for own, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)

    def __repr__(self) -> str:
        return f"MovingAverage({type(self.model).__name__}, {self.decay})"
