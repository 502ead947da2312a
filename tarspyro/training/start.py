"""The start of a training: outputs and inputs of new networks on the scale of the data.

A new network knows nothing of the data that it will see. Its first outputs may be far from
them: a Normal of scale 0.1 around random numbers gives a grey image -10,000 nats, and a Poisson
with rate 1 gives a count of 5,000 the gradient 5,000. So the first batch is looked at once:

- the likelihood starts near the best distribution that does not depend on its context,
- the other conditional distributions start near one that is the same for all data points,
- inputs that are far from the scale of 1 are standardized.

Distributions whose weights were loaded, or changed by hand, stay as they are.
"""

__all__ = ["set_start"]

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from tarspyro.conditional import Conditional
from tarspyro.distributions.experts import Concatenate
from tarspyro.distributions.incomplete import Incomplete, log_prob_of_known
from tarspyro.distributions.links import is_identity
from tarspyro.infer.traces import sample_sites, trace_pair
from tarspyro.nn.heads import bias_of, scale_weights
from tarspyro.nn.inputs import Standardize
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Arguments, Program

# The spread of a new head's outputs from one data point to another, where it was larger.
_SPREAD_OF_LIKELIHOOD = 0.15
_SPREAD_OF_LATENT = 0.5

# Inputs and values with a root mean square between these are left alone.
_SMALLEST = 0.05
_LARGEST = 10.0

_STEPS = 150
_STEP = 0.1
# What keeps a logit finite where all data are zeros: about a hundredth of a data point.
_PENALTY = 1e-3


def set_start(model: Program, guide: Program, arguments: Arguments) -> list[str]:
    """Sets the start of a pair's new conditional distributions from a batch.

    Networks, random states and statistics stay as they are: only heads change, and layers that
    standardize come before networks.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: A batch.

    Returns:
        A sentence for each distribution whose inputs are standardized.
    """
    halves = [half for half in (guide, model) if isinstance(half, nn.Module)]
    new = [
        part
        for half in halves
        for part in half.modules()
        if isinstance(part, Conditional) and part.is_new
    ]
    if not new:
        return []
    said: list[str] = []

    def run() -> tuple[dict[Conditional, list[_Call]], Trace]:
        calls: dict[Conditional, list[_Call]] = {}
        with _noting_calls(new, calls):
            model_trace, _ = trace_pair(model, guide, arguments, {})
        return calls, model_trace

    with preserved_rng(0), evaluating(*halves), pyro.validation_enabled(False):
        # What comes out of a network depends on what goes in, and what a likelihood sees on
        # what the guide draws: inputs first, then latent variables, then likelihoods.
        calls, model_trace = run()
        for conditional in [*calls]:
            found = _standardize_inputs(conditional, calls[conditional])
            if found:
                said += found
                calls, model_trace = run()
        observed = {conditional for conditional, _ in _observations(calls, model_trace)}
        for conditional, made in calls.items():
            if conditional not in observed:
                _narrow(conditional, made, _SPREAD_OF_LATENT)
        calls, model_trace = run()
        values: dict[Conditional, list[_Observation]] = {}
        for conditional, observation in _observations(calls, model_trace):
            values.setdefault(conditional, []).append(observation)
        for conditional, observations in values.items():
            _narrow(conditional, calls[conditional], _SPREAD_OF_LIKELIHOOD)
            _start_at_the_marginal(conditional, observations)
    for conditional in new:
        conditional.is_new = False
    return said


# --- what conditional distributions are called with, and what is observed under them


class _Call(NamedTuple):
    """A call of a conditional distribution."""

    context: tuple[Tensor, ...]
    outputs: dict[str, Tensor]
    distribution: Distribution


class _Observation(NamedTuple):
    """Values that are observed under a conditional distribution, and which of them count."""

    value: Tensor
    mask: Tensor | None


@contextlib.contextmanager
def _noting_calls(
    conditionals: Sequence[Conditional], calls: dict[Conditional, list[_Call]]
) -> Iterator[None]:
    """Notes every call of some conditional distributions."""

    def note(conditional: nn.Module, context: tuple[Tensor, ...], made: Distribution) -> None:
        assert isinstance(conditional, Conditional)
        outputs = conditional.outputs(*context)
        calls.setdefault(conditional, []).append(_Call(context, outputs, made))

    with contextlib.ExitStack() as stack:
        for conditional in conditionals:
            handle = conditional.register_forward_hook(note)
            stack.callback(handle.remove)
        yield


def _observations(
    calls: dict[Conditional, list[_Call]], model_trace: Trace
) -> Iterator[tuple[Conditional, _Observation]]:
    """Yields what is observed under each conditional distribution."""
    makers: dict[int, Conditional] = {}
    for conditional, made in calls.items():
        kept = {buffer.data_ptr() for buffer in conditional.buffers()}
        for call in made:
            for address in _addresses(call.distribution) - kept:
                makers[address] = conditional
    for _, site in sample_sites(model_trace):
        if not site["is_observed"] or not torch.is_tensor(site["value"]):
            continue
        for distribution, value, mask in _parts(site["fn"], site["value"], None):
            # Plates expand a distribution, which is then another object with the same numbers.
            found = [makers[a] for a in _addresses(distribution) if a in makers]
            if found:
                yield found[0], _Observation(value, mask)


def _addresses(distribution: Distribution) -> set[int]:
    """Where the parameters of a distribution are in memory, but not those of its parts."""
    found: set[int] = set()
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, (Concatenate, Incomplete, MaskedDistribution)):
        return found
    for value in vars(distribution).values():
        if torch.is_tensor(value):
            found.add(value.data_ptr())
        elif isinstance(value, Distribution):  # such as the Gamma of a GammaPoisson
            found |= _addresses(value)
    return found


def _parts(
    distribution: Distribution, value: Tensor, mask: Tensor | None
) -> Iterator[tuple[Distribution, Tensor, Tensor | None]]:
    """Yields a distribution and those that it is made of, each with its part of the value."""
    yield distribution, value, mask
    if isinstance(distribution, MaskedDistribution):
        own = distribution._mask
        mask = own if torch.is_tensor(own) else mask
        yield from _parts(distribution.base_dist, value, mask)
    elif isinstance(distribution, Incomplete):
        yield from _parts(distribution.base, value, mask)
    elif isinstance(distribution, Concatenate):
        parts = value.split(distribution.sizes, -1)
        for block, part in zip(distribution.blocks, parts, strict=True):
            yield from _parts(block, part, mask)


# --- inputs


def _standardize_inputs(conditional: Conditional, calls: Sequence[_Call]) -> list[str]:
    """Standardizes inputs whose scale is far from 1."""
    said = []
    for index in range(len(calls[0].context)):
        inputs = [call.context[index] for call in calls if len(call.context) > index]
        if not inputs[0].is_floating_point():
            continue
        rows = torch.cat(
            [value.flatten(0, 0) if value.dim() else value[None] for value in inputs]
        )
        size = _far_from_one(rows)
        if size is None:
            continue
        conditional.standardize(str(index), rows)
        said.append(
            f"The inputs of {conditional!r} have a root mean square of {size:.3g}: they are"
            " standardized before the network."
        )
    return said


def _far_from_one(rows: Tensor) -> float | None:
    """Returns the root mean square of some values; None if it is near 1."""
    known = rows[~rows.isnan()]
    size = known.square().mean().sqrt().item() if known.numel() else 0.0
    near = _SMALLEST <= size <= _LARGEST or size == 0 or not math.isfinite(size)
    return None if near else size


# --- outputs


def _narrow(conditional: Conditional, calls: Sequence[_Call], spread: float) -> None:
    """Scales the weights of heads whose outputs are further apart than the spread."""
    for name, head in conditional.heads.items():
        outputs = torch.cat([call.outputs[name] for call in calls])
        if len(outputs) < 2:
            continue
        found = outputs.std(0).square().mean().sqrt().item()
        if math.isfinite(found) and found > spread:
            scale_weights(head, spread / found)


def _start_at_the_marginal(
    conditional: Conditional, observations: Sequence[_Observation]
) -> None:
    """Sets the biases of a likelihood to the best distribution without a context.

    They maximize the mean log-probability of the batch, with a small penalty.
    """
    biases = {name: bias_of(head) for name, head in conditional.heads.items()}
    if any(bias is None for bias in biases.values()):
        return
    value, mask = _rows(observations, conditional)
    free: dict[str, Tensor] = {}
    real: set[str] = set()
    for name, (transform, shape) in conditional.free.items():
        free[name] = torch.zeros(shape, dtype=value.dtype, device=value.device)
        if is_identity(transform):
            real.add(name)

    def loss(free: dict[str, Tensor]) -> Tensor:
        rows = {name: part.expand(len(value), *part.shape) for name, part in free.items()}
        log_prob = log_prob_of_known(conditional.distribution(rows), value)
        if mask is not None:
            log_prob = log_prob * mask
        penalty = sum(part.square().mean() for name, part in free.items() if name not in real)
        return -log_prob.mean() / max(1, math.prod(value.shape[1:])) + _PENALTY * penalty

    # A location starts at the mean, where that is better than zero.
    mean = value.nanmean(0)
    for name in real:
        moved = {**free, name: mean} if mean.shape == free[name].shape else free
        if _finite(loss(moved)) < _finite(loss(free)):
            free = moved

    best = _maximized(loss, free)
    if best is None:
        return
    for name, bias in biases.items():
        found = best[name]
        if name in real and found.shape == mean.shape and _far_from_one(value) is not None:
            conditional.standardize(name, value)
            layer = conditional.units[name]
            assert isinstance(layer, Standardize)
            found = layer(found)
        assert bias is not None
        bias.copy_(found.expand(best[name].shape).reshape(bias.shape))


def _maximized(
    loss: Callable[[dict[str, Tensor]], Tensor], free: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """Returns free parameters with a smaller loss; None if it was nowhere finite."""
    leaves = {name: part.clone().requires_grad_() for name, part in free.items()}
    optimizer = torch.optim.Rprop(leaves.values(), lr=_STEP, step_sizes=(1e-4, 1.0))
    smallest = math.inf
    best = None
    with torch.enable_grad():
        for _ in range(_STEPS):
            found = loss(leaves)
            if _finite(found) < smallest:
                smallest = found.item()
                best = {name: leaf.detach().clone() for name, leaf in leaves.items()}
            optimizer.zero_grad()
            found.backward()
            if not all(
                leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves.values()
            ):
                break
            optimizer.step()
    return best


def _finite(value: Tensor) -> float:
    number = value.item()
    return number if math.isfinite(number) else math.inf


def _rows(
    observations: Sequence[_Observation], conditional: Conditional
) -> tuple[Tensor, Tensor | None]:
    """Returns the observed values of all calls, one row a data point, and which rows count."""
    ndims = len(conditional.event_shape)
    values = []
    masks = []
    for value, mask in observations:
        lead = value.shape[: value.dim() - ndims]
        values.append(value.reshape(-1, *value.shape[value.dim() - ndims :]))
        count = torch.ones(lead) if mask is None else mask.to(value.dtype).expand(lead)
        masks.append(count.reshape(-1).to(value.device))
    value = torch.cat(values)
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    masked = all(observation.mask is None for observation in observations)
    return value, None if masked else torch.cat(masks)
