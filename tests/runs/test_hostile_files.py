"""Run folders from strangers: refused in one sentence, nothing written outside of their folder,
nothing executed.

What test_runs and test_config ask of damaged files is not asked here again.
"""

import json
import os

import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from hypothesis import given

from tarspyro import Conditional, data, fit, guides, load_run, models
from tarspyro.__main__ import main
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP
from tarspyro.runs import Run, RunError

from ..damages import DAMAGES, damaged, everything, one_sentence

HUGE = 2**60


# --- run folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 64))
    q = guides.VAE(Conditional(dist.Normal, MLP(64, [4]), 2))
    fit(
        p,
        q,
        data.digits().train.x[:20].round(),
        epochs=2,
        folder=folder,
        progress=False,
        seed=0,
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(trained, tmp_path):
    found = tmp_path / "run"
    found.mkdir()
    for name, content in trained.items():
        (found / name).write_bytes(content)
    return found


@given(damage=DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "best.safetensors"])
def test_a_damaged_run_is_refused_or_a_run(name, trained, tmp_path_factory, damage):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    for other, content in trained.items():
        (folder / other).write_bytes(content if other != name else damaged(content, damage))
    before = everything(folder)
    try:
        run = load_run(folder)
    except (RunError, ImportError) as error:
        assert "\n" not in str(error)
    else:
        assert all("objective" in row for row in run.history.rows)
        assert run.model(batch_size=2).shape == (2, 64)
    assert everything(folder) == before


@pytest.mark.parametrize(
    "row",
    [{"objective": "high"}, {"objective": None}, {"objective": [1]}, {}, []],
    ids=["word", "null", "list", "nothing", "no row"],
)
def test_a_row_of_metrics_that_is_none(row, folder):
    (folder / "metrics.jsonl").write_text(
        json.dumps({"epoch": 1, "objective": -3.0}) + "\n" + json.dumps(row)
    )
    with pytest.raises(RunError, match=r"metrics\.jsonl is corrupted") as error:
        load_run(folder)
    one_sentence(error)


DEEP = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    "content",
    [DEEP, '{"epoch": 1, "objective": 1.0, "more": ' + DEEP + "}"],
    ids=["a line", "within a line"],
)
def test_metrics_that_are_nested_too_deep(content, folder):
    (folder / "metrics.jsonl").write_text(content)
    try:
        load_run(folder)
    except RunError as error:
        assert "metrics.jsonl is corrupted" in str(error)


@pytest.mark.parametrize("half", ["model", "guide"])
@pytest.mark.parametrize("depth", [900, 3000, 100_000])
def test_a_half_that_is_nested_too_deep(half, depth, folder):
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps({**config, half: "@"}).replace('"@"', "[" * depth + "]" * depth)
    (folder / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config\.json|weights do not fit") as error:
        load_run(folder)
    one_sentence(error)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 64))
    with pytest.raises(RunError):
        load_run(folder, **{"model" if half == "guide" else "guide": p})


def safetensors_file(header):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        HUGE.to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        safetensors_file(
            {"model.w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}
        ),
        safetensors_file(
            {"model.w": {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 0]}}
        ),
        safetensors_file({"model.w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
        safetensors_file({"__metadata__": {"values": DEEP, "sha256": "0"}}),
        safetensors_file({"__metadata__": {"values": "{}", "sha256": 5}}),
        safetensors.torch.save(
            {"../../evil": torch.zeros(1)}, {"values": "{}", "sha256": "0"}
        ),
        b"\x80\x04cos\nsystem\n(S'touch executed'\ntR.",
    ],
    ids=[
        "2^60 header",
        "2^64 header",
        "2^62 bytes",
        "2^120 numbers",
        "before the start",
        "deep",
        "no text",
        "name",
        "pickle",
    ],
)
def test_hostile_weights(content, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / "best.safetensors").write_bytes(content)
    (folder / "state.safetensors").write_bytes(content)
    before = everything(folder.parent)
    for read in (lambda: load_run(folder), Run(folder).load_state):
        with pytest.raises(RunError, match=r"\.safetensors is corrupted") as error:
            read()
        one_sentence(error)
    assert everything(folder.parent) == before


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "best.safetensors"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(name, folder):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(RunError, match="it is no file") as error:
        load_run(folder)
    one_sentence(error)


def test_links_in_a_run_folder_lead_nowhere(folder):
    """Somebody else's folder, in which a run is resumed and drawn."""
    outside = folder.parent / "outside"
    outside.write_bytes(b"mine")
    names = [
        "config.json.part",
        "metrics.jsonl.part",
        "state.safetensors.part",
        "last.safetensors.part",
    ]
    for name in [*names, "best.safetensors.part", "samples.png"]:
        (folder / name).symlink_to(outside)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 64))
    q = guides.VAE(Conditional(dist.Normal, MLP(64, [4]), 2))
    fit(
        p,
        q,
        data.digits().train.x[:20].round(),
        epochs=3,
        folder=Run(folder, resume=True),
        progress=False,
        seed=0,
    )
    assert outside.read_bytes() == b"mine" and len(Run(folder).read_metrics()) == 3


def test_pictures_are_not_drawn_through_links(tmp_path, capsys):
    run, outside = tmp_path / "run", tmp_path / "outside"
    options = [
        "--data",
        "digits",
        "--epochs",
        "1",
        "--hidden",
        "4",
        "--likelihood-particles",
        "2",
        "--quiet",
    ]
    assert main(["train", "vae", *options, "--run", str(run)]) == 0
    outside.write_bytes(b"mine")
    for picture in run.glob("*.png"):
        picture.unlink()
        picture.symlink_to(outside)
    assert main(["plot", str(run)]) == 0 and main(["sample", str(run), "--num", "4"]) == 0
    assert outside.read_bytes() == b"mine"
    assert (run / "samples.png").read_bytes().startswith(b"\x89PNG")
