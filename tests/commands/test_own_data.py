"""Files and folders of the user's own: what is seen in them, and the commands on their runs."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy import sparse

from tarspyro import load_run
from tarspyro.commands import main
from tarspyro.commands.methods import files
from tarspyro.commands.methods.files import Reading, open_file
from tarspyro.commands.methods.layout import Layout, default_family, lay_out, look_at
from tarspyro.data.rows import ChosenRows

QUICK = ["--epochs", "1", "--quiet", "--hidden", "8", "--likelihood-particles", "2"]
PEOPLE = ["id", "height", "born", "children", "smokes", "city"]


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    save = Figure.savefig

    def coarse(figure, path, *, dpi, **options):
        save(figure, path, dpi=dpi / 5, **options)

    monkeypatch.setattr(Figure, "savefig", coarse)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_people(path, rows=60, gaps=0.3, seed=0):
    rng = np.random.default_rng(seed)
    cells = []
    for index in range(rows):
        row = [
            f"{rng.normal(170, 10):.4f}",
            rng.integers(1930, 2005),
            rng.poisson(1.5),
            rng.choice(["yes", "no"]),
            rng.choice(["Bonn", "Oslo", "Rome"]),
        ]
        row = ["" if rng.random() < gaps or index == 7 else str(cell) for cell in row]
        cells.append([str(index + 1), *row])
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([PEOPLE, *cells])
    return cells


def read_cells(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


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
        return (*stop.value.args[0], stop.value.args[1])

    return call


# --- what is seen


def grey(rng):
    return rng.random((40, 8, 8))


def black_and_white(rng):
    x = rng.random((40, 8, 8))
    return np.where(x < 0.8, (x < 0.4).astype(float), x)


ARRAYS = {
    "binary": (lambda rng: rng.integers(0, 2, (40, 5)), "Bernoulli", "Bernoulli"),
    "grey": (grey, "Normal", "Normal"),
    "black and white": (black_and_white, "Bernoulli", "Bernoulli"),
    "bytes": (
        lambda rng: rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8),
        "DiscretizedLogistic",
        "DiscretizedLogistic",
    ),
    "bytes as other integers": (
        lambda rng: rng.integers(0, 256, (40, 3, 8, 8)),
        "DiscretizedLogistic",
        "DiscretizedLogistic",
    ),
    "counts": (lambda rng: rng.poisson(4.0, (40, 5)), "NegativeBinomial", "NegativeBinomial"),
    "real": (lambda rng: rng.normal(500, 100, (40, 5)), "Normal", "Normal"),
    "real images": (lambda rng: rng.normal(0, 3, (40, 8, 8)), "Normal", "Normal"),
    "one column": (lambda rng: rng.normal(0, 3, 40), "Normal", "Normal"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_the_likelihood_follows_from_the_values(kind, rng, tmp_path, called, capsys):
    make, family, shown = ARRAYS[kind]
    np.save(tmp_path / "data.npy", make(rng))
    run = tmp_path / "run"
    model, _, batches, options = called(
        ["train", "vae", "--data", str(tmp_path / "data.npy"), "--run", str(run), *QUICK]
    )
    assert model.likelihood.family.__name__ == family
    printed = capsys.readouterr().out
    assert re.search(rf"data.npy: .* -> {shown} \(--likelihood names another\)", printed)
    assert "40 rows, divided with a fixed seed: 32 train, 4 validate, 4 test" in printed
    assert options["binarize"] == (kind == "black and white")
    (x,) = batches
    assert len(x) == 32
    pixels = x.round() if options["binarize"] else x
    assert model.likelihood(torch.zeros(32, 2)).log_prob(pixels).isfinite().all()
    assert ("Conv" in repr(model)) == (x.dim() == 4)


def test_channels_are_moved_and_never_reshaped(rng, tmp_path):
    images = rng.integers(0, 256, (12, 6, 8, 3)).astype(np.uint8)
    np.save(tmp_path / "last.npy", images)
    np.save(tmp_path / "first.npy", images.transpose(0, 3, 1, 2))
    found = []
    for name, channels in (("last", "last"), ("first", "first")):
        raw = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        layout = Layout("Normal", "images", "bytes", (3, 6, 8), scale=255.0, channels=channels)
        found.append(layout.apply(raw))
    assert torch.equal(*found)
    assert found[0][3, 2, 4, 5] == pytest.approx(images[3, 4, 5, 2] / 255)


@pytest.mark.parametrize("kind", ARRAYS)
def test_the_layout_is_undone(kind, rng):
    raw = torch.as_tensor(ARRAYS[kind][0](rng))
    raw = raw if raw.dim() > 1 else raw[:, None]
    image = raw.dim() > 2
    channels = "none" if raw.dim() < 4 else "last" if raw.shape[-1] == 3 else "first"
    arranged = Layout(
        "", "images" if image else "a table", "", (), channels=channels
    ).arranged(raw)
    seen = look_at(arranged, image=image)
    layout = lay_out(
        arranged,
        seen,
        default_family(seen),
        "images" if image else "a table",
        channels=channels,
    )
    x = layout.apply(raw)
    assert layout.undo(x).double().numpy() == pytest.approx(
        raw.double().numpy(), rel=1e-5, abs=1e-4
    )
    assert tuple(x.shape[1:]) == layout.shape
    if kind == "real":
        assert x.mean(0).abs().max() < 1e-4 and (x.std(0, correction=0) - 1).abs().max() < 1e-4
    again = Layout.read(json.loads(json.dumps(layout.described())))
    assert torch.equal(again.apply(raw), x)


def test_a_sparse_matrix_is_that_matrix(rng, tmp_path):
    dense = rng.poisson(0.3, (30, 8))
    sparse.save_npz(tmp_path / "counts.npz", sparse.csr_matrix(dense))
    contents = open_file(str(tmp_path / "counts.npz"), Reading())
    assert np.array_equal(contents.x.numpy(), dense)


def test_a_large_array_is_read_as_needed(rng, tmp_path, monkeypatch, called):
    array = rng.normal(3, 2, (400, 5)).astype(">f4")
    np.save(tmp_path / "large.npy", array)
    arguments = ["train", "vae", "--data", str(tmp_path / "large.npy"), *QUICK]
    model, _, whole, _ = called([*arguments, "--run", str(tmp_path / "a")])
    monkeypatch.setattr(files, "_LARGE", 0)
    _, _, (x,), options = called([*arguments, "--run", str(tmp_path / "b")])
    assert isinstance(x, ChosenRows) and isinstance(x.rows.array, np.memmap)

    rows = x[:]
    assert rows.shape == whole[0].shape
    # the same rows with the same units, in another order
    assert rows.sort(0).values.numpy() == pytest.approx(
        whole[0].sort(0).values.numpy(), abs=1e-5
    )
    assert len(options["validation"][0]) == 40


def test_rows_are_evenly_spaced(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(100.0)[:, None])
    contents = open_file(str(tmp_path / "x.npy"), Reading(rows=20))
    assert contents.x[:, 0].tolist() == list(range(0, 100, 5))


# --- a table with gaps


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A run on a table with gaps."""
    folder = tmp_path_factory.mktemp("survey")
    cells = write_people(folder / "people.csv")
    run = folder / "run"
    arguments = ["train", "vae", "--data", str(folder / "people.csv"), "--run", str(run)]
    assert main([*arguments, *QUICK]) == 0
    return folder, run, cells


def test_a_table_of_several_kinds(survey):
    _, run, _ = survey
    model = load_run(run).model
    blocks = [block.family.__name__ for block in model.likelihood.likelihood.blocks]
    assert blocks == ["Normal", "NegativeBinomial", "Bernoulli", "OneHotCategorical"]
    assert {path.name for path in run.glob("*.png")} == {
        "latents.png",
        "curves.png",
        "samples.png",
    }
    layout = json.loads((run / "config.json").read_text())["data"]["layout"]
    assert [name for name, *_ in layout["columns"]] == PEOPLE[1:]
    assert layout["loc"][0] == pytest.approx(170, abs=6)  # the heights
    assert layout["loc"][2:] == [0.0] * 5 and layout["scale"][2:] == [1.0] * 5


def test_codes_of_a_table_are_in_its_order(survey, tmp_path):
    folder, run, cells = survey
    assert main(["embed", str(run), "--out", str(tmp_path / "codes.csv")]) == 0
    header, *rows = read_cells(tmp_path / "codes.csv")
    assert header == ["z_1", "z_2"] and len(rows) == len(cells)
    # an empty row has a code too, and the last row alone has that of the whole file
    write_people(folder / "same.csv")
    with open(folder / "one.csv", "w", newline="") as file:
        csv.writer(file).writerows([PEOPLE, cells[-1]])
    for row, name in enumerate(("same", "one")):
        out = tmp_path / f"{name}.npz"
        assert (
            main(["embed", str(run), "--data", str(folder / f"{name}.csv"), "--out", str(out)])
            == 0
        )
        z = np.load(out)["z"]
        assert z[-1] == pytest.approx(np.array(rows[-1], float), abs=1e-5)
        assert len(z) == (len(cells) if row == 0 else 1)


def test_gaps_are_filled_and_nothing_else(survey, tmp_path):
    folder, run, cells = survey
    arguments = ["impute", str(run), "--data", str(folder / "people.csv"), "--out"]
    for name, options in (("means", []), ("draws", ["--draws", "--seed", "3"])):
        out = tmp_path / f"{name}.csv"
        assert main([*arguments, str(out), *options]) == 0
        header, *rows = read_cells(out)
        assert header == PEOPLE and len(rows) == len(cells)
        for before, after in zip(cells, rows, strict=True):
            for old, new in zip(before, after, strict=True):
                assert new == old if old else new
        assert {row[4] for row in rows} <= {"yes", "no"}
        assert {row[5] for row in rows} <= {"Bonn", "Oslo", "Rome"}
        assert all(row[3].isdigit() for row in rows)
        assert all(100 < float(row[1]) < 250 for row in rows)
    assert (tmp_path / "means.csv").read_text() != (tmp_path / "draws.csv").read_text()


def test_samples_of_a_table_have_its_columns_and_units(survey, tmp_path, capsys):
    _, run, _ = survey
    out = tmp_path / "samples.csv"
    assert main(["sample", str(run), "--num", "200", "--out", str(out)]) == 0
    header, *rows = read_cells(out)
    assert header == PEOPLE[1:] and len(rows) == 200
    assert np.mean([float(row[0]) for row in rows]) == pytest.approx(170, abs=8)
    assert np.mean([float(row[1]) for row in rows]) == pytest.approx(1967, abs=40)
    assert {row[3] for row in rows} == {"yes", "no"}
    assert all(row[2].isdigit() for row in rows)


def test_a_report_is_not_computed_twice(survey, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(survey[1], tmp_path / "run")
    monkeypatch.setattr(
        "tarspyro.commands.running._open", lambda options: pytest.fail("opened")
    )
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "log p(x)" in printed and "--again computes it anew" in printed
    monkeypatch.undo()
    # other weights, particles, or a wish
    for options in (["--which", "last"], ["--num-particles", "3"], ["--again"]):
        assert main(["evaluate", str(run), *options]) == 0
        assert "--again" not in capsys.readouterr().out


def test_a_changed_file_is_evaluated_anew(tmp_path, capsys):
    write_people(tmp_path / "people.csv", gaps=0.0)
    run = tmp_path / "run"
    arguments = ["train", "vae", "--data", str(tmp_path / "people.csv"), "--run", str(run)]
    assert main([*arguments, "--without", "city", "--likelihood", "Normal", *QUICK]) == 0
    assert (
        "city"
        not in (run / "config.json")
        .read_text()
        .replace('"without"', "")
        .split("layout")[1]
        .split("options")[0]
    )
    write_people(tmp_path / "people.csv", gaps=0.0, seed=1)
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert "--again" not in capsys.readouterr().out


# --- images with labels, and sequences


def write_pictures(folder, rng, count=12):
    for label in ("round", "square"):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")


def test_a_folder_of_labelled_images(rng, tmp_path, capsys):
    write_pictures(tmp_path / "shapes", rng)
    run = tmp_path / "run"
    data = str(tmp_path / "shapes")
    assert main(["train", "conditional-vae", "--data", data, "--run", str(run), *QUICK]) == 0
    assert "bits per dimension" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    nats = found["log-likelihood"]
    assert found["bits per dimension"] == pytest.approx(-nats / (192 * np.log(2)))
    out = tmp_path / "out.npz"
    assert main(["sample", str(run), "--num", "5", "--out", str(out), "--draws"]) == 0
    samples = np.load(out)
    assert samples["x"].shape == (6, 3, 8, 8)
    assert samples["y"].tolist() == ["round"] * 3 + ["square"] * 3
    assert main(["embed", str(run), "--out", str(out)]) == 0
    assert np.load(out)["z"].shape == (24, 10)
    assert np.load(out)["y"].tolist() == ["round"] * 12 + ["square"] * 12


def test_sequences_of_different_lengths(rng, tmp_path):
    lengths = rng.integers(3, 7, 12)
    np.savez(tmp_path / "walks.npz", *[rng.normal(5, 2, (n, 2)) for n in lengths])
    run = tmp_path / "run"
    data = str(tmp_path / "walks.npz")
    options = ["--units", "6", "--latent", "3", *QUICK]
    assert main(["train", "vrnn", "--data", data, "--run", str(run), *options]) == 0
    out = tmp_path / "out.npz"
    assert main(["embed", str(run), "--out", str(out)]) == 0
    assert np.load(out)["z"].shape == (12, max(lengths), 3)
    assert np.load(out)["lengths"].tolist() == lengths.tolist()
    assert main(["embed", str(run), "--out", str(tmp_path / "out.csv")]) == 0
    header, *rows = read_cells(tmp_path / "out.csv")
    assert header == ["sequence", "step", "z_1", "z_2", "z_3"] and len(rows) == sum(lengths)
    assert main(["sample", str(run), "--num", "50", "--out", str(out)]) == 0
    assert np.load(out)["x"].mean() == pytest.approx(5, abs=1.5)  # in the data's units


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("classifier", "city"),
        ("bayesian-regression", "height"),
        ("semi-supervised-vae", "smokes"),
    ],
)
def test_targets_of_a_table(method, target, tmp_path, called):
    write_people(tmp_path / "people.csv", gaps=0.0)
    # without the row that is empty
    lines = (tmp_path / "people.csv").read_text().splitlines(keepends=True)
    (tmp_path / "people.csv").write_text("".join(line for line in lines if ",,," not in line))
    arguments = ["--data", str(tmp_path / "people.csv"), "--run", str(tmp_path / "run")]
    options = ["--epochs", "1", "--quiet", "--target", target]
    _, _, batches, _ = called(["train", method, *arguments, *options])
    batch = batches if isinstance(batches, tuple) else next(iter(batches))
    assert batch[0].shape[1] == {"city": 4, "height": 6, "smokes": 6}[target]
    if target == "height":
        assert batch[1].dim() == 1 and abs(batch[1].mean()) < 0.3


# --- mistakes


def test_a_method_says_what_it_cannot_take(rng, tmp_path, assert_one_line):
    write_people(tmp_path / "people.csv")
    np.save(tmp_path / "rows.npy", rng.normal(size=(30, 4)))
    np.save(tmp_path / "few.npy", rng.normal(size=(5, 4)))
    np.savez(tmp_path / "walks.npz", *[rng.normal(size=(n, 2)) for n in (3, 4, 5, 6)])
    (tmp_path / "dates.csv").write_text("a,day\n" + "1.5,2024-01-01\n" * 20)
    cases = [
        (["draw", "rows.npy"], ["cannot train draw", "takes images"]),
        (["vrnn", "rows.npy"], ["cannot train vrnn", "(steps, features)"]),
        (["gan", "people.csv"], ["has gaps", "tarspyro train vae"]),
        (["vae", "few.npy"], ["5 rows", "at least 10"]),
        (["vae", "walks.npz"], ["holds sequences", "vrnn"]),
        (["vae", "dates.csv"], ["dates", "--without 'day'"]),
        (["classifier", "rows.npy"], ["has no labels", "--target"]),
        (["classifier", "people.csv", "--target", "town"], ["--target town", "city"]),
        (["vae", "rows.npy", "--likelihood", "Poisson"], ["--likelihood Poisson", "Normal"]),
        (["vae", "rows.npy", "--trunk", "conv"], ["--trunk conv", "for images"]),
        (["vae", "people.csv", "--without", "town"], ["--without town", "height"]),
        (["vae", "nothing.csv"], ["no file or folder"]),
    ]
    for (method, name, *options), parts in cases:
        data = ["--data", str(tmp_path / name), "--run", str(tmp_path / "run")]
        assert main(["train", method, *data, *options]) == 2, name
        assert_one_line(*parts)
    assert not (tmp_path / "run").exists()


def test_other_files_have_to_fit_the_run(survey, tmp_path, assert_one_line):
    _, run, _ = survey
    (tmp_path / "other.csv").write_text("height,smokes\n170.5,yes\n160.5,no\n")
    words = write_people(tmp_path / "words.csv", gaps=0.0)
    text = (tmp_path / "words.csv").read_text()
    (tmp_path / "words.csv").write_text(text.replace("Bonn", "Paris"))
    assert words
    np.save(tmp_path / "wide.npy", np.zeros((30, 15)))
    out = str(tmp_path / "out.csv")
    for command, name, parts in (
        ("embed", "other.csv", ["no column", "born"]),
        ("embed", "words.csv", ["'Paris'", "Bonn, Oslo, Rome"]),
        ("embed", "wide.npy", ["rows of shape (15,)", "same columns or size"]),
        ("impute", "wide.npy", ["rows of shape (15,)", "same columns or size"]),
    ):
        assert main([command, str(run), "--data", str(tmp_path / name), "--out", out]) == 2
        assert_one_line(*parts)
    assert main(["embed", str(run), "--out", str(tmp_path / "out.txt")]) == 2
    assert_one_line("--out", ".npz, .csv")


def test_counts_start_with_the_spread_of_the_data(rng, tmp_path, capsys):
    counts = rng.poisson(3.0, size=(300, 4))
    np.savetxt(tmp_path / "counts.csv", counts, fmt="%d", delimiter=",", header="a,b,c,d")
    run, out = str(tmp_path / "run"), tmp_path / "drawn.csv"
    data = ["--data", str(tmp_path / "counts.csv"), "--run", run]
    assert main(["train", "vae", *data, "--epochs", "1", "--quiet"]) == 0
    assert "1 epoch of 3 steps" in capsys.readouterr().out
    assert main(["sample", run, "--num", "1000", "--out", str(out)]) == 0
    drawn = np.loadtxt(out, delimiter=",", skiprows=1)
    assert (abs(drawn.mean(0) - 3) < 1).all()
    assert (drawn.std(0) < 1.5 * counts.std(0)).all()


@pytest.mark.parametrize(
    ("name", "values", "family"),
    [
        ("made", lambda rng: rng.poisson(3, (60, 6)).astype(np.float32), "NegativeB"),
        ("made", lambda rng: rng.normal(size=(60, 6)).astype(np.float32), "Normal"),
        ("made", lambda rng: rng.integers(0, 256, (60, 8, 8)).astype(np.uint8), "Discretized"),
        ("pixelcnn", lambda rng: rng.integers(0, 256, (60, 8, 8)).astype(np.uint8), "Discret"),
        (
            "pixel-vae",
            lambda rng: rng.integers(0, 256, (60, 8, 8)).astype(np.uint8),
            "Discret",
        ),
    ],
)
def test_autoregressive_densities_have_the_family_of_the_values(
    name, values, family, rng, tmp_path, capsys
):
    np.save(tmp_path / "data.npy", values(rng))
    run = tmp_path / "run"
    words = ["train", name, "--data", str(tmp_path / "data.npy"), "--run", str(run)]
    assert main([*words, "--epochs", "1", "--quiet"]) == 0, capsys.readouterr().err
    assert f"= {family}" in capsys.readouterr().out.replace("p(x | z)", "p(x)")


@pytest.mark.parametrize("name", ["pixelcnn", "pixel-vae", "vq-vae"])
def test_convolutions_take_images_alone(name, rng, tmp_path, capsys):
    np.save(tmp_path / "data.npy", rng.normal(size=(60, 6)).astype(np.float32))
    words = ["train", name, "--data", str(tmp_path / "data.npy"), "--epochs", "1"]
    assert main([*words, "--run", str(tmp_path / "run")]) == 2
    assert f"cannot train {name}, which takes images:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "units"),
    [
        (lambda rng: rng.normal(size=(40, 8, 8)), "figures are of values scaled to [0, 1]"),
        (lambda rng: rng.normal(size=(40, 5)), "figures are of standardized values"),
        (lambda rng: rng.poisson(300.0, (40, 5)), None),
    ],
    ids=["images", "a table", "counts"],
)
def test_a_report_says_what_its_densities_are_of(made, units, rng, tmp_path, capsys):
    np.save(tmp_path / "x.npy", made(rng))
    run = tmp_path / "run"
    main(["train", "vae", "--data", str(tmp_path / "x.npy"), "--run", str(run), *QUICK])
    report = json.loads((run / "evaluation.json").read_text())
    printed = capsys.readouterr().out
    assert report.get("pixels") == units
    assert ("figures are of" in printed) == (units is not None)
    assert units is None or units in printed
