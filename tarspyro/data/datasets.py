"""Image, frame and regression data sets, and quadrants of images."""

__all__ = [
    "Dataset",
    "Regression",
    "Split",
    "digits",
    "frey_face",
    "join_quadrants",
    "mnist",
    "quadrants",
    "uci",
]

import gzip
import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, as_shape, format_value
from tarspyro.data.files import MOST, DataError, data_folder, fetch
from tarspyro.data.matlab import read_matlab

# Where a download comes from, and the SHA-256 of the decoded bytes, so that any compression of
# them is accepted.
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST = {
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
_FREY_FACE_URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
_FREY_FACE = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"
# Of no stable address: the UCI repository's tables as text, one row a data point, the target
# last.
_UCI = {
    "concrete": "43d290fd2c2a399ad7e62c45cab5337ba94ece69ebdcf5875aa668cb886243de",
    "yacht": "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
}


@dataclass(frozen=True)
class Split:
    """One part of a data set: images x of shape ``(N, *event)`` with values in [0, 1], and
    labels y, if any.

    Of a ``Regression``, inputs x of shape (N, D) and targets y of shape (N,), standardized.
    """

    x: Tensor
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> "Split":
        return Split(self.x[index], None if self.y is None else self.y[index])

    def reshape(self, *event_shape: int) -> "Split":
        """Returns the same images in another shape, such as ``split.reshape(1, 28, 28)``.

        Raises:
            ValueError: If there are more or fewer numbers in it.
        """
        if self.x.shape[1:].numel() != as_shape("event_shape", event_shape).numel():
            raise ValueError(
                f"event_shape must be another of {tuple(self.x.shape[1:])}, got {event_shape}."
            )
        return Split(self.x.reshape(len(self.x), *event_shape), self.y)

    def one_hot(self, num_classes: int | None = None) -> "Split":
        """Returns the same data with labels as vectors, of shape (N, ``num_classes``): one for
        the class, else zeros.

        Arguments:
            num_classes: How many classes there are; as many as the largest label asks for if
                not given.

        Raises:
            ValueError: If there are no integer labels, or one that is not from 0 to
                ``num_classes`` - 1.

        Example:
            >>> digits().test.one_hot().y.shape
            torch.Size([360, 10])
        """
        if (
            self.y is None
            or self.y.is_floating_point()
            or self.y.dim() != 1
            or not len(self.y)
        ):
            found = (
                "none" if self.y is None else f"{self.y.dtype} of shape {tuple(self.y.shape)}"
            )
            raise ValueError(f"one_hot needs integer labels y of shape (N,), got {found}.")
        largest = int(self.y.max())
        num_classes = (
            largest + 1 if num_classes is None else as_count("num_classes", num_classes)
        )
        if int(self.y.min()) < 0 or largest >= num_classes:
            raise ValueError(
                f"num_classes is {num_classes}, for labels from 0 to {num_classes - 1}, "
                f"but they are from {int(self.y.min())} to {largest}."
            )
        return Split(self.x, torch.eye(num_classes)[self.y])


@dataclass(frozen=True)
class Dataset:
    """A data set in its parts."""

    name: str
    train: Split
    test: Split
    image_shape: tuple[int, int, int]
    validation: Split | None = None

    def reshape(self, *event_shape: int) -> "Dataset":
        """Returns the same data set with images of another shape, such as
        ``data.reshape(*data.image_shape)``.
        """
        validation = None if self.validation is None else self.validation.reshape(*event_shape)
        train, test = self.train.reshape(*event_shape), self.test.reshape(*event_shape)
        return Dataset(self.name, train, test, self.image_shape, validation)

    def one_hot(self) -> "Dataset":
        """Returns the same data set with labels as one-hot vectors: the condition that
        networks take.
        """
        classes = self.train.one_hot().y
        num_classes = 0 if classes is None else classes.shape[1]
        validation = None if self.validation is None else self.validation.one_hot(num_classes)
        return Dataset(
            self.name,
            self.train.one_hot(),
            self.test.one_hot(num_classes),
            self.image_shape,
            validation,
        )


@dataclass(frozen=True)
class Regression:
    """A regression data set in its parts, standardized by the mean and the standard deviation
    of the training part.

    In the target's own units a value is ``y_mean + y_scale * y``, an error ``y_scale`` times
    as large, and a log-likelihood ``log(y_scale)`` nats lower.
    """

    name: str
    train: Split
    test: Split
    y_mean: float
    y_scale: float


def digits(*, flatten: bool = True) -> Dataset:
    """Returns the 1,797 handwritten digits that scikit-learn bundles: 8x8 pixels, grey in 17
    levels.

    1,437 for training and 360 for testing, the same for everybody, with every writer in both.

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
    return Dataset(
        "digits",
        Split(images[:1437], labels[:1437]),
        Split(images[1437:], labels[1437:]),
        (1, 8, 8),
    )


def mnist(
    *, validation: int = 10_000, flatten: bool = True, folder: str | Path | None = None
) -> Dataset:
    """Returns MNIST: 60,000 training and 10,000 test images of 28x28 pixels, grey.

    Arguments:
        validation: How many of the last training images form the validation part (10,000 is
            the split of the literature, 50,000 / 10,000 / 10,000; with 0 there is none).
        flatten: Whether an image is a vector of 784 pixels; otherwise its shape is (1, 28,
            28).
        folder: Where the data folder is: this, else the variable ``TARSPYRO_DATA``, else a
            folder in the user's cache. What is not in its ``mnist/`` is downloaded there.

    Raises:
        DataError: If a file is missing and cannot be downloaded, or has the wrong content.
        ValueError: If ``validation`` is out of range.
    """
    if as_count("validation", validation, -60_000) not in range(60_000):
        raise ValueError(f"validation must be between 0 and 59,999, got {validation}.")
    place = data_folder(folder) / "mnist"
    arrays = [
        _idx(fetch(place / name, _MNIST_URL + name, sha256, _gunzip), name)
        for name, sha256 in _MNIST.items()
    ]
    images, labels = (
        _as_images(arrays[0] / np.float32(255), flatten),
        torch.as_tensor(arrays[1].astype(np.int64)),
    )
    test = Split(
        _as_images(arrays[2] / np.float32(255), flatten),
        torch.as_tensor(arrays[3].astype(np.int64)),
    )
    count = len(images) - validation
    held_out = Split(images[count:], labels[count:]) if validation else None
    return Dataset("mnist", Split(images[:count], labels[:count]), test, (1, 28, 28), held_out)


def frey_face(
    *, test: int = 196, seed: int = 0, flatten: bool = True, folder: str | Path | None = None
) -> Dataset:
    """Returns Frey Face: 1,965 frames of 28x20 pixels of one face on video, grey.

    Neighbouring frames are nearly equal, so they are shuffled before the split; different
    seeds give the folds.

    Arguments:
        test: How many images are held out (196 is a tenth).
        seed: The seed of the shuffle.
        flatten: Whether an image is a vector of 560 pixels; otherwise its shape is (1, 28,
            20).
        folder: See ``mnist``; the file is ``frey_face/frey_face.npz``.

    Raises:
        DataError: If the file is missing and cannot be downloaded, or has the wrong content.
        ValueError: If ``test`` is out of range.
    """
    if as_count("test", test, -1965) not in range(1, 1965):
        raise ValueError(f"test must be between 1 and 1,964, got {test}.")
    seed = as_count("seed", seed, 0)
    raw = fetch(
        data_folder(folder) / "frey_face" / "frey_face.npz",
        _FREY_FACE_URL,
        _FREY_FACE,
        _frey_bytes,
    )
    frames = np.frombuffer(raw, np.uint8).reshape(1965, 28, 20)
    frames = frames[np.random.default_rng(seed).permutation(len(frames))]
    images = _as_images(frames / np.float32(255), flatten)
    return Dataset("frey_face", Split(images[test:]), Split(images[:test]), (1, 28, 20))


def uci(name: str, *, split: int = 0, folder: str | Path | None = None) -> Regression:
    """Returns a regression data set of the UCI repository: nine tenths of the rows for
    training, the rest for testing.

    ``"concrete"``: 1,030 mixtures of 8 numbers, and their strength in MPa (Yeh 1998).
        ``"yacht"``: 308 hulls of 6
    numbers, and their resistance.

    Arguments:
        name: Which one.
        split: The seed of the random split.
        folder: See ``mnist``; the file is ``uci/NAME.txt``, which has to be put there.

    Raises:
        DataError: If the file is missing or has the wrong content.
        ValueError: If there is no such data set, or ``split`` is negative.
    """
    if not isinstance(name, str) or name not in _UCI:
        raise ValueError(f"name must be one of {', '.join(_UCI)}, got {format_value(name)}.")
    split = as_count("split", split, 0)
    content = fetch(data_folder(folder) / "uci" / f"{name}.txt", None, _UCI[name], bytes)
    table = np.loadtxt(io.BytesIO(content))
    table = table[np.random.default_rng(split).permutation(len(table))]
    train = table[: round(0.9 * len(table))]
    mean, scale = train.mean(0), train.std(0)
    values = torch.as_tensor((table - mean) / scale, dtype=torch.get_default_dtype())
    first, rest = (
        Split(part[:, :-1], part[:, -1])
        for part in (values[: len(train)], values[len(train) :])
    )
    return Regression(name, first, rest, float(mean[-1]), float(scale[-1]))


def quadrants(x: Tensor, given: int) -> tuple[Tensor, Tensor]:
    """Returns the missing and the given pixels of square images: data for a
    ``ConditionalVAE``, in its order.

    The task of Sohn et al. (2015): given one, two or three quadrants, the rest is to be
    predicted. The lower left quadrant is given first, then the upper left, then the upper
    right one; the lower right one is never given. Pixels stand quadrant by quadrant in this
    order, row by row within each.

    Arguments:
        x: Grey images of a shape such as (N, 784) or (N, 1, 28, 28).
        given: How many quadrants are given: 1, 2 or 3.

    Returns:
        For images of P pixels: missing pixels (N, (4 - given) P / 4), given ones (N, given P /
        4).

    Raises:
        ValueError: If ``given`` is none of these, or the images are not square with an even
            side.

    Example:
        >>> missing, given = quadrants(digits().test.x, 1)
        >>> missing.shape, given.shape
        (torch.Size([360, 48]), torch.Size([360, 16]))
        >>> bool((join_quadrants(missing, given) == digits().test.x).all())
        True
    """
    if as_count("given", given, 0) not in (1, 2, 3):
        raise ValueError(f"given must be 1, 2 or 3 quadrants, got {format_value(given)}.")
    x = as_numbers("x", x)
    if x.dim() < 2:
        raise ValueError(
            f"x must be images of a shape such as (N, 784), got {tuple(x.shape)}."
        )
    flat = x.flatten(1)
    pixels = flat[:, _quadrant_order(flat.shape[1])]
    split = given * flat.shape[1] // 4
    return pixels[:, split:], pixels[:, :split]


def join_quadrants(missing: Tensor, given: Tensor) -> Tensor:
    """Returns the flat images whose parts ``quadrants`` returned, of shape (N, P).

    Raises:
        ValueError: If the parts differ in their leading dimensions, or do not make square
            images with an even side.
    """
    missing, given = as_numbers("missing", missing), as_numbers("given", given)
    if not missing.dim() or not given.dim() or missing.shape[:-1] != given.shape[:-1]:
        raise ValueError(
            "missing and given must be parts of the same images, got shapes"
            f" {tuple(missing.shape)} and {tuple(given.shape)}."
        )
    pixels = torch.cat([given, missing], -1)
    return pixels[..., _quadrant_order(pixels.shape[-1]).argsort()]


def _quadrant_order(num_pixels: int) -> Tensor:
    """The pixels' indices, quadrant by quadrant: lower left, upper left, upper right, lower
    right.
    """
    half = math.isqrt(num_pixels) // 2
    if 4 * half * half != num_pixels:
        raise ValueError(
            f"quadrants needs square images with an even side, got images of {num_pixels}"
            " pixels."
        )
    blocks = (
        torch.arange(num_pixels)
        .reshape(2, half, 2, half)
        .transpose(1, 2)
        .reshape(4, half * half)
    )
    return blocks[[2, 0, 1, 3]].flatten()


def _as_images(images: np.ndarray, flatten: bool) -> Tensor:
    tensor = torch.as_tensor(images, dtype=torch.get_default_dtype())
    return tensor.flatten(1) if flatten else tensor.unsqueeze(1)


def _gunzip(encoded: bytes) -> bytes:
    with gzip.open(io.BytesIO(encoded)) as file:
        content = file.read(MOST)
    return content


def _idx(content: bytes, name: str) -> np.ndarray:
    # Two zeros, 8 for unsigned bytes, the number of dimensions; then the dimensions; then the
    # bytes.
    try:
        if content[:3] != b"\0\0\x08":
            raise ValueError("it is no array of bytes")
        ndims = content[3]
        shape = np.frombuffer(content, ">u4", ndims, 4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * ndims).reshape(shape)
    except (IndexError, ValueError) as error:
        raise DataError(f"{name} is not in the IDX format ({error}).") from error


def _frey_bytes(encoded: bytes) -> bytes:
    if encoded[:2] == b"PK":
        with zipfile.ZipFile(
            io.BytesIO(encoded)
        ) as parts:  # no more is unpacked than what it says here
            if sum(part.file_size for part in parts.infolist()) > MOST:
                raise ValueError(f"it would be more than {MOST >> 20} MB, unpacked")
        with np.load(io.BytesIO(encoded), allow_pickle=False) as archive:
            images: np.ndarray = archive["images"]
            return images.tobytes()
    return np.ascontiguousarray(read_matlab(encoded, ["ff"])["ff"][0].T).tobytes()
