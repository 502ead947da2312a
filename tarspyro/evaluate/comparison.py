"""Comparisons of pairs on the same data, with errors of their differences."""

__all__ = ["Comparison", "Difference", "compare"]

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_seed, check_choice, check_number, format_value
from tarspyro.evaluate.likelihood import log_likelihood
from tarspyro.evaluate.posterior import Estimate, mean_of
from tarspyro.types import Data, Program


class Difference(NamedTuple):
    """A mean difference over the data points, in nats per data point.

    Attributes:
        value: The mean of the differences.
        standard_error: Its standard error.
        low: The lower end of its confidence interval.
        high: The upper end.
    """

    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Comparison(Mapping[str, Estimate]):
    """The result of ``compare``: the mean log-likelihood of each pair by its name.

    It is a mapping from the names to tuples (value, standard_error), the best first.

    Attributes:
        per_point: log p(x) of each data point under each pair, by name.
        baseline: The pair that the others are compared with.
        level: The probability with which an interval covers the true difference.
    """

    per_point: Mapping[str, Tensor]
    baseline: str
    level: float = 0.95

    def __getitem__(self, name: str) -> Estimate:
        return mean_of(self.per_point[name])

    def __iter__(self) -> Iterator[str]:
        return iter(
            sorted(self.per_point, key=lambda name: -float(self.per_point[name].mean()))
        )

    def __len__(self) -> int:
        return len(self.per_point)

    @property
    def best(self) -> str:
        """The name of the pair with the highest mean."""
        return next(iter(self))

    @property
    def differences(self) -> dict[str, Difference]:
        """Each pair's log-likelihood minus the baseline's, paired by data point."""
        return {name: self.difference(name) for name in self if name != self.baseline}

    def difference(self, name: str, other: str | None = None) -> Difference:
        """Returns the log-likelihood of one pair minus that of another.

        Data points are paired, so what makes some of them hard for both cancels.

        Arguments:
            name: A pair.
            other: Another; the baseline if not given.

        Raises:
            ValueError: If there is no pair of a name.
        """
        other = self.baseline if other is None else other
        check_choice("name", name, list(self.per_point))
        check_choice("other", other, list(self.per_point))
        value, error = map(float, mean_of(self.per_point[name] - self.per_point[other]))
        half = _quantile(self.level, len(self.per_point[name]) - 1) * error
        return Difference(value, error, value - half, value + half)

    def _rows(self) -> list[list[str]]:
        rows = [
            ["", "log p(x)", "", f"minus {self.baseline}", f"{100 * self.level:g} % interval"]
        ]
        for name in self:
            value, error = self[name]
            row = [name, f"{value:.3f}", f"+- {error:.3f}", "", ""]
            if name != self.baseline:
                gap = self.difference(name)
                row[3] = f"{gap.value:+.3f} +- {gap.standard_error:.3f}"
                row[4] = f"{gap.low:+.3f} to {gap.high:+.3f}"
            rows.append(row)
        return rows

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = []
        for name, *cells in rows:
            padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
        count = len(next(iter(self.per_point.values())))
        return "\n".join([*lines, f"nats per data point, over {count:,} data points"])

    def _repr_html_(self) -> str:
        head, *body = self._rows()
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in body
        )
        return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"


def compare(
    pairs: Mapping[str, tuple[Program, Program]],
    x: Data,
    *,
    num_particles: int = 1000,
    baseline: str | None = None,
    level: float = 0.95,
    binarize: bool = False,
    seed: int = 0,
) -> Comparison:
    r"""Compares the log-likelihoods of several pairs on the same data.

    .. math:: d_n = \log p_1(x_n) - \log p_2(x_n), \qquad
              \bar{d} \pm t \sqrt{\mathrm{Var}(d_n) / N}

    with the quantile t of Student's distribution. All pairs get the same rows, the same black
    and white pixels (``binarize``) and the same seed. The error holds the noise of importance
    sampling, which is independent from row to row, and the choice of the rows; it does not hold
    the choice of training data and seeds.

    Log-likelihoods are those of ``log_likelihood``: lower bounds in expectation, that of a
    worse guide by more. Let ``num_particles`` grow until the differences stay.

    Arguments:
        pairs: For each name a tuple (model, guide).
        x: The data, in any form that ``fit`` takes.
        num_particles: The number of draws for each data point.
        baseline: The name of the pair that the others are compared with; the first if not
            given.
        level: The probability with which an interval covers the true difference.
        binarize: See ``log_likelihood``.
        seed: The seed of pixels and draws, the same for every pair.

    Returns:
        A ``Comparison``: a mapping from names to tuples (value, standard_error), with
        ``differences``, printed as a table.

    Raises:
        TypeError: If a pair is not a tuple of a model and a guide.
        ValueError: If there are fewer than two pairs or two data points, or a number is out of
            range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def pair(scale):
        ...     def model(x):
        ...         with pyro.plate("data", len(x)):
        ...             z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...             pyro.sample("x", dist.Normal(z, scale), obs=x)
        ...     def guide(x):
        ...         with pyro.plate("data", len(x)):
        ...             variance = 1 / (1 + scale**-2)
        ...             pyro.sample("z", dist.Normal(variance * x / scale**2, variance**0.5))
        ...     return model, guide
        >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> compare({"narrow": pair(1.0), "wide": pair(2.0)}, x, num_particles=10)
                log p(x)               minus narrow     95 % interval
        wide      -2.074  +- 0.202  +0.067 +- 0.303  -0.898 to +1.031
        narrow    -2.141  +- 0.505
        nats per data point, over 4 data points
    """
    _check_pairs(pairs)
    num_particles = as_count("num_particles", num_particles)
    check_number("level", level, 0, 1)
    seed = as_seed(seed)
    baseline = next(iter(pairs)) if baseline is None else baseline
    check_choice("baseline", baseline, list(pairs))

    per_point = {}
    for name, (model, guide) in pairs.items():
        found = log_likelihood(
            model, guide, x, num_particles=num_particles, binarize=binarize, seed=seed
        )
        per_point[name] = torch.as_tensor(found).double().cpu().flatten()
    count = len(per_point[baseline])
    if count < 2:
        raise ValueError(f"x must hold at least 2 data points for an error, got {count}.")
    return Comparison(per_point, baseline, level)


def _check_pairs(pairs: Mapping[str, tuple[Program, Program]]) -> None:
    if not isinstance(pairs, Mapping) or len(pairs) < 2:
        raise ValueError(
            "pairs must be a mapping from at least two names to tuples (model, guide), got"
            f" {format_value(pairs)}."
        )
    for name, pair in pairs.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"pairs[{name!r}] must be a tuple (model, guide), got {format_value(pair)}."
            )


def _quantile(level: float, freedom: int) -> float:
    """Returns the number that Student's t stays within with a probability."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))
