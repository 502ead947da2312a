"""Data files from strangers: refused in one sentence, nothing written, nothing executed."""

import gzip
import hashlib
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.io import savemat

from tarspyro import data
from tarspyro.data import DataError, images
from tarspyro.data.images import read_idx

from ..damages import DAMAGES, damaged, everything, one_sentence

HUGE = 2**60


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
        read_idx(content, "some-file.gz")
    one_sentence(error)


@given(damage=DAMAGES)
def test_damaged_idx_is_refused_or_an_array_of_its_bytes(damage):
    content = damaged(idx(2, [5, 7], bytes(range(35))), damage)
    try:
        array = read_idx(content, "some-file.gz")
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
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    folder = frey(tmp_path, archive(**{"images.npy": npy((1000,), content=bytes(1000))}))
    with pytest.raises(DataError, match="more than 0 MB when unpacked"):
        data.frey_face(folder=folder)


def test_a_file_that_unpacks_without_end_is_read_up_to_a_bound(tmp_path, monkeypatch):
    """A bomb of zeros: with a bound of 1,000 bytes its checksum is that of 1,000 zeros."""
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    checksum = hashlib.sha256(bytes(1000)).hexdigest()
    monkeypatch.setattr(images, "MNIST_FILES", {"bomb.gz": checksum})
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "bomb.gz").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(DataError, match="bomb.gz is not in the IDX format"):
        data.mnist(folder=tmp_path)


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
    with pytest.raises(DataError, match="the parts differ in their number of notes"):
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
