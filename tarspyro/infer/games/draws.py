"""Draws of a model in place of its data, and the conditions among the data."""

__all__ = ["Draws", "Rows", "check_conditions", "conditions_of", "draw"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from tarspyro.infer.games.masks import counted_rows
from tarspyro.infer.gradients import reachable_leaves
from tarspyro.infer.traces import PairError, Site, name_of
from tarspyro.types import Program


@dataclass
class Rows:
    """The rows of a batch at one site of a pair.

    Attributes:
        site: The site.
        size: The number N of rows.
        counted: The rows that are not masked, booleans of shape (N,); None for all rows.
        conditions: The rest of the data, which no site observes, such as labels.
    """

    site: Site
    size: int
    counted: Tensor | None
    conditions: tuple[Tensor, ...]

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of values over the rows that count, times the scale of the site.

        A row of several values, such as those of the patches of an image, has their mean.
        """
        if values.shape != (self.size,):
            values = values.reshape(self.size, -1).mean(1)
        scaled: Tensor = scale_and_mask(values, self.site["scale"], self.counted)
        return scaled.sum()


@dataclass
class Draws(Rows):
    """Draws of a model at a site, and the data that the model observes there."""

    fake: Tensor
    real: Tensor


def draw(
    model: Program, site: str, args: Sequence[object], kwargs: Mapping[str, object]
) -> Draws:
    """Runs a model without conditioning it on its data; returns its draws at a site.

    Raises:
        PairError: If the model observes nothing at the site.
    """
    with _Redrawn() as redrawn:
        model(*args, **kwargs)
    observed = redrawn.observations
    if site not in observed:
        raise PairError(
            f"{name_of(model)} observes nothing at {site!r}: site must be one of"
            f" {sorted(observed)}."
        )
    drawn = redrawn.sites[site]
    real = observed[site]
    conditions = conditions_of(observed.values(), args, kwargs)
    return Draws(drawn, len(real), counted_rows(drawn), conditions, drawn["value"], real)


class _Redrawn(UnconditionMessenger):
    """Lets a program draw what it observes, and keeps the sites where it does.

    This is faster than a trace of all sites.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Site] = {}

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["infer"].get("was_observed") and not msg["infer"].get("_deterministic"):
            self.sites[msg["name"]] = msg

    @property
    def observations(self) -> dict[str, Tensor]:
        """The data at the sites."""
        return {name: site["infer"]["obs"] for name, site in self.sites.items()}


def conditions_of(
    observed: Iterable[object], args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[Tensor, ...]:
    """Returns the tensors among the data of which no site observes the tensor itself or a view
    of it, such as the image flattened.
    """
    known = {id(_base(value)) for value in observed}
    data = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
    return tuple(value for value in data if id(_base(value)) not in known)


def check_conditions(
    model: Program, args: Sequence[object], kwargs: Mapping[str, object]
) -> None:
    """Checks that a model observes its data as they are, and nothing computed from them.

    A model that observes ``x / 2``, for example, would make x look like a condition, and the
    discriminator would see it.

    Raises:
        PairError: If an observed value depends on a part of the data, and is neither that part
            nor a view of it.
    """
    leaves = [_as_leaf(value) for value in args]
    with torch.enable_grad(), _Redrawn() as redrawn:
        model(*leaves, **kwargs)
    observed = redrawn.observations
    known = {id(_base(value)) for value in observed.values()}
    unobserved: dict[int, int] = {}  # positions by identities
    tensors: list[Tensor] = []
    for position, leaf in enumerate(leaves):
        if torch.is_tensor(leaf) and leaf.is_floating_point() and id(leaf) not in known:
            unobserved[id(leaf)] = position
            tensors.append(leaf)
    reached = reachable_leaves(tensors)
    for name, value in observed.items():
        if not torch.is_tensor(value):
            continue
        found = sorted(unobserved[key] for key in reached(value))
        if found:
            raise PairError(
                f"{name_of(model)} observes at {name!r} what it computes from part {found[0]}"
                " of the data, and a game would show that part to the discriminator as a"
                " condition: compute it before, and give it as data."
            )


def _as_leaf(value: object) -> object:
    """A tensor of real numbers as a leaf of the autograd graph; other values as they are."""
    if torch.is_tensor(value) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def _base(value: object) -> object:
    """The tensor of which a tensor is a view, or the value itself."""
    return value if not torch.is_tensor(value) or value._base is None else value._base
