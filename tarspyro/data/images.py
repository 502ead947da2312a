"""Data sets of images: the digits of scikit-learn, MNIST, Frey Face."""

__all__ = ["digits", "frey_face", "mnist", "read_idx"]

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.data.containers import Dataset, Split
from tarspyro.data.files import MAX_BYTES, DataError, data_folder, fetch
from tarspyro.data.matlab import read_matlab

# Checksums are SHA-256 of the decoded bytes, so that any compression of them is accepted.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte.gz": (
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}
FREY_FACE_URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
FREY_FACE_SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"


def digits(*, flatten: bool = True) -> Dataset:
    """Returns the 1,797 handwritten digits that scikit-learn bundles: 8x8 pixels, grey in 17
    levels.

    1,437 are for training and 360 for testing. The split is always the same, and both parts
    have digits of every writer.

    Arguments:
        flatten: Whether an image is a vector of 64 pixels; otherwise its shape is (1, 8, 8).

    Example:
        >>> digits().train.x.shape
        torch.Size([1437, 64])
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    images = _as_images(bunch.images[order] / 16, flatten)
    labels = torch.as_tensor(bunch.target[order])
    train = Split(images[:1437], labels[:1437])
    test = Split(images[1437:], labels[1437:])
    return Dataset("digits", train, test, (1, 8, 8))


def mnist(
    *, validation: int = 10_000, flatten: bool = True, folder: str | Path | None = None
) -> Dataset:
    """Returns MNIST: 60,000 training and 10,000 test images of 28x28 pixels, grey.

    Arguments:
        validation: The number of the last training images that form the validation part. The
            literature has 10,000, a split of 50,000 / 10,000 / 10,000; with 0 there is no
            validation part.
        flatten: Whether an image is a vector of 784 pixels; otherwise its shape is
            (1, 28, 28).
        folder: The data folder; if not given, the one that the variable ``TARSPYRO_DATA``
            names, else ``~/.cache/tarspyro``. Files that are not in its ``mnist/`` are
            downloaded there.

    Raises:
        DataError: If a file is missing and cannot be downloaded, or has the wrong content.
        ValueError: If ``validation`` is out of range.
    """
    validation = as_count("validation", validation, 0, most=59_999)
    place = data_folder(folder) / "mnist"
    images, labels, test_images, test_labels = (
        read_idx(fetch(place / name, MNIST_URL + name, sha256, gunzip), name)
        for name, sha256 in MNIST_FILES.items()
    )
    x = _as_images(images / np.float32(255), flatten)
    y = torch.as_tensor(labels.astype(np.int64))
    test = Split(
        _as_images(test_images / np.float32(255), flatten),
        torch.as_tensor(test_labels.astype(np.int64)),
    )
    count = len(x) - validation
    held_out = Split(x[count:], y[count:]) if validation else None
    return Dataset("mnist", Split(x[:count], y[:count]), test, (1, 28, 28), held_out)


def frey_face(
    *, test: int = 196, seed: int = 0, flatten: bool = True, folder: str | Path | None = None
) -> Dataset:
    """Returns Frey Face: 1,965 frames of 28x20 pixels from a video of one face, grey.

    Neighbouring frames are nearly equal, so the frames are shuffled before the split.
    Different seeds give different folds.

    Arguments:
        test: The number of test images; 196 is a tenth.
        seed: The seed of the shuffle.
        flatten: Whether an image is a vector of 560 pixels; otherwise its shape is
            (1, 28, 20).
        folder: The data folder, see ``mnist``; the file is ``frey_face/frey_face.npz``.

    Raises:
        DataError: If the file is missing and cannot be downloaded, or has the wrong content.
        ValueError: If ``test`` is out of range.
    """
    test = as_count("test", test, most=1964)
    seed = as_count("seed", seed, 0)
    path = data_folder(folder) / "frey_face" / "frey_face.npz"
    content = fetch(path, FREY_FACE_URL, FREY_FACE_SHA256, _decode_frey_face)
    frames = np.frombuffer(content, np.uint8).reshape(1965, 28, 20)
    frames = frames[np.random.default_rng(seed).permutation(len(frames))]
    x = _as_images(frames / np.float32(255), flatten)
    return Dataset("frey_face", Split(x[test:]), Split(x[:test]), (1, 28, 20))


def read_idx(content: bytes, name: str) -> np.ndarray:
    """Returns the array in a file of the IDX format: two zeros, 8 for unsigned bytes, the
    number of dimensions, the dimensions, the bytes.

    Raises:
        DataError: If the content is not in this format.
    """
    try:
        if content[:3] != b"\0\0\x08":
            raise ValueError("the header does not announce unsigned bytes")
        ndims = content[3]
        shape = np.frombuffer(content, ">u4", ndims, 4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * ndims).reshape(shape)
    except (IndexError, ValueError) as error:
        raise DataError(f"{name} is not in the IDX format ({error}).") from error


def _as_images(images: np.ndarray, flatten: bool) -> Tensor:
    tensor = torch.as_tensor(images, dtype=torch.get_default_dtype())
    return tensor.flatten(1) if flatten else tensor.unsqueeze(1)


def gunzip(encoded: bytes) -> bytes:
    with gzip.open(io.BytesIO(encoded)) as file:
        return file.read(MAX_BYTES)


def _decode_frey_face(encoded: bytes) -> bytes:
    """Returns the bytes of the frames in an ``.npz`` archive or in the source's MATLAB file."""
    if encoded[:2] == b"PK":
        # Reading a member never unpacks more than the size that the archive states for it.
        with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"it would have more than {MAX_BYTES >> 20} MB when unpacked")
        with np.load(io.BytesIO(encoded), allow_pickle=False) as arrays:
            images: np.ndarray = arrays["images"]
        return images.tobytes()
    (frames,) = read_matlab(encoded, ["ff"])["ff"]
    return np.ascontiguousarray(frames.T).tobytes()  # the source has a column for each frame
