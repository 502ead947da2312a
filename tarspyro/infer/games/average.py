"""The moving average of a generator's weights."""

__all__ = ["MovingAverage"]

import contextlib
import copy
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import as_count, as_numbers, check_module, check_number
from tarspyro.inputs import as_float
from tarspyro.modules import Configurable, copy_modules
from tarspyro.programs import device_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import ArrayLike


class MovingAverage(Configurable):
    r"""A copy of a model whose weights are the moving average of the model's.

    .. math:: \bar\theta_t = \bar\theta_{t-1} + w_t (\theta_t - \bar\theta_{t-1}), \qquad
              w_t = \max(1 - \beta, 1 / t)

    A generator circles around the equilibrium of a game, and the average lies inside. The first
    averages are plain means, so the start is soon forgotten. ``Adversarial(..., average=...)``
    takes in the weights once in each step of the training, before the discriminator moves.

    Buffers are those of the model. With batch normalization its running statistics do not suit
    the averaged weights: call ``renew_statistics`` after the training.

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
        self.model = copy_modules(model).requires_grad_(False)
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

    def renew_statistics(
        self,
        num_batches: int = 100,
        *,
        batch_size: int = 100,
        given: Mapping[str, ArrayLike] | None = None,
        seed: int | None = None,
    ) -> None:
        """Gives batch normalization the statistics of the averaged model's own samples.

        Each running mean and variance becomes the mean over the batches of that of a batch.

        Arguments:
            num_batches: The number of batches.
            batch_size: The number of samples of a batch.
            given: Arguments of the model by name, with a row for each sample of a batch, in place
                of ``batch_size``: ``{"y": y}`` for a ``ConditionalGAN``.
            seed: The seed of the samples; the global random state then stays unchanged.

        Raises:
            ValueError: If the model has no batch normalization with running statistics.

        Example:
            >>> import pyro.distributions as dist
            >>> from tarspyro import Deterministic, models
            >>> from tarspyro.distributions import default_prior
            >>> generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
            >>> p = models.GAN(default_prior(dist.Normal, 2), Deterministic(generator, 4))
            >>> p(batch_size=5).shape  # lazy layers have their sizes from here on
            torch.Size([5, 4])
            >>> average = MovingAverage(p)
            >>> average.renew_statistics(10, seed=0)
        """
        num_batches = as_count("num_batches", num_batches)
        arguments: dict[str, object] = {"batch_size": as_count("batch_size", batch_size)}
        if given is not None:
            device = device_of(self.model)
            arguments = {
                name: as_float(as_numbers(f"given[{name!r}]", value), self.model).to(device)
                for name, value in given.items()
            }
        layers = [
            layer
            for layer in self.model.modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None
        ]
        if not layers:
            raise ValueError(
                f"{type(self.model).__name__} has no batch normalization with running"
                " statistics, so there is nothing to renew: leave the call out."
            )
        draws = contextlib.nullcontext() if seed is None else preserved_rng(seed)
        with draws, evaluating(self.model), _plain_means(layers):
            for _ in range(num_batches):
                self.model(**arguments)

    def __repr__(self) -> str:
        return f"MovingAverage({type(self.model).__name__}, {self.decay})"


@contextlib.contextmanager
def _plain_means(layers: list[_BatchNorm]) -> Iterator[None]:
    """Lets layers find their running statistics anew, as means over all batches.

    If the body raises, they have their former ones.
    """
    before = [copy.deepcopy(layer.state_dict()) for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    try:
        yield
    except BaseException:
        for layer, state in zip(layers, before, strict=True):
            layer.load_state_dict(state)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
