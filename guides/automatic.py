"""A guide of any model, made from the sites of the model."""

__all__ = ["Auto", "SitePosterior", "auto"]

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.infer.inspect import get_dependencies
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch import distributions as td
from torch.distributions import Independent, biject_to, constraints
from torch.nn.functional import one_hot

from tarspyro.arguments import (
    as_numbers,
    check_choice,
    check_module,
    format_value,
    is_array,
)
from tarspyro.conditional import Conditional
from tarspyro.distributions import (
    Beta,
    Dirichlet,
    FamilyModule,
    Gamma,
    PowerSpherical,
    Prior,
    VonMisesFisher,
)
from tarspyro.distributions.transformed import TransformedDistribution
from tarspyro.infer.diagnosis import is_real
from tarspyro.infer.traces import (
    PairError,
    Plates,
    Site,
    check_program,
    innermost,
    is_circular,
    is_delta,
    name_of,
    plates_of,
    sample_sites,
)
from tarspyro.modules import Configurable, StochasticModule
from tarspyro.nn.heads import bias_of
from tarspyro.nn.mlp import MLP
from tarspyro.programs import modules_of, type_of
from tarspyro.scopes import evaluating, kept_buffers, local_parameters, preserved_rng
from tarspyro.types import Distribution, Program, Shape

# The families of the posterior for those of the prior; subclasses come before their bases.
_FAMILIES: dict[type[Any], type[Any]] = {
    td.LogNormal: dist.LogNormal,
    td.Gamma: Gamma,
    td.Beta: Beta,
    td.Dirichlet: Dirichlet,
    VonMisesFisher: VonMisesFisher,
    PowerSpherical: PowerSpherical,
    td.Bernoulli: dist.Bernoulli,
    td.Categorical: dist.Categorical,
    td.OneHotCategorical: dist.OneHotCategorical,
    td.Binomial: dist.Binomial,
    td.Poisson: dist.Poisson,
    td.Geometric: dist.Geometric,
}

_HIDDEN = 32  # The hidden units of a posterior that depends on other variables alone.
_NARROW = 0.1  # The first scale of a global variable, as in Pyro's own guides.
_VAGUE = 5.0  # From this spread on, a prior of bounded values tells nothing about their scale.
_DRAWS = 1_000  # The draws of a prior whose quantiles have no closed form, ...
_NUMBERS = 1_000_000  # ... and the numbers in all of them.
_EXCLUDED = -1e4  # The log odds of a value that the prior excludes: its probability is 0.


def auto(
    model: Program,
    trunk: nn.Module | None,
    *data: object,
    structure: str = "mean-field",
    families: Mapping[str, type[Any]] | None = None,
    enumerate: bool = True,
) -> "Auto":
    r"""Returns an amortized guide of any model, made from one run of it.

    .. math:: q(z_1, z_2, \dots \mid x) = \prod_i q(z_i \mid h(x)) \quad \text{or} \quad
              \prod_i q(z_i \mid h(x), \mathrm{pa}(z_i))

    with h the trunk. The second product is in the order of the model: a latent variable also
    depends on its parents, those that its prior depends on. (The exact posterior may depend on
    others too; write a guide of your own for that.)

    - Local variables, which share a plate with something observed, are amortized: a
      ``Conditional`` computes their distribution from the trunk's features. Where these have a
      dimension of a plate of the data that does not hold the variable, such as that of the
      members of a group, the variable sees their mean.
    - All other variables are global, also those in plates of their own. Their distributions
      have parameters of their own; in the order of the model, those with parents are a
      ``Conditional`` given the parents. Local variables are no parents of global ones.

    The family is the prior's for Gamma, Beta, Dirichlet, LogNormal, VonMisesFisher and
    PowerSpherical, VonMises for angles, and a Normal for other priors of real numbers. For any
    other continuous prior it is a Normal that torch's ``biject_to`` maps to the prior's support.
    Draws of all these but VonMises have gradients. Discrete variables keep their family, and
    there are three ways:

    - Variables that the model marks, ``infer={"enumerate": "parallel"}``, are summed out by the
      model, and the guide leaves them out.
    - Other variables with finitely many values are marked by the guide. ``ELBO`` and Pyro's
      ``TraceEnum_ELBO`` sum over both kinds.
    - Without ``enumerate``, and for infinitely many values, the gradient is that of the score
      function.

    A value that the prior excludes is excluded in the guide as well. No relaxation is put in:
    for one, draw from ``GumbelSoftmax`` in the model, and give it in ``families``.

    A location starts at the median of the prior, given the medians of the variables before it,
    and a global variable in a narrow distribution around it. A prior of positive or otherwise
    bounded values that spreads over many orders of magnitude, such as Gamma(0.001, 0.001), has
    no say in it.

    Data that the model is called without, such as y of ``model(x)`` in place of ``model(x, y)``,
    are left to the model, which then predicts them: ``pyro.infer.Predictive(model, guide=guide)``.

    The guide runs the model in evaluation mode with its own distribution in the place of each
    prior. So plates, subsamples, masks, scales and branches are those of the model, whatever
    the data. This costs one more run of the model, without its gradients.

    Arguments:
        model: Any Pyro program.
        trunk: The network h, from the first arguments, as many as it takes, to features of
            shape ``(*plates, H)`` with the plates of the data; None if no variable is local.
        data: The arguments of the model, such as some rows of the data. Arrays and tables become
            tensors, with real numbers in the type of the parameters.
        structure: ``"mean-field"``, or ``"model"`` for the order of the model.
        families: Other families for the posteriors of some sites, by the names of these.
        enumerate: Whether discrete variables with finitely many values are summed out.

    Raises:
        TypeError: If ``model`` is no program, or ``trunk`` no module.
        ValueError: If ``structure`` is another word, or ``families`` names no latent site.
        PairError: If there is nothing latent, a trunk is missing or not needed, its features do
            not fit the plates, or there is no family for a site.

    Example:
        >>> import pyro
        >>> from tarspyro import fit
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, torch.ones(1)).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)
        >>> x = torch.randn(100, 1)
        >>> guide = auto(model, MLP(1, [8]), x)
        >>> guide
        Auto: q(scale, z | x) = q(scale) q(z | x)
          posteriors.0: q(scale) = LogNormal(loc, scale) of shape (), learned
          posteriors.1: q(z | x) = Normal(loc, scale) of shape (1,) from MLP(8)
        >>> history = fit(model, guide, x, epochs=2, seed=0, progress=False)
    """
    check_program("model", model)
    check_choice("structure", structure, ("mean-field", "model"))
    if trunk is not None:
        check_module("trunk", trunk)
    modules = [*modules_of(model), *([] if trunk is None else [trunk])]
    dtype = type_of(*modules) or torch.get_default_dtype()
    data = tuple(_as_argument(part, dtype) for part in data)
    with (
        local_parameters(),
        preserved_rng(0),
        kept_buffers(*modules),
        evaluating(*modules),
        poutine.block(),
    ):
        with _Medians():
            trace = poutine.trace(model).get_trace(*data)
        sites = dict(sample_sites(trace))
        latent = {name: site for name, site in sites.items() if _is_guided(site)}
        parents: dict[str, list[str]] = {name: [] for name in latent}
        if structure == "model":
            known: Any = get_dependencies(model, data)["prior_dependencies"]
            for name, found in parents.items():
                found += [other for other in latent if other in known[name] and other != name]
        features = None if trunk is None else _features(trunk, data)

    observed = [plates_of(site) for site in sites.values() if site["is_observed"]]
    plates = _dims(frozenset[tuple[str, int]]().union(*observed))
    _check_sites(model, latent, plates, families or {}, features)
    described = {}
    for name, site in latent.items():
        family = (families or {}).get(name)
        described[name] = _described(name, site, family, parents[name], latent, plates)
        if features is not None and plates.keys() & _dims(plates_of(site)).keys():
            described[name]["features"] = features.shape[-1]
    data_sites = [name for name, site in sites.items() if site["is_observed"]]
    guide = Auto(
        model, trunk, described, plates=plates, enumerate=enumerate, observed=data_sites
    )
    with local_parameters(), preserved_rng(0), evaluating(guide), poutine.block():
        for name, site in latent.items():
            guide.posterior(name).start_at(site["fn"])
        guide(*data)  # Errors come before the training.
    return guide


def _is_guided(site: Site) -> bool:
    """Whether the guide draws a site: it is latent, random, and not summed out by the model."""
    left_to_model = site["infer"].get("enumerate") and site["fn"].has_enumerate_support
    told = site["infer"].get("_deterministic")
    return not (site["is_observed"] or told or left_to_model or is_delta(site))


def _as_argument(value: object, dtype: torch.dtype) -> object:
    """Returns an argument of the model, an array as a tensor, with real numbers of a type."""
    if isinstance(value, Tensor) or not is_array(value):
        return value
    tensor = as_numbers("data", value)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class _Medians(Messenger):
    """Gives each latent variable of a running model the median of its prior."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or site_is_subsample(msg) or not _is_guided(msg):
            return
        found = _quantiles(msg["fn"])
        if found is not None:
            msg["value"] = biject_to(_support(msg["fn"]))(found[0])
            msg["done"] = True


def _quantiles(prior: Distribution) -> tuple[Tensor, Tensor] | None:
    """Returns the median of a prior, and how far above it the quantile of 84 % is.

    Both are in the space of real numbers that ``biject_to`` maps to the support. There the
    median of bounded values is 0 if they spread over many orders of magnitude. None if there is
    no such space, as for discrete values and for directions.
    """
    try:
        support = _support(prior)
        if support.is_discrete or is_circular(innermost(prior)):
            return None
        to_support = biject_to(support)
    except NotImplementedError:
        return None
    levels = [0.5, 0.8413]
    elements = innermost(prior)
    try:
        values = [elements.icdf(torch.tensor(level)).expand(prior.shape()) for level in levels]
        middle, upper = map(to_support.inv, values)
    except (NotImplementedError, AttributeError):
        count = max(15, min(_DRAWS, _NUMBERS // max(1, prior.shape().numel())))
        draws = to_support.inv(prior.sample(torch.Size([count]))).sort(0).values
        middle, upper = (draws[round(level * (count - 1))] for level in levels)
    spread = (upper - middle).abs()
    if not is_real(support):
        # Draws of a vague prior underflow, and may then have no spread.
        tells = (spread > 0) & (spread < _VAGUE)
        middle = torch.where(tells, middle, 0.0)
        spread = torch.where(tells, spread, _VAGUE)
    return middle, spread


def _narrow(
    family: type[Any], prior: Distribution, middle: Tensor, scale: Tensor
) -> dict[str, Tensor]:
    """Returns the parameters of a narrow distribution.

    Arguments:
        family: Its family.
        prior: The prior, which has the same support.
        middle: Its median in the space of real numbers.
        scale: Its scale in this space.
    """
    precision = scale**-2
    if issubclass(family, td.Gamma):
        return {"concentration": precision, "rate": precision / middle.exp()}
    if issubclass(family, td.Beta):
        p = middle.sigmoid()
        count = precision / (p * (1 - p))
        return {"concentration1": p * count, "concentration0": (1 - p) * count}
    if issubclass(family, td.Dirichlet):
        p = biject_to(_support(prior))(middle)
        return {"concentration": p * p.shape[-1] * precision.mean(-1, keepdim=True)}
    return {"loc": middle, "scale": scale}


def _dims(plates: Plates) -> dict[str, int]:
    """Returns the dimensions of plates by their names; a sequential plate has none."""
    return {name: dim for name, dim in sorted(plates) if dim < 0}


def _check_sites(
    model: Program,
    latent: Mapping[str, Site],
    plates: Mapping[str, int],
    families: Mapping[str, type[Any]],
    features: Tensor | None,
) -> None:
    """Raises unless there are latent sites, a trunk where it is needed, and known names."""
    if not latent:
        raise PairError(
            f"{name_of(model)} has no latent variables that a guide draws: fit it without one."
        )
    for name in families:
        if name not in latent:
            raise ValueError(f"families names {name!r}, which is none of {sorted(latent)}.")
    local = [n for n, site in latent.items() if plates.keys() & _dims(plates_of(site)).keys()]
    if local and features is None:
        raise PairError(
            f"trunk is None, and {local} have a distribution for each data point: give a network"
            " from the data to features."
        )
    if features is not None and not local:
        raise PairError(
            f"No latent variable of {name_of(model)} shares a plate with the data, so nothing"
            " depends on the trunk: give None."
        )


def _described(
    name: str,
    site: Site,
    family: type[Any] | None,
    parents: Sequence[str],
    latent: Mapping[str, Site],
    plates: Mapping[str, int],
) -> dict[str, Any]:
    """Returns the arguments of a site's ``SitePosterior``."""
    prior = innermost(site["fn"])
    around = _dims(plates_of(site))
    through = False
    event_shape = torch.Size(site["fn"].event_shape)
    fixed: dict[str, Any] = {}
    classes = 0
    if family is None:
        family = _family(name, prior)
        support = _support(site["fn"])
        through = family is dist.Normal and not is_real(support)
        if through:
            # The bounds may have the shape of the batch.
            whole = biject_to(support).inverse_shape(site["fn"].shape())
            event_shape = whole[len(site["fn"].batch_shape) :]
        if family is dist.Binomial:
            fixed["total_count"] = _single(name, prior.total_count)
        if family is dist.Categorical:
            classes = prior.param_shape[-1]

    own = {plate for plate in around if plate in plates}
    described_parents = {}
    for parent in parents:
        entry = _as_parent(latent[parent], own, plates)
        if entry is not None:
            described_parents[parent] = entry
    inner = []
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.name not in plates:
            inner.append((frame.name, frame.dim, frame.full_size or frame.size))
    return {
        "family": family,
        "event_shape": tuple(event_shape),
        "parents": described_parents,
        "inner": sorted(inner, key=lambda plate: plate[1]),
        "classes": classes,
        "through": through,
        "fixed": fixed,
    }


def _family(name: str, prior: Distribution) -> type[Any]:
    """Returns the family of a posterior for that of the prior."""
    for known, family in _FAMILIES.items():
        if isinstance(prior, known):
            return family
    if is_circular(prior):
        angles: type[Any] = dist.VonMises
        return angles
    try:
        if not _support(prior).is_discrete:
            biject_to(_support(prior))
            return dist.Normal
    except NotImplementedError:
        pass
    kind = type(prior).__name__
    raise PairError(
        f"There is no family for the posterior of {name!r}, whose prior is a {kind}: give one,"
        f" families={{{name!r}: ...}}."
    )


def _single(name: str, value: Tensor) -> float:
    """Returns a parameter that is the same for all data points."""
    first = value.flatten()[0]
    if not bool((value == first).all()):
        raise PairError(
            f"The Binomial of {name!r} has different counts, for which there is no posterior:"
            " write the guide."
        )
    return float(first)


def _support(distribution: Distribution) -> constraints.Constraint:
    """Returns the support of a distribution; that of a mixture is its components'."""
    support: constraints.Constraint = distribution.support
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def _as_parent(site: Site, own: set[str], plates: Mapping[str, int]) -> dict[str, Any] | None:
    """Returns how the value of a site is a context of another one; None if it cannot be.

    The plates that the other site does not share become a part of the value, unless they are
    plates of the data, whose sizes vary.

    Arguments:
        site: The parent.
        own: The plates of the data around the other site.
        plates: The plates of the data.
    """
    moved = []
    for name, dim in _dims(plates_of(site)).items():
        if name in plates and name not in own:
            return None
        if name not in plates:
            moved.append(dim)
    value = site["value"]
    lead = value.dim() - site["fn"].event_dim
    size = math.prod(value.shape[lead:])
    for dim in moved:
        size *= value.shape[lead + dim]
    prior = innermost(site["fn"])
    classes = prior.param_shape[-1] if isinstance(prior, td.Categorical) else 0
    return {
        "moved": sorted(moved),
        "event_ndims": site["fn"].event_dim,
        "classes": classes,
        "size": size * (classes or 1),
    }


def _features(trunk: nn.Module, args: Sequence[object]) -> Tensor:
    """Returns the trunk's features of the first arguments, as many as it takes."""
    shapes = getattr(trunk, "in_shapes", None)
    if shapes is None:
        parameters = inspect.signature(trunk.forward).parameters.values()
        needed = [p for p in parameters if p.default is p.empty]
        starred = any(p.kind is p.VAR_POSITIONAL for p in needed)
        count = len(args) if starred else len(needed)
    else:
        count = len(shapes)
    if len(args) < count:
        raise PairError(
            f"trunk takes {count} of the model's arguments, got {len(args)}: call guides.auto with"
            " the arguments of the model, guides.auto(model, trunk, x)."
        )
    features = trunk(*args[:count])
    if not isinstance(features, Tensor) or features.dim() < 2:
        raise PairError(
            "trunk must return features of shape (*plates, H), one row for each data point, got"
            f" {format_value(features)}."
        )
    return features


class SitePosterior(Configurable):
    """The posterior of one site in an ``Auto`` guide: a ``Conditional``, or a learned ``Prior``.

    Arguments:
        family: The family.
        event_shape: The shape of a draw, before it is mapped to the support.
        features: The number of the trunk's features, 0 for a global variable.
        parents: How the values of its parents are contexts.
        inner: The plates around the site that are no plates of the data: name, dimension and
            size. Each of their indices has its own parameters.
        classes: The number of values of a Categorical.
        through: Whether draws are mapped to the support of the prior.
        fixed: The fixed parameters of the family.
    """

    def __init__(
        self,
        family: type[Any],
        event_shape: tuple[int, ...],
        *,
        features: int = 0,
        parents: Mapping[str, Mapping[str, Any]],
        inner: Sequence[tuple[str, int, int]] = (),
        classes: int = 0,
        through: bool = False,
        fixed: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.parents = dict(parents)
        self.inner = [(name, dim, size) for name, dim, size in inner]
        self.features = features
        self.through = through

        event = tuple(event_shape)
        wide: tuple[int, ...] = (*(size for *_, size in self.inner), *event)
        sizes = [features] if features else []
        sizes += [parent["size"] for parent in self.parents.values()]
        own = {"logits": (*event, classes)} if classes else None
        all_shapes = {"logits": (*wide, classes)} if classes else None
        self.law = FamilyModule(family, event, fixed, param_shapes=own)
        options: dict[str, Any] = {"param_shapes": all_shapes, **fixed}
        self.conditional: Conditional | Prior
        if sizes:
            hidden = [features or _HIDDEN] if self.parents else []
            self.conditional = Conditional(family, MLP([*sizes], hidden), wide, **options)
        else:
            self.conditional = Prior(family, wide, **options)

    @torch.no_grad()
    def start_at(self, prior: Distribution) -> None:
        """Starts the locations of a new posterior at the median of the prior.

        A global variable starts in a narrow distribution there: a wide one makes the first
        gradients of a few shared numbers noisy.
        """
        found = _quantiles(prior)
        if found is None:
            return
        ndims = len(prior.batch_shape)
        middle, spread = (self._shared(value, ndims) for value in found)
        free = self.conditional.free
        if isinstance(self.conditional, Conditional):
            if "loc" in free:
                bias = bias_of(self.conditional.heads["loc"])
                assert bias is not None
                bias += middle.flatten().to(bias)
                self.conditional.is_new = True
            return
        scale = _NARROW * spread.clamp(max=1.0)
        for name, value in _narrow(self.law.family, prior, middle, scale).items():
            if name in free:
                start = self.conditional.get_parameter(f"free_{name}")
                start.copy_(free[name][0].inv(value).expand(start.shape))

    def _shared(self, value: Tensor, batch_ndims: int) -> Tensor:
        """Returns the values of a site without plates of the data, by their mean there.

        The shape is that of the parameters: the inner plates and the event.
        """
        dims = [dim for _, dim, _ in self.inner]
        for dim in range(-batch_ndims, 0):
            whole = [size for _, own, size in self.inner if own == dim]
            if whole != [value.shape[batch_ndims + dim]]:
                value = value.mean(batch_ndims + dim, keepdim=True)
        event = value.shape[batch_ndims:]
        shape = [value.shape[batch_ndims + dim] if -dim <= batch_ndims else 1 for dim in dims]
        sizes = [size for *_, size in self.inner]
        return value.reshape((*shape, *event)).expand((*sizes, *event))

    def forward(
        self, site: Mapping[str, Any], contexts: Sequence[Tensor], rows: Mapping[str, Tensor]
    ) -> Distribution:
        """Returns the posterior in the place of the prior.

        Arguments:
            site: The site of the model, with its prior and its plates.
            contexts: The features, if any, and the values of the parents.
            rows: The indices that are drawn in subsampled plates.
        """
        outputs = self._outputs(contexts, rows)
        prior = site["fn"]
        outputs = _without_excluded(innermost(prior), outputs)
        posterior: Distribution = self.law.distribution(outputs)
        if self.through:
            posterior = _mapped(posterior, _support(prior))
        shape = list(posterior.batch_shape)
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and frame.size >= 0:
                shape = [1] * (-frame.dim - len(shape)) + shape
                shape[frame.dim] = frame.size
        return _masked(prior, posterior.expand(torch.Size(shape)))

    def _outputs(
        self, contexts: Sequence[Tensor], rows: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns the free parameters, with the inner plates in their places in the batch."""
        if isinstance(self.conditional, Conditional):
            outputs = self.conditional.outputs(*contexts)
        else:
            free = self.conditional.free
            outputs = {name: getattr(self.conditional, f"free_{name}") for name in free}
        if not self.inner:
            return outputs

        placed = {}
        for name, output in outputs.items():
            ndims = len(self.law.free[name][1])
            lead = output.dim() - ndims - len(self.inner)
            missing = max(0, -self.inner[0][1] - lead)
            output = output.reshape((1,) * missing + output.shape)
            lead += missing
            for place, (plate, dim, size) in zip(itertools.count(lead), self.inner):
                if plate in rows and len(rows[plate]) != size:
                    output = output.index_select(place, rows[plate])
                output = output.transpose(lead + dim, place)
            event = output.shape[output.dim() - ndims :]
            placed[name] = output.reshape(output.shape[:lead] + event)
        return placed

    @property
    def headline(self) -> str:
        """The family and its event shape."""
        return self.conditional.headline

    def __repr__(self) -> str:
        mapped = ", mapped to the support" if self.through else ""
        return f"{self.conditional!r}{mapped}"


def _without_excluded(prior: Distribution, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sets the log odds of values that a discrete prior excludes as low as it goes."""
    if "logits" not in outputs or not isinstance(
        prior, (td.Bernoulli, td.Categorical, td.OneHotCategorical)
    ):
        return outputs
    probs = prior.probs
    logits = outputs["logits"].masked_fill(probs == 0, _EXCLUDED)
    if isinstance(prior, td.Bernoulli):
        logits = logits.masked_fill(probs == 1, -_EXCLUDED)
    return {**outputs, "logits": logits}


def _mapped(posterior: Distribution, support: constraints.Constraint) -> Distribution:
    """Maps a Normal to a support."""
    ndims = 0
    while isinstance(support, constraints.independent):
        ndims += support.reinterpreted_batch_ndims
        support = support.base_constraint
    mapped = _OnSupport(innermost(posterior), support)
    return mapped.to_event(ndims) if ndims else mapped


class _OnSupport(TransformedDistribution):
    """A distribution that ``biject_to`` maps to a support, with this support as an attribute.

    For composed transforms, torch returns the image of the last one alone.

    Arguments:
        base_distribution: A distribution of real numbers.
        support: The support.
    """

    def __init__(
        self, base_distribution: Distribution, support: constraints.Constraint
    ) -> None:
        self._support = support
        super().__init__(base_distribution, [biject_to(support)])

    @property
    def support(self) -> constraints.Constraint:
        """The support."""
        return self._support

    def expand(self, batch_shape: Shape, _instance: object = None) -> "_OnSupport":
        """Returns the distribution with its batch expanded."""
        new: _OnSupport = self._get_checked_instance(_OnSupport, _instance)
        new._support = self._support
        return super().expand(batch_shape, new)


def _masked(prior: Distribution, posterior: Distribution) -> Distribution:
    """Gives the posterior the masks that the prior has."""
    ndims = 0
    while isinstance(prior, (Independent, MaskedDistribution)):
        if isinstance(prior, Independent):
            ndims += prior.reinterpreted_batch_ndims
        elif ndims == 0:
            posterior = posterior.mask(prior._mask)
        else:
            # The masked elements lie inside the event.
            inside = posterior.base_dist.mask(prior._mask)
            posterior = inside.to_event(posterior.reinterpreted_batch_ndims)
        prior = prior.base_dist
    return posterior


class _Posteriors(Messenger):
    """Puts the posteriors of a guide in the place of the priors of a running model.

    All other sites of the model are hidden from what runs the guide, but not the rows that
    subsampled plates draw.
    """

    def __init__(self, guide: "Auto", features: Tensor | None) -> None:
        super().__init__()
        self.guide = guide
        self.features = features
        self.values: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}

    def guides(self, site: Site) -> bool:
        """Whether the guide draws a site. It leaves data that are to be predicted to the model."""
        return _is_guided(site) and site["name"] not in self.guide.observed

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if not self.guides(msg):
            msg["stop"] = True
            return
        posterior = self.guide.posterior(msg["name"])
        contexts = []
        if posterior.features:
            assert self.features is not None
            contexts.append(self.features_of(msg))
        for name, parent in posterior.parents.items():
            contexts.append(_as_context(self.values[name], parent))
        msg["fn"] = posterior(msg, contexts, self.rows)
        # The model's pyro.markov counts sites that are hidden here.
        infer = {key: v for key, v in msg["infer"].items() if not key.startswith("_markov")}
        if self.guide.enumerate and msg["fn"].has_enumerate_support:
            infer["enumerate"] = "parallel"
        msg["infer"] = infer

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.rows[msg["name"]] = msg["value"]
        elif self.guides(msg) or msg["name"] in self.guide.sites:
            self.values[msg["name"]] = msg["value"]

    def _pyro_param(self, msg: Any) -> None:
        msg["stop"] = True

    def features_of(self, site: Mapping[str, Any]) -> Tensor:
        """Returns the features for the plates around a site.

        Raises:
            PairError: If they do not fit the plates.
        """
        features = self.features
        assert features is not None
        frames = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
        for dim in range(-features.dim() + 1, 0):
            size = features.shape[dim - 1]
            frame = frames.get(dim)
            if size == 1:
                continue
            if frame is None or frame.name not in self.guide.plates:
                fits = dim in self.guide.plates.values()
                features = features.mean(dim - 1, keepdim=True)
            elif size == frame.size or frame.size < 0:
                fits = True  # A plate without a size takes any.
            else:
                fits = size == frame.full_size and frame.name in self.rows
                if fits:
                    features = features.index_select(dim - 1, self.rows[frame.name])
            if not fits:
                plates = {frame.name: frame.size for frame in frames.values()}
                raise PairError(
                    f"trunk returns features of shape {tuple(features.shape)}, which do not fit"
                    f" the plates around {site['name']!r}, {plates}: return the shape"
                    " (*plates, H)."
                )
        return features


def _as_context(value: Tensor, parent: Mapping[str, Any]) -> Tensor:
    """Returns the value of a parent as a vector for each data point."""
    if parent["classes"]:
        value = one_hot(value, parent["classes"]).to(torch.get_default_dtype())
    ndims = parent["event_ndims"] + (parent["classes"] > 0)
    lead = value.dim() - ndims
    for dim in parent["moved"]:
        value = value.unsqueeze(lead).transpose(lead + dim, lead)
        ndims += 1
    return value.flatten(-ndims) if ndims else value.unsqueeze(-1)


class Auto(StochasticModule):
    r"""An amortized guide of any model, which ``guides.auto`` makes.

    It runs the model with a posterior in the place of each latent prior.

    Arguments:
        model: The model, whose weights are not the guide's.
        trunk: The network from the data to features, or None.
        posteriors: The arguments of each latent site's ``SitePosterior``, in the order of the
            model.
        plates: The names and dimensions of the plates of the data.
        enumerate: Whether discrete sites with finitely many values are marked.
        observed: The names of the data, which the guide does not draw where they are missing.
    """

    density = "q"

    def __init__(
        self,
        model: Program,
        trunk: nn.Module | None,
        posteriors: Mapping[str, Mapping[str, Any]],
        *,
        plates: Mapping[str, int],
        enumerate: bool = True,
        observed: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.sites = list(posteriors)
        self.posteriors = nn.ModuleList(SitePosterior(**posteriors[s]) for s in self.sites)
        self.plates = dict(plates)
        self.enumerate = enumerate
        self.observed = list(observed)
        self._model = (model,)  # in a tuple, so that it is no part of the guide
        factors = {}
        for place, name in zip(itertools.count(), self.sites):
            given = ["x"] if posteriors[name].get("features") else []
            given += posteriors[name]["parents"]
            condition = f" | {', '.join(given)}" if given else ""
            factors[f"posteriors.{place}"] = f"{name}{condition}"
        self.factors = factors

    @property
    def model(self) -> Program:
        """The model."""
        return self._model[0]

    def check_call(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Does nothing: the guide takes whatever the model takes."""

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Samples the latent variables, given the arguments of the model."""
        features = None if self.trunk is None else _features(self.trunk, args)
        draws = _Posteriors(self, features)
        grad = torch.is_grad_enabled()
        with evaluating(*modules_of(self.model)), torch.set_grad_enabled(grad), draws:
            self.model(*args, **kwargs)
        return draws.values

    def posterior(self, name: str) -> SitePosterior:
        """Returns the posterior of a latent site.

        Raises:
            PairError: If the model did not sample the site when the guide was made.
        """
        if name not in self.sites:
            raise PairError(
                f"{name_of(self.model)} samples {name!r}, which it did not when the guide was"
                " made: make the guide with data for which it samples every latent variable."
            )
        found = self.posteriors[self.sites.index(name)]
        assert isinstance(found, SitePosterior)
        return found
