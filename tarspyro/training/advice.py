"""Advice before and after the first step, by what is seen in the data and in the networks."""

__all__ = ["advise", "advise_on_batches", "advise_on_order", "remedy_of"]

import contextlib

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.infer.diagnosis import is_real
from tarspyro.infer.remedies import is_range_of_bytes
from tarspyro.infer.traces import (
    elements_of,
    is_delta,
    name_of,
    observed_of,
    sample_sites,
    trace_pair,
)
from tarspyro.inputs import count_rows
from tarspyro.models import Density
from tarspyro.programs import PROGRAM_ERRORS, have_rows, noting_first_inputs, tensors_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.training.checks import warn_user
from tarspyro.training.counts import Counter
from tarspyro.training.order import sites_by_place
from tarspyro.types import Arguments, Program

# The root of the mean square of inputs from which on a network starts badly.
_LARGE = 20.0

# Rows of so many whole numbers from 0 to 255 look like images.
_PIXELS = 32

# A learning rate from which on a single step may spoil a network. The default is 0.001.
_LARGE_RATE = 0.05


def advise(model: Program, guide: Program, arguments: Arguments, *, binarize: bool) -> None:
    """Warns of inputs whose scale is far from 1, and of pixels under a family of real numbers.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: The first batch.
        binarize: Whether ``fit`` draws the pixels of the first part of the data.
    """
    scale, trace = _run(model, guide, arguments)
    if trace is None:
        return
    if scale > _LARGE:
        warn_user(_about_scale(guide, scale, arguments, trace))
    for name, site in observed_of(sample_sites(trace)).items():
        # A game compares the pixels with those of a generator, which has no likelihood.
        if not is_real(site["fn"].support) or is_delta(site):
            continue
        family = type(elements_of(site["fn"])).__name__
        size = float(site["value"].double().square().nanmean().sqrt())
        if isinstance(model, Density) and size > _LARGE:
            # The start near the data is for likelihoods given latent variables.
            warn_user(
                f"{name} has a root mean square of {size:.3g}, and a Density starts on the scale"
                f" of 1: standardize it before, {name} = ({name} - {name}.mean(0)) /"
                f" {name}.std(0)."
            )
        if _looks_like_bytes(site["value"]):
            warn_user(
                f"{name} looks like the bytes of images, whole numbers up to"
                f" {site['value'].max():g}, and its likelihood is {family}, which is for real"
                f" numbers: divide by 255, {name} / 255, and for a likelihood of grey levels use"
                " tarspyro.distributions.DiscretizedLogistic then."
            )
        if binarize and site["value"] is arguments[0]:
            warn_user(
                f"binarize=True draws {name} as 0 and 1, and its likelihood is {family}, which"
                " is for real numbers: leave out binarize=True, or use dist.Bernoulli."
            )


def advise_on_batches(
    model: Program, guide: Program, arguments: Arguments, num_rows: int | None
) -> None:
    """Warns of latent variables that all batches share, if each batch counts as all data.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: The first batch, which is not all of the data.
        num_rows: The number of rows of the data; None if it is not known.
    """
    shared: list[str] = []
    with contextlib.suppress(*PROGRAM_ERRORS):
        shared = Counter(model, guide).shared(arguments)
    if shared:
        rows = count_rows(arguments)
        total = "N" if num_rows is None else str(num_rows)
        whole = (
            "" if num_rows is None else f", or take all data at once, batch_size={num_rows}"
        )
        warn_user(
            f"{name_of(model)} shares {shared} between the data points, and a batch counts as all"
            f" data: their prior then weighs as if there were {rows} data points, not {total}."
            f" Make each batch a subsample, pyro.plate(..., {total}, subsample=x){whole}."
        )


def advise_on_order(
    model: Program, guide: Program, arguments: Arguments, num_rows: int | None
) -> None:
    """Warns of densities that depend on a row's place in its batch, as with parameters of rows.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: The first batch, which is not all of the data.
        num_rows: The number of rows of the data; None if it is not known.
    """
    found: list[str] = []
    with contextlib.suppress(*PROGRAM_ERRORS):
        if have_rows({count_rows(arguments), num_rows or 0}, model, guide):
            found = sites_by_place(model, guide, arguments)
    if found:
        whole = "" if num_rows is None else f", batch_size={num_rows}"
        warn_user(
            f"The densities of {found} depend on a row's place in its batch, as where every row"
            " has parameters of its own, and each batch brings other rows to these places: take"
            f" all rows in one batch{whole}, or compute from the row's data, as"
            " guides.auto(model, network, x) does."
        )


def remedy_of(
    model: Program,
    guide: Program,
    arguments: Arguments | None,
    *,
    first: bool,
    rate: float,
) -> str:
    """Returns a sentence with a remedy for a loss or a gradient that is not finite.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: The batch, if it is known.
        first: Whether it is the first step of the training.
        rate: The largest learning rate.
    """
    if not first and rate >= _LARGE_RATE:
        return (
            f"The steps before were too large: use a smaller learning rate than lr={rate:g},"
            " such as lr=0.001."
        )
    if arguments is not None:
        scale, trace = _run(model, guide, arguments)
        if trace is not None and scale > _LARGE:
            return _about_scale(guide, scale, arguments, trace)
    if first:
        return (
            "It is the first step, so the learning rate is not the cause: look at the data and"
            " at the parameters with which the networks start."
        )
    return "Try a smaller learning rate or clip_norm."


def _run(model: Program, guide: Program, arguments: Arguments) -> tuple[float, Trace | None]:
    """Runs a pair; returns the scale of the guide's inputs, and the trace of the model.

    The scale is the root of the mean square of what the first layer with weights gets. There
    is no trace if the pair does not run as a whole, as in some games.
    """
    with (
        contextlib.suppress(RuntimeError, ValueError, TypeError),
        torch.no_grad(),
        pyro.validation_enabled(False),
        preserved_rng(),
        evaluating(model, guide),
        noting_first_inputs(guide) as seen,
    ):
        model_trace, _ = trace_pair(model, guide, arguments, {})
        scale = 0.0
        if seen and seen[0].is_floating_point():
            scale = seen[0].double().square().mean().sqrt().item()
        return scale, model_trace
    return 0.0, None


def _about_scale(guide: Program, scale: float, arguments: Arguments, trace: Trace) -> str:
    """A sentence about inputs of a scale far from 1."""
    data = max(tensors_of(arguments), key=lambda part: float(part.abs().max()))
    observed = observed_of(sample_sites(trace)).values()
    real = any(site["value"] is data and is_real(site["fn"].support) for site in observed)
    whole = bool((data == data.round()).all()) and float(data.min()) >= 0
    if _looks_like_bytes(data):
        fix = (
            "the data look like the bytes of images, divide them by 255, x / 255, as a"
            " tarspyro.distributions.DiscretizedLogistic takes them too"
        )
    elif real:
        fix = "train on standardized data, tarspyro.nn.Standardize.of(x)(torch.as_tensor(x))"
    elif whole:
        fix = (
            "give it standardized logarithms of the counts, torch.nn.Sequential(Log1p(),"
            " Standardize.of(torch.as_tensor(x).log1p()), network) with the layers of tarspyro.nn"
        )
    else:
        fix = (
            "give it standardized inputs, torch.nn.Sequential(Standardize.of(x), network) with"
            " a layer of tarspyro.nn"
        )
    return (
        f"The network of {name_of(guide)} gets inputs of scale {scale:,.0f}, and networks"
        f" start well at a scale near 1: {fix}."
    )


def _looks_like_bytes(data: Tensor) -> bool:
    """Whether data are rows of many whole numbers up to 255."""
    if data.dim() == 0 or data[:1].numel() < _PIXELS or not bool((data == data.round()).all()):
        return False
    return is_range_of_bytes(data.min().item(), data.max().item())
