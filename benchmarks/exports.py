"""Exports of every method of the command line, compared with the halves themselves.

    python benchmarks/exports.py             # .pt2 and, where the packages are installed, .onnx
    python benchmarks/exports.py onnx vae    # of some methods

The pairs are untrained, with the default settings but for short recurrences. A process in which
neither Pyro nor this library can be imported computes the outputs of the files. A line tells the
largest difference, relative above 1: of the encoder with its draws, and of the model with its
densities, a decoder or a generator.
"""

import importlib.util
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from pyro import poutine

from tarspyro import export
from tarspyro.commands import METHODS
from tarspyro.exporting import _Outputs
from tarspyro.infer.matching import positional_names
from tarspyro.infer.traces import sample_sites
from tarspyro.scopes import evaluating

LOADING = """
import sys
sys.modules["pyro"] = sys.modules["tarspyro"] = None
import torch
path, inputs = sys.argv[1], torch.load(sys.argv[1] + ".inputs")
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {key: value.numpy() for key, value in inputs.items()})
    outputs = {key: torch.as_tensor(value) for key, value in zip(names, values)}
else:
    outputs = dict(torch.export.load(path).module()(**inputs))
torch.save(outputs, path + ".outputs")
"""
ROWS = 5


def built(name):
    """A method's untrained pair, and five rows of its test data."""
    method = METHODS[name]
    given = {"steps": 2} if "steps" in method.options else {}
    method = method.completed(method.form.names[0], given)
    material = method.form.load(method.form.names[0], method, None)
    method = method.settled(material)
    torch.manual_seed(0)
    model, guide, _ = method.build(material)
    rows = [value[:ROWS].float() for value in material.test]
    if method.form.sequences:
        rows = [rows[0][:, :3]]
    return model, guide, rows


def difference(half, path, draws, inputs):
    """The largest difference between a file and its half."""
    found = export(half, path, draws=draws, **{name: v[:1] for name, v in inputs.items()})
    given = dict(inputs)
    for name, shape in found.inputs.items():
        if name not in given:
            make = torch.rand if "_uniform" in name else torch.randn
            given[name] = make([ROWS if size == "rows" else size for size in shape])
    torch.save(given, f"{path}.inputs")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOADING, path], check=True)
    outputs = torch.load(f"{path}.outputs")
    with evaluating(half), torch.no_grad():
        program = _Outputs(half, {}, draws)
        program.noise = given.keys() - inputs.keys()
        expected = program(**given)
    assert list(outputs) == list(expected) == list(found.outputs)
    return max(
        float(((outputs[name] - value).abs() / value.abs().clamp(min=1)).max())
        for name, value in expected.items()
    )


def halves(name):
    """The halves of a method with their inputs."""
    model, guide, rows = built(name)
    latents = {}
    if guide is not None:
        names = positional_names(guide) or [f"x_{k + 1}" for k in range(len(rows))]
        data = dict(zip(names, rows, strict=False))
        yield "encoder", guide, True, data
        with evaluating(guide):
            trace = poutine.trace(guide).get_trace(*rows)
        latents = {site: entry["value"] for site, entry in sample_sites(trace)}
        latents = {
            site: value if len(value) == ROWS else value.expand(ROWS, *value.shape)
            for site, value in latents.items()
        }
    names = positional_names(model) or [f"x_{k + 1}" for k in range(len(rows))]
    data = dict(zip(names, rows, strict=False))
    if "GAN" in type(model).__name__:
        yield "generator", model, True, {k: v for k, v in data.items() if k == "y"}
    else:
        yield "density", model, False, {**data, **latents}


def main(arguments):
    """Prints a line for each method."""
    warnings.simplefilter("ignore")
    kinds = [kind for kind in ("pt2", "onnx") if kind in arguments] or ["pt2", "onnx"]
    if importlib.util.find_spec("onnxruntime") is None:
        kinds = [kind for kind in kinds if kind != "onnx"]
    chosen = [name for name in arguments if name in METHODS] or METHODS
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            for kind in kinds:
                words = [f"{name:24}{kind:6}"]
                for title, half, draws, inputs in halves(name):
                    path = str(Path(folder) / f"{title}.{kind}")
                    try:
                        found = f"{difference(half, path, draws, inputs):.1e}"
                    except Exception as error:
                        found = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
                    words.append(f"{title} {found}")
                print("  ".join(words), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
