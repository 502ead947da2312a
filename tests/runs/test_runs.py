"""Run folders: what a training leaves, what comes back, and what is said of a folder that is
none or is damaged.
"""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from torch import nn

import tarspyro
from tarspyro import Conditional, fit, guides, load_run, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP
from tarspyro.runs import History, Run, RunError

FILES = {
    "config.json",
    "metrics.jsonl",
    "best.safetensors",
    "last.safetensors",
    "state.safetensors",
}
EPOCHS = 3  # of two steps each
# Uphill in the last epoch, so that the best weights are not the last ones.
WORSE_AT_THE_END = {"lr": lambda step: 0.02 if step < 4 else -0.02}


class Activated(nn.Module):
    """A trunk whose argument decides what it computes, and not the shape of a weight."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.activation, self.out_features = activation, 8
        self.layers = nn.Sequential(nn.Linear(64, 8), activation())

    def forward(self, x):
        return self.layers(x)


class Once(nn.Linear):
    """Can be built one time only, as a class that holds some resource might."""

    built = False

    def __init__(self, in_features, out_features):
        if Once.built:
            raise RuntimeError("built already")
        Once.built = True
        super().__init__(in_features, out_features)


class Sharp(guides.VAE):
    """A user's variant of a guide."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


def make_pair(trunk=None, guide_class=guides.VAE, **options):
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8], **options), 64)
    )
    return model, guide_class(Conditional(dist.Normal, trunk or MLP(64, [8]), 2))


def train(pair, folder, **options):
    data = digits()
    return fit(
        *pair,
        data.train.x[:40],
        **{
            "epochs": EPOCHS,
            "batch_size": 20,
            "validation": data.test.x[:20],
            "binarize": True,
            "seed": 0,
            "progress": False,
            "folder": folder,
            **options,
        },
    )


def assert_states(halves, states):
    for half, program in zip(("model", "guide"), halves, strict=True):
        state = program.state_dict()
        assert state.keys() == states[half].keys() and state
        for name, tensor in state.items():
            assert tensor.dtype == states[half][name].dtype and torch.equal(
                tensor, states[half][name]
            ), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One training for many tests: its folder, which they must not change, its pair and its
    history.
    """
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    pair = make_pair()
    run = Run(folder, settings={"note": [1, "two"]})
    history = train(pair, run, schedules=WORSE_AT_THE_END)
    assert history.best_epoch == EPOCHS - 1
    return folder, pair, history


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the folder, to damage."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and text.rstrip().endswith((".", "=..."))
    return text


# --- History


def test_history_puts_weights_in_hand():
    pair = make_pair()
    history = train(pair, None, schedules=WORSE_AT_THE_END)
    history.use("last", *pair)
    assert history.in_hand == "last" and history.best_epoch < EPOCHS
    assert_states(pair, history.states["last"])
    history.use("best", *pair)
    assert history.in_hand == "best"
    assert_states(pair, history.states["best"])
    assert not torch.equal(
        history.states["best"]["guide"]["posterior.heads.loc.weight"],
        history.states["last"]["guide"]["posterior.heads.loc.weight"],
    )
    # what is kept is a copy: the pair can go on without changing it
    kept = copy.deepcopy(history.states)
    with torch.no_grad():
        for half in pair:
            for parameter in half.parameters():
                parameter.zero_()
    history.use("last", *pair)
    assert_states(pair, kept["last"])


def test_history_without_such_weights():
    with pytest.raises(KeyError, match=r"holds the weights \[\], not 'best'"):
        History().use("best", *make_pair())


# --- what a training leaves


def test_the_files(trained):
    folder, _, history = trained
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 2 and config["note"] == [1, "two"]
    assert config["loss"]["new"] == "tarspyro.infer.ELBO"
    settings = config["training"]
    given = {"epochs": EPOCHS, "batch_size": 20, "binarize": True, "seed": 0, "lr": [1e-3]}
    assert given.items() <= settings.items()
    assert settings["optimizer"] == "Adam()" and settings["loss"]["class"] == "ELBO"
    assert settings["data"]["shapes"] == [[40, 64]]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.rows and len(lines) == EPOCHS


def test_weights_are_plain_safetensors(trained):
    folder, _, history = trained
    for which in ("best", "last"):
        tensors = safetensors.torch.load_file(folder / f"{which}.safetensors")
        expected = {
            f"{half}.{name}": t
            for half, state in history.states[which].items()
            for name, t in state.items()
        }
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_nothing_that_python_would_execute(trained):
    for path in trained[0].iterdir():
        content = path.read_bytes()
        assert content[:2] not in (
            b"PK",
            b"\x80\x02",
            b"\x80\x03",
            b"\x80\x04",
            b"\x80\x05",
        ), path.name
    sources = [path for path in Path(tarspyro.__file__).parent.rglob("*.py")]
    assert len(sources) > 20
    for path in sources:
        text = path.read_text()
        # numpy.load is told not to unpickle
        assert "pickle" not in text.replace("allow_pickle=False", ""), path.name
        assert not re.search(
            r"torch\.(load|save)\(|marshal|shelve|(?<![\w.])(eval|exec)\(", text
        ), path.name
        assert text.count("np.load(") == text.count("allow_pickle=False"), path.name


def test_recording_a_run_changes_nothing_in_it(tmp_path):
    losses = []
    for folder in (None, tmp_path / "run"):
        torch.manual_seed(0)
        losses.append(train(make_pair(), folder, epochs=1).step_losses)
    assert losses[0] == losses[1]


# --- what comes back


@pytest.mark.parametrize("which", ["best", "last"])
def test_load_run_gives_the_weights_exactly(which, trained):
    folder, pair, history = trained
    run = load_run(folder, which)
    assert_states((run.model, run.guide), history.states[which])
    assert [type(half) for half in (run.model, run.guide)] == [models.VAE, guides.VAE]
    assert run.model is not pair[0]
    assert run.history.in_hand == which
    assert run.config["note"] == [1, "two"]
    assert run.history.rows == history.rows and run.history.best_epoch == history.best_epoch


def test_the_best_weights_are_the_default(trained):
    folder, _, history = trained
    run = load_run(str(folder))
    assert_states((run.model, run.guide), history.states["best"])


def test_a_loaded_pair_computes_the_same(trained):
    folder, pair, history = trained
    history.use("best", *pair)
    x = digits().test.x[:5]
    run = load_run(folder)
    for ours, theirs in (
        (run.guide.posterior, pair[1].posterior),
        (run.model.likelihood, pair[0].likelihood),
    ):
        context = x if ours is run.guide.posterior else torch.randn(5, 2)
        assert torch.equal(ours.mean(context), theirs.mean(context))


def test_loading_leaves_the_random_state(trained):
    state = torch.get_rng_state()
    load_run(trained[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_without_validation_the_best_epoch_is_that_of_the_training(tmp_path):
    pair = make_pair()
    history = train(pair, tmp_path / "run", validation=None)
    run = load_run(tmp_path / "run")
    assert run.history.best_epoch == history.best_epoch == 1 + int(np.argmin(history["loss"]))
    assert_states((run.model, run.guide), history.states["best"])


def test_which_is_checked(trained):
    with pytest.raises(ValueError, match="which must be 'best' or 'last', got 'first'"):
        load_run(trained[0], "first")


def test_a_subclass_of_the_user_comes_back_as_itself(tmp_path):
    trunk = nn.Sequential(Activated(nn.Tanh), nn.Dropout(0.1))
    pair = make_pair(trunk, Sharp)
    history = train(pair, tmp_path / "run", epochs=1)
    run = load_run(tmp_path / "run")
    assert type(run.guide) is Sharp and type(run.guide.posterior.trunk[0].layers[1]) is nn.Tanh
    assert_states((run.model, run.guide), history.states["best"])


def test_buffers_come_back(tmp_path):
    """Batch normalization and scheduled parameters keep numbers that no optimizer holds."""
    pair = make_pair(MLP(64, [8], normalization=nn.BatchNorm1d))
    history = train(pair, tmp_path / "run", epochs=1)
    run = load_run(tmp_path / "run", "last")
    assert run.guide.state_dict()["posterior.trunk.layers.1.num_batches_tracked"] == 2
    assert_states((run.model, run.guide), history.states["last"])


def test_layers_that_take_their_size_from_the_data_come_back(tmp_path):
    trunk = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), (1, 8, 8))
    )
    guide = guides.VAE(Conditional(dist.Normal, trunk, 2))
    data = digits(flatten=False)
    history = fit(
        model,
        guide,
        data.train.x[:20],
        epochs=1,
        binarize=True,
        seed=0,
        progress=False,
        folder=tmp_path / "run",
    )
    run = load_run(tmp_path / "run")
    assert_states((run.model, run.guide), history.states["best"])
    x = data.test.x[:3]
    assert torch.equal(run.guide.posterior.mean(x), guide.posterior.mean(x))


# --- pairs that no file can describe


def test_a_lambda_still_trains_and_saves_and_is_passed_to_load(tmp_path):
    def make():
        return make_pair(activation=lambda: nn.LeakyReLU(0.3))

    history = train(make(), tmp_path / "run", epochs=1)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    with pytest.raises(
        RunError, match=r"cannot rebuild its model \(.*lambda.*\): pass model=\.\.\."
    ) as error:
        load_run(tmp_path / "run")
    one_sentence(error)
    other = make()[0]
    run = load_run(tmp_path / "run", model=other)
    assert run.model is other and type(run.guide) is guides.VAE
    assert_states((run.model, run.guide), history.states["best"])


def test_a_run_that_cannot_be_described_can_be_resumed(tmp_path):
    """The reason is compared, so it must not hold an address of this process."""

    def make():
        return make_pair(activation=lambda: nn.LeakyReLU(0.3))

    train(make(), tmp_path / "run", epochs=1)
    history = train(make(), Run(tmp_path / "run", resume=True), epochs=2)
    assert len(history) == 2


def test_plain_functions_train_and_save(tmp_path):
    """A half that is no module has no weights in the folder, and the other half comes back."""
    model, guide = make_pair()

    def function(x):
        return model(x)

    decoder = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    history = train((function, guide), tmp_path / "run", epochs=1)
    with pytest.raises(RunError, match=r"pass model=\.\.\."):
        load_run(tmp_path / "run")
    run = load_run(tmp_path / "run", model=function)
    assert run.model is function
    assert all(torch.equal(a, b) for a, b in zip(decoder, model.parameters(), strict=True))
    for name, tensor in run.guide.state_dict().items():
        assert torch.equal(tensor, history.states["best"]["guide"][name])


def test_parameters_that_functions_declare_come_back(tmp_path):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1)
            )
            pyro.sample(
                "x",
                dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(-1, 64)).to_event(1),
                obs=x,
            )

    def guide(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], scale).to_event(1))

    history = train((model, guide), tmp_path / "run", schedules=WORSE_AT_THE_END)
    trained = {name: pyro.param(name).detach().clone() for name in ("loc", "scale")}
    assert history.in_hand == "best" and not torch.equal(trained["scale"], torch.ones(2))
    pyro.clear_param_store()
    # no file knows that the scale is positive, only the guide does
    with pytest.raises(
        RunError, match=r"functions declared \(loc, scale\): call the model and the guide"
    ) as error:
        load_run(tmp_path / "run", model=model, guide=guide)
    one_sentence(error)
    model(torch.ones(1, 64))
    guide(torch.ones(1, 64))
    load_run(tmp_path / "run", model=model, guide=guide)
    for name, value in trained.items():
        assert torch.equal(pyro.param(name), value)
    load_run(tmp_path / "run", "last", model=model, guide=guide)
    assert not torch.equal(pyro.param("scale"), trained["scale"])


def test_a_half_changed_after_it_was_built_does_not_come_back_as_another(tmp_path):
    pair = make_pair()
    pair[0].likelihood.trunk.layers[1] = nn.Tanh()  # no weight tells
    history = train(pair, tmp_path / "run", epochs=1)
    with pytest.raises(RunError, match="cannot rebuild its model .*changed later"):
        load_run(tmp_path / "run")
    run = load_run(tmp_path / "run", model=pair[0])
    assert_states((run.model, run.guide), history.states["best"])


def test_a_constructor_that_fails_does_not_stop_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Once, "built", False)
    trunk = Once(64, 8)
    train(make_pair(trunk), tmp_path / "run", epochs=1)
    with pytest.raises(
        RunError, match=r"cannot rebuild its guide \(built already\): pass guide=\.\.\."
    ) as error:
        load_run(tmp_path / "run")
    one_sentence(error)


def test_weights_of_another_precision_are_not_rounded(tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        history = train(make_pair(), tmp_path / "run", epochs=1)
        run = load_run(tmp_path / "run")
        assert_states((run.model, run.guide), history.states["best"])
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(RunError, match=r"torch\.float64.*torch\.set_default_dtype"):
        load_run(tmp_path / "run")


# --- folders that exist, or do not


def test_an_existing_run_is_kept(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        RunError,
        match="holds a run already: give another folder, .*resume=True.*overwrite=True",
    ):
        Run(folder).create({})
    with pytest.raises(RunError, match="holds a run already"):
        train(make_pair(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_overwrite_leaves_nothing_of_the_old_run(folder):
    (folder / "notes.txt").write_text("the user's")
    Run(folder, overwrite=True).create({"model": None, "guide": None})
    assert {path.name for path in folder.iterdir()} == {"config.json", "notes.txt"}
    assert Run(folder).config() == {"format": 2, "model": None, "guide": None}


def test_settings_that_json_cannot_hold_delete_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        run = Run(folder, overwrite=True)
        run.create({"model": None, "guide": None, "note": torch.zeros(1)})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_empty_folder_is_left_only_where_there_was_one(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with pytest.raises(ZeroDivisionError), Run(tmp_path / name).written_alone():
            assert (tmp_path / name).is_dir()
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "new").written_alone():
        (tmp_path / "new" / "config.json").touch()
        raise ZeroDivisionError
    assert (tmp_path / "new" / "config.json").exists()


def test_a_folder_with_other_files_is_used(tmp_path):
    (tmp_path / "notes.txt").write_text("the user's")
    Run(tmp_path).create({"model": 1, "guide": 2})
    assert (tmp_path / "notes.txt").read_text() == "the user's"
    Run(tmp_path / "a" / "b").create({"model": 1, "guide": 2})
    assert Run(str(tmp_path / "a" / "b")).config()["guide"] == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_place_of_the_folder(overwrite, tmp_path):
    (tmp_path / "run").write_text("text")
    with pytest.raises(RunError, match="is a file: give the name of a folder"):
        Run(tmp_path / "run", overwrite=overwrite).create({})
    with pytest.raises(RunError, match="is it a run folder"):
        load_run(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "text"


def test_a_missing_folder(tmp_path):
    with pytest.raises(
        RunError,
        match=r"missing has no readable config\.json \(No such file.*is it a run folder",
    ) as error:
        load_run(tmp_path / "missing")
    assert isinstance(error.value, OSError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "best.safetensors"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"has no readable {name}"):
        load_run(folder)


# --- damaged files


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"config\.json is not valid JSON"),
        (b'{"format": 2, "model"', r"config\.json is not valid JSON"),
        (b"\xff\xfe\x00", r"config\.json is not valid JSON"),
        (b"[" * 100_000, r"config\.json is not valid JSON"),
        (b"[1, 2]", r"config\.json is not the configuration of a run"),
        (b"null", r"config\.json is not the configuration of a run"),
        (b"{}", r"config\.json is not the configuration of a run"),
        (
            b'{"format": 3, "model": 1, "guide": 1}',
            "has format 3, this version of tarspyro reads format 2",
        ),
        (
            b'{"format": 2, "model": {"neu": 1}, "guide": 1}',
            r"config\.json does not describe a model",
        ),
        (
            b'{"format": 2, "model": {"new": "torch.nn:Linear", "args": [-1, 2], "kwargs": {}}, "guide": 1}',
            r"config\.json does not describe a model",
        ),
        (
            b'{"format": 2, "model": 5, "guide": 1}',
            "weights do not fit the model and the guide",
        ),
    ],
    ids=[
        "empty",
        "half",
        "bytes",
        "deep",
        "list",
        "null",
        "nothing",
        "format",
        "description",
        "arguments",
        "number",
    ],
)
def test_a_bad_configuration(content, sentence, folder):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=sentence) as error:
        load_run(folder)
    assert str(folder) in one_sentence(error)


def test_a_hostile_configuration_is_not_obeyed(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    config = json.loads((folder / "config.json").read_text())
    for described in (
        {"new": "os:system", "args": ["touch executed"], "kwargs": {}},
        {"new": "subprocess:Popen", "args": [["touch", "executed"]], "kwargs": {}},
        {"class": "builtins:eval"},
    ):
        (folder / "config.json").write_text(json.dumps({**config, "guide": described}))
        with pytest.raises(RunError, match="does not describe a guide"):
            load_run(folder)
    assert not (folder.parent / "executed").exists()


def test_a_class_that_is_not_imported(folder):
    config = json.loads((folder / "config.json").read_text())
    config["guide"]["new"] = "my_guides:VAE"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ImportError, match="import my_guides before loading the run"):
        load_run(folder)


def header_size(content):
    return 8 + int.from_bytes(content[:8], "little")


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def rename(content):
    """Another name of a weight in the header, of the same length: all of the format stays
    valid.
    """
    assert content.count(b"model.likelihood.trunk") == 2
    return content.replace(b"model.likelihood.trunk", b"model.likelihood.crunk")


def swap(content):
    """The names of two weights of one shape changed about."""
    loc, scale, other = (
        b"guide.posterior.heads.loc.bias",
        b"guide.posterior.heads.scale.bias",
        b"@" * 32,
    )
    return content.replace(loc, other).replace(scale, loc).replace(other, scale)


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "truncated in the header": lambda content: content[:100],
    "appended": lambda content: content + b"\0",
    "one bit of the first number": lambda content: flip(content, header_size(content)),
    "one bit of the last number": lambda content: flip(content, len(content) - 1),
    "one bit of the header": lambda content: flip(content, content.index(b"dtype")),
    "one bit of the header's size": lambda content: flip(content, 1),
    "a name": rename,
    "two names": swap,
    "a type": lambda content: content.replace(b'"F32"', b'"I32"', 1),
    "a shape": lambda content: content.replace(b'"shape":[8,64]', b'"shape":[64,8]', 1),
    "the checksum": lambda content: flip(content, content.index(b'"sha256"') + 11),
    "no checksum": lambda content: safetensors.torch.save(safetensors.torch.load(content)),
    "another format": lambda content: b"PK\x03\x04" + content,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(("which", "other"), [("best", "last"), ("last", "best")])
def test_damaged_weights_are_noticed_and_the_other_ones_named(
    which, other, damage, folder, trained
):
    path = folder / f"{which}.safetensors"
    before = path.read_bytes()
    change(path, damage)
    assert path.read_bytes() != before
    with pytest.raises(RunError, match="corrupted") as error:
        load_run(folder, which)
    text = one_sentence(error)
    assert str(path) in text and f"{other}.safetensors may still be good" in text
    assert "state.safetensors" not in text
    run = load_run(folder, other)
    assert_states((run.model, run.guide), trained[2].states[other])


def test_every_bit_counts(folder):
    """A flip anywhere in the file gives an error, never other numbers."""
    path = folder / "best.safetensors"
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    positions = [
        *generator.integers(0, header_size(content), 40),
        *generator.integers(0, len(content), 20),
    ]
    expected = Run(folder).load_weights("best")
    for position in positions:
        bit = 1 << int(generator.integers(8))
        path.write_bytes(
            content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :]
        )
        try:
            states = Run(folder).load_weights("best")
        except RunError as error:
            assert str(path) in str(error)
        else:  # a space between the entries of the header
            assert all(
                torch.equal(states[half][name], t)
                for half in expected
                for name, t in expected[half].items()
            )


def test_damaged_weights_without_other_ones(folder):
    (folder / "last.safetensors").unlink()
    (folder / "best.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"corrupted \(.*\)\.$"):
        load_run(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-5],
        lambda content: content + b"5\n",
        lambda content: content + b'{"epoch": 4}\n',
        lambda content: b"\xff" + content,
    ],
    ids=["truncated", "number", "other row", "bytes"],
)
def test_damaged_metrics(damage, folder):
    change(folder / "metrics.jsonl", damage)
    with pytest.raises(RunError, match=r"metrics\.jsonl is corrupted"):
        load_run(folder)


def test_a_damaged_file_leaves_the_pair_that_was_passed(folder):
    (folder / "metrics.jsonl").write_bytes(b"{")
    model, guide = make_pair()
    before = copy.deepcopy({"model": model.state_dict(), "guide": guide.state_dict()})
    with pytest.raises(RunError):
        load_run(folder, model=model, guide=guide)
    assert_states((model, guide), before)


def test_weights_that_do_not_fit(folder, trained):
    other = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [9]), 64)
    )
    with pytest.raises(
        RunError, match="the best weights do not fit the model and the guide .* has the shape"
    ) as error:
        load_run(folder, model=other)
    one_sentence(error)
    with pytest.raises(RunError, match="do not fit"):
        load_run(folder, model=lambda x: None)
    config = json.loads((folder / "config.json").read_text())
    assert config["guide"]["args"][0]["args"][1]["args"][1] == [8]
    config["guide"]["args"][0]["args"][1]["args"][1] = [8, 8]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="do not fit .*it lacks"):
        load_run(folder)


# --- the state of a training


def test_state_comes_back_with_its_values(tmp_path):
    run = Run(tmp_path)
    tensors = {
        "a": torch.randn(3, 2).t(),  # not contiguous
        "b": torch.tensor(3),
        "c": torch.zeros(0, dtype=torch.bfloat16),
        "d": torch.randn(4, requires_grad=True),
    }
    values = {"rows": [{"loss": 0.1}], "text": "ä", "nested": {"x": None}}
    run.save_state(tensors, values)
    loaded, back = run.load_state()
    assert back == {"format": 2, **values}
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype
        for name in loaded
    )
    change(tmp_path / "state.safetensors", lambda content: content.replace(b"0.1", b"0.2"))
    with pytest.raises(RunError, match=r"state\.safetensors is corrupted"):
        run.load_state()


def test_a_crash_while_writing_leaves_the_old_file(folder, monkeypatch):
    before = (folder / "best.safetensors").read_bytes()

    def crash(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="No space left"):
        Run(folder).save_weights("best", {"model": {"w": torch.zeros(1000)}})
    assert (folder / "best.safetensors").read_bytes() == before
