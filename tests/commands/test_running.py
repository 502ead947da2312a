"""Training, evaluation, samples and pictures of runs by the command line, in this process."""

import json
import math
import os
import re
import sys

import pytest
import torch

from tarspyro import load_run
from tarspyro.commands import main
from tarspyro.data import digits

WEIGHTS = {
    "config.json",
    "metrics.jsonl",
    "best.safetensors",
    "last.safetensors",
    "state.safetensors",
}
PICTURES = {"reconstructions.png", "latents.png", "curves.png", "samples.png", "manifold.png"}
SHORT = ["--hidden", "8", "--epochs", "1", "--quiet"]


def assert_png(path):
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def number(pattern, text):
    found = re.findall(pattern, text)
    assert len(found) == 1, (pattern, text)
    return float(found[0])


# --- train


def test_train_leaves_a_run(trained):
    folder, printed = trained
    assert {path.name for path in folder.iterdir()} == WEIGHTS | PICTURES | {"evaluation.json"}
    for name in PICTURES:
        assert_png(folder / name)
    config = json.loads((folder / "config.json").read_text())
    assert config["method"] == "vae" and config["data"] == {"name": "digits", "grey": False}
    assert config["training"]["epochs"] == 2 and config["training"]["batch_size"] == 400
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert "pictures in" in printed and all(name in printed for name in PICTURES)
    # a tenth of the training images picks the best epoch
    assert "1293 training images, 360 held out" in printed
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert "validation_elbo" in row


def test_train_prints_the_bound_in_its_terms_and_the_likelihood(trained):
    folder, printed = trained
    result = json.loads((folder / "evaluation.json").read_text())
    assert (
        result["weights"] == "best"
        and result["particles"] == 2
        and result["pixels"] in printed
    )
    for part in ("train", "test"):
        row = result["nats per image"][part]
        assert row["elbo"] == pytest.approx(row["reconstruction"] - row["kl"], abs=1e-4)
        assert -60 < row["elbo"] < -20 and row["kl"] >= 0
        found = re.search(rf"{part} +ELBO +(\S+) = reconstruction +(\S+) - KL (\S+)", printed)
        assert [float(text) for text in found.groups()] == pytest.approx(
            [row["elbo"], row["reconstruction"], row["kl"]], abs=0.006
        )
    assert number(r"log p\(x\) (\S+) \+-", printed) == pytest.approx(
        result["log-likelihood"], abs=0.006
    )
    # between the bound and what nobody reaches
    assert result["nats per image"]["test"]["elbo"] < result["log-likelihood"] < 0
    assert "VAE: p(x, z) = p(x | z) p(z)" in printed and "VAE: q(z | x)" in printed
    assert f"active units: {result['active units']} of 2" in printed


def test_train_learns(tmp_path, capsys, small):
    """The numbers are those of the weights that it leaves, not of another model."""
    assert (
        main(
            [
                "train",
                "vae",
                "--run",
                str(tmp_path / "run"),
                *small,
                "--epochs",
                "30",
                "--lr",
                "0.02",
            ]
        )
        == 0
    )
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    rows = load_run(tmp_path / "run").history.rows
    # It starts near the pixels' frequencies, and gets past them by what the code says.
    share = digits().train.x.mean(0)
    frequencies = (torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)).sum().item()
    assert rows[0]["elbo"] < frequencies < rows[-1]["elbo"] - 1
    best = max(row["validation_elbo"] for row in rows)
    assert result["nats per image"]["test"]["elbo"] == pytest.approx(best, abs=1.5)


def test_convolutions(tmp_path, capsys, small):
    arguments = ["train", "vae", "--trunk", "conv", "--run", str(tmp_path / "run"), *small]
    assert main(arguments) == 0
    assert "ConvEncoder(1x8x8 -> 32x4x4 -> 64x2x2, ReLU)" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} >= PICTURES


def test_autoencoder(tmp_path, capsys, assert_one_line):
    run = tmp_path / "run"
    assert main(["train", "autoencoder", "--latent", "3", "--run", str(run), *SHORT]) == 0
    output = capsys.readouterr().out
    assert number(r"train ELBO .* KL (\S+)", output) == 0
    assert "log p(x)" not in output  # without a prior there is none
    assert {path.name for path in run.glob("*.png")} == {
        "reconstructions.png",
        "latents.png",
        "curves.png",
    }
    assert load_run(run).model.code_shape == (3,)
    assert main(["plot", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()
    assert main(["sample", str(run)]) == 2
    assert_one_line(str(run), "no prior to sample from")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (
            ["--family", "Gamma", "--grey"],
            ["Gamma(concentration, rate)", "Gamma(concentration=1, rate=1)", "grey pixels"],
        ),
        (
            ["--likelihood", "Normal", "--latent", "3"],
            ["Normal(loc, scale learned) of shape (1, 8, 8)", "grey pixels"],
        ),
        (
            ["--likelihood", "Normal", "--scale", "0.25"],
            ["Normal(loc, scale=0.25) of shape (1, 8, 8)"],
        ),
    ],
    ids=["Gamma, grey", "Normal likelihood", "fixed scale"],
)
def test_choices(options, shown, tmp_path, capsys, small):
    run = tmp_path / "run"
    assert main(["train", "vae", "--run", str(run), *small, *options]) == 0
    output = capsys.readouterr().out
    for text in shown:
        assert text in output
    assert json.loads((run / "config.json").read_text())["data"]["grey"] is True
    assert math.isfinite(json.loads((run / "evaluation.json").read_text())["log-likelihood"])
    second = "traversal.png" if "3" in options else "manifold.png"
    assert {path.name for path in run.glob("*.png")} == PICTURES - {"manifold.png"} | {second}
    # evaluated on the pixels that it was trained on
    assert main(["evaluate", str(run), "--num-particles", "2"]) == 0
    assert "grey pixels" in capsys.readouterr().out


def test_a_family_without_a_mean_leaves_the_rest(tmp_path, capsys, small):
    run = tmp_path / "run"
    assert (
        main(["train", "vae", "--family", "RelaxedBernoulli", "--run", str(run), *small]) == 0
    )
    assert "active units: not counted (RelaxedBernoulli has no mean" in capsys.readouterr().out
    assert "log-likelihood" in json.loads((run / "evaluation.json").read_text())
    assert {path.name for path in run.glob("*.png")} == PICTURES - {"latents.png"}


def test_the_options_reach_the_training(tmp_path, capsys, small):
    run = tmp_path / "run"
    options = ["--beta", "0.5", "--num-particles", "3", "--seed", "7", "--hidden", "9", "5"]
    assert main(["train", "vae", "--run", str(run), *small, *options]) == 0
    config = json.loads((run / "config.json").read_text())
    assert config["loss"]["kwargs"] == {"num_particles": 3, "beta": 0.5}
    assert config["training"]["seed"] == 7
    output = capsys.readouterr().out
    assert "MLP(64 -> 9 -> 5, ReLU)" in output and "MLP(2 -> 5 -> 9, ReLU)" in output


def test_the_seed_is_that_of_the_weights_and_of_the_noise(
    tmp_path, capsys, training_alone, small
):
    metrics = []
    for run, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        torch.rand(1)
        assert (
            main(["train", "vae", "--run", str(tmp_path / run), *small, "--seed", seed]) == 0
        )
        metrics.append(json.loads((tmp_path / run / "metrics.jsonl").read_text())["loss"])
    assert metrics[0] == metrics[1] != metrics[2]


def test_the_default_folder_is_in_runs(tmp_path, monkeypatch, capsys, training_alone, small):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "vae", *small]) == 0
    assert {path.name for path in (tmp_path / "runs" / "vae-digits").iterdir()} == WEIGHTS


def test_resume_goes_on(folder, trained, capsys, small, assert_one_line):
    arguments = ["train", "vae", "--run", str(folder), *small]
    assert main([*arguments, "--epochs", "3", "--resume"]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    before = [
        json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 3 and rows[:2] == before
    assert "of 3)" in capsys.readouterr().out
    assert main([*arguments, "--epochs", "3", "--resume", "--latent", "5"]) == 2
    assert_one_line("another model")
    assert main([*arguments, "--overwrite"]) == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1


# --- commands on a run


def test_evaluate(folder, trained, capsys):
    (folder / "evaluation.json").unlink()
    assert main(["evaluate", str(folder), "--num-particles", "2"]) == 0
    again = capsys.readouterr().out
    # with the same weights, pixels and noise the numbers are those of the training's end
    assert all(
        line in trained[1] for line in again.splitlines() if "ELBO" in line or "log p" in line
    )
    assert json.loads((folder / "evaluation.json").read_text())["weights"] == "best"
    assert main(["evaluate", str(folder), "--num-particles", "2", "--which", "last"]) == 0
    assert "weights: last" in capsys.readouterr().out
    assert json.loads((folder / "evaluation.json").read_text())["weights"] == "last"


def test_sample(folder, tmp_path, capsys):
    before = (folder / "samples.png").read_bytes()
    (folder / "samples.png").unlink()
    assert main(["sample", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'samples.png'}\n"
    assert (folder / "samples.png").read_bytes() == before
    for name, options in (
        ("draws", ["--draws"]),
        ("seed", ["--seed", "5"]),
        ("few", ["--num", "4"]),
    ):
        out = tmp_path / f"{name}.png"
        assert main(["sample", str(folder), "--out", str(out), *options]) == 0
        assert_png(out)
        assert out.read_bytes() != before
    assert (folder / "samples.png").read_bytes() == before


def test_plot(folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    for name in PICTURES:
        (folder / name).unlink()
    assert main(["plot", str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == before


def test_a_run_with_classes_of_the_user(
    folder, tmp_path, monkeypatch, capsys, assert_one_line
):
    """--import names their module, which is looked for where the user stands."""
    (tmp_path / "my_layers.py").write_text(
        "from tarspyro.guides import VAE\n\n\nclass Mine(VAE):\n    pass\n"
    )
    text = (folder / "config.json").read_text()
    assert "tarspyro.guides.VAE" in text
    (folder / "config.json").write_text(text.replace("tarspyro.guides.VAE", "my_layers:Mine"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))]
    )
    assert main(["sample", str(folder)]) == 2
    assert_one_line("import my_layers before loading the run")
    try:
        assert main(["sample", str(folder), "--import", "my_layers"]) == 0
    finally:
        sys.modules.pop("my_layers", None)
    capsys.readouterr()
    assert main(["sample", str(folder), "--import", "no_such_module_here"]) == 2
    assert_one_line("no_such_module_here")


# --- mistakes


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--family", "Nonsense"], ["--family Nonsense", "pyro.distributions"]),
        (["--family", "VonMises"], ["VonMises", "default prior"]),
        (["--family", "Categorical"], ["param_shapes"]),
        (
            ["--device", "nonsense"],
            ["device must be a device of this machine", "got 'nonsense'"],
        ),
        (["--lr", "-1"], ["lr"]),
        (["--beta", "-1"], ["beta"]),
        (["--scale", "0", "--likelihood", "Normal"], ["--scale 0"]),
        (["--trunk", "conv", "--likelihood", "Normal", "--scale", "-1"], ["--scale -1"]),
    ],
    ids=lambda value: " ".join(value) if value[0][0] == "-" else "",
)
def test_an_argument_out_of_range_is_one_line(
    options, parts, tmp_path, small, assert_one_line
):
    assert main(["train", "vae", "--run", str(tmp_path / "run"), *small, *options]) == 2
    assert_one_line(*parts)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_kept(folder, small, assert_one_line):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["train", "vae", "--run", str(folder), *small]) == 2
    assert_one_line(str(folder), "holds a run already")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("command", ["evaluate", "sample", "plot"])
def test_a_missing_run(command, tmp_path, assert_one_line):
    assert main([command, str(tmp_path / "missing")]) == 2
    assert assert_one_line(str(tmp_path / "missing"), "is it a run folder?") == ""


def test_resume_of_nothing(tmp_path, small, assert_one_line):
    assert main(["train", "vae", "--run", str(tmp_path / "missing"), *small, "--resume"]) == 2
    assert_one_line("is it a run folder?")


@pytest.mark.parametrize("name", ["mnist", "frey_face"])
def test_data_that_is_not_there(name, tmp_path, monkeypatch, small, assert_one_line):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TARSPYRO_DATA", str(tmp_path / "empty"))
    assert main(["train", "vae", "--data", name, "--run", str(tmp_path / "run"), *small]) == 2
    assert_one_line(str(tmp_path / "empty" / name), "TARSPYRO_DATA", "no network in tests")
    assert os.listdir(tmp_path) == ["empty"] and os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize("command", ["evaluate", "sample", "plot"])
def test_damaged_weights(command, folder, assert_one_line):
    content = (folder / "best.safetensors").read_bytes()
    (folder / "best.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main([command, str(folder)]) == 2
    assert (
        assert_one_line("best.safetensors is corrupted", "last.safetensors may still be good")
        == ""
    )


def test_weights_that_do_not_fit(folder, assert_one_line):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(re.sub(r"\[\s*8\s*\]", "[9]", text))
    assert main(["sample", str(folder)]) == 2
    assert_one_line(str(folder), "do not fit")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("data"),
        lambda config: config.pop("method"),
        lambda config: config.update(data="digits"),
        lambda config: config.update(data={"name": "elsewhere"}),
        lambda config: config.update(data={}),
        lambda config: config.update(data={"name": "ring"}),
        lambda config: config.update(options=3),
        lambda config: config.update(method=["vae"]),
    ],
    ids=[
        "no data",
        "no method",
        "text",
        "unknown",
        "empty",
        "of another form",
        "options",
        "list",
    ],
)
def test_a_run_of_the_library(change, folder, assert_one_line):
    """fit's own folders, and settings of the user's, do not tell the command what it needs."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(folder)]) == 2
    assert_one_line("was not made by tarspyro train")


def test_a_picture_that_cannot_be_written(folder, tmp_path, assert_one_line):
    assert (
        main(["sample", str(folder), "--out", str(tmp_path / "nowhere" / "samples.png")]) == 2
    )
    assert_one_line("nowhere")
