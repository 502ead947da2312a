"""The canvases of a model such as DRAW, step by step."""

__all__ = ["Canvases", "canvases"]

from collections.abc import Mapping
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_count, format_fields
from tarspyro.conditional import distribution_mean
from tarspyro.evaluate.batching import first_rows, seeded
from tarspyro.infer.traces import name_of
from tarspyro.inputs import each
from tarspyro.nn import Canvas
from tarspyro.scopes import evaluating, local_parameters
from tarspyro.sequences import states_of
from tarspyro.types import ArrayLike, Data, Program


class Canvases(NamedTuple):
    """The canvases of N images in T steps, and the windows of attention.

    ``images`` are the likelihood's means at the canvas before the first step and after each,
    of shape ``(N, T + 1, *event)``. ``boxes`` hold for each step the window that it wrote
    through: the x and y of its centre, its width, and the scale of its filters, in pixels, of
    shape ``(N, T, 4)``; None for a model without attention.
    """

    images: Tensor
    boxes: Tensor | None

    def __repr__(self) -> str:
        return format_fields("Canvases", self._asdict())


def canvases(
    model: Program,
    guide: Program | None = None,
    data: Data | None = None,
    *,
    num: int = 8,
    given: Mapping[str, ArrayLike] | None = None,
    seed: int | None = None,
) -> Canvases:
    r"""Returns the means of x at the canvas of each step, as a model paints images.

    .. math:: \mathbb{E}[x \mid c_t], \qquad t = -1, \dots, T - 1

    With a guide and data, the model reconstructs the data from draws of the posterior; without
    them, it generates images.

    Arguments:
        model: The model, a ``DRAW`` or any ``sequential`` program with the attributes
            ``canvas`` and ``likelihood``.
        guide: The guide.
        data: The data to reconstruct, in any form that ``fit`` takes; its first
            ``num`` rows are used.
        num: The number of images.
        given: More arguments of a model that generates, by name: ``{"y": y}`` for a
            ``ConditionalDRAW``, with a row for each image.
        seed: The seed of the draws; the global random state then stays unchanged.

    Raises:
        TypeError: If the model has no canvas.
        ValueError: If one of ``guide`` and ``data`` is missing.

    Example:
        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from tarspyro import Conditional, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import Recurrence, IdentityTrunk, Write
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(10, 32)), Write(32, (1, 8, 8)))
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> p = models.DRAW(default_prior(dist.Normal, 10), canvas, likelihood, steps=4)
        >>> canvases(p, num=3).images.shape
        torch.Size([3, 5, 64])
    """
    canvas = getattr(model, "canvas", None)
    likelihood = getattr(model, "likelihood", None)
    if not isinstance(canvas, Canvas) or not callable(likelihood):
        raise TypeError(
            f"model must paint on a canvas, as models.DRAW does, got {name_of(model)}."
        )
    if (guide is None) != (data is None):
        missing = "guide" if guide is None else "data"
        raise ValueError(
            f"guide and data must be given together, got no {missing}: give both to"
            " reconstruct, or neither to generate."
        )
    num = as_count("num", num)
    device = canvas.start.device

    with (
        seeded(seed),
        pyro.validation_enabled(False),
        evaluating(model, guide),
        local_parameters(),
    ):
        if guide is None or data is None:
            others = {
                name: torch.as_tensor(value).to(device)
                for name, value in (given or {}).items()
            }
            states = states_of(model, batch_size=num, **others)
        else:
            rows = first_rows(data, num, model, name="data")
            arguments = each(lambda part: part.to(device), rows)
            trace = poutine.trace(guide).get_trace(*arguments)
            with poutine.replay(trace=trace):
                states = states_of(model, *arguments)
        images = [distribution_mean(likelihood(canvas.painted(state))) for state in states]
        boxes = [canvas.boxes(state) for state in states[1:]]

    windows = [box for box in boxes if box is not None]
    return Canvases(torch.stack(images, 1), torch.stack(windows, 1) if windows else None)
