"""Diagnosis of trained pairs: collapse, dead units, overfitting, and their remedies."""

__all__ = ["Decomposition", "Diagnosis", "Symptom", "diagnose"]

import contextlib
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor, nn

from tarspyro.arguments import as_count
from tarspyro.distributions.kl import exact_kl
from tarspyro.evaluate.batching import in_memory, seeded
from tarspyro.evaluate.likelihood import elbo
from tarspyro.evaluate.posterior import Estimate, mean_of
from tarspyro.infer.bounds.total_correlation import information_and_correlation
from tarspyro.infer.pairs import check_drawn, check_local, structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    Site,
    check_program,
    drawn_of,
    elements_of,
    log_prob,
    reduce_to,
    sample_sites,
    sum_of,
    trace_pair,
    with_values,
)
from tarspyro.inputs import each
from tarspyro.runs import History
from tarspyro.scopes import evaluating, local_parameters
from tarspyro.types import Arguments, Data, Program

# A unit whose KL is below this, in nats, is unused.
_UNUSED = 0.01
# All units together are collapsed if the decoder gains less than this from the code, in nats.
_GAIN = 0.1
# The share of units above which a finding is a symptom.
_MANY = 0.5
# Scales below this, or above its inverse, are at the end of their range.
_SATURATED = 1e-4
# The largest distance of the aggregated posterior from the prior, in nats for each unit.
_AWAY = 0.25


class Symptom(NamedTuple):
    """Something that is wrong with a pair.

    Attributes:
        name: Its name, such as ``"collapse"``.
        value: The number that shows it.
        text: The meaning of the number.
        remedy: What to try.
    """

    name: str
    value: float
    text: str
    remedy: str


class Decomposition(NamedTuple):
    r"""The mean KL of a latent variable, split in three, in nats.

    .. math:: \mathbb{E}_x \mathrm{KL}(q(z \mid x) \| p(z)) =
              I_q(x; z) + \mathrm{KL}\Big(q(z) \,\Big\|\, \prod_u q(z_u)\Big) +
              \sum_u \mathrm{KL}(q(z_u) \| p(z_u))

    They are the information in the code, the total correlation of its units, and the distance
    of each unit from its prior.
    """

    mutual_information: float
    total_correlation: float
    dimension_wise: float

    @property
    def kl(self) -> float:
        """The mean KL, the sum of the three."""
        return sum(self)


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The result of ``diagnose``.

    Attributes:
        symptoms: What is wrong; empty if nothing was found.
        kl: The mean KL of each unit, by latent site, in nats.
        decoder_gain: What a data point's own code gains over the code of another, in
            reconstruction, in nats.
        elbo: The mean ELBO, in nats.
        decomposition: The KL, split in three; None if there are several latent sites, or the
            prior does not factorize.
    """

    symptoms: tuple[Symptom, ...]
    kl: Mapping[str, Tensor]
    decoder_gain: Estimate
    elbo: Estimate
    decomposition: Decomposition | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing wrong was found."""
        return not self.symptoms

    def __repr__(self) -> str:
        names = ", ".join(symptom.name for symptom in self.symptoms)
        lines = [names or "healthy"]
        for symptom in self.symptoms:
            lines.append(f"  {symptom.name}: {symptom.text}; {symptom.remedy}")
        for name, units in self.kl.items():
            unused = int((units < _UNUSED).sum())
            lines.append(
                f"  {name}: KL {float(units.sum()):.2f} nats, {unused} of {units.numel()} units"
                " unused"
            )
        if self.decomposition is not None:
            parts = self.decomposition
            lines.append(
                f"  KL {parts.kl:.2f} = mutual information {parts.mutual_information:.2f} + total"
                f" correlation {parts.total_correlation:.2f} + dimension-wise"
                f" {parts.dimension_wise:.2f} nats"
            )
        gain, error = map(float, self.decoder_gain)
        lines.append(f"  gain from the own code: {gain:.2f} +- {error:.2f} nats")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"
            for cells in ((s.name, f"{s.value:.3g}", s.text, s.remedy) for s in self.symptoms)
        )
        head = "<tr><th>symptom</th><th>number</th><th>meaning</th><th>remedy</th></tr>"
        return f"<table>{head}{rows}</table><pre>{html.escape(repr(self))}</pre>"


def diagnose(
    model: Program,
    guide: Program,
    x: Data,
    *,
    train: Data | None = None,
    history: History | Sequence[Mapping[str, float]] | None = None,
    num_rows: int = 1000,
    seed: int | None = None,
) -> Diagnosis:
    r"""Returns the symptoms of a bad pair, each with its number and a remedy.

    - *collapse*: the decoder gains nothing from the code. Its measure is the reconstruction
      from a data point's own code minus that from the code of another data point.
    - *unused units*: most units have a KL below 0.01 nats.
    - *aggregated posterior*: the codes of all data are not distributed as the prior, so that
      samples of the prior decode to something else. Its measure is the total correlation plus
      the dimension-wise KL (Chen et al. 2018, arXiv:1802.04942, eq. 2).
    - *dead units*: units behind a ReLU that are 0 for every data point.
    - *saturated scales*: scales of the guide or of the likelihood below 1e-4 or above 1e4.
    - *overfitting*: a higher ELBO on the training data, which ``train`` gives.
    - *not converged*: a loss that still falls, seen in the ``history``.

    The decomposition of the KL takes the codes of the rows for all of q(z), so that the mutual
    information is at most log N.

    Arguments:
        model: The model.
        guide: The guide.
        x: Data that were not trained on.
        train: The training data.
        history: The history of the training, as ``fit`` returns it, or its rows.
        num_rows: The number of first rows that are looked at.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        A ``Diagnosis``, printed in words.

    Raises:
        PairError: If data points have no weights of their own.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
        >>> def prior(x):  # a guide that ignores the data
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        >>> x = 5**0.5 * torch.randn(200)
        >>> [symptom.name for symptom in diagnose(model, prior, x).symptoms]
        ['collapse', 'unused units']
    """
    num_rows = as_count("num_rows", num_rows, 2)
    check_program("model", model)
    check_program("guide", guide)
    rows = each(lambda part: part[:num_rows], in_memory(x, model, guide))
    with (
        seeded(seed),
        torch.no_grad(),
        pyro.validation_enabled(False),
        evaluating(model, guide),
        local_parameters(),
    ):
        structure = structure_of(model, guide, rows, {}, observed=True)
        check_drawn(model, structure)
        check_local(model, structure)
        with _activity(model, guide) as active:
            traces = trace_pair(model, guide, rows, {})
        pair = _Pair(model, guide, rows, structure, *traces)
        bound = elbo(model, guide, rows, seed=0).elbo.double()
        kl = pair.kl_by_unit()
        gain = mean_of(pair.decoder_gains())
        decomposition = pair.decomposition()

        symptoms = [
            *_collapse(kl, gain),
            *_aggregate(decomposition, sum(units.numel() for units in kl.values())),
            *_dead(active),
            *_saturated(traces),
        ]
        if train is not None:
            part = each(lambda part: part[:num_rows], in_memory(train, model, guide))
            symptoms += _overfitting(elbo(model, guide, part, seed=0).elbo.double(), bound)
        if history is not None:
            symptoms += _unfinished(history.rows if isinstance(history, History) else history)
    return Diagnosis(tuple(symptoms), kl, gain, mean_of(bound), decomposition)


def decoder_gains(
    model: Program, guide: Program, rows: Arguments, structure: Structure | None = None
) -> Tensor:
    """Returns the gain of each data point's own code over the code of another one, in
    reconstruction, in nats.

    Arguments:
        model: The model.
        guide: The guide.
        rows: The data points, at least two.
        structure: The structure of the pair; found if not given.

    Raises:
        PairError: If the pair has no latent variable of a data point.
    """
    structure = structure or structure_of(model, guide, rows, {}, observed=True)
    check_drawn(model, structure)
    check_local(model, structure)
    traces = trace_pair(model, guide, rows, {})
    return _Pair(model, guide, rows, structure, *traces).decoder_gains()


class _Pair:
    """A run of a pair on the rows that are looked at."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        rows: Arguments,
        structure: Structure,
        model_trace: Trace,
        guide_trace: Trace,
    ) -> None:
        self.model = model
        self.guide = guide
        self.rows = rows
        self.structure = structure
        self.modelled = dict(sample_sites(model_trace))
        self.guide_trace = guide_trace
        self.latent = {
            name: site
            for name, site in drawn_of(sample_sites(guide_trace)).items()
            if name in self.modelled
        }

    def kl_by_unit(self) -> dict[str, Tensor]:
        """Returns the mean KL of each unit, in closed form where there is one."""
        found = {}
        for name, site in self.latent.items():
            q = elements_of(site["fn"])
            p = elements_of(self.modelled[name]["fn"])
            if len(q.event_shape) != len(p.event_shape):
                q = site["fn"]
                p = self.modelled[name]["fn"]
            divergence = exact_kl(q, p)
            if divergence is None:
                divergence = q.log_prob(site["value"]) - p.log_prob(site["value"])
            found[name] = self._mean_over_rows(name, site, divergence)
        return found

    def _mean_over_rows(self, name: str, site: Site, value: Tensor) -> Tensor:
        """Returns the mean of numbers of units over the data points that a mask counts."""
        inner = value.dim() - len(site["fn"].batch_shape)
        mask = site["mask"]
        if torch.is_tensor(mask):
            weights = mask.expand(site["fn"].batch_shape).to(value.dtype)
            weights = weights.reshape(weights.shape + (1,) * inner)
            value = value * weights / weights.mean().clamp(min=1e-12)
        place = self.structure.group(name, site)
        dims = [dim - inner for dim in self.structure.groups[place].dims]
        return value.double().mean(dims).cpu()

    def decoder_gains(self) -> Tensor:
        """Returns the gain of the own code over another one's, in reconstruction, for each data
        point.

        The other data point is any: neighbours in sorted data have codes alike.
        """
        exchanged = {}
        for name, site in self.latent.items():
            place = self.structure.group(name, site)
            event = site["fn"].event_dim
            dims = [dim - event for dim in self.structure.groups[place].dims]
            value = site["value"]
            for dim in dims:
                value = value.index_select(dim, _others(value.shape[dim]).to(value.device))
            exchanged[name] = value
        others = with_values(self.guide_trace, exchanged)
        trace = poutine.trace(poutine.replay(self.model, trace=others)).get_trace(*self.rows)
        own = self._log_likelihood(self.modelled)
        other = self._log_likelihood(dict(sample_sites(trace)))
        return (own - other).double().flatten()

    def _log_likelihood(self, sites: Mapping[str, Site]) -> Tensor:
        dims = self.structure.groups[0].dims
        return sum_of(
            reduce_to(scale_and_mask(log_prob(site), mask=site["mask"]), dims)
            for site in sites.values()
            if site["is_observed"]
        )

    def decomposition(self) -> Decomposition | None:
        """Returns the KL of the only latent site in three parts."""
        if len(self.latent) != 1:
            return None
        ((name, site),) = self.latent.items()
        q = elements_of(site["fn"])
        p = elements_of(self.modelled[name]["fn"])
        value = site["value"]
        factorizes = len(q.event_shape) == len(p.event_shape)
        if len(site["fn"].batch_shape) != 1 or not factorizes or site["mask"] is not None:
            return None
        count = len(value)
        prior = p.log_prob(value).expand(value.shape[: value.dim() - len(p.event_shape)])
        prior = prior.reshape(count, -1).sum(-1).double()
        sums = torch.zeros(3, dtype=torch.double)  # the KL and its first two parts
        for start in range(0, count, 100):
            some = value[start : start + 100]
            # log q(z_m | x_n) of each unit, of shape (100, N, units).
            density = q.log_prob(some.unsqueeze(1)).reshape(len(some), count, -1).double()
            rows = torch.arange(len(some), device=value.device)
            own = density[rows, start + rows].sum(-1)
            weights = density.new_full((1, count), -math.log(count))
            parts = information_and_correlation(density, own, weights)
            whole = own - prior[start : start + 100]
            sums += torch.stack([part.sum() for part in (whole, *parts)]).cpu()
        kl, information, correlation = (sums / count).tolist()
        return Decomposition(information, correlation, kl - information - correlation)


def _others(rows: int) -> Tensor:
    """Returns another row for each row, in no order that data may have, the same every time."""
    generator = torch.Generator().manual_seed(0)
    circle = torch.randperm(rows, generator=generator)
    return torch.empty_like(circle).index_copy(0, circle, circle.roll(1))


@contextlib.contextmanager
def _activity(*programs: Program) -> Iterator[dict[str, Tensor]]:
    """Records which units behind ReLUs are ever above zero, by module."""
    active: dict[str, Tensor] = {}
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def record(_: nn.Module, __: object, output: Tensor) -> None:
            positive = (output > 0).flatten(0, -2).any(0) if output.dim() > 1 else output > 0
            before = active.get(name)
            active[name] = positive if before is None else before | positive

        hooks.append(module.register_forward_hook(record))

    for half, program in zip(("model", "guide"), programs, strict=True):
        if isinstance(program, nn.Module):
            for name, module in program.named_modules():
                if isinstance(module, nn.ReLU):
                    watch(f"{half}.{name}", module)
    try:
        yield active
    finally:
        for hook in hooks:
            hook.remove()


def _collapse(kl: Mapping[str, Tensor], gain: Estimate) -> list[Symptom]:
    units = torch.cat([part.flatten() for part in kl.values()]) if kl else torch.zeros(0)
    share = float((units < _UNUSED).double().mean()) if len(units) else 0.0
    found = []
    value, error = map(float, gain)
    if len(units) and value < max(_GAIN, 3 * error):
        found.append(
            Symptom(
                "collapse",
                value,
                f"a data point's own code gains {value:.2f} nats over another one's",
                "train with ELBO(free_bits=0.25), a warm-up of beta from 0, or a weaker decoder",
            )
        )
    if share > _MANY:
        found.append(
            Symptom(
                "unused units",
                share,
                f"{100 * share:.0f} % of {len(units)} units have a KL below {_UNUSED} nats",
                "train with ELBO(free_bits=0.1) or IWAE(5), or take fewer units",
            )
        )
    return found


def _aggregate(decomposition: Decomposition | None, units: int) -> list[Symptom]:
    if decomposition is None:
        return []
    away = decomposition.total_correlation + decomposition.dimension_wise
    if away <= _AWAY * max(units, 1) or away <= 0.1 * decomposition.kl:
        return []
    return [
        Symptom(
            "aggregated posterior",
            away,
            f"the codes of all data are {away:.2f} nats away from the prior",
            "take a VampPrior or a flow as the prior, or ELBO(beta=2)",
        )
    ]


def _dead(active: Mapping[str, Tensor]) -> list[Symptom]:
    if not active:
        return []
    share = 1 - float(torch.cat([part.flatten() for part in active.values()]).double().mean())
    if share <= _MANY:
        return []
    return [
        Symptom(
            "dead units",
            share,
            f"{100 * share:.0f} % of the units behind ReLUs are 0 for every data point",
            "train anew with a smaller lr, or with MLP(..., activation=nn.SiLU)",
        )
    ]


def _saturated(traces: Sequence[Trace]) -> list[Symptom]:
    found = []
    for half, trace in zip(("likelihood", "guide"), traces, strict=True):
        for name, site in sample_sites(trace):
            if site["is_observed"] is (half == "guide"):
                continue
            scale = getattr(elements_of(site["fn"]), "scale", None)
            if not torch.is_tensor(scale):
                continue
            beyond = (scale < _SATURATED) | (scale > 1 / _SATURATED)
            share = float(beyond.double().mean())
            if share > 0.01:
                found.append(
                    Symptom(
                        "saturated scales",
                        share,
                        f"{100 * share:.0f} % of the scales of {name!r} in the {half} are below"
                        f" {_SATURATED:g} or above {1 / _SATURATED:g}",
                        "fix the scale, Conditional(..., scale=0.1), or standardize the data",
                    )
                )
    return found


def _overfitting(train: Tensor, held_out: Tensor) -> list[Symptom]:
    gap = float(train.mean() - held_out.mean())
    error = float((train.var() / len(train) + held_out.var() / len(held_out)).sqrt())
    if gap <= 4 * error or gap <= 0.02 * abs(float(held_out.mean())):
        return []
    return [
        Symptom(
            "overfitting",
            gap,
            f"the ELBO of the training data is {gap:.2f} +- {error:.2f} nats higher",
            "stop early with fit(validation=..., patience=...), or take a smaller network",
        )
    ]


def _unfinished(history: Sequence[Mapping[str, float]]) -> list[Symptom]:
    """Compares the mean loss of the last tenth of the epochs with the tenth before."""
    losses = [row["loss"] for row in history if "loss" in row]
    size = max(len(losses) // 10, 1)
    if len(losses) < 3:
        return []
    last = sum(losses[-size:]) / size
    before = sum(losses[-2 * size : -size]) / size
    fall = (before - last) / max(abs(last), 1e-12)
    if fall <= 0.005:
        return []
    return [
        Symptom(
            "not converged",
            fall,
            f"the loss still fell by {100 * fall:.1f} % over the last {size} epochs",
            "train longer: fit(epochs=...), or resume the run",
        )
    ]
