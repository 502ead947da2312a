"""Data sets: what they hold, and what is said when a file is missing, damaged or cannot be
downloaded.
"""

import functools
import gzip
import hashlib
import http.client
import io
import os
import urllib.error
import urllib.request

import numpy as np
import pytest
import scipy.io
import torch
from sklearn.datasets import load_digits

from tarspyro import data
from tarspyro.data import DataError, Dataset, Split

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
# Of the unpacked files: the sums that the sources of MNIST publish.
MD5 = {
    TRAIN_IMAGES: "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.fixture(autouse=True)
def requested(monkeypatch):
    """No test reaches the network; the list tells what would have been asked of it."""
    urls = []

    def refuse(url, **options):
        urls.append(url)
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return urls


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


def respond(monkeypatch, content):
    """Every download gives this content, in the form of an HTTP response."""

    class Response(io.BytesIO):
        headers = {"Content-Length": str(len(content))}

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **options: Response(content))


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


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


# --- Split and Dataset


def test_a_split_is_sliced_with_its_labels():
    split = Split(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    part = split[4:]
    assert len(split) == 6 and len(part) == 2
    assert part.x.tolist() == [[8.0, 9.0], [10.0, 11.0]] and part.y.tolist() == [4, 5]
    assert Split(split.x)[:3].y is None


def test_reshape_keeps_pixels_and_labels():
    digits = data.digits()
    split = digits.test.reshape(1, 8, 8)
    assert split.x.shape == (360, 1, 8, 8) and torch.equal(split.y, digits.test.y)
    assert torch.equal(split.reshape(64).x, digits.test.x)


def test_reshape_takes_every_part():
    parts = [Split(torch.rand(n, 4)) for n in (5, 3, 2)]
    dataset = Dataset("tiny", parts[0], parts[1], (1, 2, 2), parts[2]).reshape(1, 2, 2)
    assert [part.x.shape for part in (dataset.train, dataset.test, dataset.validation)] == [
        (5, 1, 2, 2),
        (3, 1, 2, 2),
        (2, 1, 2, 2),
    ]
    assert dataset.name == "tiny" and dataset.image_shape == (1, 2, 2)
    assert data.digits().reshape(8, 8).validation is None


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
    monkeypatch.setattr(data, "_FREY_FACE", hashlib.sha256(frames.tobytes()).hexdigest())
    respond(monkeypatch, buffer.getvalue())
    x = data.frey_face(test=1, folder=tmp_path, flatten=False).train.x
    assert {(frame * 255).round().to(torch.uint8).numpy().tobytes() for frame in x} < {
        f.tobytes() for f in frames
    }


# --- regression


@pytest.fixture
def uci_folder():
    folder = os.environ.get("TARSPYRO_DATA", "")
    if not os.path.isdir(os.path.join(folder, "uci")):
        pytest.skip("TARSPYRO_DATA does not name a folder with uci/")
    return folder


@pytest.mark.parametrize(
    "name, rows, features, held_out", [("concrete", 1030, 8, 103), ("yacht", 308, 6, 31)]
)
def test_uci_has_random_splits_of_all_rows(uci_folder, name, rows, features, held_out):
    table = np.loadtxt(os.path.join(uci_folder, "uci", f"{name}.txt"))
    for split in (0, 1):
        dataset = data.uci(name, split=split)
        assert dataset.name == name
        assert dataset.train.x.shape == (
            rows - held_out,
            features,
        ) and dataset.train.y.shape == (rows - held_out,)
        assert dataset.test.x.shape == (held_out, features) and dataset.test.y.shape == (
            held_out,
        )
        y = (
            dataset.y_mean
            + dataset.y_scale * torch.cat([dataset.train.y, dataset.test.y]).double()
        )
        np.testing.assert_allclose(np.sort(y.numpy()), np.sort(table[:, -1]), atol=1e-4)
    assert not torch.equal(data.uci(name).test.y, dataset.test.y)
    assert torch.equal(data.uci(name, split=1).test.x, dataset.test.x)


def test_uci_is_standardized_by_its_training_part_alone(uci_folder):
    dataset = data.uci("yacht")
    for part, exact in ((dataset.train, True), (dataset.test, False)):
        values = torch.cat([part.x, part.y.unsqueeze(1)], 1).double()
        for found, truth in ((values.mean(0), 0.0), (values.std(0, correction=0), 1.0)):
            assert torch.allclose(found, torch.full_like(found, truth), atol=1e-5) == exact
    raw = dataset.y_mean + dataset.y_scale * dataset.train.y.double()
    assert dataset.y_mean == pytest.approx(
        raw.mean().item()
    ) and dataset.y_scale == pytest.approx(raw.std(correction=0).item())


def test_uci_says_what_is_wrong(tmp_path, requested):
    with pytest.raises(ValueError, match="name must be one of concrete, yacht, got 'boston'"):
        data.uci("boston")
    with pytest.raises(ValueError, match="split must not be negative, got -1"):
        data.uci("yacht", split=-1)
    with pytest.raises(DataError) as error:
        data.uci("yacht", folder=tmp_path)
    text = one_sentence(error)
    assert str(tmp_path / "uci" / "yacht.txt") in text and "TARSPYRO_DATA" in text
    (tmp_path / "uci").mkdir()
    (tmp_path / "uci" / "yacht.txt").write_text("1 2 3\n")
    with pytest.raises(
        DataError, match="does not hold the expected data.*: put the right file there"
    ):
        data.uci("yacht", folder=tmp_path)
    assert requested == []


# --- where files are, and what is wrong with them


@pytest.mark.parametrize("load", [data.mnist, data.frey_face])
def test_a_missing_file_without_a_network_is_one_sentence(
    load, tmp_path, monkeypatch, requested
):
    monkeypatch.setenv("TARSPYRO_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        load()
    text = one_sentence(error)
    assert (
        str(tmp_path / load.__name__) in text
        and "TARSPYRO_DATA" in text
        and "no network in tests" in text
    )
    assert len(requested) == 1 and requested[0].startswith("https://")
    assert list(tmp_path.iterdir()) == []


def test_the_argument_comes_before_the_variable_and_the_variable_before_the_cache(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TARSPYRO_DATA", str(tmp_path / "variable"))
    with pytest.raises(DataError, match="argument"):
        data.mnist(folder=tmp_path / "argument")
    with pytest.raises(DataError, match="variable"):
        data.mnist()
    monkeypatch.delenv("TARSPYRO_DATA")
    with pytest.raises(DataError) as error:
        data.mnist()
    assert str(tmp_path / "home" / ".cache" / "tarspyro" / "mnist" / TRAIN_IMAGES) in str(
        error.value
    )
    with pytest.raises(DataError) as error:
        data.mnist(folder="~/data")
    assert str(tmp_path / "home" / "data") in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip at all", gzip.compress(b"x" * 1000)[:-6], gzip.compress(b"x" * 1000)[:30]],
    ids=["empty", "text", "no trailer", "truncated"],
)
def test_a_damaged_file_is_named(content, tmp_path, requested):
    path = tmp_path / "mnist" / TRAIN_IMAGES
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        data.mnist(folder=tmp_path)
    text = one_sentence(error)
    assert str(path) in text and "delete it" in text
    # it is the user's file: neither deleted nor replaced
    assert path.read_bytes() == content and requested == []


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
        data._idx(content, "some-file.gz")


def test_idx_reads_any_shape():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(data._idx(idx(array), "name"), array)


# --- downloads


def small_mnist(monkeypatch):
    """Puts four tiny files in the place of MNIST's, in memory; returns them by address."""
    rng = np.random.default_rng(0)
    arrays = {
        TRAIN_IMAGES: rng.integers(0, 256, (60, 28, 28)),
        "train-labels-idx1-ubyte.gz": rng.integers(0, 10, 60),
        "t10k-images-idx3-ubyte.gz": rng.integers(0, 256, (10, 28, 28)),
        "t10k-labels-idx1-ubyte.gz": rng.integers(0, 10, 10),
    }
    contents = {name: idx(array) for name, array in arrays.items()}
    monkeypatch.setattr(
        data, "_MNIST", {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()}
    )
    return arrays, {
        data._MNIST_URL + name: gzip.compress(content) for name, content in contents.items()
    }


class Response(io.BytesIO):
    headers: dict[str, str] = {}  # a server need not tell the length


def test_a_download_is_kept(tmp_path, monkeypatch):
    arrays, served = small_mnist(monkeypatch)
    folder = tmp_path / "new" / "folder"
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, **options: Response(served[url])
    )
    dataset = data.mnist(validation=20, folder=folder)
    assert (
        len(dataset.train) == 40 and len(dataset.validation) == 20 and len(dataset.test) == 10
    )
    assert dataset.train.y.tolist() == arrays["train-labels-idx1-ubyte.gz"][:40].tolist()
    torch.testing.assert_close(
        dataset.test.x,
        torch.tensor(arrays["t10k-images-idx3-ubyte.gz"] / 255).flatten(1).float(),
    )
    # just the four files, as they came
    assert {path.name: path.read_bytes() for path in (folder / "mnist").iterdir()} == {
        url.rpartition("/")[2]: content for url, content in served.items()
    }
    served.clear()  # what is on the disk is not asked for again
    again = data.mnist(validation=20, folder=folder)
    assert torch.equal(again.train.x, dataset.train.x)


def test_a_download_is_moved_into_place_when_it_is_whole(tmp_path, monkeypatch):
    """A crash while writing must not leave half a file under the name of the whole one."""
    _, served = small_mnist(monkeypatch)
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, **options: Response(served[url])
    )

    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device") as error:
        data.mnist(folder=tmp_path)
    assert str(tmp_path / "mnist" / TRAIN_IMAGES) in one_sentence(error)
    assert list((tmp_path / "mnist").iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        gzip.compress(b"another file"),
        gzip.compress(b"x" * 1000)[:-9],
    ],
    ids=["page", "another", "truncated"],
)
def test_a_bad_download_writes_nothing(content, tmp_path, monkeypatch):
    respond(monkeypatch, content)
    with pytest.raises(DataError) as error:
        data.mnist(folder=tmp_path)
    text = one_sentence(error)
    assert (
        data._MNIST_URL + TRAIN_IMAGES in text
        and str(tmp_path / "mnist" / TRAIN_IMAGES) in text
    )
    assert "delete" not in text  # there is nothing to delete
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "reason",
    [
        TimeoutError("timed out"),
        http.client.IncompleteRead(b"half"),
        urllib.error.HTTPError("u", 404, "no", {}, None),
    ],
    ids=["timeout", "cut off", "404"],
)
def test_a_connection_that_breaks_is_one_sentence(reason, tmp_path, monkeypatch):
    class Broken(Response):
        def read(self, size=-1):
            raise reason

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **options: Broken())
    with pytest.raises(DataError, match="cannot be reached") as error:
        data.mnist(folder=tmp_path)
    assert str(tmp_path) in one_sentence(error)
    assert list(tmp_path.iterdir()) == []
