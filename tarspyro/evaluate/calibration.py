"""Calibration of guides, by the ranks of true latent variables among the guide's draws."""

__all__ = ["GuideCheck", "SiteCheck", "UnitCheck", "check_guide"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.ops.stats import fit_generalized_pareto
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.arguments import as_count, check_number
from tarspyro.evaluate.annealing import annealed_log_likelihood
from tarspyro.evaluate.batching import in_memory, map_batches, rows_at_once, seeded
from tarspyro.evaluate.likelihood import elbo
from tarspyro.evaluate.posterior import Estimate, mean_of
from tarspyro.evaluate.simulation import simulate, template_of
from tarspyro.infer.pairs import check_drawn, log_weights, structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    Site,
    check_program,
    drawn_of,
    only,
    sample_sites,
    trace_pair,
)
from tarspyro.infer.weights import in_plates, weigh
from tarspyro.inputs import count_rows, each
from tarspyro.scopes import evaluating, local_parameters
from tarspyro.types import Argument, Arguments, Data, Program

# The central intervals whose coverage is reported.
_LEVELS = (0.5, 0.8, 0.95)
# The number of wrong units of a site that are printed.
_LISTED = 4
# The number of bins of the test of the whole distribution of the ranks.
_BINS = 20
# The share of a posterior's variance that data explain, below which a unit ignores the data.
_COLLAPSED = 0.03
# The data points and temperatures of annealed importance sampling, and its chains.
_ANNEALED = {"rows": 16, "steps": 100, "chains": 8}
# The number of data points whose weights give a Pareto index, and of weights for each.
_PARETO = {"rows": 100, "weights": 500}
# Above this index the mean of importance weights is not to be trusted (Vehtari et al. 2015).
_HEAVY = 0.7


class UnitCheck(NamedTuple):
    """The statistics and the verdict of one latent unit.

    Attributes:
        verdict: ``"calibrated"``, ``"too narrow"``, ``"too wide"``, ``"shifted"``,
            ``"collapsed"``, ``"wrong shape"`` or ``"cannot say"``.
        p_value: The smallest p-value of the unit's tests, times the number of all tests.
        shift: How far the guide lies above the truth, in its standard deviations.
        width: The guide's standard deviation over the one that would be right.
        coverage: The share of true values in the central intervals of 50, 80 and 95 %.
    """

    verdict: str
    p_value: float
    shift: float = math.nan
    width: float = math.nan
    coverage: tuple[float, ...] = ()


@dataclass(frozen=True, repr=False)
class SiteCheck:
    """The check of one latent site.

    Attributes:
        name: The name of the site.
        shape: The shape of its units.
        ranks: The rank of each true value among the guide's draws, between 0 and 1, of shape
            ``(simulations, *shape)``; NaN where a mask leaves the value out.
        units: The check of each unit, in the order of the flattened shape.
    """

    name: str
    shape: tuple[int, ...]
    ranks: Tensor
    units: tuple[UnitCheck, ...]

    @property
    def verdict(self) -> str:
        """The verdict of the unit with the smallest p-value."""
        return _worst(self.units).verdict

    def unit_name(self, index: int) -> str:
        """Returns the name of a unit, such as ``z[3]``."""
        if not self.shape:
            return self.name
        place = torch.unravel_index(torch.tensor(index), self.shape)
        return f"{self.name}[{', '.join(str(int(part)) for part in place)}]"

    def __repr__(self) -> str:
        wrong = sum(unit.verdict != "calibrated" for unit in self.units)
        return f"{self.name}: {self.verdict} ({wrong} of {len(self.units)} units are wrong)"


@dataclass(frozen=True, repr=False)
class GuideCheck:
    r"""The result of ``check_guide``.

    Attributes:
        sites: The check of each latent site, by name.
        joint: The check of the rank of log p(x, z), which sees what single units do not show.
        num_simulations: How many data points, or data sets, were simulated.
        pareto_k: The Pareto index of each data point's weights; None if data points have none.
        divergence: The mean :math:`\mathrm{KL}(q \| p) + \mathrm{KL}(p \| q)` over simulated
            data points, in nats; None if the guide has no density at given values.
        gap: The mean of log p(x), by annealed importance sampling, minus the ELBO, in nats,
            over a few simulated data points; None if the sampler does not apply.
        reason: Why nothing can be said, if so.
    """

    sites: Mapping[str, SiteCheck]
    joint: UnitCheck
    num_simulations: int
    pareto_k: Tensor | None = None
    divergence: Estimate | None = None
    gap: Estimate | None = None
    reason: str = ""
    joint_ranks: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def verdict(self) -> str:
        """``"calibrated"``, or the verdict of the unit with the smallest p-value.

        ``"wrong together"`` means that every unit alone is calibrated, and their joint
        distribution is not.
        """
        if self.reason:
            return "cannot say"
        units = [unit for site in self.sites.values() for unit in site.units]
        found = _worst(units).verdict if units else "cannot say"
        return self.joint.verdict if found == "calibrated" else found

    @property
    def calibrated(self) -> bool:
        """Whether nothing wrong was found."""
        return self.verdict == "calibrated"

    def __repr__(self) -> str:
        lines = [f"{self.verdict} ({self.num_simulations:,} simulations)"]
        if self.reason:
            return f"{lines[0]}: {self.reason}"
        for site in self.sites.values():
            lines += _unit_lines(site)
        if self.verdict == "wrong together":
            lines.append(f"  all together: {self.joint.verdict} (p = {_p(self.joint)})")
        if self.pareto_k is not None and len(self.pareto_k):
            heavy = float((self.pareto_k > _HEAVY).double().mean())
            lines.append(
                f"  Pareto k: median {float(self.pareto_k.median()):.2f}, above {_HEAVY} for"
                f" {100 * heavy:.0f} % of data points"
            )
        named = {
            "KL(q || p) + KL(p || q)": self.divergence,
            "log p(x) by AIS - ELBO": self.gap,
        }
        for name, estimate in named.items():
            if estimate is not None:
                value, error = map(float, estimate)
                lines.append(f"  {name}: {value:.3f} +- {error:.3f} nats")
        return "\n".join(lines)


def _unit_lines(site: SiteCheck) -> list[str]:
    """Returns a line for each unit that is wrong, the worst first, or one for the whole site."""
    order = sorted(range(len(site.units)), key=lambda index: site.units[index].p_value)
    wrong = [index for index in order if site.units[index].verdict != "calibrated"]
    if not wrong:
        return [f"  {site.name}: calibrated"]
    lines = []
    for index in wrong[:_LISTED]:
        unit = site.units[index]
        shown = f"{site.unit_name(index)}: {unit.verdict}"
        if unit.verdict == "cannot say":
            lines.append(f"  {shown}")
            continue
        lines.append(
            f"  {shown} (shift {unit.shift:+.2f} sd, width {unit.width:.2f} of what is right,"
            f" p = {_p(unit)})"
        )
    if len(wrong) > _LISTED:
        lines.append(f"  {site.name}: {len(wrong) - _LISTED} more of {len(site.units)} units")
    return lines


def _p(unit: UnitCheck) -> str:
    return f"{unit.p_value:.1g}"


def _worst(units: Sequence[UnitCheck]) -> UnitCheck:
    """Returns the unit with the smallest p-value; one that nothing can be said of comes last."""
    return min(units, key=lambda unit: (unit.verdict == "cannot say", unit.p_value))


def check_guide(
    model: Program,
    guide: Program,
    x: Data | None = None,
    *,
    num_simulations: int = 1000,
    num_draws: int = 100,
    level: float = 0.01,
    annealing: bool = True,
    seed: int | None = None,
) -> GuideCheck:
    r"""Checks whether the guide is the model's posterior, by simulation.

    .. math:: z^*, x \sim p(x, z), \qquad z_1, \dots, z_L \sim q(z \mid x), \qquad
              \mathrm{rank} = \frac{1}{L + 1} \Big( \sum_l 1[z_l < z^*] + U \Big)

    If q is p(z | x), then z* and the draws come from one distribution, and ranks are uniform
    (Talts et al. 2018, arXiv:1804.06788). An amortized guide needs no fit for that: it gets
    simulated data. Ties are broken at random (U), so that discrete variables have uniform
    ranks too.

    Uniform ranks do not suffice: they are also those of a guide that returns the prior. So
    there are four tests for each unit u, and three for all together:

    - the mean of the ranks (shifted), and their variance (too narrow, too wide);
    - their mean towards where the importance weights of *other* draws push the guide for this
      data point, which sees a guide that ignores x or reads the wrong row (collapsed,
      shifted);
    - the number of ranks in 20 bins (wrong shape);
    - the same, without the third, for the rank of log p(x, z) (Modrak et al. 2023,
      arXiv:2211.02383), which sees dependences that are missing.

    The tests are corrected for their number (Bonferroni): an exact guide is called wrong with
    probability at most ``level``.

    If latent variables are shared by data points, such as the mean of a group or weights of a
    network, a simulation is a whole data set, and one of its data points is ranked. A guide
    that holds the posterior of one data set, as autoguides do, cannot be checked so.

    Arguments:
        model: The model. It must draw its own data: priors and likelihoods are proper.
        guide: The guide.
        x: Data whose shapes, conditions and masks the simulated data has. Pareto indices are
            those of this data. Not needed if the model generates with ``batch_size``, as those
            of the library do.
        num_simulations: The number of simulated data points, or data sets.
        num_draws: L. As many draws again give the importance weights.
        level: The probability that an exact guide is called wrong.
        annealing: Whether to compare the ELBO with annealed importance sampling.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        A ``GuideCheck``: its ``verdict``, and what led to it, for each site and unit.

    Raises:
        PairError: If model and guide do not match, or the model cannot simulate data.
        ValueError: If a number is out of range, or x is not given and needed.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x, scale=0.5**0.5):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, scale))
        >>> x = torch.zeros(10)
        >>> check_guide(model, guide, x, seed=0).verdict
        'calibrated'
        >>> check_guide(model, lambda x: guide(x, 0.4), x, seed=0).verdict
        'too narrow'
    """
    num_simulations = as_count("num_simulations", num_simulations, 100)
    num_draws = as_count("num_draws", num_draws, 10)
    check_number("level", level, 0, 1)
    check_program("model", model)
    check_program("guide", guide)

    with seeded(seed):
        given = None if x is None else in_memory(x, model, guide)
        rows = _rows(model, guide, given, num_simulations)
        with pyro.validation_enabled(False), evaluating(model, guide), local_parameters():
            structure = structure_of(
                model, guide, rows, {}, particles=2 * num_draws, observed=True
            )
        check_drawn(model, structure)
        simulation = _Simulation(model, guide, structure, num_draws)
        if simulation.of_data_sets:
            rows = rows if given is None else given
            columns = _of_data_sets(simulation, rows, num_simulations)
        else:
            together = structure.vectorized is not False
            columns = map_batches(
                simulation.columns,
                (model, guide),
                rows,
                arguments=rows,
                check=given is not None,
                batch_size=rows_at_once(2 * num_draws if together else 1),
            )
        check = _judge(columns, simulation, level)
        if check.reason or simulation.of_data_sets:
            return check
        return replace(
            check,
            pareto_k=_pareto_indices(model, guide, rows if given is None else given),
            gap=_annealed_gap(model, guide, rows) if annealing else None,
        )


def _rows(
    model: Program, guide: Program, given: Arguments | None, num_simulations: int
) -> Arguments:
    """Returns as many rows as there are simulations: those given, some repeated or left out."""
    if given is None:
        with pyro.validation_enabled(False), evaluating(model, guide), local_parameters():
            found = template_of(model, guide, num_simulations)
        return found
    count = count_rows(given)
    turns = [torch.randperm(count) for _ in range(-(-num_simulations // count))]
    index = torch.cat(turns)[:num_simulations]
    return each(lambda part: part[index.to(part.device)], given)


def _of_data_sets(
    simulation: "_Simulation", rows: Arguments, num_simulations: int
) -> dict[str, Tensor]:
    """Returns the columns of data sets, each with all rows."""

    def columns(*batch: Argument) -> dict[str, Tensor]:
        runs = [simulation.columns(*batch) for _ in range(num_simulations)]
        return {name: torch.cat([run[name] for run in runs]) for name in runs[0]}

    halves = (simulation.model, simulation.guide)
    return map_batches(columns, halves, rows, arguments=rows, batch_size=count_rows(rows))


class _Simulation:
    """Simulated data, and where the true latent variables lie among the guide's draws."""

    def __init__(
        self, model: Program, guide: Program, structure: Structure, num_draws: int
    ) -> None:
        self.model = model
        self.guide = guide
        self.of_data_sets = structure.joint or bool(structure.shared)
        self.structure = structure.whole if self.of_data_sets else structure
        self.num_draws = num_draws
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ignores_data = True

    def columns(self, *batch: Argument) -> dict[str, Tensor]:
        """Returns the statistics of a batch of simulations, with a row for each.

        For a site z: ``rank z``; where the weights push the guide, ``push z``; the true value
        in standard deviations of the guide, ``error z``; the guide's mean minus the prior's,
        ``mean z``; and its variance, ``variance z``. Together: the rank of log p(x, z),
        ``joint``, and the log weight of the truth minus its mean over the draws,
        ``divergence``.
        """
        arguments, truth = simulate(self.model, batch)
        drawn = self._draws(arguments)
        self._compare_with(batch, arguments)
        sites = dict(sample_sites(truth))
        latent = [name for name in drawn.sites if name in sites]
        columns = self._weights(arguments, truth, latent, drawn)
        log_weights = columns.pop("log weights")
        row = self._row_of_data_set()
        prior = self._prior_draws(arguments)
        for name in latent:
            columns |= self._unit_columns(
                name, sites[name], drawn.sites[name], log_weights, row
            )
            if name in prior:
                expected = self._units(name, sites[name], prior[name], row).mean(0).double()
                columns[f"mean {name}"] = columns[f"mean {name}"] - expected
        return columns

    def _prior_draws(self, arguments: Arguments) -> dict[str, Tensor]:
        """Returns draws of p(z), by site; nothing if the pair does not run in a plate."""
        if self.structure.vectorized is False:
            return {}
        count = 2 * self.num_draws
        model, _ = in_plates(self.model, self.guide, 1, count, self.structure)
        trace = poutine.trace(model).get_trace(*arguments)
        return {name: site["value"] for name, site in drawn_of(sample_sites(trace)).items()}

    def _unit_columns(
        self, name: str, site: Site, values: Tensor, log_w: Tensor, row: float
    ) -> dict[str, Tensor]:
        true = self._units(name, site, site["value"], row)[0]
        draws = self._units(name, site, values, row)
        ranked, pushing = draws.split(self.num_draws)
        mean = ranked.mean(0)
        deviation = ranked.std(0).clamp(min=torch.finfo(mean.dtype).tiny)
        weights = log_w[self.num_draws :].softmax(0).unsqueeze(-1)
        push = ((weights * (pushing - pushing.mean(0))).sum(0) / deviation).clamp(-1, 1)
        columns = {
            "rank": _rank(true, ranked),
            "push": push,
            "error": (true - mean) / deviation,
            "mean": mean,
            "variance": deviation.square(),
        }
        if torch.is_tensor(site["mask"]) or site["mask"] is False:
            mask = torch.as_tensor(site["mask"], device=true.device)
            mask = mask.reshape(mask.shape + (1,) * site["fn"].event_dim)
            counted = self._units(name, site, mask.expand(site["value"].shape), row)[0]
            columns["rank"] = torch.where(counted > 0, columns["rank"], torch.nan)
        return {f"{key} {name}": value.double() for key, value in columns.items()}

    def _row_of_data_set(self) -> float:
        """Returns which data point of a data set is ranked, as a share of their number.

        One for each data set: what data points share makes their ranks dependent.
        """
        return float(torch.rand(())) if self.of_data_sets else 0.0

    def _units(self, name: str, site: Site, value: Tensor, row: float) -> Tensor:
        """Returns values of a site with shape ``(particles, data points, units)``."""
        nesting = self.structure.nesting
        event_dim = site["fn"].event_dim
        # The particles lie to the left of all plates.
        full = nesting + 1 + event_dim
        value = value.reshape((1,) * (full - value.dim()) + value.shape)
        value = value if value.is_floating_point() else value.float()
        if self.of_data_sets:
            flat = value.flatten(1, nesting) if nesting else value.unsqueeze(1)
            index = int(row * flat.shape[1])
            flat = flat[:, index : index + 1]
            self.shapes[name] = tuple(flat.shape[2:])
            return flat.flatten(2) if event_dim else flat.unsqueeze(2)
        place = self.structure.group(name, site)
        dims = [dim - event_dim for dim in self.structure.groups[place].dims]
        front = value.movedim(dims, list(range(1, len(dims) + 1)))
        shape = tuple(front.shape[1 + len(dims) :])
        self.shapes[name] = tuple(size for size in shape if size > 1) or shape[:0]
        points = front.shape[1 : 1 + len(dims)].numel()
        return front.reshape(front.shape[0], points, -1)

    def _draws(self, arguments: Arguments) -> "_Draws":
        count = 2 * self.num_draws
        if self.structure.vectorized is False:
            runs = [trace_pair(self.model, self.guide, arguments, {}) for _ in range(count)]
            weights = [self._log_densities(*run) for run in runs]
            stacked: dict[str, list[Tensor]] = {}
            for _, guide_trace in runs:
                for name, site in drawn_of(sample_sites(guide_trace)).items():
                    missing = self.structure.nesting + site["fn"].event_dim
                    missing = missing - site["value"].dim()
                    value = site["value"].reshape((1,) * (missing + 1) + site["value"].shape)
                    stacked.setdefault(name, []).append(value)
            joint, guide = (torch.cat(parts) for parts in zip(*weights, strict=True))
            return _Draws({name: torch.cat(v) for name, v in stacked.items()}, joint, guide)
        halves = in_plates(self.model, self.guide, 1, count, self.structure)
        model_trace, guide_trace = trace_pair(*halves, arguments, {})
        joint, guide = self._log_densities(model_trace, guide_trace)
        values = {}
        for name, site in drawn_of(sample_sites(guide_trace)).items():
            values[name] = site["value"]
        return _Draws(values, joint, guide)

    def _log_densities(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        """Returns log p(x, z) and log q(z | x), of shape ``(particles, data points)``."""
        weights = weigh(self.model, model_trace, guide_trace, self.structure, scales="none")
        joint = torch.cat([group.log_joint[0] for group in weights.groups], -1)
        guide = torch.cat([group.log_guide[0] for group in weights.groups], -1)
        return joint, guide

    def _weights(
        self, arguments: Arguments, truth: Trace, latent: Sequence[str], drawn: "_Draws"
    ) -> dict[str, Tensor]:
        log_weights = drawn.joint - drawn.guide
        given = only(truth, lambda site: site["name"] in latent)
        guide = poutine.replay(self.guide, trace=given)
        model_trace, guide_trace = trace_pair(self.model, guide, arguments, {})
        nothing = torch.full_like(drawn.joint[0], torch.nan)
        try:
            joint, log_guide = self._log_densities(model_trace, guide_trace)
        except (RuntimeError, ValueError, NotImplementedError):
            # Some flows have a density at their own draws alone.
            joint, _ = self._log_densities(model_trace, Trace())
            log_guide = nothing.unsqueeze(0)
        columns = {
            "joint": _rank(joint[0], drawn.joint[: self.num_draws]).double(),
            "divergence": (joint[0] - log_guide[0] - log_weights.mean(0)).double(),
        }
        return columns | {"log weights": log_weights.nan_to_num(-torch.inf)}

    def _compare_with(self, batch: Arguments, arguments: Arguments) -> None:
        """Finds out whether the guide's draws depend on the data at all."""
        if not self.ignores_data or not self.of_data_sets:
            return
        values = []
        for given in (batch, arguments):
            with seeded(0):
                values.append(
                    drawn_of(sample_sites(poutine.trace(self.guide).get_trace(*given)))
                )
        for name, site in values[0].items():
            other = values[1][name]["value"]
            if site["value"].shape != other.shape or not torch.equal(site["value"], other):
                self.ignores_data = False


class _Draws(NamedTuple):
    """Draws of the guide with their log densities."""

    sites: dict[str, Tensor]
    joint: Tensor
    guide: Tensor


def _rank(true: Tensor, draws: Tensor) -> Tensor:
    """Returns the rank of true values among draws, as a number between 0 and 1."""
    below = (draws < true).sum(0)
    ties = (draws == true).sum(0)
    ranks = (below + torch.rand(below.shape, device=true.device) * (ties + 1)) / (
        len(draws) + 1
    )
    return torch.where(true.isnan() | draws.isnan().any(0), torch.nan, ranks)


def _judge(columns: Mapping[str, Tensor], simulation: _Simulation, level: float) -> GuideCheck:
    """Returns the check that the columns of all simulations lead to."""
    names = [name for name in simulation.shapes if f"rank {name}" in columns]
    num_tests = 3 + 4 * sum(columns[f"rank {name}"].shape[1] for name in names)
    sites = {}
    for name in names:
        own = {key: columns[f"{key} {name}"] for key in _COLUMNS}
        units = tuple(
            _judge_unit(
                {key: value[:, unit] for key, value in own.items()},
                num_tests,
                simulation.num_draws,
                level,
            )
            for unit in range(own["rank"].shape[1])
        )
        shape = simulation.shapes[name]
        ranks = own["rank"].reshape(-1, *shape)
        sites[name] = SiteCheck(name, shape, ranks, units)

    found = _Tests(columns["joint"])
    p_value = min(1.0, num_tests * min(found.mean[1], found.spread[1], found.shape))
    verdict = "wrong together" if p_value < level else "calibrated"
    divergence = columns["divergence"]
    divergence = divergence[divergence.isfinite()]
    reason = ""
    if not names:
        reason = "the guide draws none of the model's latent variables."
    elif simulation.of_data_sets and simulation.ignores_data:
        reason = (
            "the guide does not read the data that it is called with, so it holds the posterior"
            " of one data set: compare it with evaluate.true_posterior or Pyro's NUTS."
        )
    return GuideCheck(
        sites,
        UnitCheck(verdict, p_value),
        len(columns["joint"]),
        divergence=mean_of(divergence) if len(divergence) > 1 else None,
        reason=reason,
        joint_ranks=columns["joint"],
    )


_COLUMNS = ("rank", "push", "error", "mean", "variance")


def _judge_unit(
    columns: Mapping[str, Tensor], num_tests: int, num_draws: int, level: float
) -> UnitCheck:
    known = ~columns["rank"].isnan()
    ranks, push, error, mean, variance = (columns[key][known] for key in _COLUMNS)
    if len(ranks) < 100:
        return UnitCheck("cannot say", 1.0)
    tests = _Tests(ranks, push)
    p_value = min(tests.mean[1], tests.spread[1], tests.push[1], tests.shape)
    p_value = min(1.0, num_tests * p_value)
    # A mean over a tenth of the tails, which heavy ones would dominate, is left out.
    error = error.clamp(-10, 10)
    shift = -float(error.mean())
    width = 1 / max(float(error.std()), 1e-6)
    coverage = tuple(
        float(((ranks - 0.5).abs() < part / 2).double().mean()) for part in _LEVELS
    )
    if p_value >= level:
        return UnitCheck("calibrated", p_value, shift, width, coverage)

    # The difference of two means of draws has a variance of its own.
    between = float(mean.var()) - float(variance.mean()) * 1.5 / num_draws
    dependence = between / max(between + float(variance.mean()), 1e-300)
    verdict = "too narrow" if tests.spread[0] > 0 else "too wide"
    # A wrong mean takes true values away from the middle of the draws, and never towards it: if
    # they lie there too often the guide is too wide, whatever the test of its mean finds.
    wide = tests.spread[0] < 0 and num_tests * tests.spread[1] < level
    shifted = max(abs(tests.mean[0]), 0.0 if wide else abs(tests.push[0]))
    if num_tests * min(tests.mean[1], tests.spread[1], tests.push[1]) >= level:
        verdict = "wrong shape"
    elif num_tests * tests.push[1] < level and dependence < _COLLAPSED:
        verdict = "collapsed"
    elif shifted > abs(tests.spread[0]):
        verdict = "shifted"
    return UnitCheck(verdict, p_value, shift, width, coverage)


class _Tests:
    """Tests of uniform ranks.

    Attributes:
        mean: The standardized mean of the ranks, and its two-sided p-value.
        spread: The same for their variance.
        push: The same for their mean in the direction of the weights.
        shape: The p-value of the number of ranks in equal bins.
    """

    def __init__(self, ranks: Tensor, push: Tensor | None = None) -> None:
        ranks = ranks[~ranks.isnan()]
        num = max(len(ranks), 1)
        centred = ranks - 0.5
        self.mean = _two_sided(float(centred.sum()) / math.sqrt(num / 12))
        squares = centred.square() - 1 / 12
        self.spread = _two_sided(float(squares.sum()) / math.sqrt(num / 180))
        self.push = (0.0, 1.0)
        if push is not None and float(push.square().sum()) > 0:
            norm = float(push.square().sum().sqrt())
            self.push = _two_sided(float((push * centred).sum()) / norm * math.sqrt(12))
        counts = torch.histc(ranks, _BINS, 0, 1)
        expected = num / _BINS
        statistic = (counts - expected).square().sum() / expected
        half = torch.tensor((_BINS - 1) / 2, dtype=torch.double)
        self.shape = float(torch.special.gammaincc(half, statistic.cpu().double() / 2))


def _two_sided(statistic: float) -> tuple[float, float]:
    """Returns a standardized statistic with its p-value."""
    return statistic, math.erfc(abs(statistic) / math.sqrt(2))


def _pareto_indices(model: Program, guide: Program, rows: Arguments) -> Tensor | None:
    """Returns the Pareto index of the importance weights of some data points."""
    some = each(lambda part: part[: _PARETO["rows"]], rows)
    size = _PARETO["weights"]

    def indices(*batch: Argument) -> Tensor:
        log_w = log_weights(model, guide, *batch, num_particles=size).reshape(size, -1)
        return torch.tensor([pareto_index(column) for column in log_w.T])

    try:
        return map_batches(indices, (model, guide), some, arguments=some, batch_size=20)
    except PairError:
        return None


def pareto_index(log_w: Tensor) -> float:
    """Returns the Pareto index of importance weights; 0 for weights that are all equal."""
    log_w = (log_w - log_w.max()).double().cpu()
    size = len(log_w)
    ordered = log_w.sort().values
    tail = min(size // 5, math.ceil(3 * size**0.5))
    cutoff = ordered[-tail - 1].clamp(min=math.log(1e-15))
    excesses = ordered[ordered > cutoff].exp() - cutoff.exp()
    # Rounding alone makes equal weights differ by so much.
    if float(ordered[-1] - ordered[-tail - 1]) < 1e-4:
        return 0.0
    if len(excesses) < 5:
        return math.inf
    return float(fit_generalized_pareto(excesses)[0])


def _annealed_gap(model: Program, guide: Program, rows: Arguments) -> Estimate | None:
    """Returns the gap between AIS and the ELBO, for a few simulated data points."""
    few = each(lambda part: part[: _ANNEALED["rows"]], rows)
    with pyro.validation_enabled(False), evaluating(model, guide), local_parameters():
        with torch.no_grad():
            simulated = simulate(model, few).arguments
    try:
        log_p = annealed_log_likelihood(
            model,
            guide,
            simulated,
            num_steps=_ANNEALED["steps"],
            num_chains=_ANNEALED["chains"],
            start="guide",
        )
        bound = elbo(model, guide, simulated, num_particles=100).elbo
    except (PairError, NotImplementedError):
        return None
    return mean_of((log_p - bound).double())
