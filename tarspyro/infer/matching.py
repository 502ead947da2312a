"""Checks that a model and a guide belong together, and that they run on the data."""

__all__ = [
    "check_auxiliary",
    "check_count",
    "check_pair",
    "check_shape",
    "check_sites",
    "count_of_data",
    "explaining",
    "one_row",
    "positional_names",
    "run_pair",
    "settings_of",
]

import contextlib
import inspect
import itertools
import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    OneHotCategorical,
    TransformedDistribution,
    biject_to,
    constraints,
)
from torch.distributions.constraints import Constraint

from tarspyro.arguments import format_value, too_many_parts
from tarspyro.infer.diagnosis import about_source, explained, is_about_site, words_of
from tarspyro.infer.traces import (
    InputError,
    PairError,
    Site,
    check_program,
    drawn_of,
    elements_of,
    is_circular,
    is_delta,
    is_factor,
    name_of,
    no_guide,
    observed_of,
    one_way_flow,
    sample_sites,
    trace_pair,
)
from tarspyro.programs import PROGRAM_ERRORS
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program

# The largest number of orders of axes that are tried for a remedy: all of five axes.
_MOST_ORDERS = 120

_DRAWS = 16  # How many draws of the guide are compared with the prior's support.


def check_pair(model: Program, guide: Program, *args: object, **kwargs: object) -> None:
    """Runs the pair once and raises an error where Pyro would only warn.

    Random state, statistics and parameters stay as they are.

    Raises:
        PairError: If the latent sites of the model and of the guide differ in their names,
            shapes or plates, if the guide draws values outside the prior's support, or if the
            model observes nothing.

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
        ...     print(error)  # doctest: +NORMALIZE_WHITESPACE
        guide does not pair with model: only the model samples ['z']; only the guide samples
        ['w']: give each latent variable the same name in both.
    """
    with preserved_rng(), evaluating(model, guide):
        traces = run_pair(model, guide, args, kwargs)
        check_sites(model, guide, *traces, data=(*args, *kwargs.values()))


def run_pair(
    model: Program, guide: Program, args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[Trace, Trace]:
    """Runs a pair and returns both traces; an error has the reason in one sentence.

    Raises:
        InputError: If the programs do not run on the data, or an observed value has another
            shape than its distribution.
        PairError: If a latent variable has different shapes in the model and in the guide, or a
            plate has different rows.
        TypeError: If the model or the guide is not a program.
    """
    check_program("model", model)
    check_program("guide", guide)
    for program in (model, guide):
        check_count(args, program)
        check_call = getattr(program, "check_call", None)
        if check_call is not None:
            check_call(args, kwargs)
    try:
        traces = trace_pair(model, guide, args, kwargs)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        if _is_whole(error):
            raise
        failure = error
    else:
        _check_distributions(*traces)
        _check_subsamples(model, guide, args, kwargs, traces[1])
        return traces
    # Outside of the handler, so that no traceback of the failure stands before the sentence.
    found, cause = _found_alone(model, guide, args, kwargs, failure)
    raise found from cause


def _is_whole(error: Exception) -> bool:
    """Whether an error is one sentence already, or is about something else than the pair.

    Subclasses of ``RuntimeError`` stand for other causes: out of memory, not implemented.
    """
    if isinstance(error, (InputError, PairError)):
        return "\n" not in str(error)
    if isinstance(error, AttributeError):
        return not is_about_site(error)
    return isinstance(error, RuntimeError) and type(error) is not RuntimeError


def _found_alone(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    failure: Exception,
) -> tuple[Exception, Exception | None]:
    """Returns the error of a pair that failed, and the cause to be shown with it.

    Runs of the model and of the guide alone often show more than the run of the pair. If the
    guide's network fails on the data, the model's run shows which shape the data should have.
    """
    model_trace, reason = _run_alone(model, args, kwargs)
    if model_trace is not None:
        guide_trace, _ = _run_alone(guide, args, kwargs)
        try:
            for name, site in sample_sites(model_trace):
                if site["is_observed"]:
                    check_shape(name, site["fn"], site["value"])
            if guide_trace is not None:
                sites = dict(sample_sites(model_trace))
                _check_roles(model, guide, sites, dict(sample_sites(guide_trace)))
                _check_plates(model, guide, model_trace, guide_trace)
                _check_shapes(model, guide, model_trace, guide_trace)
        except (InputError, PairError) as found:
            return found, None
    if isinstance(reason, PairError):
        return reason, None
    return explained((model, guide), args, reason or failure)


def _check_distributions(*traces: Trace) -> None:
    """Raises a ``PairError`` if a site has no distribution, or observes an array."""
    for trace in traces:
        for name, site in sample_sites(trace):
            if not isinstance(site["fn"], Distribution):
                raise PairError(about_source(name, site["fn"]))
            if isinstance(site["value"], np.ndarray):
                raise PairError(
                    f"{name!r} observes {format_value(site['value'])}, and densities are of"
                    " tensors: give the data as the program gets it, obs=x, or"
                    " obs=torch.as_tensor(...)."
                )


class _GivenRows(Messenger):
    """Notes the rows that a program gives to its plates, ``subsample=``."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self.rows[msg["name"]] = torch.as_tensor(msg["value"])


def _check_subsamples(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    guide_trace: Trace,
) -> None:
    """Raises if the guide has other rows in a plate than those that the model gives to it.

    Pyro replaces the rows of the model's plate by the guide's, and the program goes on with
    data of its own rows.
    """
    nodes: dict[str, Any] = guide_trace.nodes
    guided = {
        name: site["value"]
        for name, site in nodes.items()
        if site_is_subsample(site) and len(site["value"]) < site["fn"].size
    }
    if not guided:
        return
    given = _GivenRows()
    with preserved_rng(), contextlib.suppress(*PROGRAM_ERRORS), poutine.block(), given:
        model(*args, **kwargs)
    for name in guided.keys() & given.rows.keys():
        rows = given.rows[name]
        if len(rows) == len(guided[name]) and not torch.equal(rows, guided[name].to(rows)):
            raise PairError(
                f"{name_of(guide)} draws rows of the plate {name!r}, and {name_of(model)} is"
                " given others, subsample=...: give both the same, in an automatic guide by"
                f" create_plates=lambda rows: pyro.plate({name!r}, size, subsample=rows)."
            )


def _run_alone(
    program: Program, args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[Trace | None, Exception | None]:
    """Returns the trace of a program, or the error that it raises."""
    tracer = poutine.trace()
    try:
        with tracer:
            program(*args, **kwargs)
        return tracer.trace, None
    except NotImplementedError:  # The prior cannot be drawn from.
        return None, None
    except Exception as error:
        try:
            _check_distributions(tracer.trace)  # of the sites before the error
        except PairError as found:
            return None, found
        return None, error


@contextlib.contextmanager
def explaining(programs: Sequence[Program], arguments: Sequence[object]) -> Iterator[None]:
    """Turns the long messages of torch and Pyro into one sentence with the data's shapes.

    Raises:
        InputError: If the code inside fails on the data.
    """
    try:
        yield
        return
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError, TypeError) as error:
        whole = isinstance(error, (ValueError, TypeError)) and "\n" not in str(error)
        if (whole and not is_about_site(error)) or _is_whole(error):
            raise
        failure: Exception = error
    except AttributeError as error:
        if not is_about_site(error):
            raise
        failure = error
    if isinstance(failure, (InputError, PairError)):
        raise type(failure)(str(failure).partition("\n")[0]) from failure
    found, cause = explained(programs, arguments, failure)
    raise found from cause


def _order_of_axes(given: tuple[int, ...], event: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns an order of the axes of rows, after which a reshape gives them the event shape.

    Such a reshape joins neighbouring axes or splits an axis, and mixes none. None if there is
    no such order. Of several orders, as of (8, 8, 3) and (3, 8, 8), it is the one that keeps
    height before width.
    """
    orders = itertools.permutations(range(len(given)))
    wanted = _ends_of(event)
    for order in itertools.islice(orders, _MOST_ORDERS):
        ends = _ends_of([given[axis] for axis in order])
        if ends <= wanted or wanted <= ends:
            return order
    return None


def _ends_of(shape: Sequence[int]) -> set[int]:
    """The places where the axes of a row end, in numbers of the outer ones."""
    return set(itertools.accumulate((size for size in shape if size > 1), operator.mul))


def _about_axes(name: str, given: tuple[int, ...], event: tuple[int, ...]) -> str:
    """A remedy for rows with as many numbers as the event, in another shape."""
    if len(event) == 3 and given == event[1:]:
        return f"there is no channel axis: add it, {name}[:, None]"
    order = _order_of_axes(given, event)
    sizes = ", ".join(map(str, event))
    if order is None or order == tuple(range(len(given))):
        return f"reshape it, {name}.reshape(len({name}), {sizes})"
    axes = ", ".join(str(axis + 1) for axis in order)
    moved = f"torch.as_tensor({name}).permute(0, {axes})"
    if tuple(given[axis] for axis in order) == event:
        return f"move its axes, {moved}"
    return f"move its axes and reshape it, {moved}.reshape(len({name}), {sizes})"


def one_row(name: str, value: Tensor, what: str = "row of data") -> InputError:
    """Returns the error of data without the dimension of rows."""
    shape = tuple(value.shape)
    fix = f"add a dimension, {name}[None]"
    if value.dim() > 1:
        fix += (
            f", or if it is {len(value)} rows, leave their number out of the event,"
            f" .to_event({value.dim() - 1})"
        )
    return InputError(f"{name} has shape {shape}, which is one {what}: {fix}.")


def check_shape(
    name: str, distribution: object, value: object, whole: Tensor | None = None
) -> None:
    """Raises unless the rows of an observed value have the likelihood's event shape.

    Arguments:
        name: The name of the site.
        distribution: The likelihood.
        value: The observed value, a batch.
        whole: All of the data that the batch is from, for the message; the batch if not given.

    Raises:
        InputError: If they have another shape.
    """
    if not isinstance(value, Tensor) or not isinstance(distribution, Distribution):
        return
    event = tuple(distribution.event_shape)
    given = tuple(value.shape[len(distribution.batch_shape) :])
    if given == event:
        return
    value = value if whole is None else whole
    if not value.is_floating_point() and value.dim() == 1:
        fix = f"give the data, with rows of shape {event}"
        if isinstance(elements_of(distribution), OneHotCategorical):
            one_hot = f"torch.nn.functional.one_hot(torch.as_tensor({name}), {event[-1]})"
            fix = f"turn them into one-hot vectors, {one_hot}.float()"
        raise InputError(
            f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}, which look like"
            f" labels: {fix}."
        )
    if tuple(value.shape) == event and len(distribution.batch_shape) == 1:
        raise one_row(name, value)
    size = torch.Size(event).numel()
    if torch.Size(given).numel() == size:
        fix = _about_axes(name, given, event)
    else:
        fix = (
            f"give data with rows of shape {event}, or change the likelihood's event_shape and"
            f" the guide's input to {given}"
        )
        if given == ():
            fix = f"these are single numbers, give data with rows of shape {event}"
    raise InputError(
        f"{name} has rows of shape {given}, but the likelihood draws {event}: {fix}."
    )


def check_count(arguments: Sequence[object], program: Program) -> None:
    """Raises if there are more parts of data than the program takes.

    Most often the extra part holds the labels. See ``count_of_data``.

    Raises:
        ValueError: If there are too many parts.
    """
    names = positional_names(program)
    names = names[: count_of_data(arguments, settings_of(program))] or names
    if not names and arguments and _takes_nothing(program):
        raise ValueError(
            f"{name_of(program)} takes no data: define it with the arguments of the other half,"
            f" such as {name_of(program)}(x)."
        )
    if names and len(arguments) > len(names):
        raise ValueError(too_many_parts("data", len(arguments), name_of(program), names))


def positional_names(program: Program) -> list[str]:
    """Returns the names of the program's data arguments.

    The list is empty if the program takes any number of them, or has no signature.
    """
    return [parameter.name for parameter in _positional_parameters(program)]


def settings_of(program: Program) -> list[bool]:
    """Returns which of the program's data arguments are settings.

    A setting is an argument whose default is a real number, a truth or a word, such as
    ``model(x, beta=1.0)``.
    """
    parameters = _positional_parameters(program)
    return [isinstance(parameter.default, (float, bool, str)) for parameter in parameters]


def count_of_data(parts: Sequence[object], settings: Sequence[bool]) -> int:
    """Returns the number of parts before labels that would be passed to a setting.

    Labels are whole numbers in one dimension. See ``settings_of``.
    """
    for index, (part, setting) in enumerate(zip(parts, settings, strict=False)):
        if setting and getattr(part, "ndim", 0) == 1 and _are_whole(part):
            return index
    return len(parts)


def _are_whole(values: Any) -> bool:
    """Whether numbers of any container have a type of whole numbers."""
    if isinstance(values, Tensor):
        return not values.is_floating_point() and values.dtype is not torch.bool
    return str(getattr(values, "dtype", "")).startswith(("int", "uint"))


def _positional_parameters(program: Program) -> list[inspect.Parameter]:
    """Returns the parameters that data can be passed to; none if the program takes any number of
    them, or has no signature.
    """
    function = program.forward if isinstance(program, nn.Module) else program
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # A builtin has no signature.
        return []
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in parameters if parameter.kind in kinds]


def _takes_nothing(program: Program) -> bool:
    """Whether a program is a function without arguments."""
    if isinstance(program, nn.Module):
        return False
    try:
        return not inspect.signature(program).parameters
    except (TypeError, ValueError):
        return False


def check_sites(
    model: Program,
    guide: Program,
    model_trace: Trace,
    guide_trace: Trace,
    *,
    data: Sequence[object] = (),
    observed: bool = True,
    supports: bool = True,
) -> None:
    """Raises unless the sites of the two traces match.

    Arguments:
        model: The model.
        guide: The guide.
        model_trace: A run of the model on the guide's draws.
        guide_trace: The run of the guide.
        data: The arguments of the pair. Those that the model observes must have the
            likelihood's shape.
        observed: Whether the model has to observe something.
        supports: Whether a latent variable must have the same support in both programs.

    Raises:
        InputError: If an observed argument has another shape than the likelihood.
        PairError: If the sites do not match.
    """
    sites = dict(sample_sites(model_trace))
    guided = dict(sample_sites(guide_trace))
    latent = drawn_of(sites.items()).keys()
    drawn = drawn_of(guided.items()).keys()
    seen = observed_of(sites.items())

    _check_roles(model, guide, sites, guided)
    if observed and not seen and not any(is_factor(site) for site in sites.values()):
        unseen = ""
        if latent - drawn:
            unseen = f" and samples {sorted(latent - drawn)}, which the guide does not"
        raise PairError(
            f"{name_of(model)} observes nothing{unseen}: give the data to a pyro.sample of the"
            " model, pyro.sample('x', ..., obs=x)."
        )
    _check_names(model, guide, sites, guided)
    _check_plates(model, guide, model_trace, guide_trace)
    _check_shapes(model, guide, model_trace, guide_trace)
    for name in (latent & drawn) | seen.keys():
        _check_density(model, name, sites[name])
    for name in latent & drawn:
        if supports:
            _check_support(name, guided[name], sites[name])
    for name, site in seen.items():
        if any(site["value"] is part for part in data):
            check_shape(name, site["fn"], site["value"])


def _check_density(model: Program, name: str, site: Site) -> None:
    """Raises if the model has no density at the data or at the guide's draw."""
    flow = one_way_flow(site["fn"])
    if flow is None:
        return
    try:
        site["fn"].log_prob(site["value"])
    except (KeyError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) and str(error):
            raise  # a flow of the library, which has a sentence of its own
        raise PairError(
            f"{name_of(model)} has {name!r} from a flow that knows the density of its own"
            f" draws alone ({type(flow).__name__}): use another transform, such as"
            " affine_autoregressive, or the transform's .inv where it only scores."
        ) from None


def _auxiliary_names(sites: Mapping[str, Site], guided: Mapping[str, Site]) -> set[str]:
    """Returns the draws of the guide that it marks as auxiliary and the model does not have."""
    return {
        name
        for name, site in drawn_of(guided.items()).items()
        if site["infer"].get("is_auxiliary")
        and (name not in sites or sites[name]["is_observed"])
    }


def _check_roles(
    model: Program, guide: Program, sites: Mapping[str, Site], guided: Mapping[str, Site]
) -> None:
    """Raises if the guide observes a site, or draws a site that the model observes."""
    pair = f"{name_of(guide)} does not pair with {name_of(model)}"
    seen = observed_of(sites.items()).keys()
    given = sorted(observed_of(guided.items()))
    if given and seen:
        raise PairError(
            f"{pair}: the guide observes {given}, and only the model may observe: leave out"
            " obs=... in the guide."
        )
    if given:
        raise PairError(
            f"{name_of(model)} observes nothing and {name_of(guide)} observes {given}: they"
            " look swapped, the model comes first."
        )
    drawn = drawn_of(guided.items()).keys()
    conditioned = sorted((drawn - _auxiliary_names(sites, guided)) & seen)
    if conditioned:
        raise PairError(
            f"{pair}: the guide draws {conditioned}, which the model observes: hide them from"
            f" the guide, poutine.block(guide, hide={conditioned})."
        )


def _check_summed(name: str, site: Site) -> None:
    """Raises unless all values of a site that the model enumerates can be listed.

    Raises:
        PairError: If they cannot.
    """
    if site["infer"].get("num_samples") is not None:
        raise PairError(
            f"The model draws {name!r} where it should enumerate: leave num_samples out."
        )
    try:
        site["fn"].enumerate_support(expand=False)
    except NotImplementedError:
        shape = tuple(site["fn"].event_shape)
        of_vectors = f" with the event shape {shape}" if shape else ""
        raise PairError(
            f"The model enumerates {name!r}, and the values of {_family(site['fn'])}{of_vectors}"
            " cannot be listed: draw it in the guide."
        ) from None


def _check_names(
    model: Program, guide: Program, sites: Mapping[str, Site], guided: Mapping[str, Site]
) -> None:
    """Raises unless model and guide have the same latent sites."""
    latent = drawn_of(sites.items()).keys()
    drawn = drawn_of(guided.items()).keys()
    summed = {
        name for name in latent - drawn if sites[name]["infer"].get("enumerate") == "parallel"
    }
    for name in sorted(summed):
        _check_summed(name, sites[name])
    missing = sorted(latent - drawn - summed)
    extra = sorted(drawn - latent - _auxiliary_names(sites, guided))
    if not missing and not extra:
        return
    for name in missing:
        if sites[name]["infer"].get("enumerate") == "sequential":
            raise PairError(
                f"The model enumerates {name!r} sequentially, which does not sum it out: write"
                " infer={'enumerate': 'parallel'}."
            )
    if guide is no_guide:
        game = "with a game that needs no guide, such as loss=Adversarial(discriminator)"
        fix = f"give a guide that samples them too, or train {game}"
        observed = observed_of(sites.items()).values()
        if observed and all(map(is_delta, observed)):
            fix = f"a generator without noise has no likelihood, so train {game}"
        raise PairError(f"guide is None, but {name_of(model)} samples {missing}: {fix}.")
    parts = []
    if missing:
        parts.append(f"only the model samples {missing}")
    if extra:
        parts.append(f"only the guide samples {extra}")
    pair = f"{name_of(guide)} does not pair with {name_of(model)}"
    fix = "give each latent variable the same name in both"
    if not drawn:
        fix = (
            "sample them in the guide too, as guides.VAE(conditional) does with a Conditional"
        )
    elif not extra:
        fix = f"let the guide sample {missing} too, or observe them in the model, obs=..."
    elif not missing:
        fix = f"leave {extra} out of the guide, or sample them in the model too"
    raise PairError(f"{pair}: {'; '.join(parts)}: {fix}.")


def _check_plates(
    model: Program, guide: Program, model_trace: Trace, guide_trace: Trace
) -> None:
    """Raises if a plate has different sizes in the model and in the guide.

    The model takes the subsampled indices of the guide's plate.
    """
    sizes = _plate_sizes(model_trace)
    guided = _plate_sizes(guide_trace)
    for name in sizes.keys() & guided.keys():
        if sizes[name] != guided[name]:
            raise PairError(
                f"The plate {name!r} has the size {sizes[name]} in {name_of(model)} and"
                f" {guided[name]} in {name_of(guide)}: give both the same size, such as"
                f" pyro.plate({name!r}, len(x))."
            )


def _plate_sizes(trace: Trace) -> dict[str, int]:
    """Returns the sizes of the plates in a trace by their names."""
    sizes = {}
    for _, site in sample_sites(trace):
        for frame in site["cond_indep_stack"]:
            # A plate without a size, as in an EasyGuide, fits any size.
            if frame.size > 0:
                sizes[frame.name] = frame.full_size or frame.size
    return sizes


def _check_shapes(
    model: Program, guide: Program, model_trace: Trace, guide_trace: Trace
) -> None:
    """Raises unless each latent variable has the same shapes in the model and in the guide."""
    guided = dict(sample_sites(guide_trace))
    for name, site in sample_sites(model_trace):
        other = guided.get(name)
        if site["is_observed"] or other is None or not hasattr(site["fn"], "event_shape"):
            continue
        families = _family(site["fn"]), _family(other["fn"])
        events = tuple(site["fn"].event_shape), tuple(other["fn"].event_shape)
        # Leading dimensions of size one broadcast, so they make no difference.
        batches = (
            _without_leading_ones(tuple(site["fn"].batch_shape)),
            _without_leading_ones(tuple(other["fn"].batch_shape)),
        )
        for kind, (wanted, drawn), fix in (
            ("an event", events, "give both the same event shape"),
            (
                "a batch",
                batches,
                "put it inside the same plates in both, pyro.plate('data', len(x))",
            ),
        ):
            if wanted != drawn:
                raise PairError(
                    f"{name!r} has {kind} of shape {wanted} in {name_of(model)}"
                    f" ({families[0]}) and {drawn} in {name_of(guide)} ({families[1]}): {fix}."
                )


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_support(name: str, guided: Site, site: Site) -> None:
    """Raises if the guide draws values that the prior cannot have, or of another kind."""
    prior: Distribution = site["fn"]
    posterior: Distribution = guided["fn"]
    support = _support_of(prior)
    other = _support_of(posterior)
    if constraints.is_dependent(support):
        return
    if is_delta(guided):
        draws = posterior.sample()
    elif _same(support, other):
        return
    else:
        draws = posterior.sample(torch.Size([_DRAWS]))

    inside = bool(support.check(draws).all())
    # The guide may relax a discrete variable, if its draws are values of the variable.
    alike = is_delta(guided) or support.is_discrete or _kind(support) == _kind(other)
    # The support of a transform only says where its values can lie at most: an exponential
    # variable plus a constant may be any real number to it.
    base = elements_of(posterior)
    if isinstance(base, TransformedDistribution):
        alike = alike or _support_of(base.base_dist) is not constraints.real
    if inside and alike and not (support.is_discrete and other.is_discrete):
        return
    raise PairError(
        f"{name!r} has the prior {_family(prior)} ({words_of(support)}) in the model, and the"
        f" guide draws it from {_family(posterior)} ({words_of(other)}): take families with the"
        f" same support, such as {_alike(prior, posterior)}."
    )


def _alike(prior: Distribution, posterior: Distribution) -> str:
    """Families with the same support, for a message."""
    return f"{_family(posterior)} in both, or {_family(prior)} in both"


def _kind(support: Constraint) -> object:
    """Returns the kind of a continuous support, wherever its edges lie.

    The kind is a half-line, an interval, or the class of the constraint.
    """
    if isinstance(support, (type(constraints.positive), type(constraints.nonnegative))):
        return "half-line"
    if isinstance(support, (type(constraints.unit_interval), constraints.half_open_interval)):
        return "interval"
    return type(support)


def _support_of(distribution: Distribution) -> Constraint:
    """Returns the constraint of a single number, without the dimensions of the event."""
    if is_circular(distribution):
        return constraints.interval(-math.pi, math.pi)
    support: Any = distribution.support
    while isinstance(
        support, (constraints.independent, constraints.MixtureSameFamilyConstraint)
    ):
        support = support.base_constraint
    plain: Constraint = support
    return plain


def _same(one: Constraint, other: Constraint) -> bool:
    """Whether two supports are of the same class and have the same edges."""
    if type(one) is not type(other):
        return False
    edges = _edges(one)
    others = _edges(other)
    return len(edges) == len(others) and all(map(torch.equal, edges, others))


def _edges(support: Constraint) -> list[Tensor]:
    """Returns the numbers that a constraint has as attributes."""
    return [
        torch.as_tensor(edge)
        for edge in vars(support).values()
        if isinstance(edge, (int, float, Tensor))
    ]


def _family(distribution: Distribution) -> str:
    """Returns the name of the family, below ``Independent``."""
    return type(elements_of(distribution)).__name__


def check_auxiliary(
    guide: Program,
    model_trace: Trace,
    guide_trace: Trace,
    auxiliary: Collection[str],
    deltas: Mapping[str, Collection[str]],
) -> None:
    """Raises if the guide draws more than the model's latent variables are functions of.

    Autoguides draw an auxiliary variable and compute latent variables from it, as ``Delta``
    sites with as many numbers in all. Other auxiliary noise would need a density in the model.

    Arguments:
        guide: The guide.
        model_trace: A run of the model on the guide's draws.
        guide_trace: The run of the guide.
        auxiliary: The names of the auxiliary variables.
        deltas: The draws that each ``Delta`` site of the guide is a function of.

    Raises:
        PairError: If an auxiliary variable has no such ``Delta`` sites.
    """
    guided = dict(sample_sites(guide_trace))
    sites: dict[str, Any] = model_trace.nodes
    known = {name: set(draws) for name, draws in deltas.items() if name in sites}
    for name in auxiliary:
        if is_delta(guided[name]):
            continue
        together, functions = _connected(name, auxiliary, known)
        count = sum(guided[other]["value"].numel() for other in together)
        numbers = sum(_free_numbers(sites[delta]) for delta in functions)
        if not functions or count > numbers:
            raise PairError(
                f"{name_of(guide)} draws the auxiliary variable {name!r}, but no latent"
                " variable of the model is a function of it, so its density has no"
                " counterpart: draw it in the model too, or leave it out."
            )


def _connected(
    name: str, auxiliary: Collection[str], deltas: Mapping[str, set[str]]
) -> tuple[set[str], set[str]]:
    """Returns the auxiliary variables that share functions with a given one, directly or
    through others, and those functions.
    """
    together = {name}
    while True:
        functions = {delta for delta, draws in deltas.items() if together & draws}
        more = set(together)
        for delta in functions:
            more |= deltas[delta] & set(auxiliary)
        if more == together:
            return together, functions
        together = more


def _free_numbers(site: Site) -> float:
    """Returns how many real numbers a site's value has, such as K - 1 for a simplex."""
    try:
        shape = biject_to(site["fn"].support).inverse_shape(site["value"].shape)
    except NotImplementedError:
        return float("inf")
    return float(torch.Size(shape).numel())
