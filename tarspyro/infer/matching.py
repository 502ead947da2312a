"""The check of a pair: whether its halves have the same latent variables, and run on the data."""

__all__ = [
    "check_auxiliary",
    "check_count",
    "check_pair",
    "check_shape",
    "check_sites",
    "explaining",
    "positional_names",
    "run_pair",
    "sentence_of",
]

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Independent
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import TransformedDistribution, biject_to, constraints

from tarspyro.infer.traces import (
    InputError,
    PairError,
    Site,
    check_program,
    is_delta,
    is_factor,
    name_of,
    sample_sites,
    trace_pair,
)
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program

_DRAWS = 16  # of the guide, to be compared with the prior's support


def check_pair(model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
    """Runs the pair once and raises where Pyro would only warn.

    Leaves random state, statistics and parameters as they are.

    Raises:
        PairError: If the halves do not sample the same latent sites, with the same shapes,
            inside the same plates, or the guide draws what the prior cannot, or the model
            observes nothing.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("w", dist.Normal(x, 1.0))
        >>> try:
        ...     check_pair(model, guide, torch.zeros(3))
        ... except PairError as error:
        ...     print(error)
        guide does not pair with model: the model also samples ['z']; the guide also samples
        ['w'].
    """
    with preserved_rng(), evaluating(model, guide):
        traces = run_pair(model, guide, args, kwargs)
        check_sites(model, guide, *traces, data=(*args, *kwargs.values()))


def run_pair(
    model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Trace, Trace]:
    """Runs a pair; where that fails, says in one sentence why.

    Raises:
        InputError: If the programs do not run on the data, or an observed site is given
            another shape than it has.
        PairError: If a latent variable has another shape in one half than in the other.
        TypeError: If one of them is no program.
    """
    check_program("model", model)
    check_program("guide", guide)
    for half in (model, guide):
        check_count(args, half)
    try:
        return trace_pair(model, guide, args, kwargs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        own = isinstance(error, (InputError, PairError)) and "\n" not in str(error)
        if own or (isinstance(error, RuntimeError) and type(error) is not RuntimeError):
            raise  # a sentence already; no memory, or not implemented
        # The model alone tells what it expects, where the guide's network has stumbled over
        # the data.
        alone, reason = _run_alone(model, args, kwargs)
        for name, site in () if alone is None else sample_sites(alone):
            if site["is_observed"]:
                check_shape(name, site["fn"], site["value"])
        guided, _ = _run_alone(guide, args, kwargs)
        if alone is not None and guided is not None:
            _check_plates(model, guide, alone, guided)
            _check_shapes(model, guide, alone, guided)
        raise InputError(sentence_of((model, guide), args, reason or error)) from error


def _run_alone(
    half: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Trace | None, Exception | None]:
    """Returns the run of a half, or what it raises."""
    try:
        return poutine.trace(half).get_trace(*args, **kwargs), None
    except NotImplementedError:  # a prior that cannot be drawn from
        return None, None
    except Exception as error:
        return None, error


@contextlib.contextmanager
def explaining(programs: Sequence[Program], arguments: Sequence[Any]) -> Iterator[None]:
    """Says in one sentence that programs do not run on some data, in place of what torch and
    Pyro say over many lines.

    Raises:
        InputError: If they do not run.
    """
    try:
        yield
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        whole = isinstance(error, ValueError) and "\n" not in str(error)
        if whole or (isinstance(error, RuntimeError) and type(error) is not RuntimeError):
            raise  # a sentence already; no memory, or not implemented
        if isinstance(error, (InputError, PairError)):
            raise type(error)(str(error).partition("\n")[0]) from error
        raise InputError(sentence_of(programs, arguments, error)) from error


def sentence_of(
    programs: Sequence[Program], arguments: Sequence[Any], error: Exception
) -> str:
    """Returns one sentence that says which programs do not run on data of which shapes, and
    why.
    """
    reason = str(error).partition("\n")[0]
    shapes = ", ".join(
        str(tuple(part.shape)) if torch.is_tensor(part) else repr(part) for part in arguments
    )
    names = list(dict.fromkeys(name_of(program) for program in programs))
    return (
        f"{' and '.join(names)} {'does' if len(names) == 1 else 'do'} not run on data of shape"
        f" {shapes}: {reason}"
    )


def check_shape(name: str, distribution: Any, value: Any) -> None:
    """Raises unless what is observed has the shape of the likelihood's events.

    Raises:
        InputError: If it has another.
    """
    if not torch.is_tensor(value) or not hasattr(distribution, "event_shape"):
        return
    event, given = (
        tuple(distribution.event_shape),
        tuple(value.shape[len(distribution.batch_shape) :]),
    )
    if given == event:
        return
    if not value.is_floating_point() and value.dim() == 1:
        raise InputError(
            f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}: these look like"
            " labels, not data."
        )
    if tuple(value.shape) == event and len(distribution.batch_shape) == 1:
        raise InputError(
            f"{name} has shape {event}, which is one row of data: add a dimension,"
            f" {name}.unsqueeze(0)."
        )
    size = torch.Size(event).numel()
    if torch.Size(given).numel() == size:
        fix = f"reshape it, {name}.reshape(len({name}), {', '.join(map(str, event))})"
        if len(event) == 3 and given == event[1:]:
            fix = f"there is no channel axis: add it, {name}.unsqueeze(1)"
    else:
        fix = f"change the likelihood's event_shape to {given}, or the data"
    raise InputError(
        f"{name} has rows of shape {given}, but the likelihood draws {event}: {fix}."
    )


def check_count(arguments: Sequence[Any], program: Program) -> None:
    """Raises if there are more parts of data than the program takes: most often labels among
    the inputs.
    """
    names = positional_names(program)
    if names and len(arguments) > len(names):
        raise ValueError(
            f"data has {len(arguments)} parts but {name_of(program)} takes {len(names)}"
            f" ({', '.join(names)}): leave out what it does not take, such as the labels."
        )


def positional_names(program: Program) -> list[str]:
    """The names of the program's data arguments; empty where it takes any number of them."""
    function = program.forward if isinstance(program, nn.Module) else program
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin does not tell
        return []
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def check_sites(
    model: Program,
    guide: Program,
    model_trace: Trace,
    guide_trace: Trace,
    *,
    data: Sequence[Any] = (),
    observed: bool = True,
    supports: bool = True,
) -> None:
    """Raises unless the sites of two traces match.

    Arguments:
        model: The model.
        guide: The guide.
        model_trace: A run of the model on the guide's draws.
        guide_trace: That run of the guide.
        data: What the pair was called with: parts of it that are observed must have the
            likelihood's shape.
        observed: Whether the model has to observe something.
        supports: Whether a latent variable has to have the same support in both.
    """
    sites, guided = dict(sample_sites(model_trace)), dict(sample_sites(guide_trace))
    latent = {name for name, site in sites.items() if not site["is_observed"]}
    seen = {
        name for name, site in sites.items() if site["is_observed"] and not is_factor(site)
    }
    drawn = {name for name, site in guided.items() if not site["is_observed"]}
    auxiliary = {name for name in drawn - latent if guided[name]["infer"].get("is_auxiliary")}
    summed = {
        name for name in latent - drawn if sites[name]["infer"].get("enumerate") == "parallel"
    }
    pair = f"{name_of(guide)} does not pair with {name_of(model)}"
    given = sorted(
        name for name, site in guided.items() if site["is_observed"] and not is_factor(site)
    )
    if given and seen:
        raise PairError(
            f"{pair}: it observes {given}, which is for the model to do: a guide draws latent"
            " variables."
        )
    if given:
        raise PairError(
            f"{name_of(model)} observes nothing and {name_of(guide)} observes {given}: they"
            " look swapped, the model comes first."
        )
    conditioned = sorted((drawn - auxiliary) & seen)
    if conditioned:
        raise PairError(
            f"{pair}: it draws {conditioned}, which the model observes: hide them from the"
            f" guide, poutine.block(guide, hide={conditioned})."
        )
    if observed and not seen and not any(is_factor(site) for site in sites.values()):
        unseen = (
            f" and samples {sorted(latent - drawn)}, which the guide does not"
            if latent - drawn
            else ""
        )
        raise PairError(
            f"{name_of(model)} observes nothing{unseen}: give pyro.sample the data, obs=..."
        )
    missing, extra = sorted(latent - drawn - summed), sorted(drawn - latent - auxiliary)
    if missing or extra:
        for name in missing:
            if sites[name]["infer"].get("enumerate") == "sequential":
                raise PairError(
                    f"The model enumerates {name!r} sequentially, which sums nothing out of a"
                    " model: write infer={'enumerate': 'parallel'}."
                )
        parts = [f"the model also samples {missing}"] * bool(missing)
        parts += [f"the guide also samples {extra}"] * bool(extra)
        raise PairError(f"{pair}: {'; '.join(parts)}.")
    _check_plates(model, guide, model_trace, guide_trace)
    _check_shapes(model, guide, model_trace, guide_trace)
    for name in latent & drawn if supports else ():
        _check_support(name, guided[name], sites[name])
    for name in seen:
        if any(sites[name]["value"] is part for part in data):
            check_shape(name, sites[name]["fn"], sites[name]["value"])


def _check_plates(
    model: Program, guide: Program, model_trace: Trace, guide_trace: Trace
) -> None:
    """Raises if a plate has another size in the guide, whose indices the model takes, than in
    the model.
    """
    sizes: list[dict[str, Any]] = []
    for trace in (model_trace, guide_trace):
        frames = [
            frame for _, site in sample_sites(trace) for frame in site["cond_indep_stack"]
        ]
        # A plate without a size, as in an EasyGuide, takes what it meets.
        sizes.append(
            {frame.name: frame.full_size or frame.size for frame in frames if frame.size > 0}
        )
    for name in sizes[0].keys() & sizes[1].keys():
        if sizes[0][name] != sizes[1][name]:
            raise PairError(
                f"The plate {name!r} has the size {sizes[0][name]} in {name_of(model)} and"
                f" {sizes[1][name]} in {name_of(guide)}: give both the same size."
            )


def _check_shapes(
    model: Program, guide: Program, model_trace: Trace, guide_trace: Trace
) -> None:
    """Raises unless each latent variable has the shape in the guide that it has in the model."""
    guided = dict(sample_sites(guide_trace))
    for name, site in sample_sites(model_trace):
        other = guided.get(name)
        if site["is_observed"] or other is None or not hasattr(site["fn"], "event_shape"):
            continue
        for kind in ("event", "batch"):
            wanted, drawn = (
                tuple(getattr(half["fn"], f"{kind}_shape")) for half in (site, other)
            )
            if kind == "batch":
                # Leading dimensions of size one say nothing.
                wanted, drawn = _without_leading_ones(wanted), _without_leading_ones(drawn)
            if wanted != drawn:
                what = "events" if kind == "event" else "a batch"
                fix = (
                    "give both the same event shape"
                    if kind == "event"
                    else "put it inside the same plates in both"
                )
                raise PairError(
                    f"{name!r} has {what} of shape {wanted} in {name_of(model)}"
                    f" ({_family(site['fn'])}) and {drawn} in {name_of(guide)}"
                    f" ({_family(other['fn'])}): {fix}."
                )


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_support(name: str, guided: Site, site: Site) -> None:
    """Raises if the guide draws values of another kind than the prior has, or that the prior
    cannot have.
    """
    prior, posterior = site["fn"], guided["fn"]
    support, other = _plain(prior.support), _plain(posterior.support)
    if constraints.is_dependent(support):
        return
    if is_delta(guided):
        draws = posterior.sample()
    elif _same(support, other):
        return
    else:
        draws = posterior.sample((_DRAWS,))
    inside = bool(support.check(draws).all())
    # A discrete variable may be relaxed in the guide, if its draws are its values.
    like = is_delta(guided) or support.is_discrete or _kind(support) == _kind(other)
    # A transform says where its values lie at most: an exponential variable that is moved may
    # be any real number to it.
    base = _innermost(posterior)
    like = (
        like
        or isinstance(base, TransformedDistribution)
        and _plain(base.base_dist.support) is not constraints.real
    )
    if inside and like and not (support.is_discrete and other.is_discrete):
        return
    raise PairError(
        f"{name!r} is {_family(prior)} in the model ({support}), and the guide draws"
        f" {_family(posterior)} ({other}): give both the same support."
    )


def _kind(support: Any) -> Any:
    """What a continuous support is like, wherever its edges lie: a half-line, an interval, or
    a class of its own.
    """
    if isinstance(support, (type(constraints.positive), type(constraints.nonnegative))):
        return "half-line"
    if isinstance(support, (type(constraints.unit_interval), constraints.half_open_interval)):
        return "interval"
    return type(support)


def _plain(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _same(one: Any, other: Any) -> bool:
    """Whether two supports are the same."""
    if type(one) is not type(other):
        return False
    edges = [
        [
            torch.as_tensor(edge)
            for key, edge in vars(support).items()
            if isinstance(edge, (int, float, Tensor))
        ]
        for support in (one, other)
    ]
    return len(edges[0]) == len(edges[1]) and all(map(torch.equal, *edges))


def _family(distribution: Any) -> str:
    return type(_innermost(distribution)).__name__


def _innermost(distribution: Any) -> Any:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def check_auxiliary(
    guide: Program,
    model_trace: Trace,
    guide_trace: Trace,
    auxiliary: Collection[str],
    deltas: Mapping[str, Collection[str]] | None,
) -> None:
    """Raises if the guide draws more than the model's latent variables are functions of.

    An auxiliary variable is legal where latent variables are functions of it, as in
    autoguides: ``Delta`` sites, as many numbers in all. Noise beside them would need a partner
        in the model, whose density it is compared with.
    """
    if deltas is None:
        return
    guided = dict(sample_sites(guide_trace))
    for name in auxiliary:
        if is_delta(guided[name]):
            continue
        together, functions = {name}, set[str]()
        while True:  # variables that are functions of the same ones count together
            more = {
                d
                for d, found in deltas.items()
                if together & set(found) and d in model_trace.nodes
            }
            known = together | {
                other for delta in more for other in deltas[delta] if other in auxiliary
            }
            if known == together and more == functions:
                break
            together, functions = known, more
        count = sum(guided[other]["value"].numel() for other in together)
        if not functions or count > sum(
            _free_numbers(model_trace.nodes[delta]) for delta in functions
        ):
            raise PairError(
                f"{name_of(guide)} draws the auxiliary variable {name!r}, and no latent"
                " variable of the model is a function of it, so that its density has no"
                " partner: draw it in the model too, or leave it out."
            )


def _free_numbers(site: Any) -> float:
    """How many real numbers a value of a site has, such as K - 1 for a point of the simplex."""
    try:
        return float(
            torch.Size(
                biject_to(site["fn"].support).inverse_shape(site["value"].shape)
            ).numel()
        )
    except NotImplementedError:
        return float("inf")
