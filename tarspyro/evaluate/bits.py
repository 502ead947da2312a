"""Bits per dimension, the unit of likelihoods of images."""

__all__ = ["BitsPerDimension", "bits_per_dim"]

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from tarspyro.arguments import as_numbers, check_positive, format_fields
from tarspyro.data import Sequences, Split
from tarspyro.distributions.experts import Concatenate
from tarspyro.evaluate.batching import Array, map_batches
from tarspyro.evaluate.likelihood import BoundEstimate, LogLikelihood
from tarspyro.evaluate.likelihood import log_likelihood as log_likelihood_of
from tarspyro.infer.traces import (
    PairError,
    elements_of,
    name_of,
    no_guide,
    observed_of,
    sample_sites,
    trace_pair,
)
from tarspyro.inputs import count_rows
from tarspyro.scopes import preserved_rng
from tarspyro.types import Argument, ArrayLike, Data, Program

# Log-likelihoods in nats, with or without errors, or bounds on them.
Nats: TypeAlias = ArrayLike | LogLikelihood | BoundEstimate


class BitsPerDimension(NamedTuple):
    """The bits per dimension of each data point, their mean, and its standard errors.

    ``standard_error`` is that of the mean over data points, which estimates other data of the
    same kind. ``monte_carlo_error`` is the part that comes from the particles, which remains
    for these very data; NaN if the log-likelihoods came without errors.
    """

    bits: Array
    mean: float
    standard_error: float
    monte_carlo_error: float

    def __repr__(self) -> str:
        return format_fields("BitsPerDimension", self._asdict())


def bits_per_dim(
    log_likelihood: Nats | tuple[Program, Program | None],
    x: Data,
    *,
    divisor: float | None = None,
    num_particles: int = 1000,
    binarize: bool = False,
    seed: int | None = None,
) -> BitsPerDimension:
    r"""Returns negative log-likelihoods in bits per dimension: lower is better.

    .. math:: b_n = -\frac{\log p(x_n)}{D \log 2} + \log_2 c

    with the number D of elements of a data point (channels too). c is 1 for probabilities of
    discrete data, such as those under ``DiscretizedLogistic``, where 8 bits are the levels'
    uniform distribution.

    A continuous density, such as that of a ``Normal``, becomes comparable by dequantization:
    uniform noise u spreads the probabilities of the bytes y over cells of size 1, and
    :math:`\mathbb{E}_u[\log p(y + u)]` is a lower bound on the log-probability of y. For data
    :math:`x = (y + u) / c`, the second term changes the density of x to that of y + u. Their
    ``divisor`` c is 256 for ``(bytes + noise) / 256``, which adds 8 bits, and 255 for bytes
    divided by 255, which adds 7.994 (where some add 8); it is 127.5 for images from -1 to 1,
    and 255 times the standard deviation after standardization. Without the noise the density
    bounds nothing, and its bits may fall without limit.

    Arguments:
        log_likelihood: Log-likelihoods in nats, one for each data point: an array or a tensor,
            or what ``log_likelihood(errors=True)`` and ``elbo`` return (the latter gives upper
            bounds on bits). Or a pair ``(model, guide)``, of which ``log_likelihood`` computes
            them; ``(model, None)`` for a model without latent variables.
        x: The data, of shape (N, \*event), in which D is counted.
        divisor: For continuous densities, the number c that the bytes were divided by; 1 if
            they were not. None for probabilities of discrete data.
        num_particles: For a pair, see ``log_likelihood``.
        binarize: For a pair, likewise.
        seed: For a pair, likewise.

    Returns:
        A tuple (bits, mean, standard_error, monte_carlo_error). The first has shape (N,): an
        array for arrays, a tensor for tensors.

    Raises:
        PairError: If the model of a pair observes several sites, so that D is not one number.
        TypeError: If ``log_likelihood`` is neither numbers nor a pair, or ``x`` has no rows.
        ValueError: If the numbers of rows differ, data are missing, ``divisor`` is not
            positive; or for a pair, if it is given for discrete data, or missing for
            continuous ones.

    References:
        Theis et al. (2016), A Note on the Evaluation of Generative Models, arXiv:1511.01844,
        section 3.1.

    Example:
        >>> uniform = torch.full((10,), -3 * 32 * 32 * math.log(256))
        >>> round(bits_per_dim(uniform, torch.zeros(10, 3, 32, 32)).mean, 4)
        8.0
    """
    if divisor is not None:
        check_positive("divisor", divisor)
    nats: Nats
    if isinstance(x, Sequences):
        raise ValueError(
            "x has sequences, which may differ in their numbers of elements: divide what"
            " log_likelihood returns by the steps of each, x.lengths."
        )
    if isinstance(log_likelihood, tuple) and _are_programs(log_likelihood):
        model, guide = _pair(log_likelihood)
        size = _elements(model, guide, x, divisor, binarize)
        nats = log_likelihood_of(
            model,
            guide,
            x,
            num_particles=num_particles,
            errors=True,
            binarize=binarize,
            seed=seed,
        )
    else:
        nats = cast(Nats, log_likelihood)
        size = _elements_of_row(x, len(_as_nats(nats)))
    return _in_bits(nats, size * math.log(2), divisor)


def _in_bits(given: Nats, unit: float, divisor: float | None) -> BitsPerDimension:
    """Returns log-likelihoods in bits per dimension, of which one is a number of nats."""
    nats = _as_nats(given)
    count = len(nats)
    bits = math.log2(1 if divisor is None else divisor) - nats.double() / unit
    error = bits.std().item() / count**0.5 if count > 1 else math.nan
    noise = math.nan
    if isinstance(given, LogLikelihood):
        errors = as_numbers("standard_error", given.standard_error).double()
        noise = errors.square().sum().sqrt().item() / count / unit
    mean = bits.mean().item()
    as_tensor = isinstance(_values(given), Tensor)
    return BitsPerDimension(bits if as_tensor else bits.numpy(), mean, error, noise)


def _values(given: Nats) -> ArrayLike:
    """Returns the log-likelihoods among the results of an evaluation."""
    if isinstance(given, LogLikelihood):
        return given.log_likelihood
    return given.elbo if isinstance(given, BoundEstimate) else given


def _as_nats(given: Nats) -> Tensor:
    """Returns one number for each data point.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If they have another shape.
    """
    nats = as_numbers("log_likelihood", _values(given)).detach()
    if nats.dim() != 1 or not len(nats):
        raise ValueError(
            "log_likelihood must be one number for each data point, of shape (N,), got"
            f" {tuple(nats.shape)}: do not take the mean, so that it has a standard error."
        )
    return nats


def _are_programs(given: Sequence[object]) -> bool:
    """Whether a tuple holds programs, the last of which may be None."""
    return callable(given[0]) and all(callable(each) or each is None for each in given[1:])


def _pair(given: Sequence[Any]) -> tuple[Program, Program]:
    """Returns a model and a guide.

    Raises:
        TypeError: If there are more or fewer programs.
    """
    if len(given) != 2:
        raise TypeError(
            f"log_likelihood must be numbers or a pair (model, guide), got {len(given)}"
            " programs."
        )
    model, guide = given
    return model, no_guide if guide is None else guide


def _elements_of_row(x: Data, rows: int) -> int:
    """Returns the number of elements of a data point.

    Raises:
        ValueError: If there are more or fewer data points than rows, or data are missing.
    """
    data: Any = x.x if isinstance(x, Split) else x
    tensor = as_numbers("x", data)
    if tensor.dim() < 2 or len(tensor) != rows:
        raise ValueError(
            f"x must be the {rows} data points of the log-likelihoods, of shape ({rows},"
            f" *event), got {tuple(tensor.shape)}."
        )
    _check_known(tensor)
    return tensor[0].numel()


def _check_known(x: Tensor) -> None:
    """Raises if data are missing, because each data point then has its own dimension."""
    if x.is_floating_point() and bool(x.isnan().any()):
        raise ValueError(
            "x has missing values, NaN, and bits per dimension need all elements: give"
            " complete data points."
        )


def _elements(
    model: Program, guide: Program, x: Data, divisor: float | None, binarize: bool
) -> int:
    """Returns the number of elements of a data point that a pair observes.

    Raises:
        PairError: If the model observes several sites or none.
        ValueError: If ``divisor`` does not suit the likelihood, or data are missing.
    """
    observed = functools.partial(_observed_elements, model, guide, divisor)
    with preserved_rng():
        sizes = map_batches(observed, (model, guide), x, binarize=binarize, check=True)
    return int(sizes[0])


def _observed_elements(
    model: Program, guide: Program, divisor: float | None, *batch: Argument
) -> Tensor:
    """Returns the number of elements of the observed site, for a data point."""
    trace, _ = trace_pair(model, guide, batch, {})
    observed = observed_of(sample_sites(trace))
    if len(observed) != 1:
        raise PairError(
            f"{name_of(model)} observes {sorted(observed)}, and bits per dimension are those of"
            " one site: give log-likelihoods of it in place of the pair."
        )
    [(name, site)] = observed.items()
    _check_known(site["value"])
    _check_divisor(name, site["fn"], site["value"], divisor)
    rows = count_rows(batch)
    return torch.full((rows,), site["value"].numel() // rows)


def _check_divisor(
    name: str, distribution: Distribution, value: Tensor, divisor: float | None
) -> None:
    """Raises unless a divisor is given where the values have a density, and there alone."""
    base = elements_of(distribution)
    blocks = base.blocks if isinstance(base, Concatenate) else [base]
    supports: list[Any] = [block.support for block in blocks]
    kinds = {bool(support.is_discrete) for support in supports}
    family = type(base).__name__
    if kinds == {True, False}:
        raise ValueError(
            f"{name} has discrete and continuous elements, whose bits do not add up: take"
            " log_likelihood."
        )
    if kinds == {False} and divisor is None:
        raise ValueError(
            f"divisor must be given, because {name} has a density under {family}: the number"
            " that its bytes were divided by, such as divisor=256, or 1."
        )
    if kinds == {True} and divisor is not None:
        raise ValueError(
            f"divisor must be None, because {name} has a probability under {family}, got"
            f" {divisor}."
        )
    support: Any = distribution.support
    if kinds == {True} and not bool(support.check(value).all()):
        raise ValueError(
            f"{name} has values that are not in the support of {family}, so that it has no"
            " probability: take values in it, such as those of binarize=True."
        )
