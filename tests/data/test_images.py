"""Data sets of images: what they hold, and what is said of damaged files."""

import functools
import gzip
import hashlib
import io
import os

import numpy as np
import pytest
import scipy.io
import torch
from sklearn.datasets import load_digits

from tarspyro import data
from tarspyro.data import DataError
from tarspyro.data.images import read_idx

from ..damages import one_sentence

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
# Of the unpacked files: the sums that the sources of MNIST publish.
MD5 = {
    TRAIN_IMAGES: "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.fixture
def frey_folder():
    folder = os.environ.get("TARSPYRO_DATA", "")
    if not os.path.exists(os.path.join(folder, "frey_face", "frey_face.npz")):
        pytest.skip("TARSPYRO_DATA does not name a folder with frey_face/")
    return folder


@functools.cache
def mnist(folder):
    return data.mnist(folder=folder)


def idx(array):
    array = np.asarray(array, np.uint8)
    return (
        b"\0\0\x08"
        + bytes([array.ndim])
        + np.array(array.shape, ">u4").tobytes()
        + array.tobytes()
    )


# --- digits


def test_digits_have_fixed_parts():
    digits = data.digits()
    assert (
        digits.name == "digits"
        and digits.image_shape == (1, 8, 8)
        and digits.validation is None
    )
    assert digits.train.x.shape == (1437, 64) and digits.test.x.shape == (360, 64)
    assert digits.train.y.shape == (1437,) and digits.test.y.shape == (360,)
    # every image once, with its own label
    bunch = load_digits()
    expected = {
        (tuple(image), int(label))
        for image, label in zip(bunch.data, bunch.target, strict=True)
    }
    parts = (digits.train, digits.test)
    found = {
        (tuple((row * 16).tolist()), int(label))
        for part in parts
        for row, label in zip(part.x, part.y, strict=True)
    }
    assert found == expected


def test_digits_are_grey_between_zero_and_one():
    x = data.digits().train.x
    assert x.dtype == torch.get_default_dtype()
    assert x.min() == 0 and x.max() == 1
    assert len(x.unique()) == 17


def test_digits_are_the_same_for_everybody():
    first = data.digits()
    torch.manual_seed(5)
    np.random.seed(5)
    second = data.digits()
    assert torch.equal(first.test.x, second.test.x) and torch.equal(
        first.train.y, second.train.y
    )
    assert first.test.y[:8].tolist() == [0, 8, 8, 9, 8, 3, 7, 5]  # on every machine


def test_digits_of_every_writer_are_in_both_parts():
    """scikit-learn has them in the order of their writers: unshuffled, the test images would
    be those of a few.
    """
    position = {tuple(image): index for index, image in enumerate(load_digits().data)}
    held_out = torch.tensor(
        [position[tuple((row * 16).tolist())] for row in data.digits().test.x]
    )
    per_tenth = torch.histc(held_out.float(), 10, 0, 1797)
    assert (per_tenth > 20).all() and (per_tenth < 52).all()


def test_digits_as_images():
    images = data.digits(flatten=False)
    assert images.train.x.shape == (1437, 1, 8, 8)
    assert torch.equal(images.train.x.flatten(1), data.digits().train.x)


# --- MNIST


def test_mnist_has_the_split_of_the_literature(mnist_folder):
    dataset = mnist(mnist_folder)
    assert dataset.image_shape == (1, 28, 28)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [
        50_000,
        10_000,
        10_000,
    ]
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.x.shape[1:] == (784,) and part.x.dtype == torch.get_default_dtype()
        assert part.x.min() == 0 and part.x.max() == 1
        assert part.y.dtype == torch.int64 and part.y.unique().tolist() == list(range(10))
    # the first labels of each original file, and the first one of the last 10,000
    assert dataset.train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.test.y[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_holds_the_bytes_that_are_published(mnist_folder):
    dataset = mnist(mnist_folder)
    images = (torch.cat([dataset.train.x, dataset.validation.x]) * 255).round().to(torch.uint8)
    assert hashlib.md5(idx(images.reshape(-1, 28, 28))).hexdigest() == MD5[TRAIN_IMAGES]
    labels = torch.cat([dataset.train.y, dataset.validation.y])
    assert hashlib.md5(idx(labels)).hexdigest() == MD5["train-labels-idx1-ubyte.gz"]
    test = (dataset.test.x * 255).round().to(torch.uint8)
    assert (
        hashlib.md5(idx(test.reshape(-1, 28, 28))).hexdigest()
        == MD5["t10k-images-idx3-ubyte.gz"]
    )
    assert hashlib.md5(idx(dataset.test.y)).hexdigest() == MD5["t10k-labels-idx1-ubyte.gz"]


def test_mnist_without_validation_keeps_all_for_training(mnist_folder):
    dataset = data.mnist(validation=0, flatten=False, folder=mnist_folder)
    assert dataset.validation is None
    assert dataset.train.x.shape == (60_000, 1, 28, 28)
    assert torch.equal(
        dataset.train.x[50_000:50_010].flatten(1), mnist(mnist_folder).validation.x[:10]
    )


@pytest.mark.parametrize("validation", [-1, 60_000])
def test_mnist_validation_out_of_range(validation, tmp_path):
    with pytest.raises(
        ValueError, match=f"validation must be between 0 and 59,999, got {validation}"
    ):
        data.mnist(validation=validation, folder=tmp_path)


# --- Frey Face


def test_frey_face(frey_folder):
    dataset = data.frey_face(flatten=False)
    assert dataset.image_shape == (1, 28, 20) and dataset.validation is None
    assert dataset.train.x.shape == (1769, 1, 28, 20) and dataset.test.x.shape == (
        196,
        1,
        28,
        20,
    )
    assert dataset.train.y is None
    x = torch.cat([dataset.test.x, dataset.train.x])
    assert 0 <= x.min() < 0.1 and 0.9 < x.max() <= 1
    # all frames, each in one part
    with np.load(os.path.join(frey_folder, "frey_face", "frey_face.npz")) as archive:
        expected = {frame.tobytes() for frame in archive["images"]}
    assert {(frame * 255).round().to(torch.uint8).numpy().tobytes() for frame in x} == expected


def test_frey_face_folds(frey_folder):
    same, again, other = (data.frey_face(test=400, seed=seed).test for seed in (0, 0, 1))
    assert same.x.shape == (400, 560)
    assert torch.equal(same.x, again.x) and not torch.equal(same.x, other.x)


@pytest.mark.parametrize("test", [0, 1965])
def test_frey_face_test_out_of_range(test, tmp_path):
    with pytest.raises(ValueError, match=f"test must be between 1 and 1,964, got {test}"):
        data.frey_face(test=test, folder=tmp_path)


def test_frey_face_reads_the_original_file_too(tmp_path, monkeypatch):
    """The source has a .mat file, with one frame a column."""
    frames = np.random.default_rng(0).integers(0, 256, (1965, 28, 20), dtype=np.uint8)
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"ff": frames.reshape(1965, 560).T})
    (tmp_path / "frey_face").mkdir()
    (tmp_path / "frey_face" / "frey_face.npz").write_bytes(buffer.getvalue())
    checksum = hashlib.sha256(frames.tobytes()).hexdigest()
    monkeypatch.setattr("tarspyro.data.images.FREY_FACE_SHA256", checksum)
    x = data.frey_face(test=1, folder=tmp_path, flatten=False).train.x
    assert {(frame * 255).round().to(torch.uint8).numpy().tobytes() for frame in x} < {
        f.tobytes() for f in frames
    }


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip at all", gzip.compress(b"x" * 1000)[:-6], gzip.compress(b"x" * 1000)[:30]],
    ids=["empty", "text", "no trailer", "truncated"],
)
def test_a_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "mnist" / TRAIN_IMAGES
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        data.mnist(folder=tmp_path)
    text = one_sentence(error)
    assert str(path) in text and "delete it" in text
    # it is the user's file: neither deleted nor replaced
    assert path.read_bytes() == content


def test_wrong_content_is_refused(tmp_path):
    path = tmp_path / "mnist" / TRAIN_IMAGES
    path.parent.mkdir()
    path.write_bytes(gzip.compress(idx(np.zeros((60_000, 2, 2)))))
    with pytest.raises(DataError) as error:
        data.mnist(folder=tmp_path)
    assert str(path) in one_sentence(error) and "SHA-256" in str(error.value)


def test_a_flipped_bit_is_noticed(frey_folder, tmp_path):
    with np.load(os.path.join(frey_folder, "frey_face", "frey_face.npz")) as archive:
        images = archive["images"].copy()
    images[1000, 5, 5] ^= 1
    (tmp_path / "frey_face").mkdir()
    np.savez(tmp_path / "frey_face" / "frey_face.npz", images=images)
    with pytest.raises(DataError, match="SHA-256"):
        data.frey_face(folder=tmp_path)


def test_an_archive_with_a_pickle_is_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "frey_face").mkdir()
    np.savez(tmp_path / "frey_face" / "frey_face.npz", images=np.array([Trap()], dtype=object))
    with pytest.raises(DataError):
        data.frey_face(folder=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "mnist" / TRAIN_IMAGES).mkdir(parents=True)
    with pytest.raises(DataError, match=TRAIN_IMAGES):
        data.mnist(folder=tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        b"\0\0\x08\x02\0\0\0\x02",  # half a header
        b"\0\0\x08\x01\0\0\0\x05abc",  # too few values
        b"\0\0\x08\x01\0\0\0\x02abc",  # too many
        b"\0\0\x0d\x01\0\0\0\x01abcd",  # floats
    ],
    ids=["empty", "short", "header", "few", "many", "floats"],
)
def test_malformed_idx(content):
    with pytest.raises(DataError, match="some-file.gz is not in the IDX format"):
        read_idx(content, "some-file.gz")


def test_idx_reads_any_shape():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(read_idx(idx(array), "name"), array)
