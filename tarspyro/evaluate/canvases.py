"""How a model paints: its canvases, step by step."""

__all__ = ["Canvases", "canvases"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.conditional import distribution_mean
from tarspyro.evaluate.batching import seeded
from tarspyro.infer.traces import name_of
from tarspyro.inputs import as_arguments
from tarspyro.nn import Canvas
from tarspyro.scopes import evaluating, local_parameters
from tarspyro.sequences import states_of
from tarspyro.types import Program


class Canvases(NamedTuple):
    """The canvases of N images in T steps, and where they were written on."""

    images: Tensor  # the means of the likelihood, before the first step and after each: (N, T + 1, *event)
    boxes: (
        Tensor | None
    )  # centre x, centre y, width and the filters' scale in pixels, of each step: (N, T, 4)


def canvases(
    model: Program,
    guide: Program | None = None,
    data: Any = None,
    *,
    num: int = 8,
    given: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Canvases:
    r"""Returns how a model paints images: what each canvas says of x, before the first step
    and after each.

    .. math:: \mathbb{E}[x \mid c_t], \qquad t = -1, \dots, T - 1

    With a guide and data, the images that it is to reconstruct, from draws of the posterior;
    without, images that it generates.

    Arguments:
        model: The model, a ``DRAW`` or any ``sequential`` program with the attributes
            ``canvas`` and ``likelihood``.
        guide: The guide.
        data: What it looks at, in any form that ``fit`` takes in memory; the first ``num``
            rows.
        num: How many images.
        given: What else the model needs to generate, by name: ``{"y": y}`` for a
            ``ConditionalDRAW``, with a row for each image.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

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
    canvas, likelihood = getattr(model, "canvas", None), getattr(model, "likelihood", None)
    if not isinstance(canvas, Canvas) or not callable(likelihood):
        raise TypeError(
            f"model must paint on a canvas, as models.DRAW does, got {name_of(model)}."
        )
    if (guide is None) != (data is None):
        raise ValueError("guide and data must be given together: the guide looks at the data.")
    num, device = as_count("num", num), canvas.start.device
    with (
        seeded(seed),
        pyro.validation_enabled(False),
        evaluating(model, guide),
        local_parameters(),
    ):
        if guide is None:
            others = {
                name: torch.as_tensor(value).to(device)
                for name, value in (given or {}).items()
            }
            states = states_of(model, batch_size=num, **others)
        else:
            arguments = [
                None if part is None else part[:num].to(device)
                for part in as_arguments(data, model) or (torch.as_tensor(data),)
            ]
            trace = poutine.trace(guide).get_trace(*arguments)
            with poutine.replay(trace=trace):
                states = states_of(model, *arguments)
        images = [distribution_mean(likelihood(canvas.painted(state))) for state in states]
        boxes = [canvas.boxes(state) for state in states[1:]]
    written = [box for box in boxes if box is not None]
    return Canvases(torch.stack(images, 1), torch.stack(written, 1) if written else None)
