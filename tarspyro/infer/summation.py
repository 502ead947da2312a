"""Discrete latent variables that a model sums out."""

__all__ = ["run_model", "trace_summed"]

from collections import OrderedDict
from collections.abc import Mapping, Sequence
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
    *,
    with_data: bool = True,
) -> Trace:
    r"""Runs a model on a guide's draws, and sums the sites out that it enumerates itself.

    The sum takes the place of these sites and of all that depend on them:

    .. math:: \log p(x, z) = \log \sum_k p(k) \, p(z \mid k) \, p(x \mid z, k)

    Inside a plate there is one sum for each of its indices. Without the data the sum is log p(z).

    Raises:
        PairError: If the sites cannot be summed out.
    """
    # The values lie to the left of the plates of particles and of their groups.
    first_dim = -structure.nesting - 3
    program = model
    if structure.enumerated:
        program = poutine.enum(model, first_available_dim=first_dim)
    replayed = poutine.replay(program, trace=guide_trace)
    trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    if not with_data:
        trace = only(trace, lambda site: True)  # its latent sites
    return _summed_out(model, trace, structure, first_dim) if structure.enumerated else trace


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


def _summed_out(model: Program, trace: Trace, structure: Structure, first_dim: int) -> Trace:
    """Returns a trace with sums in place of the sites that depend on enumerated ones."""
    names = [
        name
        for name, site in sample_sites(trace)
        if name in structure.enumerated or _deepest_dim(site) <= first_dim
    ]
    nodes: dict[str, Any] = trace.nodes
    scale = _scale_of(model, [nodes[name] for name in names], structure)
    left = Trace()
    inside = Trace()
    for name, node in nodes.items():
        if name not in names:
            left.add_node(name, **node)
            continue
        mask = node["mask"]
        if name in structure.enumerated:
            # A mask leaves a term out. The probabilities of the values sum to one without it.
            node = {**node, "fn": without_masks(node["fn"])}
            mask = None
        density = log_prob(node)
        masked = scale_and_mask(density, mask=mask)
        inside.add_node(name, **{**node, "unscaled_log_prob": density, "log_prob": masked})
    try:
        log_sums = _contracted(inside)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".: ")
        raise PairError(
            f"{name_of(model)} cannot have its enumerated sites summed out: {reason}."
        ) from error

    for name, log_sum in log_sums.items():
        left.add_node(
            name,
            type="sample",
            name=name,
            fn=_Sum(log_sum),
            value=log_sum.new_zeros(()),
            args=(),
            kwargs={},
            infer={},
            is_observed=True,
            scale=scale,
            mask=None,
            cond_indep_stack=nodes[name]["cond_indep_stack"],
        )
    return left


def _deepest_dim(site: Site) -> int:
    """Returns the leftmost dimension of a site's density, counted from the right."""
    of_value: int = torch.as_tensor(site["value"]).dim() - site["fn"].event_dim
    return -max(len(site["fn"].batch_shape), of_value)


def _scale_of(model: Program, sites: Sequence[Site], structure: Structure) -> Tensor | float:
    """Returns the scale that all sites inside a sum have.

    Raises:
        PairError: If they have different ones.
    """
    scale: Tensor | float = sites[0]["scale"]
    for site in sites[1:]:
        if not equal_scales(site["scale"], scale):
            raise PairError(
                f"{name_of(model)} sums {sorted(structure.enumerated)} out, and the sites that"
                " depend on them have different scales: put these inside the same subsampled"
                " plates and poutine.scale."
            )
    return scale


def _contracted(trace: Trace) -> dict[str, Tensor]:
    """Returns the log sums of a trace's densities, by the first site in the same plates."""
    trace.pack_tensors()
    nodes: dict[str, Any] = trace.nodes
    terms: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    first_in: dict[frozenset[str], str] = {}
    symbols: set[str] = set()
    plates: set[str] = set()
    for name, node in nodes.items():
        term = node["packed"]["log_prob"]
        of_dim = node["infer"]["_dim_to_symbol"]
        around = frozenset(
            of_dim[frame.dim] for frame in node["cond_indep_stack"] if frame.vectorized
        )
        terms.setdefault(around, []).append(term)
        first_in.setdefault(around, name)
        symbols.update(term._pyro_dims)
        plates |= around

    found: dict[str, Tensor] = {}
    for around, parts in contract_tensor_tree(terms, symbols - plates).items():
        total = sum(unpack(part, trace.symbol_to_dim) for part in parts)
        found[first_in[around]] = total
    return found
