"""Random pairs of Pyro programs, as text that can be read and run, with everything about them
known that can be.

    python -m tests.random_programs 17        prints the pair of seed 17, its truth, and what
    the library says of it

A seed decides everything. ``draw(seed)`` returns a ``Pair``: the text of two functions
``model`` and ``guide``, the values of their parameters and the data, from which ``Pair.build``
makes programs in any precision. Most are linear and Gaussian, or discrete and small, so that
``tests.program_truth`` finds their evidence, their ELBO and its gradient by algebra and
enumeration, from the log densities that Pyro's traces report and without the library.
"""

import dataclasses
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch

HEADER = "import torch, pyro, pyro.distributions as dist\nfrom pyro import poutine\nfrom pyro.infer import *\n"

LOCAL = "local"  # every latent variable belongs to a data point
SHARED = "shared"  # all belong to several data points, or there is no plate of data points
NESTED = "nested"  # some of each
JOINT = "joint"  # data points cannot be told apart: one weight for the whole, or none


@dataclass(frozen=True)
class Programs:
    """A pair that can be called."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[torch.Tensor, ...]
    parameters: dict[str, torch.Tensor]

    def set(self, values):
        """Gives some parameters other values."""
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[name].copy_(torch.tensor(value))


@dataclass(frozen=True)
class Pair:
    """The description of a pair, from which it can be made again, here or by copying its text."""

    seed: int
    kind: str
    features: tuple[str, ...]
    source: str
    values: dict[str, Any] = field(repr=False)  # parameters
    data: dict[str, Any] = field(repr=False)  # arguments, in their order
    constants: dict[str, Any] = field(default_factory=dict, repr=False)
    structure: str = LOCAL
    scaling: str = (
        ""  # "all", "rows", "data", "latent", "given" (subsample=) or "size" (subsample_size=)
    )
    summed: tuple[str, ...] = ()  # sites that the model enumerates and the guide does not have
    later: dict[str, Any] = field(
        default_factory=dict, repr=False
    )  # parameters that get other values after a first call
    evidence: float | None = None  # where a formula says it
    bounded: bool = (
        True  # whether E_q[p / q] is the evidence, so that weighted bounds lie below it
    )
    one_by_one: bool = False  # the program cannot take a plate of particles
    plain: bool = False  # a refusal would be a failure
    wrong: bool = False  # anything but a refusal would be one
    refusable: frozenset[str] = (
        frozenset()
    )  # of "elbo", "weights" (bounds with several particles), "points" (log p(x_n))

    def build(self, dtype=torch.float32, full=False, **data):
        """Makes the pair; ``full`` without the drawing of subsamples."""
        parameters = {
            name: torch.tensor(value, dtype=dtype).requires_grad_()
            for name, value in self.values.items()
        }
        arguments = {
            name: _tensor(value, dtype) for name, value in {**self.data, **data}.items()
        }
        constants = {
            name: _tensor(value, dtype) if isinstance(value, list) else value
            for name, value in self.constants.items()
        }
        if full and "B" in constants:
            constants["B"] = constants["N"]
        space: dict[str, Any] = {**parameters, **constants, "ARGS": tuple(arguments.values())}
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            exec(compile(HEADER + self.source, f"<pair {self.seed}>", "exec"), space)
        finally:
            torch.set_default_dtype(default)
        return Programs(space["model"], space["guide"], tuple(arguments.values()), parameters)

    def text(self):
        """The whole pair as a script."""
        lines = [
            f"# seed {self.seed}: {self.kind}, {', '.join(self.features)}",
            HEADER.rstrip(),
        ]
        lines += [
            f"{name} = torch.tensor({value}, requires_grad=True)"
            for name, value in self.values.items()
        ]
        lines += [
            f"{name} = {f'torch.tensor({value})' if isinstance(value, list) else value}"
            for name, value in {**self.data, **self.constants}.items()
        ]
        lines += [f"ARGS = ({', '.join(self.data)},)", "", self.source.rstrip()]
        lines += [
            f"# after a first call: {name} = {value}" for name, value in self.later.items()
        ]
        return "\n".join(lines)


def _tensor(value, dtype):
    tensor = torch.tensor(value)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Plate:
    name: str
    size: int
    dim: int = -1
    loop: bool = False  # for i in pyro.plate(...)


@dataclass
class Site:
    name: str
    plates: tuple[Plate, ...] = ()
    family: str = "normal"  # or "bernoulli", "categorical"
    event: int = 0
    parents: list[tuple["Site", str]] = field(default_factory=list)
    observed: bool = False
    summed: bool = False

    @property
    def width(self):
        """The size of the event that its parameters have: the logits of a categorical count."""
        return 3 if self.family == "categorical" else self.event

    @property
    def discrete(self):
        return self.family != "normal"

    @property
    def loop(self):
        return any(plate.loop for plate in self.plates)


class Draft:
    """A pair in the making."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.seed = seed
        self.values: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}
        self.features: set[str] = set()

    def chance(self, probability):
        return self.random.random() < probability

    def pick(self, *choices):
        return self.random.choice(choices)

    def numbers(self, shape, scale=1.0, base=0.0):
        if not shape:
            return round(self.random.gauss(base, scale), 3)
        return [self.numbers(shape[1:], scale, base) for _ in range(shape[0])]

    def parameter(self, name, shape=(), scale=1.0, base=0.0):
        self.values[name] = self.numbers(shape, scale, base)
        return name


def draw(seed: int) -> Pair:
    """The pair of a seed."""
    draft = Draft(seed)
    kinds = {
        gaussian: 34,
        discrete: 16,
        mixture: 8,
        hmm: 4,
        conjugate: 7,
        automatic: 11,
        naive: 12,
        wrong: 8,
    }
    (kind,) = draft.random.choices(list(kinds), list(kinds.values()))
    return kind(draft)


# --- linear Gaussian and discrete pairs, of sites that depend on each other in any order
# -----------------------------

LAYOUTS = {
    "iid": 22, "nested": 16, "groups": 14, "global": 10, "sequential": 9, "flat": 6, "crossed": 6, "beside": 7,
    "outside": 5, "features": 5, "unobserved": 4, "chain": 6, "single": 2,
}  # fmt: skip


class Graph:
    """Sites in plates: what a program samples, before it is text."""

    def __init__(self, draft, family, layout=None):
        self.draft, self.family = draft, family
        self.latent: list[Site] = []
        self.observed: list[Site] = []
        self.structure = LOCAL
        self.layout = layout or draft.random.choices(list(LAYOUTS), list(LAYOUTS.values()))[0]
        draft.features.add(self.layout)
        getattr(self, f"_{self.layout}")()

    @property
    def sites(self):
        return self.latent + self.observed

    @property
    def plates(self):
        return list(dict.fromkeys(plate for site in self.sites for plate in site.plates))

    @property
    def data_plate(self):
        return next(
            (plate for plate in self.plates if plate.name == "data" and not plate.loop), None
        )

    def size(self):
        return (
            self.draft.random.choice((2, 3, 3, 4))
            if self.family == "normal"
            else self.draft.random.choice((2, 2, 3))
        )

    def add(self, name, plates=(), candidates=None, family=None, event=None, few=False):
        """A latent site whose parents are some of the candidates."""
        draft = self.draft
        if family is None:
            family = (
                "normal"
                if self.family == "normal" or (few and draft.chance(0.35))
                else draft.pick("bernoulli", "categorical")
            )
        if event is None:
            event = draft.random.choice((0, 0, 2)) if family == "normal" else 0
        site = Site(name, tuple(plates), family, event)
        self._connect(site, self.latent if candidates is None else candidates, 0.6)
        self.latent.append(site)
        return site

    def observe(self, name, plates=(), candidates=None, event=None):
        draft = self.draft
        candidates = self.latent if candidates is None else candidates
        if event is None:
            event = draft.random.choice((0, 0, 2)) if len(plates) < 2 else 0
        site = Site(name, tuple(plates), "normal", event, observed=True)
        self._connect(site, candidates, 0.7, least=1)
        if (
            site.parents
            and all(parent.discrete for parent, _ in site.parents)
            and draft.chance(0.35)
            and not event
        ):
            site.family = "bernoulli"
        self.observed.append(site)
        return site

    def _connect(self, site, candidates, probability, least=0):
        possible = [(parent, how) for parent in candidates if (how := access(parent, site))]
        site.parents = [entry for entry in possible if self.draft.chance(probability)]
        if len(site.parents) < least and possible:
            site.parents = [possible[-1]]

    # Every layout adds its sites in an order in which a program can sample them.

    def _iid(self):
        plate = Plate("data", self.size())
        for k in range(
            self.draft.random.choice((1, 1, 2, 3) if self.family == "normal" else (1, 1, 2))
        ):
            self.add(f"z{k + 1}", [plate], few=k > 0)
        self.observe("x", [plate])
        if self.draft.chance(0.3):
            self.observe("y", [plate])

    def _single(self):
        plate = Plate("data", 1)
        self.add("z1", [plate])
        self.observe("x", [plate])

    def _global(self):
        plate = Plate("data", self.size())
        self.add("w", family=None)
        if self.draft.chance(0.3):
            self.add("v")
        self.structure = SHARED
        if self.draft.chance(0.6):
            self.add("z1", [plate])
            self.structure = NESTED
        self.observe("x", [plate])

    def _two(self):
        """Two plates in either order of their dimensions."""
        dims = self.draft.pick((-1, -2), (-2, -1))
        return Plate("data", self.size(), dims[0]), Plate("inner", 2, dims[1])

    def _nested(self):
        data, inner = self._two()
        if self.draft.chance(0.2):
            self.add("w")
            self.structure = NESTED
        self.add("z1", [data], event=0)
        both = [data, inner] if self.draft.chance(0.5) else [inner, data]
        if self.draft.chance(0.5) and self.family == "normal":
            self.add("z2", both, event=0)
        self.observe(
            "x",
            both,
            [site for site in self.latent if site.name != "w"]
            if self.draft.chance(0.5)
            else None,
        )
        if self.draft.chance(0.3):
            self.observe(
                "y", [data], [site for site in self.latent if len(site.plates) < 2], event=0
            )

    def _crossed(self):
        rows, columns = self._two()
        columns = Plate("columns", columns.size, columns.dim)
        self.add("a", [rows], event=0)
        self.add("b", [columns], [], event=0)
        if self.draft.chance(0.3) and self.family == "normal":
            self.add("z1", [rows, columns], event=0)
        self.observe("x", [rows, columns])
        self.observed[-1].parents = [(site, "plain") for site in self.latent]
        self.structure = JOINT

    def _beside(self):
        one, two = Plate("data", self.size()), Plate("more", self.size())
        shared = self.draft.chance(0.3)
        if shared:
            self.add("w", event=0)
            self.structure = NESTED
        first = self.add("z1", [one])
        second = self.add("z2", [two], [site for site in self.latent if not site.plates])
        self.observe("x", [one], [first, *self.latent[: int(shared)]])
        self.observe("y", [two], [second, *self.latent[: int(shared)]])

    def _sequential(self):
        plate = Plate("data", self.size(), loop=True)
        if self.draft.chance(0.3):
            self.add("w", event=0)
            self.structure = NESTED
        self.add("z1", [plate])
        inner = Plate("inner", 2)
        if self.draft.chance(0.3) and self.family == "normal":
            self.add("z2", [plate, inner], event=0)
        self.observe("x", [plate, inner] if self.draft.chance(0.4) else [plate])
        if self.structure == NESTED and all(site.name == "w" for site in self.latent):
            self.structure = SHARED

    def _groups(self):
        groups, data = (
            Plate("groups", self.draft.pick(1, 2, 2)),
            Plate("data", self.size() + 1),
        )
        self.draft.data_later = {
            "g": [self.draft.random.randrange(groups.size) for _ in range(data.size)]
        }
        if self.draft.chance(0.3):
            self.add("w", event=0)
        self.add("mu", [groups])
        self.structure = SHARED
        if self.draft.chance(0.4):
            self.add("z1", [data])
            self.structure = NESTED
        self.observe("x", [data])
        if all(parent.name != "mu" for parent, _ in self.observed[0].parents):
            mu = next(site for site in self.latent if site.name == "mu")
            self.observed[0].parents.append((mu, "index"))

    def _features(self):
        features, data = Plate("features", 2), Plate("data", self.size() + 1)
        self.draft.data_later = {"c": self.draft.numbers((data.size, features.size))}
        self.add(
            "w", [features], event=0, family=None if self.family == "normal" else "bernoulli"
        )
        self.structure = SHARED
        if self.draft.chance(0.4):
            self.add("z1", [data], [])
            self.structure = NESTED
        self.observe("x", [data], event=0)
        if all(parent.name != "w" for parent, _ in self.observed[0].parents):
            self.observed[0].parents.append((self.latent[0], "matmul"))

    def _unobserved(self):
        alone, data = Plate("alone", 2), Plate("data", self.size())
        self.add("u", [alone], [])
        self.add("z1", [data], [])
        self.observe("x", [data], self.latent[1:])

    def _outside(self):
        parts = Plate("parts", self.size())
        self.add(
            "z1", [parts], event=0, family=None if self.family == "normal" else "bernoulli"
        )
        if self.draft.chance(0.4):
            self.observe("x", [parts])
        self.observe("y", (), event=0)
        self.structure = JOINT

    def _flat(self):
        for k in range(self.draft.pick(1, 2)):
            self.add(f"z{k + 1}")
        self.observe("x", (), event=2)
        if self.draft.chance(0.3):
            self.observe("y", (), event=2)
        self.structure = SHARED

    def _chain(self):
        plate = [Plate("data", 2)] if self.draft.chance(0.7) else []
        self.structure = LOCAL if plate else SHARED
        before: list[Site] = []
        for step in range(3 if self.family == "normal" else 2):
            site = self.add(f"z{step + 1}", plate, before, event=0)
            before = [site]
            self.observe(f"x{step + 1}", plate, before, event=0 if plate else 1)


def access(parent, child):
    """How a site's value enters the mean of another one: through which expression, or "" if it
    cannot.
    """
    if child.discrete and not parent.discrete and not child.observed:
        return ""
    extra = set(parent.plates) - set(child.plates)
    names = {plate.name for plate in extra}
    if not extra:
        return "plain"
    if names == {"groups"} and any(plate.name == "data" for plate in child.plates):
        return "index"
    if names == {"features"} and any(plate.name == "data" for plate in child.plates):
        return "matmul" if not parent.event and parent.family != "categorical" else ""
    if (
        not child.plates
        and child.observed
        and len(extra) == 1
        and not any(plate.loop for plate in extra)
    ):
        return "sum" if parent.family != "categorical" else ""
    return ""


def term(draft, parent, how, child, prefix):
    """The expression by which a parent enters a child's mean, with a weight of its own."""
    value = parent.name
    if how == "index":
        value = f"{value}[..., g{', :' if parent.event else ''}]"
    if how == "sum":
        (plate,) = parent.plates
        value = f"{value}.sum({plate.dim - bool(parent.event)}, keepdim=True)"
    weight = f"{prefix}{child.name}_{parent.name}"
    if parent.family == "categorical":
        return f"{draft.parameter(weight, (3, child.width) if child.width else (3,), 0.8)}[{value}]"
    if how == "matmul":
        value = f"({value} @ c.T)"
    scale = (0.6 if parent.event else 0.8) * (
        0.3 if prefix else 1.0
    )  # a guide is near the posterior of its own
    if parent.event and child.width:
        return f"{value} @ {draft.parameter(weight, (parent.event, child.width), scale)}"
    if parent.event:
        return f"({value} * {draft.parameter(weight, (parent.event,), scale)}).sum(-1)"
    if child.width:
        return f"{value}.unsqueeze(-1) * {draft.parameter(weight, (child.width,), scale)}"
    return f"{draft.parameter(weight, (), scale)} * {value}"


def shape_of(site, width):
    """The shape of a table with an entry for each index of a site's plates: loops first, then
    the others in their place.
    """
    loops = [plate.size for plate in site.plates if plate.loop]
    places = {plate.dim: plate.size for plate in site.plates if not plate.loop}
    deepest = -min(places, default=0)
    return [
        *loops,
        *(places.get(dim - deepest, 1) for dim in range(deepest)),
        *([width] if width else []),
    ]


def in_place(name, site, trailing=0):
    """A row of the data, which has its own dimensions in their natural order, in the place of
    the plates.
    """
    plates = [plate for plate in site.plates if not plate.loop]
    data = next((plate for plate in plates if plate.name == "data"), None)
    if any(plate.loop for plate in site.plates):
        return f"{name}[i]"
    if len(plates) == 2 and plates_dims(plates, "data") == -1:
        return f"{name}.T"
    if len(plates) == 1 and data is not None and data.dim == -2:
        return f"{name}[:, None]"
    return name


def plates_dims(plates, name):
    return next(plate.dim for plate in plates if plate.name == name)


class Writer:
    """The text of both halves of a graph."""

    def __init__(self, draft, graph):
        self.draft, self.graph = draft, graph
        self.mask = self.scale = self.factor = self.subsample = ""
        self.rows = [
            site.name for site in graph.observed if any(p.name == "data" for p in site.plates)
        ]
        self.enumerate = ""

    def infer(self, site):
        return (
            f', infer={{"enumerate": "{self.enumerate}"}}'
            if site.discrete and self.enumerate in ("parallel", "sequential")
            else ""
        )

    def half(self, name, sites, statement, extra=()):
        """A function that samples the sites, those in the same plates in one block."""
        arguments = list(self.draft.data)
        lines = [f"def {name}({', '.join(arguments)}):"]
        lines += [f"    {line}" for line in self.plates()]
        block: tuple[Any, ...] | None = None
        for site in sites:
            if (site.plates, self.contexts(site)) != block:
                opened = block[0] if block else ()
                block = (site.plates, self.contexts(site))
                lines += self.open(site, opened)
            indent = self.indent(site)
            lines += [indent + line for line in statement(site)]
        for plates, line in extra:
            holder = Site("", plates)
            lines += self.open(holder, sites[-1].plates if sites else ())
            lines.append(self.indent(holder) + line)
        return "\n".join(lines if len(lines) > 1 else [*lines, "    pass"])

    def plates(self):
        lines = []
        for plate in sorted(
            (p for p in self.graph.plates if not p.loop), key=lambda p: p.name
        ):
            size = (
                f"len({self.rows[0]})"
                if plate.name == "data" and self.rows
                else str(plate.size)
            )
            if plate.name == "data" and self.subsample == "size":
                size += ", subsample_size=B"
            if plate.name == "data" and self.subsample == "given":
                size = f"TOTAL, subsample={self.rows[0]}"
            lines.append(f'{plate.name} = pyro.plate("{plate.name}", {size}, dim={plate.dim})')
        if self.subsample == "size":
            rows = [
                name for name in self.draft.data if name in (*self.rows, "g", "c", "m", "s")
            ]
            lines += [
                "with data as i:",
                f"    {', '.join(rows)} = {', '.join(f'{row}[i]' for row in rows)}",
            ]
        return lines

    def contexts(self, site):
        contexts = []
        in_data = any(plate.name == "data" and not plate.loop for plate in site.plates)
        if self.mask == "all" and in_data:
            contexts.append(
                f"poutine.mask(mask={in_place('m.bool()', Site('', (self.graph.data_plate,)))})"
            )
        if self.scale == "rows" and in_data:
            contexts.append(
                f"poutine.scale(scale={in_place('s', Site('', (self.graph.data_plate,)))})"
            )
        if self.scale == "latent" and not site.observed and site.name:
            contexts.append("poutine.scale(scale=SCALE)")
        if self.scale == "data" and site.observed:
            contexts.append("poutine.scale(scale=SCALE)")
        return tuple(contexts)

    def open(self, site, opened):
        lines = []
        loops = [plate for plate in site.plates if plate.loop]
        if loops and loops[0] not in opened:
            lines.append(f'    for i in pyro.plate("{loops[0].name}", {loops[0].size}):')
        names = [plate.name for plate in site.plates if not plate.loop]
        names += self.contexts(site)
        if names:
            lines.append(f"    {'    ' * len(loops)}with {', '.join(names)}:")
        return lines

    def indent(self, site):
        return "    " * (
            1 + site.loop + bool([p for p in site.plates if not p.loop] or self.contexts(site))
        )

    def name(self, site):
        return f'f"{site.name}_{{i}}"' if site.loop else f'"{site.name}"'

    def masked(self, site, text, half):
        """The distribution with a mask of its own."""
        if not self.mask or not any(plate.name == "data" for plate in site.plates):
            return text
        mask = in_place("m.bool()", Site("", (self.graph.data_plate,)))
        wanted = {"fn observed": site.observed, "fn latent": not site.observed,
                  "fn model": not site.observed and half == "model", "fn guide": half == "guide"}  # fmt: skip
        if wanted.get(self.mask):
            return f"{text}.mask({mask})"
        if self.mask == "fn different" and not site.observed:
            return f"{text}.mask({mask if half == 'model' else '~' + mask})"
        return text

    def distribution(self, site, location, scale):
        if site.family == "bernoulli":
            return f"dist.Bernoulli(logits={location})"
        if site.family == "categorical":
            return f"dist.Categorical(logits={location})"
        return f"dist.Normal({location}, {scale}){'.to_event(1)' if site.event else ''}"

    def model_statement(self, site):
        draft = self.draft
        location = [
            draft.parameter(f"{site.name}_loc", (site.width,) if site.width else (), 0.5)
        ]
        location += [term(draft, parent, how, site, "") for parent, how in site.parents]
        scale = "1.0"
        if site.family == "normal":
            scale = f"{draft.parameter(f'{site.name}_log', (), 0.15, -0.15 if site.observed else 0.0)}.exp()"
        text = self.masked(site, self.distribution(site, " + ".join(location), scale), "model")
        if site.observed:
            row = in_place(site.name, site)
            if self.mask == "obs_mask" and site is self.graph.observed[0]:
                mask = in_place("m.bool()", Site("", (self.graph.data_plate,)))
                return [f"pyro.sample({self.name(site)}, {text}, obs={row}, obs_mask={mask})"]
            if self.mask == "poutine observed" and any(
                plate.name == "data" for plate in site.plates
            ):
                mask = in_place("m.bool()", Site("", (self.graph.data_plate,)))
                return [
                    f"with poutine.mask(mask={mask}):",
                    f"    pyro.sample({self.name(site)}, {text}, obs={row})",
                ]
            return [f"pyro.sample({self.name(site)}, {text}, obs={row})"]
        infer = ', infer={"enumerate": "parallel"}' if site.summed else ""
        return [f"{site.name} = pyro.sample({self.name(site)}, {text}{infer})"]

    def table(self, name, site, width, scale, base=0.0):
        """A parameter of its own for each index of the plates, in the rows of a subsample."""
        self.draft.parameter(name, shape_of(site, width), scale, base)
        if site.loop:
            return f"{name}[i]"
        data = next((plate for plate in site.plates if plate.name == "data"), None)
        if self.subsample == "size" and data is not None:
            return f"{name}[..., i{', :' * (-data.dim - 1 + bool(width))}]"
        return name

    def guide_statement(self, order, amortized):
        def statement(site):
            draft = self.draft
            before = order[: order.index(site)]
            location = [self.table(f"q_{site.name}", site, site.width, 0.5)]
            if site.name in amortized:
                location.append(f"q_{site.name}_x * {in_place(amortized[site.name], site)}")
                draft.parameter(f"q_{site.name}_x", (), 0.3)
            for parent in before:
                if (how := access(parent, site)) in ("plain", "index") and draft.chance(0.35):
                    draft.features.add("guide conditional")
                    location.append(term(draft, parent, how, site, "q_"))
            scale = "1.0"
            if site.family == "normal":
                scale = (
                    f"{self.table(f'q_{site.name}_log', site, site.event, 0.1, -0.3)}.exp()"
                )
            text = self.masked(
                site, self.distribution(site, " + ".join(location), scale), "guide"
            )
            return [f"{site.name} = pyro.sample({self.name(site)}, {text}{self.infer(site)})"]

        return statement


def _decorate(draft, graph, writer):
    """Masks, scales, subsampling and factors; returns what it means for the pair."""
    data = graph.data_plate
    local = graph.structure == LOCAL
    if data is not None and draft.chance(0.3):
        choices = [
            "fn observed",
            "fn latent",
            "fn model",
            "fn guide",
            "fn different",
            "poutine observed",
            "all",
        ]
        if any(site.summed for site in graph.latent):
            choices = []
        writer.mask = draft.pick(*choices, "poutine observed", "all")
        plain = len(graph.observed[0].plates) == 1 and graph.observed[0].family == "normal"
        if plain and graph.layout in ("iid", "groups", "global") and draft.chance(0.3):
            writer.mask = "obs_mask"
        draft.data["m"] = [True, *(draft.chance(0.6) for _ in range(data.size - 1))]
        draft.features.add(f"mask {writer.mask}")
    if draft.chance(0.3):
        choices = ["all", "all", "data", "latent"] + ["rows"] * (
            local and graph.layout == "iid"
        )
        writer.scale = draft.pick(*choices)
        draft.constants["SCALE"] = draft.pick(0.3, 0.5, 2.0, 4.0)
        if writer.scale == "rows":
            draft.data["s"] = [
                abs(draft.numbers((), 0.5, 1.0)) + 0.1 for _ in range(data.size)
            ]
        draft.features.add(f"scale {writer.scale}")
    elif (
        data is not None
        and graph.layout not in ("crossed", "outside", "beside")
        and draft.chance(0.3)
    ):
        writer.subsample = draft.pick("size", "size", "given")
        if writer.subsample == "size":
            draft.constants |= {"N": data.size, "B": max(1, data.size - draft.pick(1, 1, 2))}
        else:
            draft.constants["TOTAL"] = data.size * draft.pick(2, 3)
        draft.features.add(f"subsample {writer.subsample}")
    return writer.scale or writer.subsample


def _factors(draft, graph, writer):
    """Factors in either half; returns their lines, with the plates that they stand in."""
    model: list[Any] = []
    guide: list[Any] = []
    normal = [site for site in graph.latent if site.family == "normal" and not site.loop]
    # Every entry of the block that is open last, so that the text stays readable.
    if normal and draft.chance(0.15):
        site = draft.random.choice(normal)
        square = f"({site.name} - {draft.parameter('f_at', (), 0.5)}) ** 2"
        model.append(
            (
                site.plates,
                f'pyro.factor("f", -0.2 * {f"({square}).sum(-1)" if site.event else square})',
            )
        )
        draft.features.add("factor model" if site.plates else "factor model outside")
    if draft.chance(0.1):
        site = draft.random.choice(
            [site for site in graph.latent if not site.loop and not site.summed] or [None]
        )
        if site is not None:
            rsample = draft.pick(True, False)
            form = (
                f"0.3 * {site.name}"
                if site.family == "normal" and rsample
                else f"0.7 + 0.0 * {site.name}"
            )
            form = f"({form}).sum(-1)" if site.event else form
            guide.append((site.plates, f'pyro.factor("qf", {form}, has_rsample={rsample})'))
            draft.features.add(f"factor guide has_rsample={rsample}")
    return model, guide


def _from_graph(draft, graph, kind, enumerate_guide=""):
    writer = Writer(draft, graph)
    for site in graph.observed:
        shape = natural(site)
        values = draft.numbers([*shape, *([site.event] if site.event else [])] or [1], 1.3)
        draft.data[site.name] = (
            values if site.family == "normal" else _each(values, lambda v: float(v > 0))
        )
    draft.data |= getattr(draft, "data_later", {})
    scaling = _decorate(draft, graph, writer)
    model_factors, guide_factors = _factors(draft, graph, writer)
    writer.enumerate = enumerate_guide
    order = [site for site in graph.latent if not site.summed]
    style = draft.pick("as the model", "reversed", "shuffled")
    order = order[::-1] if style == "reversed" else order
    if style == "shuffled":
        draft.random.shuffle(order)
    # What a loop holds stays together.
    order = [site for site in order if not site.loop] + [site for site in order if site.loop]
    if len(order) > 1:
        draft.features.add(f"guide {style}")
    amortized = {}
    for site in order:
        fitting = [
            x
            for x in graph.observed
            if x.plates == site.plates
            and not x.event
            and not site.width
            and x.family == "normal"
        ]
        if fitting and draft.chance(0.4) and site.family == "normal":
            amortized[site.name] = fitting[0].name
    model_sites = [site for site in graph.sites if not site.loop or not site.observed]
    looped = [site for site in graph.sites if site.loop]
    if looped:
        model_sites = [site for site in graph.sites if not site.loop] + looped
    source = writer.half("model", model_sites, writer.model_statement, model_factors)
    extra = list(guide_factors)
    if writer.mask == "obs_mask":
        site = graph.observed[0]
        table = writer.table(f"q_{site.name}", site, site.event, 0.5)
        event = ".to_event(1)" if site.event else ""
        mask = in_place("m.bool()", Site("", (graph.data_plate,)))
        extra.append(
            (
                site.plates,
                f'pyro.sample("{site.name}_unobserved", dist.Normal({table}, 1.0){event}.mask(~{mask}))',
            )
        )
    guide = writer.half("guide", order, writer.guide_statement(order, amortized), extra)
    source += "\n\n\n" + guide + "\n\n\n"
    if writer.enumerate == "config":
        source += "guide = config_enumerate(guide)\n"
    if scaling == "all":
        source += "model, guide = poutine.scale(model, SCALE), poutine.scale(guide, SCALE)\n"
    refusable = set()
    bounded = True
    features = draft.features
    free = [
        site
        for site in graph.latent
        if site.family == "normal" and not site.loop and not site.summed and site in order
    ]
    if (
        free
        and kind == "gaussian"
        and not guide_factors
        and not scaling
        and not writer.mask
        and draft.chance(0.15)
        and len(order) > 1
    ):
        chosen = draft.random.choice(free)
        value = draft.constants["W"] = draft.numbers(
            shape_of(chosen, chosen.event) or (1,), 0.7
        )
        if not shape_of(chosen, chosen.event):
            draft.constants["W"] = value[0]
        source += (
            f'model = poutine.condition(model, data={{"{chosen.name}": torch.as_tensor(W)}})\n'
        )
        if draft.chance(0.5) and not any(
            chosen in [p for p, _ in s.parents] or f"q_{s.name}_{chosen.name}" in draft.values
            for s in order
        ):
            features.add("condition, not drawn")
            source = source.replace(
                guide,
                writer.half(
                    "guide",
                    [s for s in order if s is not chosen],
                    writer.guide_statement([s for s in order if s is not chosen], amortized),
                ),
            )
        else:
            features.add("condition, drawn")
            refusable |= {"elbo", "weights"}
            bounded = False
    if scaling in ("data", "latent"):
        refusable |= {"weights", "points"}
        bounded = scaling == "data"
    if scaling and scaling != "all" and scaling != "rows":
        refusable |= {"points"}
    loops = [site for site in graph.sites if site.loop and len(site.plates) > 1]
    if graph.structure != LOCAL or graph.layout in ("beside", "unobserved") or loops:
        refusable |= {"points"}
    if graph.structure == JOINT:
        refusable |= {"weights"}
    if (
        guide_factors
        or "factor model outside" in features
        or any(f.startswith("condition") for f in features)
    ):
        refusable |= {"weights", "points"}
    if guide_factors:
        refusable |= {"elbo"}
    if scaling == "size":
        refusable |= {"points"}
        if graph.structure == SHARED:
            refusable |= {"weights"}
            bounded = False
    if scaling == "given" and graph.structure != LOCAL:
        bounded = False
    if any(site.summed for site in graph.latent):
        if scaling == "size" and graph.structure != LOCAL:
            # The guide draws shared variables alone; a subsample only estimates their weight.
            bounded = False
        if scaling not in ("", "all"):
            # What is summed out has several scales, and Pyro's own bound refuses it too.
            refusable |= {"elbo", "weights", "points"}
    if writer.mask in ("fn guide", "fn different", "fn model"):
        # Not a model that anybody means, but the numbers are those of what is written.
        refusable |= {"points"}
    plain = graph.layout in (
        "iid",
        "nested",
        "groups",
        "sequential",
        "global",
        "single",
    ) and not (features & {"condition, drawn", "condition, not drawn"})
    plain = (
        plain
        and scaling in ("", "all", "rows")
        and not any(site.summed for site in graph.latent)
    )
    pair = Pair(draft.seed, kind, tuple(sorted(features)), source, draft.values, draft.data, draft.constants, graph.structure,
                scaling, tuple(site.name for site in graph.latent if site.summed), bounded=bounded, plain=plain,
                refusable=frozenset(refusable))  # fmt: skip
    return pair


def natural(site):
    """The shape of a site's data: rows first."""
    plates = sorted(site.plates, key=lambda plate: plate.name != "data")
    return [plate.size for plate in plates]


def _each(values, function):
    return (
        [_each(value, function) for value in values]
        if isinstance(values, list)
        else function(values)
    )


def gaussian(draft):
    """Everything is linear and Gaussian."""
    from .program_truth import near_the_posterior

    return near_the_posterior(_from_graph(draft, Graph(draft, "normal"), "gaussian"))


def discrete(draft):
    """Bernoulli and categorical latent variables, drawn or summed out in the guide, Gaussian
    ones beside them.
    """
    from .program_truth import near_the_posterior

    way = draft.pick("", "", "parallel", "sequential", "config")
    graph = Graph(draft, "discrete")
    if graph.layout in ("groups", "features"):
        way = ""  # an enumerated value has no place for each group that one could index
    draft.features.add(f"guide enumerates ({way})" if way else "score function")
    pair = _from_graph(draft, graph, "discrete", way)
    if way and graph.layout == "outside":
        pair = dataclasses.replace(pair, refusable=pair.refusable | {"elbo"})
    return near_the_posterior(pair)


def mixture(draft):
    """Discrete variables that the model enumerates and the guide does not know."""
    from .program_truth import near_the_posterior

    layout = draft.pick("iid", "global", "nested", "chain", "beside")
    graph = Graph(draft, "discrete", layout)
    for site in graph.latent:
        site.summed = site.discrete
    if not any(site.summed for site in graph.latent) or draft.chance(0.4):
        # A continuous one beside it, for the guide to draw.
        parents = [site for site in graph.observed if site.family == "normal"]
        if parents:
            w = Site("w0", (), "normal", 0)
            graph.latent.insert(0, w)
            parents[0].parents.append((w, "plain"))
            if graph.structure == LOCAL:
                graph.structure = NESTED
    draft.features.add("model enumerates")
    return near_the_posterior(_from_graph(draft, graph, "mixture"))


def hmm(draft):
    """A hidden Markov model, summed out in the model, or drawn by the guide."""
    states, steps, rows = 2, draft.pick(2, 3), draft.pick(1, 2)
    draft.parameter("start", (states,), 0.5)
    draft.parameter("transition", (states, states), 0.8)
    draft.parameter("level", (states,), 1.2)
    draft.data["x"] = draft.numbers((rows, steps), 1.2)
    plate = draft.chance(0.7)
    if not plate:
        draft.data["x"] = draft.numbers((1, steps), 1.2)
    with_level = draft.chance(0.5)
    loop = draft.pick("range", "pyro.markov")
    summed = draft.chance(0.6)
    infer = ', infer={"enumerate": "parallel"}' if summed else ""
    loop = (
        f"pyro.markov(range({steps}))"
        if loop == "pyro.markov" and summed
        else f"range({steps})"
    )
    global_model = '    w = pyro.sample("w", dist.Normal(0.0, 0.5))\n' if with_level else ""
    pad = "        " if plate else "    "
    body = f"""{pad}c = None
{pad}for t in {loop}:
{pad}    c = pyro.sample(f"c_{{t}}", dist.Categorical(logits=start if c is None else transition[c]){infer})
{pad}    pyro.sample(f"x_{{t}}", dist.Normal(level[c]{" + w" if with_level else ""}, 0.8), obs=x[{":, " if plate else "0, "}t])
"""
    header = '    with pyro.plate("data", len(x)):\n' if plate else ""
    source = f"def model(x):\n{global_model}{header}{body}\n\ndef guide(x):\n"
    if with_level:
        draft.parameter("q_w", (), 0.2)
        source += '    pyro.sample("w", dist.Normal(q_w, 0.5))\n'
    if not summed:
        draft.parameter("q_c", (steps, rows if plate else 1, states), 0.5)
        draft.parameter("q_next", (states, states), 0.5)
        way = draft.pick("", "parallel")
        infer = f', infer={{"enumerate": "{way}"}}' if way else ""
        draft.features.add(f"guide enumerates ({way})" if way else "score function")
        index = "[t]" if plate else "[t, 0]"
        source += f"""{header}{pad}c = None
{pad}for t in range({steps}):
{pad}    c = pyro.sample(f"c_{{t}}", dist.Categorical(logits=q_c{index} if c is None else q_c{index} + q_next[c]){infer})
"""
    elif not with_level:
        source += "    pass\n"
    draft.features |= {
        "hmm",
        *(["model enumerates", loop.partition("(")[0]] if summed else []),
        "data plate" if plate else "no plates",
    }
    refusable = {"points"} if with_level or not plate else set()
    structure = (NESTED if plate else SHARED) if with_level else (LOCAL if plate else SHARED)
    names = tuple(f"c_{t}" for t in range(steps)) if summed else ()
    return Pair(draft.seed, "hmm", tuple(sorted(draft.features)), source, draft.values, draft.data,
                structure=structure, summed=names, refusable=frozenset(refusable))  # fmt: skip


def conjugate(draft):
    """Gamma and Beta latent variables, whose evidence has a formula, under guides of their own
    and of other families.
    """
    size = draft.pick(1, 3, 4)
    where = draft.pick("local", "global", "no plate")
    family = draft.pick("gamma-poisson", "gamma-exponential", "beta-bernoulli")
    a, b = draft.pick(1.0, 2.0, 3.0), draft.pick(1.0, 1.5)
    draft.features |= {family, where}
    draft.constants |= {"a": a, "b": b}
    if family == "beta-bernoulli":
        prior, likelihood = "dist.Beta(a, b)", "dist.Bernoulli(z)"
        draft.data["x"] = [float(draft.chance(0.6)) for _ in range(size)]
    elif family == "gamma-poisson":
        prior, likelihood = "dist.Gamma(a, b)", "dist.Poisson(z)"
        draft.data["x"] = [float(draft.random.randrange(5)) for _ in range(size)]
    else:
        prior, likelihood = "dist.Gamma(a, b)", "dist.Exponential(z)"
        draft.data["x"] = [round(draft.random.expovariate(1.0) + 0.05, 3) for _ in range(size)]
    x = draft.data["x"]
    evidence = (
        sum(_conjugate_evidence(family, a, b, [v]) for v in x)
        if where == "local"
        else _conjugate_evidence(family, a, b, x)
    )
    shape = (size,) if where == "local" else ()
    way = draft.pick(
        "same family",
        "LogNormal",
        "AutoNormal",
        "AutoDiagonalNormal",
        "AutoLowRankMultivariateNormal",
        "EasyGuide",
    )
    if (way == "LogNormal" and family == "beta-bernoulli") or (
        way == "EasyGuide" and where == "local"
    ):
        way = "same family"
    draft.features.add(way)
    if where == "no plate":
        text = f'def model(x):\n    z = pyro.sample("z", {prior})\n    pyro.sample("x", {likelihood}.expand(x.shape).to_event(1), obs=x)\n'
    elif where == "global":
        text = f'def model(x):\n    z = pyro.sample("z", {prior})\n    with pyro.plate("data", len(x)):\n        pyro.sample("x", {likelihood}, obs=x)\n'
    else:
        text = f'def model(x):\n    with pyro.plate("data", len(x)):\n        z = pyro.sample("z", {prior})\n        pyro.sample("x", {likelihood}, obs=x)\n'
    if where == "no plate":
        text = text.replace(
            f"{likelihood}.expand(x.shape)",
            likelihood.replace("(z)", "(z.unsqueeze(-1).expand(z.shape + x.shape))"),
        )
    refusable = set() if where == "local" else {"points"}
    if way in ("same family", "LogNormal"):
        mean = [
            (a + v) / (b + 1) if family == "gamma-poisson" else (a + 1) / (b + v) for v in x
        ]
        base = (
            sum(mean) / len(mean)
            if where == "local"
            else (
                (a + sum(x)) / (b + size)
                if family == "gamma-poisson"
                else (a + size) / (b + sum(x))
            )
        )
        if way == "LogNormal":
            draft.parameter("loc", shape, 0.1, math.log(base))
            draft.parameter("log", shape, 0.1, -0.3)
            law = "dist.LogNormal(loc, log.exp())"
        elif family == "beta-bernoulli":
            draft.parameter("one", shape, 0.1, math.log(a + 0.5))
            draft.parameter("two", shape, 0.1, math.log(b + 0.5))
            law = "dist.Beta(one.exp(), two.exp())"
        else:
            draft.parameter(
                "one", shape, 0.1, math.log(a + (0.5 if where == "local" else 1.5))
            )
            draft.parameter("two", shape, 0.1, math.log((a + 0.5) / base))
            law = "dist.Gamma(one.exp(), two.exp())"
        if where == "local":
            text += f'\n\ndef guide(x):\n    with pyro.plate("data", len(x)):\n        pyro.sample("z", {law})\n'
        else:
            text += f'\n\ndef guide(x):\n    pyro.sample("z", {law})\n'
    else:
        text += "\n\n" + _automatic_guide(draft, way, size if where == "local" else 1)
        refusable |= (
            {"points", "weights"}
            if way in ("AutoDiagonalNormal", "AutoLowRankMultivariateNormal", "EasyGuide")
            else {"points"}
        )
    structure = (
        LOCAL
        if where == "local" and way in ("same family", "LogNormal", "AutoNormal")
        else SHARED
    )
    return Pair(draft.seed, "conjugate", tuple(sorted(draft.features)), text, draft.values, draft.data, draft.constants,
                structure=structure, evidence=evidence, refusable=frozenset(refusable))  # fmt: skip


def _conjugate_evidence(family, a, b, x):
    n, s = len(x), sum(x)
    if family == "beta-bernoulli":
        return sum(math.lgamma(v) for v in (a + s, b + n - s, a + b)) - sum(
            math.lgamma(v) for v in (a + b + n, a, b)
        )
    if family == "gamma-poisson":
        return (
            a * math.log(b)
            - math.lgamma(a)
            + math.lgamma(a + s)
            - (a + s) * math.log(b + n)
            - sum(math.lgamma(v + 1) for v in x)
        )
    return a * math.log(b) - math.lgamma(a) + math.lgamma(a + n) - (a + n) * math.log(b + s)


def _automatic_guide(draft, way, latents):
    """An automatic guide that has been initialized, with its random start taken out."""
    if way == "EasyGuide":
        # The point in unconstrained space is drawn at once, as the documentation of EasyGuide
        # has it.
        draft.parameter("q_all", (latents,), 0.3)
        return f"""from pyro.contrib.easyguide import easy_guide


@easy_guide(model)
def guide(self, *args):
    group = self.group(match=".*")
    log = pyro.param("easy_log", lambda: torch.zeros({latents}) - 0.7)
    group.sample("joint", dist.Normal(q_all, log.exp()).to_event(1))


with pyro.poutine.block():
    guide(*ARGS)
"""
    start = "init_loc_fn=autoguide.init_to_mean"
    scale = {"AutoDelta": "", "AutoNormal": ", init_scale=0.4", "AutoDiagonalNormal": ", init_scale=0.4",
             "AutoMultivariateNormal": ", init_scale=0.4", "AutoLowRankMultivariateNormal": ", init_scale=0.3, rank=1"}[way]  # fmt: skip
    return f"""from pyro.infer import autoguide

guide = autoguide.{way}(model, {start}{scale})
with torch.random.fork_rng():
    guide(*ARGS)
{"guide.cov_factor.data.fill_(0.3)" if "LowRank" in way else ""}
"""


def automatic(draft):
    """Automatic guides of linear Gaussian models."""
    layout = draft.pick(
        "iid", "nested", "groups", "global", "flat", "features", "outside", "chain"
    )
    graph = Graph(draft, "normal", layout)
    ways = [
        "AutoNormal",
        "AutoNormal",
        "AutoDiagonalNormal",
        "AutoMultivariateNormal",
        "AutoLowRankMultivariateNormal",
        "AutoDelta",
    ]
    way = draft.pick(*ways, *["EasyGuide"] * (layout == "flat"))
    draft.features.add(way)
    for site in graph.observed:
        draft.data[site.name] = draft.numbers(
            [*natural(site), *([site.event] if site.event else [])] or [1], 1.3
        )
    draft.data |= getattr(draft, "data_later", {})
    writer = Writer(draft, graph)
    source = writer.half("model", graph.sites, writer.model_statement)
    latents = sum(math.prod(shape_of(site, site.event)) for site in graph.latent)
    source += "\n\n\n" + _automatic_guide(draft, way, latents)
    refusable = {"points", "weights"}
    if way in ("AutoNormal",) and graph.structure != JOINT:
        refusable = {"points"}
    structure = graph.structure if way in ("AutoNormal", "AutoDelta") else SHARED
    return Pair(draft.seed, "automatic", tuple(sorted(draft.features)), source, draft.values, draft.data,
                structure=structure, bounded=way != "AutoDelta", refusable=frozenset(refusable))  # fmt: skip


# --- programs that cannot take a plate of particles, or hide what depends on what
# ------------------------------------

NAIVE = {
    "sum of everything": ("""
    with pyro.plate("parts", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z.sum(), 0.8), obs=x[0])
""", (3,), (1,), "parts", JOINT),
    "sum without keepdim": ("""
    with pyro.plate("parts", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z.sum(-1), 0.8), obs=x[0])
""", (3,), (1,), "parts", JOINT),
    "groups without dots": ("""
    with pyro.plate("parts", 2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z[G], 0.8), obs=x)
""", (2,), (4,), "parts", SHARED),
    "view of a batch": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.view(len(x), -1) @ w, 0.8).to_event(1), obs=x)
""", (3, 2), (3, 2), "data", LOCAL),
    "writing in place": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        mean = torch.zeros(len(x))
        mean[ORDER] = z
        pyro.sample("x", dist.Normal(mean, 0.8), obs=x)
""", (3,), (3,), "data", JOINT),
    "masked indexing": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    mean = z @ w
    pyro.sample("x", dist.Normal(mean[MASK], 0.8).to_event(1), obs=x[MASK])
""", (3, 2), (3, 2), "data", JOINT),
    "columns without dots": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[:, 0] - 0.5 * z[:, 1], 0.8), obs=x)
""", (2, 2), (2,), "data", LOCAL),
    "sum over a counted dimension": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(1), 0.8), obs=x)
""", (2, 2), (2,), "data", LOCAL),
    "einsum": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.einsum("ne,ed->nd", z, w), 0.8).to_event(1), obs=x)
""", (3, 2), (3, 2), "data", LOCAL),
    "concatenation with the data": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        both = torch.cat([z, C], -1)
        pyro.sample("x", dist.Normal(both @ w, 0.8).to_event(1), obs=x)
""", (3, 1), (3, 2), "data", LOCAL),
    "a loop over rows": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for n in range(len(x)):
        pyro.sample(f"x_{n}", dist.Normal(z[n], 0.8), obs=x[n])
""", (3,), (3,), "data", JOINT),
    "mixed over the rows": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z - z.mean(), 0.8), obs=x)
""", (3,), (3,), "data", JOINT),
    "neighbours": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + 0.5 * z.roll(1, -1), 0.8), obs=x)
""", (3,), (3,), "data", JOINT),
    "a weight that starts at zero, outside": ("""
    with pyro.plate("parts", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(zero * z.sum(-1, keepdim=True), 0.8), obs=x)
""", (3,), (1,), "parts", JOINT),
    "a weight that starts at zero, groups": ("""
    with pyro.plate("parts", 2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(zero * z[..., G], 0.8), obs=x)
""", (2,), (4,), "parts", SHARED),
    "a weight that starts at zero, rows": ("""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + zero * z.sum(-1, keepdim=True), 0.8), obs=x)
""", (3,), (3,), "data", JOINT),
}  # fmt: skip


def naive(draft):
    """Programs as they are written for one particle."""
    name = draft.pick(*NAIVE)
    body, latent, observed, plate, structure = NAIVE[name]
    draft.features.add(name)
    draft.data["x"] = draft.numbers(observed, 1.2)
    if "@ w" in body or ", w)" in body:
        draft.parameter("w", (2, 2) if "C]" not in body else (2, 2), 0.7)
    if "[G]" in body or " G]" in body:
        draft.constants["G"] = [draft.random.randrange(2) for _ in range(observed[0])]
    if "ORDER" in body:
        order = list(range(3))
        draft.random.shuffle(order)
        draft.constants["ORDER"] = order
        if order == sorted(order):  # no row is moved
            structure = LOCAL
    if "MASK" in body:
        draft.constants["MASK"] = [
            [True, draft.chance(0.5)],
            [draft.chance(0.5), True],
            [draft.chance(0.5), False],
        ]
    if "C]" in body:
        draft.constants["C"] = draft.numbers((3, 1))
    later = {}
    if "zero" in body:
        draft.values["zero"] = 0.0
        later = {"zero": draft.numbers((), 0.2, 1.0)}
    draft.parameter("loc", latent, 0.2)
    draft.parameter("log", latent, 0.1, -0.2)
    event = ".to_event(1)" if len(latent) == 2 else ""
    size = "len(x)" if plate == "data" else str(latent[0])
    source = f"""def model(x):{body}

def guide(x):
    with pyro.plate("{plate}", {size}):
        z = pyro.sample("z", dist.Normal(loc, log.exp()){event})
"""
    if draft.chance(0.3):
        source = source.replace(
            'z = pyro.sample("z", dist.Normal(loc',
            'z = pyro.sample("z", dist.Normal(torch.cat([loc[:1], loc[1:]]).view(loc.shape)',
        )
    refusable = {"elbo", "weights", "points"}
    return Pair(draft.seed, "naive", (name,), source, draft.values, draft.data, draft.constants, structure=structure,
                later=later, one_by_one="zero" not in body, refusable=frozenset(refusable))  # fmt: skip


# --- pairs that are none
# ---------------------------------------------------------------------------------------------

RIGHT = """def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        v = pyro.sample("v", dist.Gamma(2.0, 1.0))
        c = pyro.sample("c", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z + v + c, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc + 0.5 * x, log.exp()))
        v = pyro.sample("v", dist.Gamma(3.0, 2.0))
        c = pyro.sample("c", dist.Bernoulli(0.5))
"""
GUIDE_Z = """        z = pyro.sample("z", dist.Normal(loc + 0.5 * x, log.exp()))\n"""
GUIDE_V = """        v = pyro.sample("v", dist.Gamma(3.0, 2.0))\n"""
GUIDE_C = """        c = pyro.sample("c", dist.Bernoulli(0.5))\n"""
WRONG = {
    "missing in the guide": (GUIDE_Z, ""),
    "missing last in the guide": (GUIDE_C, "        pass\n"),
    "misspelt in the guide": (GUIDE_V, GUIDE_V.replace('"v"', '"V"')),
    "extra in the guide": (GUIDE_V, GUIDE_V + '        pyro.sample("e", dist.Normal(0.0, 0.1))\n'),
    "noise without a partner": (GUIDE_V, GUIDE_V + '        pyro.sample("e", dist.Normal(0.0, 0.1), infer={"is_auxiliary": True})\n'),
    "swapped halves": ("def guide(x):\n", "def guide(x):\n"),
    "observed in the guide": (GUIDE_C, GUIDE_C + '        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)\n'),
    "Normal for Gamma": (GUIDE_V, GUIDE_V.replace("Gamma(3.0, 2.0)", "Normal(3.0, 0.1)")),
    "Normal for Bernoulli": (GUIDE_C, GUIDE_C.replace("Bernoulli(0.5)", "Normal(0.5, 0.1)")),
    "Gamma for Normal": (GUIDE_Z, GUIDE_Z.replace("Normal(loc + 0.5 * x, log.exp())", "Gamma(2.0, log.exp())")),
    "Beta for Gamma": (GUIDE_V, GUIDE_V.replace("Gamma(3.0, 2.0)", "Beta(2.0, 2.0)")),
    "Poisson for Bernoulli": (GUIDE_C, GUIDE_C.replace("Bernoulli(0.5)", "Poisson(0.5)")),
    "larger event": (GUIDE_Z, GUIDE_Z.replace("loc + 0.5 * x, log.exp())", "(loc + 0.5 * x)[:, None] + torch.zeros(2), log.exp()).to_event(1)")),
    "another plate": ('plate("data", len(x)):\n        z = pyro.sample("z", dist.Normal(loc', 'plate("data", 2 * len(x)):\n        z = pyro.sample("z", dist.Normal(loc'),
    "nothing observed": (", obs=x)", ")"),
    "the model twice": ("", ""),
}  # fmt: skip


def wrong(draft):
    """Pairs that do not belong together."""
    name = draft.pick(*WRONG)
    old, new = WRONG[name]
    source = RIGHT.replace(old, new) if old else RIGHT
    if name == "swapped halves":
        source += "\n\nmodel, guide = guide, model\n"
    if name == "the model twice":
        source += "\n\nguide = model\n"
    if name == "another plate":
        source = source.replace("loc + 0.5 * x", "loc")
    draft.parameter("loc", (), 0.3)
    draft.parameter("log", (), 0.1, -0.2)
    draft.data["x"] = draft.numbers((draft.pick(2, 3),), 1.2, 2.0)
    return Pair(draft.seed, "wrong", (name,), source, draft.values, draft.data, wrong=True,
                refusable=frozenset({"elbo", "weights", "points"}))  # fmt: skip


if __name__ == "__main__":
    import sys

    from .program_judge import judge

    for seed in map(int, sys.argv[1:]):
        pyro.enable_validation(True)
        pair = draw(seed)
        print(pair.text())
        print()
        verdict = judge(pair)
        print(verdict.report())
