"""Remedies for data that a likelihood does not take, by what is seen in the data."""

__all__ = ["about_bounds", "about_edges", "about_support", "is_range_of_bytes"]

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro.distributions import Bernoulli, ContinuousBernoulli
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from tarspyro.infer.diagnosis import single_constraint, words_of
from tarspyro.infer.traces import elements_of

# How far data is moved away from the edge of a support.
_STEP = 1e-3

_REAL = "use a family of real numbers, such as dist.Normal"


def about_support(name: str, base: Distribution, value: Tensor, support: Constraint) -> str:
    """Returns a sentence about values outside the support of a likelihood.

    Arguments:
        name: The name of the site.
        base: The distribution, without ``Independent``.
        value: The data.
        support: The support.
    """
    known = value.isfinite()
    if not bool(known.all()) and bool(known.any()):
        value = value.where(known, value[known].median())  # gaps have no range
    low = value.min().item()
    high = value.max().item()
    family = type(base).__name__
    if isinstance(base, Bernoulli) and 0 <= low and high <= 1:
        return (
            f"{name} has grey values (from {low:g} to {high:g}) but the likelihood is"
            " Bernoulli, for 0 and 1 alone: draw black and white pixels with binarize=True,"
            " or accept the cross-entropy of grey values with Conditional(...,"
            " validate_args=False)."
        )
    outside = f"outside the support of {family} ({words_of(support)})"
    fix = _fix_of(name, base, value, single_constraint(getattr(support, "known", support)))
    return f"{name} has values from {low:g} to {high:g}, {outside}: {fix}."


def _fix_of(name: str, base: Distribution, value: Tensor, support: Any) -> str:
    """Returns a remedy for values outside a support."""
    # A support of the library may have a remedy of its own.
    own: Callable[[str, Tensor], str] | None = getattr(support, "remedy", None)
    if own is not None:
        return own(name, value)
    low = value.min().item()
    whole = bool((value == value.round()).all())
    if isinstance(base, Bernoulli):
        return _fix_for_pixels(name, base, value, whole)
    if isinstance(support, type(constraints.one_hot)):
        return (
            "turn labels into one-hot vectors,"
            " torch.nn.functional.one_hot(torch.as_tensor(labels), K).float(), or for counts"
            " use dist.Multinomial with total_count"
        )
    if isinstance(support, type(constraints.multinomial(1))) and low >= 0:
        if not whole:
            return (
                "it takes counts, and these are shares: for rows that sum to 1 use"
                " dist.Dirichlet, or multiply each row by its number of trials and round it"
            )
        largest = value.sum(-1).max().item()
        return (
            f"give total_count, the largest sum of a row, Conditional(dist.Multinomial, ...,"
            f" total_count={largest:.0f})"
        )
    if isinstance(support, type(constraints.simplex)) and low >= 0:
        return f"divide each row by its sum, {name} / {name}.sum(-1)[..., None]"
    if support.is_discrete:
        return _fix_for_counts(name, base, value, whole)
    if hasattr(support, "lower_bound") and hasattr(support, "upper_bound"):
        return _fix_for_interval(name, base, value)
    if hasattr(support, "lower_bound") and low >= 0 >= _number(support.lower_bound):
        return f"move the zeros inside, {name}.clip(min={_STEP:g})"
    if hasattr(support, "lower_bound"):
        bound = _number(support.lower_bound)
        shift = f"{name} - {name}.min() + {max(bound, 0) + _STEP:g}"
        return f"{_REAL}, or move the data above the bound, {shift}"
    return "rescale the data or choose another likelihood"


def _fix_for_pixels(name: str, base: Distribution, value: Tensor, whole: bool) -> str:
    """Returns a remedy for values that a Bernoulli does not take."""
    low = value.min().item()
    high = value.max().item()
    accepts_grey = base._validate_args is False
    drawn = "" if accepts_grey else ", and train with fit(..., binarize=True)"
    if low >= -1 and high <= 1:
        return f"scale them to probabilities, ({name} + 1) / 2{drawn}"
    if is_range_of_bytes(low, high):
        return f"these look like bytes, divide by 255{drawn}"
    if whole and low >= 0:
        return f"divide pixels by {high:g}{drawn}, or for counts use dist.Poisson"
    return _REAL


def is_range_of_bytes(low: float, high: float) -> bool:
    """Returns whether the smallest and the largest value may be those of bytes of images."""
    return low >= 0 and 100 < high <= 255


def _fix_for_counts(name: str, base: Distribution, value: Tensor, whole: bool) -> str:
    """Returns a remedy for values that a family of whole numbers does not take."""
    if not whole:
        return f"round the data if it holds counts, or {_REAL}"
    if value.min().item() < 0:
        return _REAL
    high = value.max().item()
    if "total_count" in base.arg_constraints:
        return f"give total_count={high:g} or more"
    if hasattr(base, "logits"):
        if value.min().item() >= 1 and high == base.logits.shape[-1]:
            return f"count the classes from 0, {name} - 1"
        shape = (*value.shape[1:], int(high) + 1)
        return f"give {high + 1:g} classes, param_shapes={{'logits': {shape}}}"
    return "choose another likelihood"


def _fix_for_interval(name: str, base: Distribution, value: Tensor) -> str:
    """Returns a remedy for values outside an interval, such as that of Beta."""
    if is_range_of_bytes(value.min().item(), value.max().item()):
        scaled = "these look like bytes, divide by 255"
    else:
        scaled = f"scale them, ({name} - {name}.min()) / ({name}.max() - {name}.min())"
    if not isinstance(base, ContinuousBernoulli):
        scaled += ", and use dist.ContinuousBernoulli, which has a density at 0 and 1 too"
    return f"{scaled}, or {_REAL}"


def _only_inside(distribution: Distribution, value: Tensor, inside: Tensor) -> bool:
    """Returns whether some density is finite for values moved inside, and not where they are."""
    density = _log_prob(distribution, value)
    moved = _log_prob(distribution, inside)
    if density is None or moved is None:
        return False
    return bool((~density.isfinite() & moved.isfinite()).any())


def _neighbours(distribution: Distribution) -> Iterator[Distribution]:
    """Yields distributions of the same family with half and twice the positive parameters.

    A Beta(1, 1), with which a network starts, has a density at 0, and its neighbours have none.
    """
    constraints_of: Mapping[str, object] = distribution.arg_constraints
    positive = [
        name
        for name, constraint in constraints_of.items()
        if single_constraint(constraint) is constraints.positive
        and torch.is_tensor(getattr(distribution, name))
    ]
    for factor in (0.5, 2.0) if positive else ():
        changed = {name: factor * getattr(distribution, name) for name in positive}
        others = {
            name: getattr(distribution, name)
            for name in constraints_of
            if name not in positive and name in vars(distribution)
        }
        with contextlib.suppress(TypeError, ValueError):
            yield type(distribution)(**changed, **others, validate_args=False)


def about_edges(name: str, base: Distribution, value: Tensor) -> str | None:
    """Returns a sentence about values at the edge of a support, where there is no finite density.

    They are in the support of Beta, Gamma and Dirichlet, whose density is zero or infinite
    there. None if all densities are finite, or the edges are not the cause.

    Arguments:
        name: The name of the site.
        base: The distribution, without ``Independent``.
        value: The data.
    """
    support: Any = single_constraint(base.support)
    if support is None or support.is_discrete or not value.is_floating_point():
        return None
    simplex = isinstance(support, type(constraints.simplex))
    low: Any = 0.0 if simplex else getattr(support, "lower_bound", None)
    high: Any = None if simplex else getattr(support, "upper_bound", None)
    edges = [edge for edge in (low, high) if edge is not None and bool((value == edge).any())]
    if not edges:
        return None
    inside = value
    if low is not None:
        inside = inside.maximum(torch.as_tensor(low).to(value) + _STEP)
    if high is not None:
        inside = inside.minimum(torch.as_tensor(high).to(value) - _STEP)
    if simplex:
        inside = inside / inside.sum(-1, keepdim=True)
    if not any(_only_inside(other, value, inside) for other in (base, *_neighbours(base))):
        return None

    shown = " and ".join(f"{_number(edge):g}" for edge in edges)
    family = type(base).__name__
    place = (
        f"{name} has values of exactly {shown}, where the density of {family} is 0 or infinite"
    )
    if simplex:
        small = f"{name} + {_STEP:g}"
        return f"{place}: add a small number, ({small}) / ({small}).sum(-1)[..., None]."
    if high is not None:
        return (
            f"{place}: use dist.ContinuousBernoulli, which allows them, or move the data"
            f" inside, {name}.clip({_number(low) + _STEP:g}, {_number(high) - _STEP:g})."
        )
    return f"{place}: move these values inside, {name}.clip(min={_number(low) + _STEP:g})."


def about_bounds(name: str, distribution: Distribution) -> str | None:
    """Returns a sentence about a likelihood that computes where its support ends.

    None if its parameters, which are trained, are no bounds of the support.

    Arguments:
        name: The name of the site.
        distribution: The likelihood.
    """
    base = elements_of(distribution)
    support = single_constraint(base.support)
    edges = [getattr(support, edge, None) for edge in ("lower_bound", "upper_bound")]
    bounds = [edge for edge in edges if isinstance(edge, Tensor) and edge.requires_grad]
    computed = [
        parameter
        for parameter in base.arg_constraints
        if any(getattr(base, parameter) is bound for bound in bounds)
    ]
    if not computed:
        return None
    family = type(base).__name__
    fixed = ", ".join(f"{parameter}=..." for parameter in computed)
    return (
        f"the likelihood of {name} computes {' and '.join(computed)}, where the support of"
        f" {family} ends, and gradients do not find the end of a support: fix it at a number"
        f" beyond all data, Conditional(dist.{family}, ..., {fixed})."
    )


def _number(edge: object) -> float:
    """A bound of a support as a number; the largest, if it differs from row to row."""
    return float(torch.as_tensor(edge).max())


def _log_prob(base: Distribution, value: Tensor) -> Tensor | None:
    """Log-densities of data; None for a family that cannot compute them."""
    try:
        with torch.no_grad():
            density: Tensor = base.log_prob(value)
    except (RuntimeError, ValueError, NotImplementedError):
        return None
    return density
