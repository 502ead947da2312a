"""Every method of the command line in a tiny form: training, evaluation, samples, pictures and
resumed training.
"""

import json
import math
import re

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from tarspyro import data, evaluate, load_run
from tarspyro.commands import METHODS, main
from tarspyro.commands.methods.sources import SOURCES
from tarspyro.data import Dataset, SequenceDataset, Sequences

BOUND = {"nats per image", "log-likelihood", "particles"}
SEEN = {"reconstructions", "latents"}
# The entries of each method's report, and its pictures beside curves and samples.
EXPECTED = {
    "vae": (BOUND | {"active units"}, SEEN | {"manifold"}),
    "spherical-vae": (BOUND | {"active units"}, SEEN | {"traversal"}),
    "beta-tcvae": (BOUND | {"active units"}, SEEN | {"traversal"}),
    "autoencoder": ({"nats per image"}, SEEN),
    "conditional-vae": (BOUND | {"active units"}, SEEN | {"analogies"}),
    "hierarchical-vae": (BOUND | {"active units"}, SEEN | {"active_units"}),
    "ladder-vae": (BOUND | {"active units"}, SEEN | {"active_units"}),
    "semi-supervised-vae": (BOUND | {"accuracy"}, SEEN | {"analogies"}),
    "jmvae": (BOUND | {"labels from images"}, SEEN | {"images_from_labels"}),
    "mvae": (BOUND | {"labels from images"}, SEEN | {"images_from_labels"}),
    "cmma": (BOUND | {"active units"}, SEEN),
    "vrnn": (BOUND, {"continuations"}),
    "deep-markov-model": (BOUND, {"continuations"}),
    "draw": (BOUND, {"canvases", "painting"}),
    "conv-draw": (BOUND, {"canvases", "painting"}),
    "conditional-draw": (BOUND, {"canvases", "painting"}),
    "made": ({"log-likelihood", "bits per dimension"}, {"completions"}),
    "pixelcnn": ({"log-likelihood", "bits per dimension"}, {"completions"}),
    "pixel-vae": (BOUND | {"active units"}, SEEN | {"traversal"}),
    "vq-vae": ({"nats per image"}, {"reconstructions"}),
    "flow": ({"log-likelihood"}, set()),
    "gan": ({"losses", "real", "fake"}, set()),
    "conditional-gan": ({"losses", "real", "fake"}, set()),
    "vae-gan": ({"mean squared error", "losses", "real", "fake"}, SEEN | {"traversal"}),
    "factor-vae": (
        {"nats per image", "active units", "losses", "real", "fake"},
        SEEN | {"traversal"},
    ),
    "adversarial-autoencoder": (
        {"mean squared error", "codes", "losses", "real", "fake"},
        SEEN | {"manifold"},
    ),
    "wasserstein-autoencoder": ({"mean squared error", "codes"}, SEEN | {"manifold"}),
    "bayesian-regression": ({"log-likelihood", "accuracy"}, set()),
    "classifier": ({"log-likelihood", "accuracy"}, set()),
}
WITHOUT_SAMPLES = {"autoencoder", "bayesian-regression", "classifier"}
# What makes a training tiny, where a method has it.
TINY = {
    "hidden": "8",
    "units": "6",
    "steps": "2",
    "layers": "2",
    "channels": "4",
    "codes": "8",
    "labels": "20",
    "likelihood_particles": "3",
    "clip_norm": "5",
}


def put(monkeypatch, name, dataset):
    monkeypatch.setitem(SOURCES, name, SOURCES[name]._replace(load=lambda: dataset))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """The first of the digits, and small stand-ins for the data of files."""
    digits = data.digits(flatten=False)
    put(
        monkeypatch,
        "digits",
        Dataset("digits", digits.train[:100], digits.test[:20], digits.image_shape),
    )
    rolls = [
        (torch.rand(length, 88, generator=torch.Generator().manual_seed(length)) < 0.1)
        for length in (5, 9, 6, 8)
    ]
    music = Sequences.padded(rolls)
    put(
        monkeypatch,
        "jsb_chorales",
        SequenceDataset("jsb_chorales", music, music[:2], music[1:]),
    )
    put(monkeypatch, "ring", (data.ring(200), data.ring(50, seed=1)))
    table = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    parts = [data.Split(rows[:, :3], rows[:, 3]) for rows in (table[:40], table[40:])]
    put(monkeypatch, "yacht", data.Regression("yacht", *parts, 10.0, 15.0))
    frames = data.Split(digits.train.x[:50])
    put(monkeypatch, "frey_face", Dataset("frey_face", frames, frames[:10], (1, 8, 8)))


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Most of the seconds would go into their pixels."""
    save = Figure.savefig

    def coarse(figure, path, *, dpi, **options):
        save(figure, path, dpi=dpi / 5, **options)

    monkeypatch.setattr(Figure, "savefig", coarse)


def tiny(name, run, *options):
    settings = [
        f"--{setting.replace('_', '-')}={value}"
        for setting, value in TINY.items()
        if setting in METHODS[name].options
    ]
    return [
        "train",
        name,
        "--run",
        str(run),
        "--epochs",
        "1",
        "--batch-size",
        "50",
        "--quiet",
        *settings,
        *options,
    ]


def report(run):
    return json.loads((run / "evaluation.json").read_text())


class Stop(Exception):
    pass


@pytest.fixture
def called(monkeypatch):
    """Runs a command up to the training, and returns what it would have been called with."""

    def call(arguments):
        def fit(*args, **options):
            raise Stop(args, options)

        monkeypatch.setattr("tarspyro.commands.running.fit", fit)
        with pytest.raises(Stop) as stop:
            main(arguments)
        (model, guide, batches), options = stop.value.args
        return model, guide, batches, options

    return call


def test_the_table_is_complete():
    assert EXPECTED.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name, tmp_path, capsys):
    run, (entries, pictures) = tmp_path / "run", EXPECTED[name]
    assert main(tiny(name, run)) == 0, capsys.readouterr().err
    drawn = pictures | {"curves"} | (set() if name in WITHOUT_SAMPLES else {"samples"})
    files = {path.name for path in run.iterdir()}
    assert {file for file in files if file.endswith(".png")} == {
        f"{picture}.png" for picture in drawn
    }
    assert files >= {
        "config.json",
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "state.safetensors",
    }
    first, printed = report(run), capsys.readouterr().out
    own = set() if name == "flow" else {"pixels"}
    assert first.keys() == entries | own | {"weights", "lines", "made of"}
    assert all(math.isfinite(value) for value in first.values() if isinstance(value, float))
    before = {path.name: path.read_bytes() for path in run.glob("*.png")}

    assert main(["evaluate", str(run), "--again"]) == 0
    assert report(run) == first  # the same weights, pixels and noise
    assert all(line in printed for line in capsys.readouterr().out.splitlines())
    assert main(["plot", str(run)]) == 0
    assert {path.name: path.read_bytes() for path in run.glob("*.png")} == before
    capsys.readouterr()
    if name in WITHOUT_SAMPLES:
        assert main(["sample", str(run)]) == 2
        assert f"{run} holds a method, {name}, that" in capsys.readouterr().err
    else:
        assert main(["sample", str(run), "--seed", "5"]) == 0
        assert (run / "samples.png").read_bytes() != before["samples.png"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vae", ["--prior", "vamp"]),
        ("vae", ["--prior", "flow", "--latent", "3"]),
        ("vae", ["--posterior", "flow"]),
        (
            "vae",
            [
                "--masking-noise",
                "0.25",
                "--loss",
                "renyi",
                "--alpha",
                "0.3",
                "--num-particles",
                "3",
            ],
        ),
        ("autoencoder", ["--gaussian-noise", "0.3", "--trunk", "conv"]),
        ("hierarchical-vae", ["--latent", "5", "4", "3", "--chain", "means"]),
        ("mvae", ["--experts", "mixture", "--loss", "iwae"]),
        ("mvae", ["--experts", "mixture-of-products"]),
        ("conditional-vae", ["--prior", "learned", "--loss", "iwae"]),
        ("draw", ["--no-attention", "--data", "frey_face"]),
        ("vrnn", ["--data", "frey_face"]),
        ("gan", ["--divergence", "wasserstein", "--data", "ring"]),
        ("vrnn", ["--data", "jsb_chorales", "--loss", "fivo", "--num-particles", "2"]),
        (
            "deep-markov-model",
            ["--data", "jsb_chorales", "--loss", "iwae", "--num-particles", "2"],
        ),
        ("bayesian-regression", ["--data", "yacht", "--loss", "renyi"]),
        ("made", ["--order", "random", "--masks", "2"]),
        ("pixelcnn", ["--gated", "--data", "frey_face"]),
        ("pixel-vae", ["--free-bits", "0.5", "--grey"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_choices(name, options, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tiny(name, run, *options)) == 0, capsys.readouterr().err
    first = report(run)
    assert main(["evaluate", str(run), "--again"]) == 0
    assert report(run) == first
    if METHODS[name].sampler:
        assert main(["sample", str(run), "--num", "3", "--draws"]) == 0


# --- what the options become


@pytest.mark.parametrize(
    ("name", "options", "loss"),
    [
        ("vae", [], "ELBO"),
        ("vae", ["--loss", "iwae", "--num-particles", "7"], "IWAE"),
        ("ladder-vae", ["--loss", "renyi"], "Renyi"),
        ("vae", ["--loss", "f-divergence", "--f", "chi2"], "FDivergence"),
        ("vrnn", ["--loss", "fivo", "--num-particles", "7"], "FIVO"),
        ("jmvae", ["--loss", "iwae"], "ModalityKL"),
        ("mvae", [], "ModalitySubsets"),
        ("mvae", ["--experts", "mixture"], "ELBO"),
        ("mvae", ["--experts", "mixture", "--loss", "iwae"], "ModalityStrata"),
        ("mvae", ["--experts", "mixture-of-products"], "ELBO"),
        ("gan", [], "Adversarial"),
        ("vae-gan", ["--gamma", "0.5"], "VAEGAN"),
        ("adversarial-autoencoder", ["--weight", "3"], "AdversarialAutoencoder"),
        ("wasserstein-autoencoder", ["--weight", "3"], "WAE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_losses(name, options, loss, tmp_path, called):
    *_, used = called(tiny(name, tmp_path / "run", *options))
    assert type(used["loss"]).__name__ == loss
    given = {
        option.lstrip("-").replace("-", "_"): float(value)
        for option, value in zip(options[::2], options[1::2], strict=True)
        if value.isdecimal()
    }
    for attribute, value in given.items():
        assert getattr(used["loss"], attribute) == value
    if loss == "Renyi":
        assert used["loss"].alpha == 0.5
    if name == "jmvae":
        assert type(used["loss"].bound).__name__ == "IWAE" and used["loss"].alpha == 0.1


@pytest.mark.filterwarnings(
    "ignore:.*one weight of all data"
)  # of which batches are subsamples
@pytest.mark.parametrize("name", [name for name in METHODS if "loss" in METHODS[name].options])
def test_every_loss_of_a_method(name):
    """What ``--loss`` may say is finite on a batch, with particles."""
    method, data_name = METHODS[name], METHODS[name].form.names[0]
    tiny_settings = {
        setting: 6 for setting in ("units", "steps") if setting in method.options
    } | {"batch_size": 50}
    (choices,) = (s.choices for s in method.settings if s.name == "loss")
    for loss in choices:
        torch.manual_seed(0)
        chosen = method.completed(
            data_name,
            {"loss": loss, "num_particles": 3, **tiny_settings}
            | ({"labels": 20} if "labels" in method.options else {}),
        )
        prepared = method.form.load(data_name, chosen)
        model, guide, bound = chosen.build(prepared)
        batch = (
            prepared.train
            if isinstance(prepared.batches, tuple)
            else next(iter(prepared.batches))
        )
        value = bound.loss(model, guide, *(part[:10] for part in batch))
        assert math.isfinite(value), loss


def test_the_training_s_options(tmp_path, called):
    options = [
        "--compile",
        "--lr",
        "0.5",
        "--clip-norm",
        "2",
        "--patience",
        "4",
        "--seed",
        "3",
    ]
    *_, used = called(tiny("vae", tmp_path / "run", *options))
    assert used["compile"] is True and used["lr"] == 0.5 and used["optimizer"].clip_norm == 2
    assert (
        used["patience"] == 4
        and used["seed"] == 3
        and used["epochs"] == 1
        and used["batch_size"] == 50
    )
    *_, used = called(tiny("gan", tmp_path / "run"))
    assert (
        used["lr"] == 5e-4
        and used["optimizer"].options == {"betas": (0.5, 0.999)}
        and used["patience"] is None
    )


@pytest.mark.parametrize(
    ("name", "options", "binarize"),
    [
        ("vae", [], True),
        ("vae", ["--grey"], False),
        ("vae", ["--data", "frey_face"], False),
        ("vae", ["--data", "frey_face", "--likelihood", "Bernoulli"], True),
        ("semi-supervised-vae", [], True),
        ("vrnn", [], True),
        ("vrnn", ["--data", "jsb_chorales"], False),
        ("gan", [], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_pixels(name, options, binarize, tmp_path, called):
    model, _, batches, used = called(tiny(name, tmp_path / "run", *options))
    assert (
        used["binarize"] is binarize
        and used["folder"].settings["data"]["grey"] is not binarize
    )
    if name == "vae":
        normal = "frey_face" in options and "Bernoulli" not in options
        assert ("Normal" if normal else "Bernoulli") in repr(model.likelihood)
    if name == "semi-supervised-vae":  # fit draws the pixels of the labelled rows alone
        assert batches.binarize
    if name == "vrnn" and binarize:  # a row a step
        assert batches[0].shape == (90, 8, 8)
        assert (batches[0] == data.digits().train.x[:90].reshape(90, 8, 8)).all()


def test_few_labels(tmp_path, called):
    model, guide, batches, used = called(
        tiny(
            "semi-supervised-vae",
            tmp_path / "run",
            "--labels",
            "30",
            "--classifier-weight",
            "2",
        )
    )
    assert (len(batches.x), len(batches.unlabelled)) == (30, 60)
    assert (
        (model.num_labelled, model.num_unlabelled)
        == (guide.num_labelled, guide.num_unlabelled)
        == (30, 60)
    )
    assert type(used["loss"]).__name__ == "SemiSupervised" and used["loss"].alpha == 2
    assert used["validation"][0].shape == (10, 1, 8, 8)


def test_layers_and_divergences(tmp_path, called):
    model, guide, *_ = called(
        tiny("hierarchical-vae", tmp_path / "run", "--latent", "5", "4", "3")
    )
    assert model.formula == "p(x, z_1, z_2, z_3) = p(x | z_1) p(z_1 | z_2) p(z_2 | z_3) p(z_3)"
    sizes = [evaluate.sample(model, 2, site=f"z_{layer}").shape[1] for layer in (1, 2, 3)]
    assert sizes == [5, 4, 3]
    *_, used = called(tiny("conditional-gan", tmp_path / "run", "--divergence", "hinge"))
    assert type(used["loss"].divergence).__name__ == "Hinge"


# --- what is reported and drawn


def test_the_accuracy_is_that_of_the_test_images(tmp_path):
    run = tmp_path / "run"
    options = [
        "--labels=40",
        "--batch-size=10",
        "--epochs=5",
        "--lr=0.02",
        "--hidden=32",
        "--grey",
    ]
    assert main(tiny("semi-supervised-vae", run, *options)) == 0
    test = data.digits(flatten=False).test[:20]
    share = evaluate.accuracy(load_run(run).guide, test.x, test.y)
    assert report(run)["accuracy"] == share > 0.3


def test_music_is_reported_by_the_step(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tiny("vrnn", run, "--data", "jsb_chorales")) == 0
    printed, found = capsys.readouterr().out, report(run)
    assert found.keys() == {
        "weights",
        "nats per sequence",
        "log-likelihood",
        "particles",
        "lines",
        "made of",
    }
    steps = 9 + 6 + 8
    value, per_step = map(
        float, re.search(r"log p\(x\) (\S+) .*\((\S+) a step\)", printed).groups()
    )
    assert per_step == pytest.approx(
        found["log-likelihood"] * 3 / steps, abs=6e-4
    ) and value == pytest.approx(found["log-likelihood"], abs=6e-3)
    assert {path.name for path in run.glob("*.png")} == {
        "continuation.png",
        "curves.png",
        "samples.png",
    }
    # the likelihood starts from how often a note sounds
    assert found["log-likelihood"] > 8 * 88 * math.log(0.5) * 0.7


def test_a_regression_is_reported_in_the_target_s_units(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert main(tiny("bayesian-regression", run, "--data", "yacht")) == 0
    first = report(run)
    assert {path.name for path in run.glob("*.png")} == {"predictions.png", "curves.png"}
    table = SOURCES["yacht"].load()
    put(
        monkeypatch,
        "yacht",
        data.Regression("yacht", table.train, table.test, 10.0, 15.0 * math.e),
    )
    assert main(["evaluate", str(run), "--again"]) == 0
    second = report(run)
    assert second["log-likelihood"] == pytest.approx(first["log-likelihood"] - 1, abs=1e-5)
    assert second["root mean squared error"] == pytest.approx(
        first["root mean squared error"] * math.e, rel=1e-5
    )


def test_points_reach_modes(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tiny("gan", run, "--data", "ring")) == 0
    found = report(run)
    samples = evaluate.sample(load_run(run).model, 1000, seed=0)
    ring = data.ring(1)
    assert (found["modes"], found["near a mode"]) == evaluate.mode_coverage(
        samples, ring.means, ring.scale
    )
    printed = capsys.readouterr().out
    assert f"modes reached: {found['modes']} of 8" in printed
    # The epochs of a game are not compared.
    assert "weights: last (epoch " in printed and "best" not in printed


@pytest.mark.parametrize("name", ["conditional-vae", "conditional-gan", "semi-supervised-vae"])
def test_a_row_for_each_class(name, tmp_path, monkeypatch):
    """Samples given a class stand in the row of the class."""
    run = tmp_path / "run"
    assert main(tiny(name, run)) == 0
    drawn = []

    def sample(model, num, *, given, **options):
        drawn.append(num)
        return (given["y"].argmax(1) / 10)[:, None].expand(num, 64)

    sheets = []
    monkeypatch.setattr("tarspyro.plot.generation.evaluate.sample", sample)
    monkeypatch.setattr(
        "tarspyro.plot.generation.show", lambda ax, sheet: sheets.append(sheet)
    )
    assert main(["sample", str(run), "--num", "25", "--out", str(tmp_path / "out.png")]) == 0
    assert drawn == [30] and sheets[0].shape == (10 * 9 + 1, 3 * 9 + 1)
    for label in range(10):
        assert (
            sheets[0][9 * label + 1 : 9 * label + 9, 1:9] == pytest.approx(label / 10)
        ) and sheets[0][9 * label + 1, -2] == pytest.approx(label / 10)


# --- going on


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vae", ["--latent", "3", "--loss", "iwae"]),
        ("jmvae", ["--modality-weight", "0.5"]),
        ("vrnn", ["--data", "jsb_chorales", "--loss", "fivo"]),
        ("adversarial-autoencoder", ["--lr", "0.002"]),
        (
            "semi-supervised-vae",
            ["--labels", "30"],
        ),  # whose gradients have other last bits in a validated step
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_resumed_run_is_the_uninterrupted_one(name, options, tmp_path, training_alone):
    """It goes on with its own options, of which none has to be given again."""
    assert main([*tiny(name, tmp_path / "whole", *options), "--epochs", "3"]) == 0
    assert main([*tiny(name, tmp_path / "parts", *options), "--epochs", "1"]) == 0
    assert (
        main(
            [
                "train",
                name,
                "--run",
                str(tmp_path / "parts"),
                "--resume",
                "--epochs",
                "3",
                "--quiet",
            ]
        )
        == 0
    )
    whole, parts = (
        load_file(tmp_path / run / "last.safetensors") for run in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and all(
        torch.equal(whole[key], parts[key]) for key in whole
    )
    assert len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("gan", [], ["holds a run of vae on digits, not gan on digits", "give another --run"]),
        (
            "vae",
            ["--data", "frey_face"],
            ["holds a run of vae on digits, not vae on frey_face"],
        ),
    ],
    ids=["method", "data"],
)
def test_resuming_another_run(name, options, parts, tmp_path, training_alone, capsys):
    run = tmp_path / "run"
    assert main(tiny("vae", run)) == 0
    capsys.readouterr()
    assert main(["train", name, "--run", str(run), "--resume", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and all(part in errors for part in parts)


def test_a_run_without_options(tmp_path, monkeypatch):
    """Of runs that earlier versions made the options are the defaults, and what a stranger
    wrote is one line.
    """
    run = tmp_path / "run"
    assert main(tiny("semi-supervised-vae", run)) == 0
    first = report(run)
    config = json.loads((run / "config.json").read_text())
    assert config["options"]["labels"] == 20 and config["options"]["likelihood_particles"] == 3
    put(
        monkeypatch, "digits", data.digits(flatten=False)
    )  # enough rows for the default of 100 labels
    del config["options"]
    (run / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(run), "--num-particles", "3"]) == 0
    assert report(run).keys() == first.keys()
    config["options"] = {"labels": "many"}
    (run / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(run), "--again"]) == 2


# --- mistakes


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        (
            "vae",
            ["--loss", "iwae", "--beta", "0.5"],
            ["--beta is not for --loss iwae", "--loss elbo"],
        ),
        ("vae", ["--alpha", "0.5"], ["--alpha is not for --loss elbo", "--loss renyi"]),
        ("vae", ["--f", "chi2"], ["--f is not for --loss elbo", "--loss f-divergence"]),
        (
            "vae",
            ["--prior", "flow", "--family", "Gamma"],
            ["--prior flow", "--family Normal", "Gamma"],
        ),
        (
            "vae",
            ["--posterior", "flow", "--latent", "1"],
            ["--posterior flow", "--latent of 2 or more"],
        ),
        (
            "vae",
            ["--masking-noise", "0.2", "--gaussian-noise", "1"],
            ["--masking-noise", "give one of them"],
        ),
        ("vae", ["--masking-noise", "2"], ["p"]),
        (
            "vrnn",
            ["--data", "jsb_chorales", "--grey"],
            ["--grey is for images", "jsb_chorales holds music"],
        ),
        ("semi-supervised-vae", ["--labels", "15"], ["multiple of the 10 classes", "15"]),
        (
            "semi-supervised-vae",
            ["--batch-size", "5000"],
            ["--batch-size must be between 1 and 70, got 5000"],
        ),
        ("semi-supervised-vae", ["--classifier-weight", "0"], ["alpha"]),
        ("jmvae", ["--modality-weight", "-1"], ["alpha must not be negative"]),
        ("vae-gan", ["--gamma", "-1"], ["gamma"]),
        ("wasserstein-autoencoder", ["--weight", "-1"], ["weight"]),
        ("gan", ["--lr", "-1"], ["--lr: must be a number above 0"]),
    ],
    ids=lambda value: (
        " ".join(value) if isinstance(value, list) and value[0].startswith("--") else ""
    ),
)
def test_settings_that_do_not_fit_are_one_line(name, options, parts, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tiny(name, run, *options)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("tarspyro: ") and errors.count("\n") == 1
    assert all(part in errors for part in parts), errors
    assert not run.exists()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        (name, family)
        for name, method in METHODS.items()
        for setting in method.settings
        if setting.name == "likelihood"
        for family in setting.choices
    ],
)
def test_every_likelihood_of_a_method_is_built(name, family):
    """From the settings alone, whatever the data are."""
    method = METHODS[name]
    data_name = method.form.names[0]
    small = {
        "units": 6,
        "steps": 2,
        "hidden": (8,),
        "layers": 1,
        "labels": 20,
        "batch_size": 20,
    }
    given = {setting: v for setting, v in small.items() if setting in method.options}
    torch.manual_seed(0)
    chosen = method.completed(data_name, {"likelihood": family, **given})
    prepared = method.form.load(data_name, chosen)
    model, *_ = chosen.settled(prepared).build(prepared)
    assert family in repr(model)
