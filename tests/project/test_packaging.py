"""The package as it installs: its folders, its names, and what importing it does not do."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tarspyro

ROOT = Path(__file__).parents[2]

# Public names that programs rely on.
PROMISED = {
    tarspyro: (
        "Blocks Transformed Conditional Deterministic StochasticModule TensorBoard fit "
        "embed evaluate plot data models guides nn distributions infer __version__"
    ),
    tarspyro.distributions: (
        "default_prior Gamma Beta Dirichlet GumbelSoftmax GumbelSigmoid Kumaraswamy "
        "ProductOfExperts MixtureOfExperts VampPrior"
    ),
    tarspyro.infer: ("ELBO IWAE Renyi Compiled Adversarial VAEGAN AdversarialAutoencoder WAE"),
    tarspyro.models: (
        "Autoencoder VAE ConditionalVAE HierarchicalVAE LadderVAE SemiSupervisedVAE JMVAE "
        "MVAE CMMA"
    ),
    tarspyro.guides: (
        "Autoencoder VAE ConditionalVAE HierarchicalVAE LadderVAE SemiSupervisedVAE JMVAE "
        "MVAE CMMA"
    ),
    tarspyro.data: ("digits mnist frey_face quadrants PartlyLabelled labelled_subset"),
    tarspyro.evaluate: (
        "embed log_likelihood annealed_log_likelihood elbo gaps true_posterior "
        "posterior_kl log_densities active_units activity reconstruct decode sample "
        "conditional_log_likelihood reconstruction classify accuracy knn_accuracy "
        "linear_probe frechet_distance precision_recall agreement parzen_log_likelihood "
        "mode_coverage"
    ),
    tarspyro.plot: (
        "latents manifold reconstructions samples traversal curves gaps posteriors "
        "interpolation active_units"
    ),
}


@pytest.mark.parametrize("module", PROMISED, ids=lambda module: module.__name__)
def test_promised_names(module):
    for name in PROMISED[module].split():
        assert hasattr(module, name)


def test_version_is_the_distribution_s():
    assert importlib.metadata.version("tarspyro") == tarspyro.__version__


def in_a_new_process(code):
    """Runs code in a new process, away from the repository; returns what it printed."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's Python compiles files once
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_importing_has_no_side_effects():
    in_a_new_process("""
import sys, torch, numpy, random
import pyro

before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
parameters = dict(pyro.get_param_store())
validation = torch.distributions.Distribution._validate_args

from tarspyro import *

assert torch.equal(before[0], torch.get_rng_state())
assert before[1:] == (torch.get_num_threads(), torch.get_default_dtype())
assert parameters == dict(pyro.get_param_store())
assert validation == torch.distributions.Distribution._validate_args
for module in ("torchvision", "lightning", "tensorboard", "matplotlib.pyplot", "sklearn"):
    assert module not in sys.modules, module
assert not {"models", "guides"} & sys.modules.keys()
""")


def test_importing_the_package_imports_nothing_else():
    """The public names come when they are used."""
    in_a_new_process("""
import sys
import tarspyro

for module in ("torch", "pyro", "numpy", "matplotlib"):
    assert module not in sys.modules, module
assert set(tarspyro.__all__) <= set(dir(tarspyro))
for name in tarspyro.__all__:
    assert getattr(tarspyro, name) is getattr(tarspyro, name)
assert not isinstance(tarspyro.sequential, type(sys)) and callable(tarspyro.fit)
assert not hasattr(tarspyro, "no_such_name")
""")


def test_programs_and_training_import_no_pictures():
    """matplotlib and scikit-learn take longer to import than the library."""
    in_a_new_process("""
import sys
from tarspyro import Conditional, data, distributions, evaluate, fit, guides, infer, models, nn

for module in ("matplotlib", "sklearn", "scipy", "pandas", "torch._dynamo", "tarspyro.plot"):
    assert module not in sys.modules, module
""")


def test_bounds_alone_know_the_divergences_of_the_library():
    """The exact KLs are there whichever package a program imports first."""
    printed = in_a_new_process("""
from tarspyro.infer import ELBO
import pyro.distributions as dist
from torch.distributions import kl_divergence

print(kl_divergence(dist.InverseGamma(2.0, 1.0), dist.InverseGamma(3.0, 1.0)).item() > 0)
""")
    assert printed == "True\n"


def test_import_time():
    """The imports of a program cost at most 0.3 s over Pyro's, in seconds of the processor.

    A process imports Pyro first and measures what is left: the difference of two processes is as
    uncertain as Pyro's own seconds. The least of five, because a neighbour on the same core only
    makes a time longer. ``benchmarks/import_time.py`` measures more.
    """
    names = "from tarspyro import Conditional, evaluate, fit, guides, models"
    in_a_new_process(names)  # Python compiles the files
    measured = f"""
import time

import pyro

start = time.process_time()
{names}

print(time.process_time() - start)
"""
    assert min(float(in_a_new_process(measured)) for _ in range(5)) < 0.3


def test_links_point_to_the_folders():
    for name in ("models", "guides"):
        assert (ROOT / "tarspyro" / name).resolve() == ROOT / name


def installed_path(file):
    """The place in the wheel of a file of the repository."""
    inside = file if file.parts[0] == "tarspyro" else Path("tarspyro") / file
    return inside.as_posix()


def test_wheel_holds_everything(tmp_path):
    source = tmp_path / "source"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    library = [
        Path(name) for name in names if name.startswith(("tarspyro/", "models/", "guides/"))
    ]
    files = [*library, *map(Path, ("pyproject.toml", "setup.py", "README.md", "LICENSE"))]
    for file in files:
        if (ROOT / file).is_file():  # not the links, as on systems without them
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_bytes((ROOT / file).read_bytes())

    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    build = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "site")

    expected = {installed_path(file) for file in library if (ROOT / file).is_file()}
    assert {name for name in held if name.startswith("tarspyro/")} == expected
    assert {"tarspyro/py.typed", "tarspyro/models/vae.py"} <= expected
    information = wheel.name.rpartition("-py3")[0] + ".dist-info"
    assert {name.partition("/")[0] for name in held} == {"tarspyro", information}

    environment = {
        "PYTHONPATH": str(tmp_path / "site"),
        "PATH": "",
        "MPLBACKEND": "Agg",
        "HOME": str(tmp_path),
    }
    # Away from the repository, the quick start and the command line work from the wheel alone.
    start = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    where = f"""
import tarspyro
assert tarspyro.__file__.startswith({str(tmp_path)!r}), tarspyro.__file__
"""
    for command in (
        ["-c", start.replace("epochs=20", "epochs=1, progress=False") + where],
        [
            "-m",
            "tarspyro",
            "train",
            "vae",
            "--epochs",
            "1",
            "--hidden",
            "8",
            "--quiet",
            "--likelihood-particles",
            "2",
        ],
    ):
        done = [sys.executable, "-W", "ignore", *command]
        subprocess.run(
            done, check=True, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
        )
    assert {"config.json", "samples.png", "evaluation.json"} <= {
        p.name for p in (tmp_path / "runs/vae-digits").iterdir()
    }
