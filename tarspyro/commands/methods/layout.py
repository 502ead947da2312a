"""Layouts: conversions of a file's values to x, and of x to values."""

__all__ = ["FAMILIES", "Layout", "Seen", "default_family", "look_at", "lay_out"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from tarspyro.data import Table

Values = Literal["binary", "bytes", "grey", "counts", "real", "mixed"]

# The families that --likelihood may name.
FAMILIES = ("Bernoulli", "Normal", "DiscretizedLogistic", "Poisson", "NegativeBinomial")

# The share of grey values near 0 or 1 from which on they are taken for black and white ones.
_BLACK_AND_WHITE = 0.5
# How many values are looked at.
_LOOKED_AT = 2_000_000

_WORDS = {
    "binary": "zeros and ones",
    "bytes": "256 levels",
    "grey": "numbers from 0 to 1",
    "counts": "counts",
    "real": "real numbers",
    "mixed": "columns of several kinds",
}


@dataclass(frozen=True)
class Seen:
    """A summary of the values of some data.

    Attributes:
        values: The kind of the values.
        gaps: The share of the values that are missing.
        extremes: The share of the values within a tenth of their range from its ends.
        channels: The number of channels of an image; None for other data.
        low: The smallest value.
        high: The largest value.
    """

    values: Values
    gaps: float
    extremes: float
    channels: int | None
    low: float
    high: float

    @property
    def sentence(self) -> str:
        """The summary in words."""
        words = _WORDS[self.values]
        if self.values == "bytes" and self.extremes >= _BLACK_AND_WHITE:
            words += ", most of them near black or white"
        return f"{words}, {self.gaps:.0%} missing" if self.gaps else words


def look_at(x: "Tensor", *, image: bool, table: "Table | None" = None) -> Seen:
    """Returns a summary of values; of images the channels come first."""
    import torch

    step = max(1, x.numel() // max(1, len(x)) * len(x) // _LOOKED_AT)
    some = x[::step]
    missing = some.isnan() if some.is_floating_point() else torch.zeros_like(some).bool()
    known = some[~missing].double()
    low = known.min().item()
    high = known.max().item()
    spread = (known - low) / ((high - low) or 1.0)
    extremes = ((spread < 0.1) | (spread > 0.9)).double().mean().item()
    values = _kind(known, low, high, x.dtype == torch.uint8, image)
    if table is not None:
        kinds = {column.kind for column in table.columns}
        of_one: dict[str, Values] = {"real": "real", "count": "counts", "binary": "binary"}
        values = of_one.get(kinds.pop(), "mixed") if len(kinds) == 1 else "mixed"

    gaps = missing.double().mean().item()
    return Seen(values, gaps, extremes, x.shape[1] if image else None, low, high)


def _kind(known: "Tensor", low: float, high: float, bytes_: bool, image: bool) -> Values:
    whole = bool((known == known.round()).all())
    if low >= 0 and high <= 1:
        if whole:
            return "binary"
        steps = known * 255
        return "bytes" if bool(((steps - steps.round()).abs() < 1e-3).all()) else "grey"
    if not whole or low < 0:
        return "real"
    if high <= 255 and (image or (bytes_ and high > 127)):
        return "bytes"
    return "counts"


def default_family(seen: Seen) -> str:
    """Returns the likelihood that suits the values: a family, or ``Blocks`` of several."""
    if seen.values in ("bytes", "grey") and seen.channels in (None, 1):
        if seen.extremes >= _BLACK_AND_WHITE:
            return "Bernoulli"
    return {
        "binary": "Bernoulli",
        "bytes": "DiscretizedLogistic",
        "grey": "Normal",
        "counts": "NegativeBinomial",
        "real": "Normal",
        "mixed": "Blocks",
    }[seen.values]


@dataclass(frozen=True)
class Layout:
    """The conversion of a file's values to x, and of x to values. It is kept in the run's folder,
    so that other files are read as the training's was.

    Attributes:
        family: The likelihood of x.
        kind: ``"images"``, ``"a table"`` or ``"sequences"``.
        values: What was seen in the values.
        shape: The shape of one x, of images with their channels first, or of one step of a
            sequence.
        loc: What is subtracted from a value, one number or one for each element of x.
        scale: What it is divided by after that, likewise.
        whole: Whether the file holds bytes.
        gaps: Whether values are missing.
        sentence: What was seen, in words.
        channels: Where a file of images has its channels: ``"first"``, ``"last"``, or
            ``"none"``.
        columns: The columns of a table as (name, kind, levels), in the order of x.
        order: The names of a table's columns in the order of the file.
        target: The name of the target, if there is one.
        classes: The names of the classes, if there are any.
    """

    family: str
    kind: str
    values: str
    shape: tuple[int, ...]
    loc: float | list[float] = 0.0
    scale: float | list[float] = 1.0
    whole: bool = False
    gaps: bool = False
    sentence: str = ""
    channels: str = "none"
    columns: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    order: tuple[str, ...] = ()
    target: str | None = None
    classes: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """Returns the layout for a run's configuration."""
        return asdict(self)

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> "Layout":
        """Returns the layout that a run's configuration describes.

        Raises:
            ValueError: If it describes none.
        """
        try:
            given = dict(described)
            given["shape"] = tuple(given["shape"])
            given["columns"] = tuple(
                (n, k, tuple(levels)) for n, k, levels in given["columns"]
            )
            for name in ("order", "classes"):
                given[name] = tuple(given[name])
            return cls(**given)
        except (TypeError, KeyError, ValueError):
            raise ValueError(
                "the run's config.json does not say how its data was read: it was not made by"
                " tarspyro train."
            ) from None

    def apply(self, raw: "Tensor") -> "Tensor":
        """Returns the values of a file as x.

        Raises:
            ValueError: If they have another shape than those of the training.
        """
        import torch

        x = self.arranged(raw).to(torch.get_default_dtype())
        found = tuple(x.shape[2 if self.kind == "sequences" else 1 :])
        if found != self.shape:
            raise ValueError(
                f"the data has rows of shape {found}, and the run was trained on rows of shape"
                f" {self.shape}: give data of the same columns or size."
            )
        return (x - torch.tensor(self.loc)) / torch.tensor(self.scale)

    def arranged(self, raw: "Tensor") -> "Tensor":
        """Returns images with their channels first, and other values as they are."""
        if self.kind != "images" or self.channels == "first":
            return raw
        return raw.movedim(-1, 1) if self.channels == "last" else raw.unsqueeze(1)

    def undo(self, x: "Tensor") -> "Tensor":
        """Returns x as the values of a file, in their units."""
        import torch

        raw = x * torch.tensor(self.scale) + torch.tensor(self.loc)
        if self.kind == "images" and self.channels == "last":
            raw = raw.movedim(1, -1)
        elif self.kind == "images" and self.channels == "none":
            raw = raw.squeeze(1)
        return raw.round().clamp(0, 255).to(torch.uint8) if self.whole else raw

    def table(self, raw: "Tensor") -> "Table":
        """Returns rows of a table, in the units and the order of the file."""
        from tarspyro.data import Column, Table

        columns = tuple(Column(*column) for column in self.columns)
        table = Table(raw, columns)
        return reordered(table, self.order) if self.order else table

    @property
    def units(self) -> str | None:
        """The units of a report's figures; None for the file's own values and probabilities."""
        real = any(kind == "real" for _, kind, _ in self.columns)
        if self.family != "Normal" and not real:
            return None
        if isinstance(self.scale, list):
            return "figures are of standardized values"
        return None if self.scale == 1 else "figures are of values scaled to [0, 1]"

    @property
    def extent(self) -> str:
        """The kind of the data with its shape."""
        shape = "x".join(map(str, self.shape))
        if self.kind == "images":
            return f"images of {shape}"
        columns = len(self.columns) or self.shape[0]
        if self.kind == "sequences":
            return f"sequences of {shape} numbers a step"
        return f"a table of {columns} columns"

    @property
    def likelihood(self) -> str:
        """The likelihood in words."""
        if self.family != "Blocks":
            words = self.family
        else:
            names = {"real": "Normal", "count": "NegativeBinomial", "binary": "Bernoulli"}
            kinds = [kind for kind, _ in self.blocks()]
            words = " and ".join(
                f"{names.get(kind, 'OneHotCategorical')} of"
                f" {sum(column[1] == kind for column in self.columns)} {kind}"
                for kind in dict.fromkeys(kinds)
            )
        return f"{words}, with gaps left out" if self.gaps else words

    def blocks(self) -> list[tuple[str, int]]:
        """Returns the columns that share a family, as (kind, number of elements), in their
        order in x: those of a kind together, and every category by itself.
        """
        found: list[tuple[str, int]] = []
        for _, kind, levels in self.columns:
            if kind == "category":
                found.append((kind, len(levels)))
            elif found and found[-1][0] == kind:
                found[-1] = (kind, found[-1][1] + 1)
            else:
                found.append((kind, 1))
        return found

    @property
    def names(self) -> list[str]:
        """The names of the elements of a row of a table."""
        names: list[str] = []
        for name, kind, levels in self.columns:
            names += [f"{name}={level}" for level in levels] if kind == "category" else [name]
        return names or [f"column {index + 1}" for index in range(self.shape[0])]


def reordered(table: "Table", names: Sequence[str]) -> "Table":
    """Returns a table with its columns in another order."""
    import torch

    from tarspyro.data import Table

    columns = {column.name: column for column in table.columns}
    parts = [table.column(name).reshape(len(table), -1) for name in names]
    return Table(torch.cat(parts, 1), tuple(columns[name] for name in names))


def lay_out(
    x: "Tensor",
    seen: Seen,
    family: str,
    kind: str,
    *,
    channels: str = "none",
    table: "Table | None" = None,
    order: Sequence[str] = (),
) -> Layout:
    """Returns the layout of some values under a likelihood.

    Under a Normal a table is standardized, and images are scaled to [0, 1] unless they are
    there. Bytes are divided by 255.

    Raises:
        ValueError: If the values have no density under the likelihood.
    """
    import torch

    loc: float | list[float] = 0.0
    scale: float | list[float] = 1.0
    unit = seen.values in ("binary", "bytes", "grey")
    if unit and seen.high > 1 and family not in ("Poisson", "NegativeBinomial"):
        scale = 255.0
    _check_family(seen, family, unit)

    if family == "Blocks":
        assert table is not None, "only a table has columns of several kinds"
        width = sum(column.width for column in table.columns if column.kind == "real")
        loc, scale = _moments(x, width)
    elif family == "Normal" and kind == "images" and not unit:
        loc = seen.low
        scale = (seen.high - seen.low) or 1.0
    elif family == "Normal" and not (unit and kind == "images"):
        loc, scale = _moments(x, x.shape[-1])

    columns = () if table is None else table.columns
    return Layout(
        family,
        kind,
        seen.values,
        tuple(x.shape[2:] if kind == "sequences" else x.shape[1:]),
        loc,
        scale,
        x.dtype == torch.uint8,
        seen.gaps > 0,
        seen.sentence,
        channels,
        tuple((column.name, column.kind, column.levels) for column in columns),
        tuple(order),
    )


def _check_family(seen: Seen, family: str, unit: bool) -> None:
    """Raises a ``ValueError`` if the values have no density under a likelihood."""
    whole = seen.values in ("counts", "binary") or (seen.values == "bytes" and seen.high > 1)
    fits = {
        "Bernoulli": unit,
        "DiscretizedLogistic": seen.values in ("bytes", "binary"),
        "Poisson": whole,
        "NegativeBinomial": whole,
    }
    if not fits.get(family, True):
        raise ValueError(
            f"--likelihood {family} does not suit the data, which holds {seen.sentence} from"
            f" {seen.low:g} to {seen.high:g}: leave it out, and {default_family(seen)} is taken."
        )


def _moments(x: "Tensor", width: int) -> tuple[list[float], list[float]]:
    """Returns the means and the standard deviations of the first elements; 0 and 1 for the
    others, and 1 for what is constant.
    """
    import torch

    from tarspyro.nn import Standardize

    layer = Standardize.of(x[..., :width].flatten(0, -2).double().float())
    rest = x.shape[-1] - width
    loc = torch.cat([layer.loc, torch.zeros(rest)])
    scale = torch.cat([layer.scale, torch.ones(rest)])
    return loc.tolist(), scale.tolist()
