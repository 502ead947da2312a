"""The start of a training: outputs and inputs of new networks on the scale of the data.

A new network does not depend on the data that it will see. Its first outputs may be far from
them: a Normal of scale 0.1 around random numbers gives a grey image -10,000 nats, and a Poisson
with rate 1 gives a count of 5,000 the gradient 5,000. So some of the data is looked at once:

- the likelihood starts near the best distribution that does not depend on its context; if it
  takes a canvas as it is, the canvas starts there,
- the other conditional distributions start near one that is the same for all data points,
- inputs that are far from the scale of 1 are standardized.

Distributions whose weights were loaded, or changed by hand, stay as they are.
"""

__all__ = ["initialize_from_data", "start_near", "undone_on_error"]

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to
from torch.distributions.constraints import Constraint
from torch.nn.parameter import is_lazy

from tarspyro.conditional import Conditional
from tarspyro.distributions.experts import Concatenate
from tarspyro.distributions.incomplete import Incomplete, log_prob_of_known
from tarspyro.distributions.links import is_identity
from tarspyro.distributions.logistic import Levels
from tarspyro.infer.diagnosis import single_constraint
from tarspyro.infer.traces import check_program, elements_of, sample_sites, trace_pair
from tarspyro.inputs import count_rows
from tarspyro.nn.canvas import Canvas, IdentityTrunk
from tarspyro.nn.heads import bias_of, scale_weights
from tarspyro.nn.inputs import Standardize
from tarspyro.programs import device_of, modules_of, noting_first_inputs
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.training.batches import Batches
from tarspyro.types import Arguments, Data, Program

# The spread of a new head's outputs from one data point to another, where it was larger.
_SPREAD_OF_LATENT = 0.5

# The spread of a likelihood's heads is above the first number only while it costs less than the
# second, in nats a data point. This is about the information of the data on the latent variables
# at the start. With next to none, the KL drives the guide to the prior in the first epochs, and
# the latent variables may stay unused.
_SPREAD_OF_LIKELIHOOD = 0.15
_COST_OF_SPREAD = 1.0
_WIDTHS = 10

# Inputs and values with a root mean square between these are left alone.
_SMALLEST = 0.05
_LARGEST = 10.0

# Fewer rows than these, such as the first point of a stream, do not represent the others: the best
# constants would give values that are missing in them next to no probability.
_FEWEST_ROWS = 20

# The search for the best constant parameters: enough for any family's logarithms and logits.
_STEPS = 150
_FIRST_STEP = 0.1
_ELEMENTS = 1_000_000
# What keeps a logit finite where all data are zeros: about a hundredth of a data point.
_PENALTY = 1e-3
# The noise on values: in units of the location, and of logarithms or logits of bounded values.
_ROUGHNESS = 0.1
_RELATIVE_ROUGHNESS = 0.03


def initialize_from_data(model: Program, guide: Program, data: Data) -> None:
    r"""Initializes a new pair from data, as ``fit`` does before its first step.

    It is for training loops of your own, such as with ``pyro.infer.SVI``:

    - the biases of a likelihood maximize :math:`\sum_n \log p(x_n)` without a context, so that
      it starts at the best constant distribution; a ``Canvas`` that is the parameter of the
      likelihood itself, as in ``DRAW``, starts there;
    - the weights of heads are scaled such that different data points start with similar
      distributions;
    - inputs and locations whose root mean square is below 0.05 or above 10 are standardized,
      by layers that the ``Conditional`` then has.

    Only ``Conditional`` distributions whose heads are still as they were made are changed, and
    only once. Parameters that get other values before stay. Data of fewer than twenty rows
    (of a loader or a stream, a first batch) changes nothing: it does not represent other data.

    Arguments:
        model: The model.
        guide: The guide.
        data: The training data, in any form that ``fit`` takes.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> _ = torch.manual_seed(0)
        >>> x = 500 + 100 * torch.randn(1000, 3)
        >>> likelihood = Conditional(dist.Normal, MLP(2, [32]), 3)
        >>> p = models.VAE(default_prior(dist.Normal, 2), likelihood)
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(3, [32]), 2))
        >>> initialize_from_data(p, q, x)
        >>> round(likelihood.mean(torch.randn(1000, 2)).mean().item(), -2)
        500.0
    """
    check_program("model", model)
    check_program("guide", guide)
    device = device_of(model, guide) or torch.device("cpu")
    start_near(model, guide, Batches(data, model, 100, device, others=[guide]).examples)


def start_near(
    model: Program, guide: Program, examples: Callable[[], Iterator[Arguments]]
) -> None:
    """Initializes a pair's new conditional distributions.

    Trunks, random states and statistics stay as they are.

    Arguments:
        model: The model.
        guide: The guide.
        examples: A function that returns some batches, which stand for all of the data.
    """
    halves = [*modules_of(guide), *modules_of(model)]
    new = _new_parts(model, guide)
    if not new:
        return
    with preserved_rng(0), evaluating(*halves), pyro.validation_enabled(False):
        batches = list(examples())
        if sum(map(count_rows, batches)) < _FEWEST_ROWS:
            return

        # What comes out of a network depends on what goes in, and what a likelihood sees on
        # what the guide draws: inputs first, then latent variables, then likelihoods.
        seen = _run(model, guide, batches, new)
        for conditional in [*seen]:
            if _standardize_inputs(conditional, seen[conditional].calls):
                seen = _run(model, guide, batches, new)
        for conditional, found in seen.items():
            if not found.values:
                _narrow(conditional, found.calls, _SPREAD_OF_LATENT)
        for conditional, found in _run(model, guide, batches, new).items():
            if found.values:
                _start_at_the_marginal(conditional, found, _canvases(*halves))
    for conditional in new:
        conditional.is_new = False


@contextlib.contextmanager
def undone_on_error(model: Program, guide: Program) -> Iterator[None]:
    """Undoes what ``start_near`` has done to a pair, if the body raises."""
    new = _new_parts(model, guide)
    heads = [
        {
            key: value.clone()
            for key, value in part.heads.state_dict().items()
            if not is_lazy(value)
        }
        for part in new
    ]
    canvases = _canvases(*modules_of(guide), *modules_of(model))
    units = [dict(conditional.units) for conditional in new]
    arguments = [conditional.constructor_arguments for conditional in new]
    try:
        yield
    except BaseException:
        for conditional, weights, layers, own in zip(
            new, heads, units, arguments, strict=True
        ):
            conditional.heads.load_state_dict(weights, strict=False)
            conditional.units = nn.ModuleDict(layers)
            object.__setattr__(conditional, "constructor_arguments", own)
            conditional.is_new = True
        for canvas in canvases:
            nn.init.zeros_(canvas.start)
        raise


def _new_parts(model: Program, guide: Program) -> list[Conditional]:
    """Returns the conditional distributions of a pair that are as they were made."""
    return [
        part
        for half in (*modules_of(guide), *modules_of(model))
        for part in half.modules()
        if isinstance(part, Conditional) and part.is_new
    ]


def _canvases(*halves: nn.Module) -> list[Canvas]:
    """Returns the canvases that start at zero, as they were made."""
    found = {part for half in halves for part in half.modules() if isinstance(part, Canvas)}
    return [each for each in found if each.start.requires_grad and not each.start.any()]


# --- what conditional distributions are called with, and what is observed under them


class _Call(NamedTuple):
    """A call of a conditional distribution."""

    context: tuple[Tensor, ...]
    outputs: dict[str, Tensor]
    distribution: Distribution


class _Seen(NamedTuple):
    """The calls of a conditional distribution, the values observed under it, and their masks."""

    calls: list[_Call]
    values: list[Tensor]
    masks: list[Tensor | None]


def _run(
    model: Program, guide: Program, batches: Sequence[Arguments], new: Sequence[Conditional]
) -> dict[Conditional, _Seen]:
    """Runs the pair on some batches; returns what is seen of each conditional distribution."""
    seen: dict[Conditional, _Seen] = {}
    for arguments in batches:
        calls: dict[Conditional, list[_Call]] = {}
        with _noting_calls(new, calls):
            trace, _ = trace_pair(model, guide, arguments, {})
        for conditional, made in calls.items():
            seen.setdefault(conditional, _Seen([], [], [])).calls.extend(made)
        makers = _makers(calls)
        for _, site in sample_sites(trace):
            if not site["is_observed"] or not torch.is_tensor(site["value"]):
                continue
            for distribution, value, mask in _parts(site["fn"], site["value"], None):
                # Plates expand a distribution: another object with the same numbers.
                found = [makers[a] for a in _addresses(distribution) if a in makers]
                if found:
                    seen[found[0]].values.append(value)
                    seen[found[0]].masks.append(mask)
    return seen


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


def _makers(calls: Mapping[Conditional, Sequence[_Call]]) -> dict[int, Conditional]:
    """Returns which distribution has computed the numbers at an address."""
    makers = {}
    for conditional, made in calls.items():
        kept = {buffer.data_ptr() for buffer in conditional.buffers()}
        for call in made:
            for address in _addresses(call.distribution) - kept:
                makers[address] = conditional
    return makers


def _addresses(distribution: Distribution) -> set[int]:
    """Returns where a distribution's parameters are in memory, without those of its parts."""
    found: set[int] = set()
    distribution = elements_of(distribution)
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


def _standardize_inputs(conditional: Conditional, calls: Sequence[_Call]) -> bool:
    """Standardizes inputs whose scale is far from 1; returns whether there were any."""
    done = False
    for index in range(min(len(call.context) for call in calls)):
        inputs = [call.context[index] for call in calls]
        if not inputs[0].is_floating_point() or not inputs[0].dim():
            continue
        same = [value for value in inputs if value.shape[1:] == inputs[0].shape[1:]]
        rows = torch.cat(same)
        if _is_far_from_one(rows) and _goes_in_as_it_is(conditional, calls[0].context, index):
            conditional.standardize(str(index), rows)
            done = True
    return done


def _goes_in_as_it_is(
    conditional: Conditional, context: tuple[Tensor, ...], index: int
) -> bool:
    """Returns whether the first layer with weights gets a context value as it is.

    A trunk that takes logarithms, divides by 255 or normalizes needs the value itself.
    """
    with noting_first_inputs(conditional.trunk) as seen:
        conditional.outputs(*context)
    return bool(seen) and _is_part_of(context[index].nan_to_num(0.0), seen[0])


def _is_part_of(value: Tensor, inputs: Tensor) -> bool:
    """Returns whether the inputs of a layer are a value, or its columns beside others."""
    flat = value.reshape(-1)
    if inputs.numel() == flat.numel():
        return torch.equal(inputs.reshape(-1), flat)
    rows = value.reshape(-1, value.shape[-1])
    beside = inputs.reshape(-1, inputs.shape[-1])
    size = rows.shape[1]
    return len(rows) == len(beside) and any(
        torch.equal(beside[:, start : start + size], rows)
        for start in range(beside.shape[1] - size + 1)
    )


def _is_far_from_one(rows: Tensor) -> bool:
    """Returns whether the root mean square of some values is far from 1."""
    known = rows[rows.isfinite()]
    size = known.square().mean().sqrt().item() if known.numel() else 0.0
    return size != 0 and math.isfinite(size) and not _SMALLEST <= size <= _LARGEST


# --- outputs


def _narrow(conditional: Conditional, calls: Sequence[_Call], spread: float) -> None:
    """Scales the weights of heads whose outputs are further apart than the spread."""
    for name, factor in _narrowing(conditional, calls, spread).items():
        scale_weights(conditional.heads[name], factor)


def _narrowing(
    conditional: Conditional, calls: Sequence[_Call], spread: float
) -> dict[str, float]:
    """Returns the factors of the heads' weights that make the outputs as far apart as the spread.

    A head whose outputs are no further apart has the factor 1.
    """
    factors = {}
    for name in conditional.heads:
        outputs = torch.cat([call.outputs[name] for call in calls])
        found = outputs.std(0).square().mean().sqrt().item() if len(outputs) > 1 else 0.0
        narrower = math.isfinite(found) and found > spread
        factors[name] = spread / found if narrower else 1.0
    return factors


def _start_at_the_marginal(
    conditional: Conditional, seen: _Seen, canvases: Sequence[Canvas]
) -> None:
    """Starts a likelihood at the best distribution without a context.

    The biases of its heads are those of the distribution, and the weights are scaled. If the
    likelihood's parameter is a canvas, its bias is where the canvas starts.
    """
    narrowest = _narrowing(conditional, seen.calls, _SPREAD_OF_LIKELIHOOD)
    biases: dict[str, Tensor] = {}
    for name, head in conditional.heads.items():
        bias = _bias_of(conditional, head, canvases)
        if bias is None:
            _narrow(conditional, seen.calls, _SPREAD_OF_LIKELIHOOD)
            return
        biases[name] = bias
    value, mask = _rows(conditional, seen)
    location = _location(conditional, value)
    if location is not None and _is_far_from_one(value):
        conditional.standardize(location, value)
    layers = {name: conditional.units[name] for name in conditional.units if name == location}
    rough = _roughened(conditional, value, layers)
    best = _best_constants(conditional, biases, rough, mask)
    if best is None:
        _narrow(conditional, seen.calls, _SPREAD_OF_LIKELIHOOD)
        return

    factors = _affordable(conditional, seen, best, narrowest, rough, mask)
    for name, factor in factors.items():
        scale_weights(conditional.heads[name], factor)
    means = {name: rows.mean(0) for name, rows in _outputs(conditional, seen, best).items()}
    for name, bias in biases.items():
        wanted = best[name]
        mean = means[name]
        if name in layers:
            mean = layers[name](mean)
            wanted = layers[name](wanted)
        bias += (wanted - mean).reshape(len(bias), -1).mean(1)


def _bias_of(
    conditional: Conditional, head: nn.Module, canvases: Sequence[Canvas]
) -> Tensor | None:
    """Returns what is added to the elements or channels of a head's output, or None."""
    trunk = conditional.trunk
    if not isinstance(trunk, IdentityTrunk):
        return bias_of(head)
    size = math.prod(trunk.in_shapes[0])
    starts = [canvas.start for canvas in canvases if canvas.start.numel() == size]
    alone = len(starts) == 1 and len(conditional.heads) == 1
    return starts[0].view(-1) if alone else None


def _outputs(
    conditional: Conditional, seen: _Seen, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the outputs of the heads in all calls, one row a data point."""
    calls = [conditional.outputs(*call.context) for call in seen.calls]
    return {
        name: torch.cat([outputs[name].reshape(-1, *shaped.shape) for outputs in calls])
        for name, shaped in like.items()
    }


def _affordable(
    conditional: Conditional,
    seen: _Seen,
    best: Mapping[str, Tensor],
    narrowest: Mapping[str, float],
    value: Tensor,
    mask: Tensor | None,
) -> dict[str, float]:
    """Returns the largest factors of the heads' weights whose spread the data can afford.

    The cost of a spread is the mean log-probability of the values without it, less that with it.
    """
    outputs = _outputs(conditional, seen, best)
    rows = min(len(value), *(len(found) for found in outputs.values()))
    around = {name: (found - found.mean(0))[:rows] for name, found in outputs.items()}

    def log_prob(factors: Mapping[str, float]) -> float:
        spread = {name: best[name] + factors[name] * around[name] for name in best}
        found = log_prob_of_known(conditional.distribution(spread), value[:rows])
        return float((found if mask is None else found * mask[:rows]).mean())

    least = log_prob(dict.fromkeys(best, 0.0)) - _COST_OF_SPREAD
    for width in range(_WIDTHS):
        factors = {name: factor ** (width / _WIDTHS) for name, factor in narrowest.items()}
        if log_prob(factors) >= least:
            return factors
    return dict(narrowest)


def _best_constants(
    conditional: Conditional,
    biases: Mapping[str, Tensor],
    value: Tensor,
    mask: Tensor | None,
) -> dict[str, Tensor] | None:
    """Returns the free parameters that maximize the mean log-probability of some values.

    A small penalty keeps logits and logarithms finite. None if nothing finite was found.
    """
    leaves: dict[str, Tensor] = {}
    for name, bias in biases.items():
        leaves[name] = torch.zeros(len(bias), dtype=value.dtype, device=value.device)
    shapes = {name: shape for name, (_, shape) in conditional.free.items()}
    bound = {name for name, (link, _) in conditional.free.items() if not is_identity(link)}
    size = max(1, math.prod(value.shape[1:]))

    def loss() -> Tensor:
        rows = {
            name: _spread(leaf, shapes[name]).expand(len(value), *shapes[name])
            for name, leaf in leaves.items()
        }
        log_prob = log_prob_of_known(conditional.distribution(rows), value)
        if mask is not None:
            log_prob = log_prob * mask
        penalty = sum(leaves[name].square().mean() for name in bound)
        return -log_prob.mean() / size + _PENALTY * penalty

    # A location starts at the mean, where that is better than zero.
    mean = value.nanmean(0)
    for name in leaves.keys() - bound:
        if shapes[name] == mean.shape:
            before = _number(loss())
            zeros = leaves[name]
            leaves[name] = mean.reshape(len(zeros), -1).mean(1)
            if not _number(loss()) < before:
                leaves[name] = zeros
    for leaf in leaves.values():
        leaf.requires_grad_()
    optimizer = torch.optim.Rprop(leaves.values(), lr=_FIRST_STEP, step_sizes=(1e-4, 1.0))
    smallest = math.inf
    best: dict[str, Tensor] | None = None
    waited = 0
    with torch.enable_grad():
        for _ in range(_STEPS):
            found = loss()
            waited = 0 if _number(found) < smallest - 1e-4 else waited + 1
            if _number(found) < smallest:
                smallest = found.item()
                best = {
                    name: _spread(leaf.detach().clone(), shapes[name])
                    for name, leaf in leaves.items()
                }
            optimizer.zero_grad()
            found.backward()
            gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
            if waited == 10 or not all(part.isfinite().all() for part in gradients):
                break
            optimizer.step()
    return best


def _spread(leaf: Tensor, shape: torch.Size) -> Tensor:
    """Returns a parameter with one number for each element, or for each channel."""
    return leaf[:, None].expand(-1, math.prod(shape) // len(leaf)).reshape(shape)


def _number(value: Tensor) -> float:
    number = value.item()
    return number if math.isfinite(number) else math.inf


def _location(conditional: Conditional, like: Tensor) -> str | None:
    """Returns the name of the parameter that is the mode or mean of the distribution."""
    free = {
        name: torch.randn(shape, dtype=like.dtype, device=like.device)
        for name, (_, shape) in conditional.free.items()
    }
    made = conditional.distribution(free)
    for name, value in free.items():
        if not is_identity(conditional.free[name][0]):
            continue
        for statistic in ("mode", "mean"):
            try:
                found = getattr(made, statistic)
            except (NotImplementedError, AttributeError):
                continue
            if found.shape == value.shape and torch.allclose(found, value):
                return name
    return None


def _roughened(
    conditional: Conditional, value: Tensor, layers: Mapping[str, nn.Module]
) -> Tensor:
    """Adds noise to values of a continuous distribution, or of one that is rounded to levels.

    A column that is constant, or nearly so, would have no largest density: the scale would
    start so small that the first steps of the location are thousands of scales long.
    """
    whole: Constraint = conditional.distribution(
        {name: value.new_zeros(shape) for name, (_, shape) in conditional.free.items()}
    ).support
    support = single_constraint(whole)
    if isinstance(support, Levels):
        return support.nearest(value + _ROUGHNESS * torch.randn_like(value))
    if whole.is_discrete:
        return value
    try:
        link = biject_to(support)
    except NotImplementedError:
        return value
    free = link.inv(value)
    size = _ROUGHNESS if is_identity(link) else _RELATIVE_ROUGHNESS
    noise = size * torch.randn_like(free)
    for layer in layers.values():
        assert isinstance(layer, Standardize)
        noise = noise * layer.scale
    rough: Tensor = link(free + noise)
    return torch.where(rough.isfinite(), rough, value)


def _rows(conditional: Conditional, seen: _Seen) -> tuple[Tensor, Tensor | None]:
    """Returns the observed values of all calls, one row a data point, and which rows count."""
    ndims = len(conditional.event_shape)
    values = []
    masks = []
    for value, mask in zip(seen.values, seen.masks, strict=True):
        lead = value.shape[: value.dim() - ndims]
        values.append(value.reshape(-1, *value.shape[value.dim() - ndims :]))
        count = torch.ones(lead) if mask is None else mask.expand(lead)
        masks.append(count.reshape(-1).to(value.device))
    value = torch.cat(values)
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())

    # A part of the rows is enough, and fast.
    numbers = sum(math.prod(shape) for _, shape in conditional.free.values())
    kept = min(len(value), max(20, _ELEMENTS // max(1, numbers)))
    chosen = torch.arange(kept, device=value.device) * len(value) // kept
    masked = any(mask is not None for mask in seen.masks)
    return value[chosen], torch.cat(masks)[chosen].to(value.dtype) if masked else None
