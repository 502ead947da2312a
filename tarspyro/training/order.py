"""Programs whose densities depend on the place of a row in its batch."""

__all__ = ["sites_by_place"]

import contextlib
from collections.abc import Iterator

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.infer.traces import only, sample_sites, trace_pair, with_values
from tarspyro.inputs import count_rows, each
from tarspyro.programs import parameters_read
from tarspyro.scopes import evaluating, kept_buffers, preserved_rng
from tarspyro.types import Arguments, Program

# A site of the model or of the guide, with the dimension of the rows among those of its plates;
# None if all rows share it.
_Dims = dict[str, int | None]

# How far parameters are moved, so that those of different rows differ.
_DISTURBANCE = 0.1


def sites_by_place(model: Program, guide: Program, arguments: Arguments) -> list[str]:
    """Returns the sites whose density changes when all rows of a batch move by one place.

    Such a program has parameters for each place in a batch, or reads the order of the rows.
    Programs whose rows are not in one plate are not judged, nor are sites with noise of their
    own.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: A batch.
    """
    rows = count_rows(arguments)
    halves = (guide, model)
    with (
        torch.no_grad(),
        pyro.validation_enabled(False),
        poutine.block(),
        preserved_rng(),
        evaluating(*halves),
        kept_buffers(*halves),
    ):
        model_trace, guide_trace = trace_pair(model, guide, arguments, {})
        found = []
        for half, trace in ((guide, guide_trace), (model, model_trace)):
            dims = _dims_of_rows(trace, rows)
            if dims is None:
                return []
            with _disturbed(*halves):
                here = _densities(half, arguments, trace, dims, 0)
                moved = _densities(half, arguments, trace, dims, 1)
                again = _densities(half, arguments, trace, dims, 0)
            found += [
                name
                for name, value in here.items()
                if _differ(value, moved[name]) and not _differ(value, again[name])
            ]
    return sorted(set(found))


def _dims_of_rows(trace: Trace, rows: int) -> _Dims | None:
    """Returns the dimension of the rows in each site; None if rows are not in one plate."""
    dims: _Dims = {}
    for name, site in sample_sites(trace):
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        places = [frame.dim for frame in frames if frame.size == rows]
        drawn = not site["is_observed"] and not site["infer"].get("is_auxiliary")
        if (drawn and rows in site["fn"].event_shape) or len(places) != bool(frames):
            return None
        dims[name] = places[0] if places else None
    return dims


@contextlib.contextmanager
def _disturbed(*halves: Program) -> Iterator[None]:
    """Moves all parameters a little, and back again."""
    before = [
        (one, one.clone()) for one in parameters_read(*halves) if one.is_floating_point()
    ]
    try:
        for one, _ in before:
            one.add_(_DISTURBANCE * torch.randn_like(one))
        yield
    finally:
        for one, value in before:
            one.copy_(value)


def _densities(
    half: Program, arguments: Arguments, trace: Trace, dims: _Dims, places: int
) -> dict[str, Tensor]:
    """Returns the log-densities of a half's sites with all rows moved by some places.

    Values move with their rows, and each log-density is given in the first place of its row.
    """
    values = {
        name: _moved(site["value"], dims[name], places, len(site["fn"].event_shape))
        for name, site in sample_sites(trace)
        if not site["is_observed"]
    }
    drawn = with_values(only(trace, lambda site: site["name"] in values), values)
    moved = each(lambda part: part.roll(places, 0), arguments)
    again = poutine.trace(poutine.replay(half, trace=drawn)).get_trace(*moved)
    again.compute_log_prob()
    return {
        name: _moved(site["log_prob"], dims.get(name), -places)
        for name, site in sample_sites(again)
    }


def _moved(value: Tensor, dim: int | None, places: int, event_dims: int = 0) -> Tensor:
    """Returns a value with its rows, of which each is a draw, moved by some places."""
    if dim is None or value.dim() < event_dims - dim:
        return value.clone()
    return value.roll(places, dim - event_dims)


def _differ(one: Tensor, other: Tensor) -> bool:
    """Returns whether log-densities differ by more than rounding."""
    tolerance = 10 * torch.finfo(one.dtype).eps ** 0.5
    return bool(((one - other).abs() > tolerance * (1 + one.abs())).any())
