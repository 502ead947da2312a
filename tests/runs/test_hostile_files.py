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


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", "?")), text
    return text


def everything(folder):
    """All that is below a folder, with what is in the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
    }


# Where a file is cut, or which bytes of it become which; positions are taken modulo its
# length.
DAMAGES = st.one_of(
    st.integers(0, 2**16),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3),
)


def damaged(content, damage):
    if isinstance(damage, int):
        return content[: damage % len(content)]
    changed = bytearray(content)
    for position, value in damage:
        changed[position % len(content)] = value
    return bytes(changed)


# --- data: IDX, .npz, .mat


def idx(ndims, sizes, content):
    return b"\0\0\x08" + bytes([ndims]) + np.array(sizes, ">u4").tobytes() + content


@pytest.mark.parametrize(
    "content",
    [
        idx(2, [2**32 - 1, 2**32 - 1], b"abc"),
        idx(4, [2**16] * 4, b"abc"),  # 2^64 bytes, which overflows to none
        idx(2, [2**31, 2], b""),
        idx(255, [1] * 255, b"a"),
        idx(3, [0, 2**32 - 1, 2**32 - 1], b"a"),
    ],
    ids=["2^64", "overflow to zero", "2^32 of nothing", "255 dimensions", "none of many"],
)
def test_idx_that_claims_more_than_there_is(content):
    with pytest.raises(DataError, match="some-file.gz is not in the IDX format") as error:
        data.datasets._idx(content, "some-file.gz")
    one_sentence(error)


@given(damage=DAMAGES)
def test_damaged_idx_is_refused_or_an_array_of_its_bytes(damage):
    content = damaged(idx(2, [5, 7], bytes(range(35))), damage)
    try:
        array = data.datasets._idx(content, "some-file.gz")
    except DataError as error:
        assert str(error).startswith("some-file.gz is not in the IDX format")
    else:
        assert array.tobytes() == content[4 + 4 * array.ndim :]


def frey(folder, content):
    (folder / "frey_face").mkdir(exist_ok=True)
    (folder / "frey_face" / "frey_face.npz").write_bytes(content)
    return folder


def archive(**parts):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return buffer.getvalue()


def npy(shape, descr="|u1", content=b""):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "content",
    [
        archive(**{"images.npy": npy((HUGE,))}),
        archive(**{"images.npy": npy((-1, 560))}),
        archive(**{"images.npy": npy((2**40, 2**40))}),
        archive(**{"images.npy": npy((3,), "|O", b"cos\nsystem\n(S'touch executed'\ntR.")}),
        archive(**{"images.npy": b"no array"}),
        archive(**{"other.npy": npy((3,), content=b"abc")}),
        archive(
            **{
                "../../evil.npy": npy((3,), content=b"abc"),
                "/evil.npy": b"",
                "images.npy": npy((1,), content=b"a"),
            }
        ),
        b"PK\x03\x04 and no more",
    ],
    ids=[
        "2^60 bytes",
        "negative",
        "2^80 bytes",
        "pickle",
        "no array",
        "no images",
        "names of other folders",
        "cut",
    ],
)
def test_hostile_archives(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = frey(tmp_path, content)
    before = everything(tmp_path)
    with pytest.raises(DataError, match="frey_face.npz") as error:
        data.frey_face(folder=folder)
    one_sentence(error)
    assert everything(tmp_path) == before


def test_an_archive_that_would_unpack_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("tarspyro.data.datasets.MOST", 1000)
    folder = frey(tmp_path, archive(**{"images.npy": npy((1000,), content=bytes(1000))}))
    with pytest.raises(DataError, match="it would be more than 0 MB, unpacked"):
        data.frey_face(folder=folder)


def test_a_file_that_unpacks_without_end_is_read_up_to_a_bound(monkeypatch):
    monkeypatch.setattr("tarspyro.data.datasets.MOST", 1000)
    assert len(data.datasets._gunzip(gzip.compress(bytes(100_000)))) == 1000


def cells(*pieces):
    found = np.empty((1, len(pieces)), object)
    for index, piece in enumerate(pieces):
        found[0, index] = piece
    return found


def music_file(path, piece=None, notes=5):
    roll = np.eye(notes)[:3]
    savemat(
        path,
        {
            "traindata": cells(roll if piece is None else piece),
            "validdata": cells(roll),
            "testdata": cells(np.eye(5)[:1]),
        },
    )
    return path


@pytest.mark.parametrize(
    "piece",
    [
        np.full((3, 5), 300.0),
        np.full((3, 5), 0.5),
        np.full((3, 5), np.nan),
        np.zeros((0, 5)),
        np.array(["a"]),
    ],
)
def test_music_that_is_none(piece, tmp_path):
    """What is not 0 or 1 would have been cut to bytes."""
    with pytest.raises(DataError, match="Own.mat does not hold") as error:
        data.polyphonic_music(music_file(tmp_path / "Own.mat", piece))
    one_sentence(error)


def test_music_of_different_instruments(tmp_path):
    with pytest.raises(DataError, match="the parts differ in how many notes there are"):
        data.polyphonic_music(music_file(tmp_path / "Own.mat", notes=6))


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    return music_file(tmp_path_factory.mktemp("music") / "Own.mat").read_bytes()


@settings(max_examples=6)
@given(damage=DAMAGES)
def test_damaged_music_is_refused_or_music(music, tmp_path_factory, damage):
    path = tmp_path_factory.getbasetemp() / "Damaged.mat"
    path.write_bytes(damaged(music, damage))
    try:
        found = data.polyphonic_music(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert set(found.train.x.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("position", "value"), [(144, 14), (209, 255), (236, 17), (240, 0)])
def test_music_that_crashes_the_decoder(position, value, music, tmp_path):
    """A segmentation fault of SciPy 1.17, which must not take this process along."""
    (tmp_path / "Own.mat").write_bytes(
        music[:position] + bytes([value]) + music[position + 1 :]
    )
    with pytest.raises(DataError, match="Own.mat does not hold") as error:
        data.polyphonic_music(tmp_path / "Own.mat")
    one_sentence(error)


@settings(max_examples=4)
@given(damage=DAMAGES)
def test_damaged_matlab_in_the_place_of_faces_is_refused(music, tmp_path_factory, damage):
    folder = frey(tmp_path_factory.getbasetemp(), damaged(music, damage))
    with pytest.raises(DataError, match="frey_face.npz"):
        data.frey_face(folder=folder)


# --- downloads and links


class Endless(io.RawIOBase):
    """A server that never stops sending."""

    def __init__(self, headers):
        self.headers = headers

    def read(self, size=-1):
        return bytes(size)


@pytest.mark.parametrize("told", ["10", "-5", "many", str(HUGE)])
def test_a_download_without_end(told, tmp_path, monkeypatch):
    monkeypatch.setattr("tarspyro.data.files.MOST", 1 << 20)
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, **options: Endless({"Content-Length": told})
    )
    with pytest.raises(DataError, match="does not end after 1 MB") as error:
        data.mnist(folder=tmp_path)
    one_sentence(error)
    assert everything(tmp_path) == {}


def test_a_link_in_the_place_of_a_file_that_is_written_is_not_followed(tmp_path):
    from tarspyro.data.files import _write

    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.write_bytes(b"mine")
    folder.mkdir()
    (folder / "file").symlink_to(outside)
    (folder / f"file.{os.getpid()}.part").symlink_to(outside)
    _write(folder / "file", b"theirs")
    assert outside.read_bytes() == b"mine"
    assert (folder / "file").read_bytes() == b"theirs" and not (folder / "file").is_symlink()


def test_a_pipe_in_the_place_of_data_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "Own.mat")
    with pytest.raises(DataError, match="it is no file"):
        data.polyphonic_music(tmp_path / "Own.mat")


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
        assert len(run.history["objective"]) == len(run.history) and run.model(
            batch_size=2
        ).shape == (2, 64)
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
