"""Export of trained halves as programs that need neither Pyro nor this library."""

__all__ = ["Exported", "export"]

import contextlib
import importlib.util
import inspect
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Categorical, ImproperUniform
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tarspyro.arguments import format_value
from tarspyro.conditional import distribution_mean
from tarspyro.infer.matching import positional_names
from tarspyro.infer.traces import PairError, Site, is_delta, name_of, sample_sites
from tarspyro.inputs import as_type
from tarspyro.programs import type_of
from tarspyro.scopes import evaluating, local_parameters, preserved_rng
from tarspyro.types import ArrayLike, Distribution

# Numbers of rows while a program is recorded.
_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091)
# Larger numbers are no sizes but ends, as in x[1:].
_LARGEST = 2**40


class Exported(NamedTuple):
    """The inputs and outputs of an exported file: names, each with its shape.

    The size ``"rows"`` is any number of rows.

    Attributes:
        inputs: The inputs.
        outputs: The outputs.
    """

    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]


def export(
    half: nn.Module, path: str | Path, *, draws: bool = False, **example: ArrayLike | int
) -> Exported:
    r"""Writes a half of a pair as a file that loads without Pyro and without this library.

    By ``torch.export`` (``decoder.pt2``), or as ONNX (``decoder.onnx``) where the packages
    ``onnx`` and ``onnxscript`` are installed. The examples are the inputs, by name. They
    give the shapes of the rows; the file takes any number of rows.

    - A guide has the inputs that it is called with, ``x=``. For each latent site z, the outputs
      are ``z_mean`` and, of a family that has one, ``z_scale``, the standard deviation. With an
      example of z itself the output is ``z_log_density``, which is log q(z | x).
    - A model has its latent variables as inputs, ``z=``, and its conditions. The outputs are
      ``x_mean`` of each observed site x (``x_scale`` too, if x is continuous), and
      ``z_log_density``, log p(z). With an example of x also ``x_log_density``, log p(x | z).

    Densities are in nats, a number for each row. A site that depends on others is computed at
    their means. A mean or a density that the family lacks is left out. A model that takes any
    number of modalities has the inputs ``x_1``, ``x_2`` and so on. A whole number is no input,
    but a constant, as in ``length=20``.

    With ``draws`` the sites are draws in place of means, and ``z`` is an output. The draws are
    a function of noise that the file takes as inputs: ``z_noise``, standard normal numbers, or
    ``z_uniform``, uniform ones between 0 and 1, whatever the family needs.

    Arguments:
        half: A guide or a model of the library, or another module that is a Pyro program.
        path: The file, whose name ends in ``.pt2`` or ``.onnx``.
        draws: Whether the outputs include draws, given noise.
        example: Inputs by name, with a row for each data point.

    Returns:
        The names of the inputs and of the outputs, with the shapes of their rows.

    Raises:
        ModuleNotFoundError: If the path ends in ``.onnx``, and ONNX is not installed.
        NotImplementedError: If the half draws with ``draws`` from a family whose draws are no
            function of given noise, such as a Gamma.
        FileNotFoundError: If the folder of the path does not exist.
        PairError: If the half has no output for these inputs, lacks one of them, or computes
            something that depends on the number of rows.
        TypeError: If the half is no module, or an example is no tensor of numbers.
        ValueError: If there are no examples, or the path has another ending.

    Example:
        >>> import tempfile, pyro.distributions as dist
        >>> from tarspyro import Conditional, guides
        >>> from tarspyro.nn import MLP
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = export(q, f"{folder}/encoder.pt2", draws=True, x=torch.zeros(1, 64))
        >>> found.inputs
        {'x': ('rows', 64), 'z_noise': ('rows', 2)}
        >>> found.outputs
        {'z_mean': ('rows', 2), 'z_scale': ('rows', 2), 'z': ('rows', 2)}
    """
    path = Path(path)
    if not isinstance(half, nn.Module):
        raise TypeError(f"half must be a module, got {format_value(half)}.")
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"path must end in .pt2 or .onnx, got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}: make it first.")
    if path.suffix == ".onnx":
        _need_onnx(path)
    constants = {name: value for name, value in example.items() if isinstance(value, int)}
    given = {name: value for name, value in example.items() if name not in constants}
    inputs = _inputs_of(half, given)
    if not inputs and not draws:
        raise ValueError("export needs an example of each input, such as x=data[:1].")

    program = _Outputs(half, constants, draws)
    rows = _unusual_rows(half, inputs)
    with (
        evaluating(half),
        local_parameters(),
        preserved_rng(),
        pyro.validation_enabled(False),
        torch.no_grad(),
        _quiet(),
    ):
        with _in_one_line():
            given_rows = len(next(iter(inputs.values()))) if inputs else 1
            program.run(_repeated(inputs, 1, given_rows), {}, 1)
            inputs = _repeated(inputs, rows, given_rows)
            noise: dict[str, Tensor] = {}
            found = program.run(inputs, noise, rows)
        inputs |= noise
        if not found or not inputs:
            raise PairError(
                f"{name_of(half)} has no output for the inputs {sorted(inputs)}: give a guide"
                " its data, and a model its latent variables."
            )
        exported = _recorded(program, inputs, rows)
        _check(exported, program, inputs, rows)
        if path.suffix == ".pt2":
            torch.export.save(exported, path)
        else:
            _write_onnx(exported, inputs, list(found), path)
    return Exported(_shapes(inputs, rows), _shapes(found, rows))


def _shapes(tensors: Mapping[str, Tensor], rows: int) -> dict[str, tuple[int | str, ...]]:
    """Returns the shapes, in which the number of rows is a word."""
    return {
        name: tuple("rows" if size == rows else size for size in tensor.shape)
        for name, tensor in tensors.items()
    }


def _inputs_of(half: nn.Module, example: Mapping[str, ArrayLike]) -> dict[str, Tensor]:
    """Returns the examples as tensors of the type in which the half computes.

    Raises:
        ValueError: If an example has no row.
    """
    inputs: dict[str, Tensor] = {}
    for name, value in example.items():
        try:
            inputs[name] = as_type(torch.as_tensor(value), type_of(half))
        except (TypeError, RuntimeError, ValueError):
            raise TypeError(
                f"{name} must be numbers, such as {name}=data[:1], got {format_value(value)}."
            ) from None
        if inputs[name].dim() == 0 or len(inputs[name]) == 0:
            raise ValueError(
                f"{name} must have a row for each data point, one at least, got shape"
                f" {tuple(inputs[name].shape)}."
            )
    return inputs


def _unusual_rows(half: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Returns a number of rows of which no other size of the program is a multiple."""
    tensors = [*half.parameters(), *half.buffers(), *inputs.values()]
    sizes = {size for tensor in tensors for size in tensor.shape if size}
    return next(rows for rows in _PRIMES if all(size % rows for size in sizes))


def _repeated(inputs: Mapping[str, Tensor], rows: int, given: int) -> dict[str, Tensor]:
    """Returns the inputs with their rows repeated to a number; others stay whole.

    Arguments:
        inputs: The inputs.
        rows: The number of rows to return.
        given: The number of rows that the inputs have, if they have rows.
    """
    return {
        name: value[torch.arange(rows) % given] if len(value) == given else value
        for name, value in inputs.items()
    }


def _recorded(program: nn.Module, inputs: Mapping[str, Tensor], rows: int) -> Any:
    """Returns a program that was recorded for a number of rows, for any number.

    A program may read ``len(x)``, which is a plain number while it is recorded. As no other
    size is a multiple of it, it can be found in the graph and replaced by the size of an input.
    """
    fixed = torch.export.export(program, (), dict(inputs), strict=False).run_decompositions({})
    of_rows = {name for name, value in inputs.items() if value.shape[0] == rows}
    if not of_rows:
        return fixed
    module = fixed.module()
    module._forward_pre_hooks.clear()  # checks of the fixed sizes
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
    places = [node for node in graph.nodes if node.op == "placeholder"]
    first = next(node for node in places if node.target in of_rows)
    with graph.inserting_after(places[-1]):
        size = graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
    products: dict[int, torch.fx.Node] = {1: size}

    def free(value: Any) -> Any:
        if type(value) is not int or value == 0 or value % rows or value > _LARGEST:
            return value
        times = value // rows
        if times not in products:
            with graph.inserting_after(size):
                products[times] = graph.call_function(operator.mul, (size, times))
        return products[times]

    for node in list(graph.nodes):
        if node.op == "call_function" and node is not size and node not in products.values():
            node.args = torch.fx.node.map_aggregate(node.args, free)
            node.kwargs = torch.fx.node.map_aggregate(node.kwargs, free)
    graph.lint()
    module.recompile()
    dim = torch.export.Dim("rows")
    shapes = {name: {0: dim} if name in of_rows else None for name in inputs}
    return torch.export.export(
        module, (), dict(inputs), dynamic_shapes=shapes, strict=False
    ).run_decompositions({})


def _check(
    exported: Any, program: "_Outputs", inputs: Mapping[str, Tensor], recorded: int
) -> None:
    """Raises a ``PairError`` if a recorded program does not compute what the half does."""
    module = exported.module()
    for rows in (1, 3):
        given = _repeated(inputs, rows, recorded)
        found = module(**given)
        for name, expected in program(**given).items():
            close = torch.allclose(found[name], expected, rtol=1e-4, atol=1e-5, equal_nan=True)
            if found[name].shape != expected.shape or not close:
                raise PairError(
                    f"{name_of(program.program)} cannot be exported: what it returns as {name}"
                    " depends on values that it read while it was recorded, or on the number"
                    " of rows."
                )


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Removes the table of the sites that Pyro adds to an error inside a program."""
    try:
        yield
    except (PairError, NotImplementedError, ValueError) as error:
        sentence, _, table = str(error).partition("\n")
        if not table.lstrip().startswith("Trace Shapes"):
            raise
        raise type(error)(sentence) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's warnings about its own deprecated parts, and reports of the exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_onnx(
    exported: Any, inputs: Mapping[str, Tensor], names: list[str], path: Path
) -> None:
    torch.onnx.export(
        exported,
        (),
        str(path),
        kwargs=dict(inputs),
        input_names=list(inputs),
        output_names=names,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _need_onnx(path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"export to {path.name} needs a package that is missing ({package}): pip install"
                " onnx onnxscript, or write a .pt2 file.",
                name=package,
            )


class _Outputs(nn.Module):
    """A half as a function from tensors to tensors, by name."""

    def __init__(self, program: nn.Module, constants: Mapping[str, int], draws: bool) -> None:
        super().__init__()
        self.program = program
        self.constants = constants
        self.draws = draws
        self.noise: set[str] = set()  # the inputs that are noise

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Returns the means and the other statistics of the sites at the inputs."""
        return self.run(inputs, None)

    def run(
        self, inputs: Mapping[str, Tensor], new: dict[str, Tensor] | None, rows: int = 1
    ) -> dict[str, Tensor]:
        """Returns the outputs; the noise is put in ``new`` if it is not given.

        Arguments:
            inputs: The inputs, with all noise if ``new`` is None.
            new: Where to put noise.
            rows: The number of rows if there are no inputs.
        """
        arguments, keywords, values = self._arguments(inputs)
        rows = len(next(iter(inputs.values()))) if inputs else rows
        of_data = [*arguments, *keywords.values()]
        if not any(isinstance(value, Tensor) for value in of_data) and _generates(
            self.program
        ):
            keywords["batch_size"] = rows
        chosen = _Chosen(values, _Noise(inputs, new) if self.draws else None)
        trace = poutine.trace(chosen(self.program)).get_trace(*arguments, **keywords)
        self.noise |= set(new or ())
        sites = dict(sample_sites(trace))
        for name in values:
            if name not in sites:
                raise PairError(
                    f"{name_of(self.program)} has neither an argument nor a latent variable"
                    f" {name!r}: its variables are {', '.join(sites)}."
                )
        outputs: dict[str, Tensor] = {}
        for name, site in sites.items():
            outputs |= _outputs(name, site, name in values, self.draws)
        return outputs

    def _arguments(
        self, inputs: Mapping[str, Tensor]
    ) -> tuple[list[Tensor | None], dict[str, Any], dict[str, Tensor]]:
        """Returns positional arguments, keyword arguments and values of latent sites."""
        names = positional_names(self.program)
        keywords: dict[str, Any] = {name: inputs[name] for name in names if name in inputs}
        keywords |= self.constants
        several: list[Tensor | None] = []
        if not names:  # It may take any number of modalities.
            places = [int(name[2:]) for name in inputs if re.fullmatch(r"x_[1-9]\d*", name)]
            several = [inputs.get(f"x_{k}") for k in range(1, max(places, default=0) + 1)]
        used = {*self.noise, *names, *(f"x_{k + 1}" for k in range(len(several)))}
        return several, keywords, {n: value for n, value in inputs.items() if n not in used}


def _generates(program: nn.Module) -> bool:
    """Whether a program takes the number of rows to generate."""
    return "batch_size" in inspect.signature(program.forward).parameters


def _outputs(name: str, site: Site, given: bool, draws: bool) -> dict[str, Tensor]:
    """Returns the mean, scale, draw and density of a site, as far as it has them."""
    found: dict[str, Tensor] = {}
    distribution: Distribution = site["fn"]
    observed = site["is_observed"]
    delta = is_delta(site)
    if not given:
        with contextlib.suppress(NotImplementedError):
            found[f"{name}_{_word(distribution)}"] = _average(distribution)
        if not delta and not distribution.support.is_discrete:
            with contextlib.suppress(NotImplementedError):
                found[f"{name}_scale"] = distribution.variance.sqrt()
    if draws and not given and not observed and not delta:
        found[name] = site["value"]
    if (given or observed) and not delta and not isinstance(distribution, ImproperUniform):
        density = distribution.log_prob(site["value"])
        found[f"{name}_log_density"] = _by_row(density)
    return {key: value.clone() for key, value in found.items()}


def _by_row(density: Tensor) -> Tensor:
    """Returns the sum over all dimensions but that of the rows, if there is one."""
    return density.reshape(len(density), -1).sum(1) if density.dim() else density


def _word(distribution: Distribution) -> str:
    return "probs" if isinstance(distribution, Categorical) else "mean"


def _average(distribution: Distribution) -> Tensor:
    """Returns the mean; of classes that are numbers, the probabilities."""
    if isinstance(distribution, Categorical):
        return distribution.probs
    return distribution_mean(distribution)


class _Chosen(poutine.messenger.Messenger):
    """Gives every latent site a given value, its mean, or a draw made of noise."""

    def __init__(self, values: Mapping[str, Tensor], noise: "_Noise | None") -> None:
        super().__init__()
        self.values = values
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("_deterministic") or poutine.util.site_is_subsample(msg):
            return
        name = msg["name"]
        if msg["is_observed"]:
            return
        if name in self.values:
            msg["value"] = self.values[name]
        elif self.noise is not None:
            msg["value"] = self.noise.draw(name, msg["fn"])
        else:
            msg["value"] = self._mean(name, msg["fn"])
        msg["done"] = msg["value"] is not None

    def _mean(self, name: str, distribution: Distribution) -> Tensor:
        """Returns the mean of a site, or the most probable class."""
        if isinstance(distribution, Categorical):
            return distribution.probs.argmax(-1)
        try:
            return distribution_mean(distribution)
        except NotImplementedError as error:
            raise PairError(
                f"{name} has no mean in closed form ({type(distribution).__name__}): give an"
                f" example of it, {name}=, for its density, or export draws, draws=True."
            ) from error


class _Noise(TorchFunctionMode):
    """Random numbers that are inputs of a program, in place of new ones.

    Arguments:
        given: The inputs by name.
        new: Where to put the noise that is not given, at its first use.
    """

    def __init__(self, given: Mapping[str, Tensor], new: dict[str, Tensor] | None) -> None:
        super().__init__()
        self.given = given
        self.new = new
        self.names: dict[str, int] = {}
        self.site = ""

    def draw(self, site: str, distribution: Distribution) -> Tensor:
        """Returns a draw of a site."""
        self.site = site
        with self:
            value: Tensor = distribution()
        return value

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        made = _MADE.get(func)
        if made is not None:
            return made(self, *args, **kwargs)
        if func in _REFUSED:
            raise NotImplementedError(
                f"the draws of {self.site} are no function of given noise: export without draws."
            )
        return func(*args, **kwargs)

    def take(self, kind: str, shape: Sequence[int], like: Mapping[str, Any]) -> Tensor:
        """Returns noise of a shape, ``"noise"`` or ``"uniform"``."""
        name = f"{self.site}_{kind}"
        self.names[name] = self.names.get(name, 0) + 1
        if self.names[name] > 1:
            name = f"{name}_{self.names[name]}"
        if self.new is not None:
            options = {key: like.get(key) for key in ("dtype", "device")}
            make = torch.rand if kind == "uniform" else torch.randn
            self.new[name] = make(tuple(shape), **options)
            return self.new[name]
        return self.given[name]

    def uniform(self, shape: Sequence[int], like: Mapping[str, Any]) -> Tensor:
        """Returns uniform noise, inside the open interval, where quantiles are finite."""
        noise = self.take("uniform", shape, like)
        eps = torch.finfo(noise.dtype).eps
        return noise.clamp(eps / 2, 1 - eps)


# --- torch's random operations as functions of noise


def _shape(size: tuple[Any, ...]) -> Sequence[int]:
    """Returns the shape that ``torch.rand(2, 3)`` or ``torch.rand((2, 3))`` names."""
    return size if not size or isinstance(size[0], int) else size[0]


def _options(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "device": tensor.device}


def _randn(noise: _Noise, *size: Any, **like: Any) -> Tensor:
    return noise.take("noise", _shape(size or (like["size"],)), like)


def _randn_like(noise: _Noise, tensor: Tensor, **like: Any) -> Tensor:
    return noise.take("noise", tensor.shape, _options(tensor))


def _normal(noise: _Noise, mean: Tensor, std: Tensor | float = 1.0, **like: Any) -> Tensor:
    return mean + std * noise.take("noise", mean.shape, _options(mean))


def _normal_in_place(
    noise: _Noise, tensor: Tensor, mean: float = 0.0, std: float = 1.0, **like: Any
) -> Tensor:
    return mean + std * noise.take("noise", tensor.shape, _options(tensor))


def _rand(noise: _Noise, *size: Any, **like: Any) -> Tensor:
    return noise.uniform(_shape(size or (like["size"],)), like)


def _rand_like(noise: _Noise, tensor: Tensor, **like: Any) -> Tensor:
    return noise.uniform(tensor.shape, _options(tensor))


def _uniform_in_place(
    noise: _Noise, tensor: Tensor, low: float = 0.0, high: float = 1.0, **like: Any
) -> Tensor:
    return low + (high - low) * noise.uniform(tensor.shape, _options(tensor))


def _exponential_in_place(
    noise: _Noise, tensor: Tensor, rate: float = 1.0, **like: Any
) -> Tensor:
    return -torch.log1p(-noise.uniform(tensor.shape, _options(tensor))) / rate


def _bernoulli(noise: _Noise, probs: Tensor, **like: Any) -> Tensor:
    return (noise.uniform(probs.shape, _options(probs)) < probs).to(probs.dtype)


def _multinomial(
    noise: _Noise, probs: Tensor, num_samples: int, *args: Any, **like: Any
) -> Tensor:
    if num_samples != 1:
        raise NotImplementedError(
            f"the draws of {noise.site} are no function of given noise: export without draws."
        )
    uniform = noise.uniform((*probs.shape[:-1], 1), _options(probs))
    below = (probs / probs.sum(-1, keepdim=True)).cumsum(-1)[..., :-1]
    return (uniform >= below).sum(-1, keepdim=True)


_MADE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.randn: _randn,
    torch.randn_like: _randn_like,
    torch.normal: _normal,
    torch.Tensor.normal_: _normal_in_place,
    torch.rand: _rand,
    torch.rand_like: _rand_like,
    torch.Tensor.uniform_: _uniform_in_place,
    torch.Tensor.exponential_: _exponential_in_place,
    torch.bernoulli: _bernoulli,
    torch.multinomial: _multinomial,
}
_REFUSED = {
    torch._standard_gamma,
    torch._sample_dirichlet,
    torch.poisson,
    torch.binomial,
    torch.randint,
    torch.randperm,
    torch.Tensor.cauchy_,
    torch.Tensor.random_,
}
