"""Export of trained halves as programs that need neither Pyro nor this library."""

__all__ = ["export"]

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from tarspyro.arguments import format_value
from tarspyro.conditional import distribution_mean
from tarspyro.infer.matching import positional_names
from tarspyro.infer.traces import PairError, name_of, sample_sites
from tarspyro.inputs import as_type
from tarspyro.programs import type_of
from tarspyro.scopes import evaluating, local_parameters, preserved_rng
from tarspyro.types import ArrayLike


def export(half: nn.Module, path: str | Path, **example: ArrayLike) -> list[str]:
    r"""Writes a half of a pair as a file that loads without Pyro and without this library.

    By ``torch.export`` (``decoder.pt2``), or as ONNX (``decoder.onnx``) where the packages
    ``onnx`` and ``onnxscript`` are installed. The examples are the inputs, by name, and say
    their shapes:

    - of a guide, what it is called with, ``x=``. The outputs are ``z_mean`` and ``z_scale``
      (the standard deviation, where the family has one) of each latent site z;
    - of a model, its latent variables, ``z=``, and its conditions. The outputs are ``x_mean``
      of each observed site x. With an example of x itself also ``x_log_density``, which is
      log p(x | z) in nats, a number for each row.

    A site that depends on draws of others is computed at their means. The number of rows is
    that of the examples.

    Arguments:
        half: A guide or a model of the library, or another module that is a Pyro program.
        path: The file, whose name ends in ``.pt2`` or ``.onnx``.
        example: Inputs by name, with a row for each data point.

    Returns:
        The names of the outputs.

    Raises:
        ModuleNotFoundError: If ONNX is asked for and not installed.
        PairError: If the half has no output for these inputs.
        TypeError: If the half is no module.
        ValueError: If there are no examples, or the path has another ending.

    Example:
        >>> import tempfile, pyro.distributions as dist
        >>> from tarspyro import Conditional, guides
        >>> from tarspyro.nn import MLP
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     names = export(q, f"{folder}/encoder.pt2", x=torch.zeros(1, 64))
        >>> names
        ['z_mean', 'z_scale']
    """
    path = Path(path)
    if not isinstance(half, nn.Module):
        raise TypeError(f"half must be a module, got {format_value(half)}.")
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"path must end in .pt2 or .onnx, got {str(path)!r}.")
    if not example:
        raise ValueError("export needs an example of each input, such as x=data[:1].")
    inputs = {
        name: as_type(torch.as_tensor(value), type_of(half)) for name, value in example.items()
    }
    program = _Outputs(half)
    with (
        evaluating(half),
        local_parameters(),
        preserved_rng(),
        pyro.validation_enabled(False),
        torch.no_grad(),
    ):
        names = list(program(**inputs))
        if not names:
            raise PairError(
                f"{name_of(half)} has no output for the inputs {sorted(inputs)}: give a guide"
                " its data, and a model its latent variables."
            )
        if path.suffix == ".onnx":
            _write_onnx(program, inputs, names, path)
        else:
            exported = torch.export.export(program, (), inputs, strict=False)
            with warnings.catch_warnings():  # torch's use of its own deprecated parts
                warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
                torch.export.save(exported.run_decompositions({}), path)
    return names


def _write_onnx(
    program: nn.Module, inputs: Mapping[str, Tensor], names: list[str], path: Path
) -> None:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"export to {path.name} needs a package that is missing ({package}): pip install"
                " onnx onnxscript, or write a .pt2 file.",
                name=package,
            )
    torch.onnx.export(
        program,
        (),
        str(path),
        kwargs=dict(inputs),
        input_names=list(inputs),
        output_names=names,
        dynamo=True,
        external_data=False,
    )


class _Outputs(nn.Module):
    """A half as a function from tensors to tensors, by name."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Returns the means, and what else the sites have, at the inputs."""
        names = positional_names(self.program)
        arguments: dict[str, Any] = {name: inputs[name] for name in names if name in inputs}
        values = {name: value for name, value in inputs.items() if name not in names}
        rows = len(next(iter(inputs.values())))
        if values and "x" not in arguments:
            arguments["batch_size"] = rows
        run = poutine.trace(_AtMeans(values)(self.program))
        outputs: dict[str, Tensor] = {}
        for name, site in sample_sites(run.get_trace(**arguments)):
            if name in values:
                continue
            if site["is_observed"]:
                density = site["fn"].log_prob(site["value"])
                outputs[f"{name}_log_density"] = density.reshape(rows, -1).sum(1)
            outputs[f"{name}_mean"] = distribution_mean(site["fn"]).clone()
            if not values:
                outputs |= _scale_of(name, site["fn"])
        return outputs


def _scale_of(name: str, distribution: Any) -> dict[str, Tensor]:
    try:
        return {f"{name}_scale": distribution.variance.sqrt()}
    except NotImplementedError:
        return {}


class _AtMeans(poutine.messenger.Messenger):
    """Gives every latent site its mean, or a given value, in place of a draw."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["infer"].get("_deterministic"):
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        elif not poutine.util.site_is_subsample(msg):
            msg["value"] = distribution_mean(msg["fn"])
        msg["done"] = msg["value"] is not None
