"""Discrete latent variables that a model sums out."""

__all__ = ["run_model", "summed_out", "trace_summed"]

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.packed import unpack
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    Site,
    equal_scales,
    is_enumerated,
    log_prob,
    name_of,
    only,
    sample_sites,
    without_masks,
)
from tarspyro.sharing import sharing
from tarspyro.types import Program


def trace_summed(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    structure: Structure,
) -> tuple[Trace, Trace]:
    """Runs a pair as ``trace_pair`` does; the model's trace is that of ``run_model``."""
    with sharing():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        return run_model(model, guide_trace, args, kwargs, structure), guide_trace


def run_model(
    model: Program,
    guide_trace: Trace,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    structure: Structure,
) -> Trace:
    """Runs a model on a guide's draws, and sums the sites out that it enumerates itself.

    Raises:
        PairError: If the sites cannot be summed out.
    """
    program = model
    if structure.enumerated:
        # The values lie to the left of the plates of particles and of their groups.
        program = poutine.enum(model, first_available_dim=-structure.nesting - 3)
    replayed = poutine.replay(program, trace=guide_trace)
    trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    return summed_out(model, trace, guide_trace) if structure.enumerated else trace


class _Sum:
    """The sum over enumerated values, in the place of a distribution.

    Arguments:
        log_sum: Its logarithm, with one dimension for each plate.
    """

    event_dim = 0
    event_shape = torch.Size()

    def __init__(self, log_sum: Tensor) -> None:
        self.log_sum = log_sum
        self.batch_shape = log_sum.shape

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the logarithm of the sum."""
        return self.log_sum


def summed_out(
    model: Program, trace: Trace, guide_trace: Trace, *, split: bool = False
) -> Trace:
    r"""Returns a trace with sums in place of the sites that depend on enumerated ones.

    .. math:: \log p(x, z) = \log \sum_k p(k) \, p(z \mid k) \, p(x \mid z, k)

    Inside a plate there is one sum for each of its indices.

    Arguments:
        model: The model, for messages.
        trace: Its run, in which these sites have all their values.
        guide_trace: The run of the guide, which may enumerate sites of its own.
        split: Whether log p(z) is a latent site, and log p(x, z) - log p(z) an observed one.
            The drawn latent sites inside a sum then keep their places, with a density of one.

    Raises:
        PairError: If the sites cannot be summed out.
    """
    nodes: dict[str, Any] = trace.nodes
    # Other data may have other sites than those in which the structure was found.
    dims = {
        name: site["infer"]["_enumerate_dim"]
        for name, site in sample_sites(trace)
        if is_enumerated(site) and name not in guide_trace.nodes
    }
    if not dims:
        return trace
    first_dim = max(dims.values())
    names = [
        name
        for name, site in sample_sites(trace)
        if name in dims or _deepest_dim(site) <= first_dim
    ]
    scale = _scale_of(model, [nodes[name] for name in names], dims)
    observed = any(nodes[name]["is_observed"] for name in names)
    drawn = [name for name in names if name not in dims and not nodes[name]["is_observed"]]
    split = split and bool(drawn)
    inside = _densities(trace, names, dims)
    sums: list[tuple[str, str, Tensor, bool]] = []
    try:
        if observed or not split:
            for first, log_sum in _contracted(inside, dims, first_dim).items():
                sums.append((first, first, log_sum, True))
        if split:
            latent = only(inside, lambda site: True)
            for first, log_sum in _contracted(latent, dims, first_dim).items():
                sums.append((f"prior with {first}", first, log_sum, False))
                if observed:
                    sums.append((f"data given {first}", first, -log_sum, True))
    except (ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".: ")
        raise PairError(
            f"{name_of(model)} cannot have its enumerated sites summed out: {reason}."
        ) from error

    left = Trace()
    for name, node in nodes.items():
        if name not in names:
            left.add_node(name, **node)
        elif split and name in drawn:
            one = _Sum(sums[0][2].new_zeros(()))
            left.add_node(name, **{**node, "fn": one})
    for name, first, log_sum, is_observed in sums:
        left.add_node(
            name,
            type="sample",
            name=name,
            fn=_Sum(log_sum),
            value=log_sum.new_zeros(()),
            args=(),
            kwargs={},
            infer={},
            is_observed=is_observed,
            scale=scale,
            mask=None,
            cond_indep_stack=nodes[first]["cond_indep_stack"],
        )
    return left


def _densities(trace: Trace, names: Collection[str], enumerated: Collection[str]) -> Trace:
    """Returns a trace of sites with their log-densities, for ``_contracted``."""
    part = Trace()
    nodes: dict[str, Any] = trace.nodes
    for name in names:
        node = nodes[name]
        mask = node["mask"]
        if name in enumerated:
            # A mask leaves a term out. The probabilities of the values sum to one without it.
            node = {**node, "fn": without_masks(node["fn"])}
            mask = None
        density = log_prob(node)
        masked = scale_and_mask(density, mask=mask)
        part.add_node(name, **{**node, "unscaled_log_prob": density, "log_prob": masked})
    return part


def _deepest_dim(site: Site) -> int:
    """Returns the leftmost dimension of a site's density, counted from the right."""
    of_value: int = torch.as_tensor(site["value"]).dim() - site["fn"].event_dim
    return -max(len(site["fn"].batch_shape), of_value)


def _scale_of(
    model: Program, sites: Sequence[Site], enumerated: Collection[str]
) -> Tensor | float:
    """Returns the scale that all sites inside a sum have.

    Raises:
        PairError: If they have different ones.
    """
    scale: Tensor | float = sites[0]["scale"]
    for site in sites[1:]:
        if not equal_scales(site["scale"], scale):
            raise PairError(
                f"{name_of(model)} sums {sorted(enumerated)} out, and the sites that"
                " depend on them have different scales: put these inside the same subsampled"
                " plates and poutine.scale."
            )
    return scale


def _contracted(
    trace: Trace, enumerated: Collection[str], first_dim: int
) -> dict[str, Tensor]:
    """Returns the log sums of a trace's densities, by the first enumerated site of their plates.

    The sums are over the dimensions from ``first_dim`` to the left.
    """
    trace.pack_tensors()
    nodes: dict[str, Any] = trace.nodes
    terms: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    first_in: dict[frozenset[str], str] = {}
    summed: set[str] = set()
    for name, node in nodes.items():
        of_dim = node["infer"]["_dim_to_symbol"]
        around = frozenset(
            of_dim[frame.dim] for frame in node["cond_indep_stack"] if frame.vectorized
        )
        terms.setdefault(around, []).append(node["packed"]["log_prob"])
        if name in enumerated:
            first_in.setdefault(around, name)
        summed.update(symbol for dim, symbol in of_dim.items() if dim <= first_dim)

    found: dict[str, Tensor] = {}
    for around, parts in contract_tensor_tree(terms, summed).items():
        total = sum(unpack(part, trace.symbol_to_dim) for part in parts)
        found[first_in[around]] = total
    return found
