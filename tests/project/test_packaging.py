"""The package as it installs: its folders, its names, and what importing it does not do."""

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tarspyro

ROOT = Path(__file__).parents[2]

PROMISED = {
    tarspyro: "Blocks Transformed Conditional Deterministic StochasticModule TensorBoard fit embed evaluate plot data models guides nn "
    "distributions infer __version__",
    tarspyro.distributions: "default_prior Gamma Beta Dirichlet GumbelSoftmax GumbelSigmoid Kumaraswamy ProductOfExperts "
    "MixtureOfExperts VampPrior",
    tarspyro.infer: "ELBO IWAE Renyi Compiled Adversarial VAEGAN AdversarialAutoencoder WAE",
    tarspyro.models: "Autoencoder VAE ConditionalVAE HierarchicalVAE LadderVAE SemiSupervisedVAE JMVAE MVAE CMMA",
    tarspyro.guides: "Autoencoder VAE ConditionalVAE HierarchicalVAE LadderVAE SemiSupervisedVAE JMVAE MVAE CMMA",
    tarspyro.data: "digits mnist frey_face quadrants PartlyLabelled labelled_subset",
    tarspyro.evaluate: "embed log_likelihood annealed_log_likelihood elbo gaps true_posterior posterior_kl log_densities "
    "active_units activity reconstruct decode sample conditional_log_likelihood reconstruction classify accuracy "
    "knn_accuracy linear_probe frechet_distance precision_recall agreement parzen_log_likelihood mode_coverage",
    tarspyro.plot: "latents manifold reconstructions samples traversal curves gaps posteriors interpolation active_units",
}


@pytest.mark.parametrize("module", PROMISED, ids=lambda module: module.__name__)
def test_promised_names(module):
    for name in PROMISED[module].split():
        assert hasattr(module, name)


def test_version_is_the_distribution_s():
    assert importlib.metadata.version("tarspyro") == tarspyro.__version__


def test_importing_has_no_side_effects():
    code = """
import sys, torch, numpy, random
import pyro
before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), dict(pyro.get_param_store())
validation = torch.distributions.Distribution._validate_args
import tarspyro
assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.get_num_threads()
assert before[2] == torch.get_default_dtype() and before[3] == dict(pyro.get_param_store())
assert validation == torch.distributions.Distribution._validate_args
for module in ("torchvision", "lightning", "tensorboard", "matplotlib.pyplot", "sklearn", "models", "guides"):
    assert module not in sys.modules, module
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd="/")


def test_packages_list_names_every_folder():
    folders = {"tarspyro", "tarspyro.models", "tarspyro.guides"}
    folders |= {
        f"tarspyro.{path.parent.name}" for path in (ROOT / "tarspyro").glob("*/__init__.py")
    }
    text = (ROOT / "pyproject.toml").read_text()
    listed = text.partition("packages = [")[2].partition("]")[0]
    assert {name.strip().strip('"') for name in listed.split(",")} == folders


def test_links_point_to_the_folders():
    for name in ("models", "guides"):
        assert (ROOT / "tarspyro" / name).resolve() == ROOT / name


def test_wheel_holds_everything(tmp_path):
    source = tmp_path / "source"
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in names:
        if name.startswith(("tarspyro/", "models/", "guides/")) or name in (
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            if not (ROOT / name).is_symlink():  # as where links are not supported
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    build = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        for expected in (
            "tarspyro/models/vae.py",
            "tarspyro/guides/vae.py",
            "tarspyro/py.typed",
            "tarspyro/infer/bounds/elbo.py",
        ):
            assert expected in files
        assert {name.partition("/")[0] for name in files} == {
            "tarspyro",
            wheel.name.rpartition("-py3")[0] + ".dist-info",
        }
        archive.extractall(tmp_path / "site")
    environment = {
        "PYTHONPATH": str(tmp_path / "site"),
        "PATH": "",
        "MPLBACKEND": "Agg",
        "HOME": str(tmp_path),
    }
    # Away from the repository, the quick start and the command line work from the wheel alone.
    start = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    where = f"\nimport tarspyro; assert tarspyro.__file__.startswith({str(tmp_path)!r}), tarspyro.__file__"
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
