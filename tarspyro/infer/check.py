"""The check of a pair: whether its halves have the same latent variables."""

__all__ = ["check_auxiliary", "check_pair", "check_sites", "run_pair"]

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Independent
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to, constraints

from tarspyro.infer.traces import PairError, Program, Site, is_delta, is_factor, name_of, sample_sites, trace_pair
from tarspyro.modules import evaluating, preserved_rng

_DRAWS = 16  # of the guide, to be compared with the prior's support


def check_pair(model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
    """Runs the pair once and raises where Pyro would only warn.

    Leaves random state, statistics and parameters as they are.

    Raises:
        PairError: If the halves do not sample the same latent sites, with the same shapes, inside the same plates, or
            the guide draws what the prior cannot, or the model observes nothing.

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
        guide does not pair with model: the model also samples ['z']; the guide also samples ['w'].
    """
    with preserved_rng(), evaluating(model, guide):
        check_sites(model, guide, *run_pair(model, guide, args, kwargs))


def run_pair(model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Trace, Trace]:
    """Runs a pair, and names a latent variable of two sizes in place of where that leads to an error.

    Raises:
        PairError: If a latent variable has another event shape in one half than in the other.
    """
    try:
        return trace_pair(model, guide, args, kwargs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if isinstance(error, PairError):
            raise
        try:
            halves = [poutine.trace(half).get_trace(*args, **kwargs) for half in (model, guide)]
        except Exception:
            raise error from None
        _check_shapes(model, guide, *halves)
        raise


def check_sites(
    model: Program, guide: Program, model_trace: Trace, guide_trace: Trace, *, observed: bool = True
) -> None:
    """Raises unless the sites of two traces match.

    Arguments:
        model: The model.
        guide: The guide.
        model_trace: A run of the model on the guide's draws.
        guide_trace: That run of the guide.
        observed: Whether the model has to observe something.
    """
    sites, guided = dict(sample_sites(model_trace)), dict(sample_sites(guide_trace))
    latent = {name for name, site in sites.items() if not site["is_observed"]}
    data = {name for name, site in sites.items() if site["is_observed"] and not is_factor(site)}
    drawn = {name for name, site in guided.items() if not site["is_observed"]}
    auxiliary = {name for name in drawn - latent if guided[name]["infer"].get("is_auxiliary")}
    summed = {name for name in latent - drawn if sites[name]["infer"].get("enumerate") == "parallel"}
    pair = f"{name_of(guide)} does not pair with {name_of(model)}"
    given = sorted(name for name, site in guided.items() if site["is_observed"] and not is_factor(site))
    if not data and given:
        raise PairError(
            f"{name_of(model)} observes nothing and {name_of(guide)} observes {given}: they look swapped, the model "
            "comes first."
        )
    conditioned = sorted((drawn - auxiliary) & data)
    if conditioned:
        raise PairError(
            f"{pair}: it draws {conditioned}, which the model observes: hide them from the guide, "
            f"poutine.block(guide, hide={conditioned})."
        )
    missing, extra = sorted(latent - drawn - summed), sorted(drawn - latent - auxiliary)
    if missing or extra:
        for name in missing:
            if sites[name]["infer"].get("enumerate") == "sequential":
                raise PairError(
                    f"The model enumerates {name!r} sequentially, which sums nothing out of a model: write "
                    "infer={'enumerate': 'parallel'}."
                )
        parts = [f"the model also samples {missing}"] * bool(missing)
        parts += [f"the guide also samples {extra}"] * bool(extra)
        raise PairError(f"{pair}: {'; '.join(parts)}.")
    _check_shapes(model, guide, model_trace, guide_trace)
    for name in latent & drawn:
        _check_support(name, guided[name], sites[name])
    for name in data:
        _check_observed(name, sites[name])
    if observed and not data and not any(is_factor(site) for site in sites.values()):
        raise PairError(f"{name_of(model)} observes nothing: give pyro.sample the data, obs=...")


def _check_shapes(model: Program, guide: Program, model_trace: Trace, guide_trace: Trace) -> None:
    """Raises unless each latent variable has the shape in the guide that it has in the model."""
    guided = dict(sample_sites(guide_trace))
    for name, site in sample_sites(model_trace):
        other = guided.get(name)
        if site["is_observed"] or other is None or not hasattr(site["fn"], "event_shape"):
            continue
        for kind in ("event", "batch"):
            wanted, drawn = (tuple(getattr(half["fn"], f"{kind}_shape")) for half in (site, other))
            if kind == "batch":
                # Leading dimensions of size one say nothing.
                wanted, drawn = _without_leading_ones(wanted), _without_leading_ones(drawn)
            if wanted != drawn:
                what = "events" if kind == "event" else "a batch"
                fix = "give both the same event shape" if kind == "event" else "put it inside the same plates in both"
                raise PairError(
                    f"{name!r} has {what} of shape {wanted} in {name_of(model)} and of shape {drawn} in "
                    f"{name_of(guide)}: {fix}."
                )


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_support(name: str, guided: Site, site: Site) -> None:
    """Raises if the guide draws values that the prior cannot have."""
    prior, posterior = site["fn"], guided["fn"]
    support, other = _plain(prior.support), _plain(posterior.support)
    if isinstance(posterior, Delta) or (isinstance(posterior, Independent) and isinstance(posterior.base_dist, Delta)):
        draws = posterior.sample()
    elif constraints.is_dependent(support) or _same(support, other):
        return
    else:
        draws = posterior.sample((_DRAWS,))
    if constraints.is_dependent(support) or bool(support.check(draws).all()):
        return
    raise PairError(
        f"{name!r} has values of {_family(prior)} in the model ({support}), and the guide draws {_family(posterior)}, "
        f"which leaves them: take a guide's family with that support, such as {_family(prior)}."
    )


def _plain(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or vars(one).keys() != vars(other).keys():
        return False
    return all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(vars(other)[key]))
        if isinstance(value, (int, float, Tensor))
        else value is vars(other)[key]
        for key, value in vars(one).items()
        if key[0] != "_"
    )


def _family(distribution: Any) -> str:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return type(distribution).__name__


def _check_observed(name: str, site: Site) -> None:
    """Raises if what is observed is one row where the likelihood draws many, or of another shape."""
    value, fn = site["value"], site["fn"]
    if not torch.is_tensor(value) or not hasattr(fn, "event_shape"):
        return
    event, given = tuple(fn.event_shape), tuple(value.shape[len(fn.batch_shape) :])
    if given == event or value.dim() > len(fn.batch_shape) + len(event):
        return
    if tuple(value.shape) == event:
        fix = f"it is one row, and the data needs a dimension for its rows: {name}.unsqueeze(0)"
    else:
        fix = "change the likelihood's event shape, or the data"
    raise PairError(
        f"{name!r} is given values of shape {tuple(value.shape)}, and its likelihood draws "
        f"{tuple(fn.batch_shape) + event}: {fix}."
    )


def check_auxiliary(
    guide: Program,
    model_trace: Trace,
    guide_trace: Trace,
    auxiliary: Collection[str],
    deltas: Mapping[str, Collection[str]] | None,
) -> None:
    """Raises if the guide draws more than the model's latent variables are functions of.

    An auxiliary variable is legal where latent variables are functions of it, as in autoguides: ``Delta`` sites, as
    many numbers in all. Noise beside them would need a partner in the model, whose density it is compared with.
    """
    if deltas is None:
        return
    guided = dict(sample_sites(guide_trace))
    for name in auxiliary:
        if is_delta(guided[name]):
            continue
        functions = [delta for delta, found in deltas.items() if name in found and delta in model_trace.nodes]
        together = {other for delta in functions for other in deltas[delta] if other in auxiliary}
        count = sum(guided[other]["value"].numel() for other in together)
        if not functions or count > sum(_free_numbers(model_trace.nodes[delta]) for delta in functions):
            raise PairError(
                f"{name_of(guide)} draws the auxiliary variable {name!r}, and no latent variable of the model is a "
                "function of it, so that its density has no partner: draw it in the model too, or leave it out."
            )


def _free_numbers(site: Any) -> float:
    """How many real numbers a value of a site has, such as K - 1 for a point of the simplex."""
    try:
        return float(torch.Size(biject_to(site["fn"].support).inverse_shape(site["value"].shape)).numel())
    except NotImplementedError:
        return float("inf")
