"""Rows that are read when they are used."""

import threading
import time

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch

from tarspyro import Conditional, data, fit, guides, models
from tarspyro.arguments import as_numbers
from tarspyro.data import Sequences, Split
from tarspyro.data.dense import dense
from tarspyro.data.rows import ChosenRows, LazyRows, SparseRows, StoredRows, part_of
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

ARRAY = np.arange(24.0).reshape(6, 2, 2)


def stored(folder, dtype="float64"):
    np.save(folder / "x.npy", ARRAY.astype(dtype))
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f8", "int16", "uint16"])
def test_stored_rows_are_those_of_the_array(dtype, tmp_path):
    rows = part_of("x", stored(tmp_path, dtype))
    assert isinstance(rows, StoredRows) and rows.shape == ARRAY.shape and len(rows) == 6
    for index in (slice(1, 4), torch.tensor([4, 0, 4]), slice(None), torch.tensor([5])):
        at = index.numpy() if torch.is_tensor(index) else index
        torch.testing.assert_close(
            rows[index].double(), torch.tensor(ARRAY.astype(dtype)[at].astype(float))
        )
        assert rows[index].dtype == rows.dtype


def test_views_of_a_memory_map_are_not_copied_and_copies_are_in_memory(tmp_path):
    x = stored(tmp_path)
    for view in (x[::2], x[::-1], x[:, 0], np.asarray(x), x.reshape(6, 4)):
        rows = part_of("x", view)
        assert isinstance(rows, StoredRows)
        index = torch.tensor([1, 0])
        torch.testing.assert_close(rows[index], torch.tensor(np.array(view[[1, 0]])))
    assert torch.is_tensor(part_of("x", x + 1))
    # Rows are copies: to write to them does not write to the file, or end the process.
    part_of("x", x)[:2].zero_()
    assert (x == ARRAY).all()


FLAT = torch.tensor(ARRAY.reshape(6, 4)) * (torch.arange(24).reshape(6, 4) % 3 == 0)


@pytest.mark.parametrize(
    "matrix",
    [
        scipy.sparse.csr_matrix(FLAT.numpy()),
        scipy.sparse.csc_array(FLAT.numpy()),
        scipy.sparse.lil_matrix(FLAT.numpy()),
        scipy.sparse.dok_matrix(FLAT.numpy()),
        scipy.sparse.coo_matrix(
            ([1.0, 2.0], ([0, 0], [1, 1])), shape=(6, 4)
        ),  # two entries at one place add up
        FLAT.to_sparse(),
        FLAT.reshape(6, 2, 2).to_sparse(),
        FLAT.reshape(6, 2, 2).to_sparse(2),
    ],
)
def test_sparse_rows_are_those_of_the_dense_matrix(matrix):
    whole = matrix.to_dense() if torch.is_tensor(matrix) else torch.tensor(matrix.toarray())
    rows = part_of("x", matrix)
    assert isinstance(rows, SparseRows) and rows.shape == whole.shape
    for index in (slice(1, 4), torch.tensor([5, 0, 0]), slice(None), slice(2, 2)):
        torch.testing.assert_close(rows[index], whole[index])
    torch.testing.assert_close(rows.to(torch.device("cpu"))[:2], whole[:2])


def test_splits_keep_rows_in_their_files(tmp_path):
    split = Split(stored(tmp_path), [0, 1, 2, 0, 1, 2])
    assert isinstance(split.x, LazyRows) and split.y.dtype is torch.int64
    torch.testing.assert_close(split[1:3].x, torch.tensor(ARRAY[1:3]))
    torch.testing.assert_close(split.reshape(4).x[:2], torch.tensor(ARRAY[:2].reshape(2, 4)))
    assert split.one_hot().y.shape == (6, 3)
    torch.testing.assert_close(dense("x", split), torch.tensor(ARRAY))


def test_arrays_become_tensors_in_containers():
    split = Split(ARRAY, np.array([0, 1] * 3))
    assert torch.is_tensor(split.x) and split.one_hot().y.shape == (6, 2)
    sequences = Sequences(ARRAY, np.array([1, 2, 2, 1, 1, 2]))
    assert torch.is_tensor(sequences.x) and sequences[:1].x.shape == (1, 1, 2)
    with pytest.raises(TypeError, match="x must be numbers"):
        Split(np.array(["a"]))


def test_tokens_are_padded_as_whole_numbers():
    tokens = Sequences.padded([[3, 1, 2], [4]])
    assert tokens.x.dtype is torch.int64 and tokens.x.tolist() == [[3, 1, 2], [4, 0, 0]]
    assert Sequences.padded([np.ones((2, 1), int)]).x.dtype is torch.float32


@pytest.mark.parametrize(
    "array",
    [
        ARRAY.astype(">f4"),
        ARRAY.astype(np.longdouble),
        ARRAY.astype(object),
        np.ascontiguousarray(ARRAY[::-1])[::-1],
        np.asfortranarray(ARRAY),
        ARRAY.astype("uint16"),
        ARRAY.tolist(),
        list(ARRAY),
        list(torch.tensor(ARRAY)),
        memoryview(ARRAY),
    ],
)
def test_arrays_of_any_layout_are_numbers(array):
    torch.testing.assert_close(as_numbers("x", array).double(), torch.tensor(ARRAY))


def test_a_read_only_array_is_copied():
    array = ARRAY.copy()
    array.setflags(write=False)
    as_numbers("x", array).zero_()
    assert array[0, 0, 1] == 1


def test_a_stored_array_passes_a_function(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 2, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    index = torch.tensor([7, 0, 7])
    expected = torch.tensor(pixels) / 255
    for array in (mapped, tmp_path / "x.npy", str(tmp_path / "x.npy")):
        rows = data.stored(array, lambda x: x / 255)
        assert rows.shape == (20, 2, 3) and rows.dtype is torch.float32
        torch.testing.assert_close(rows[index], expected[index])
        torch.testing.assert_close(rows[5:9], expected[5:9])
        flat = rows.reshape(20, 6)
        torch.testing.assert_close(flat[index], expected[index].reshape(3, 6))
    assert data.stored(mapped).dtype is torch.uint8


@pytest.mark.parametrize(
    ("array", "function", "message"),
    [
        (ARRAY, None, "array must lie in a file, got .*: give the path"),
        (None, None, "array must lie in a file"),
        ("x.npy", 3, "function must be a function of a batch of rows, .* got 3"),
        ("x.npy", lambda x: x.sum(), "function must return a tensor with a row for each row"),
        ("x.npy", lambda x: 1.0, "function must return a tensor with a row for each row"),
    ],
)
def test_what_is_not_stored_is_refused(array, function, message, tmp_path):
    stored(tmp_path)
    array = tmp_path / array if isinstance(array, str) else array
    with pytest.raises((TypeError, ValueError), match=message):
        data.stored(array, function)


@pytest.mark.parametrize(
    "index",
    [3, -1, np.int64(2), [4, 0, 4], np.array([1, 5]), range(2), [], slice(None, None, 2)]
    + [torch.arange(6) % 2 == 0, np.arange(6) > 3, torch.tensor([-1, 0])],
    ids=str,
)
def test_rows_are_chosen_as_those_of_a_tensor(index, tmp_path):
    at = list(index) if isinstance(index, range) else index
    for rows in (
        part_of("x", stored(tmp_path)),
        data.stored(stored(tmp_path), lambda x: 2 * x),
        SparseRows.of_tensor(torch.tensor(ARRAY).to_sparse()),
    ):
        torch.testing.assert_close(rows[index], rows[:][at])
    torch.testing.assert_close(rows[::-2], rows[:].flip(0)[::2])
    with pytest.raises(
        IndexError, match=r"mask of rows must have the shape \(6,\), got \(2,\)"
    ):
        rows[torch.tensor([True, False])]
    with pytest.raises(IndexError, match="rows are chosen by whole numbers"):
        rows[[0.5]]


@pytest.mark.parametrize("name", ["x.csv", "x.npz"])
def test_the_path_of_another_file_is_refused(name, tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    np.savez(tmp_path / "x.npz", x=ARRAY)
    with pytest.raises(ValueError, match=f"path of a .npy file, got '.*{name}'.*data.load"):
        data.stored(tmp_path / name)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 0.002])  # read directly, and in threads
def test_a_training_on_a_file_is_the_one_on_its_numbers(shuffle, seconds, tmp_path):
    threads = set()

    class Slow(StoredRows):
        def read(self, rows):
            threads.add(threading.current_thread())
            time.sleep(seconds)
            return super().read(rows)

    pixels = np.random.default_rng(0).integers(0, 256, (205, 6), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    found = []
    file = ChosenRows(
        Slow(np.load(tmp_path / "x.npy", mmap_mode="r")), None, lambda x: x / 255
    )
    for x in (file, torch.tensor(pixels) / 255):
        torch.manual_seed(0)
        p = models.VAE(
            default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 6)
        )
        q = guides.VAE(Conditional(dist.Normal, MLP(6, [4]), 2))
        history = fit(
            p,
            q,
            x,
            epochs=3,
            batch_size=10,
            shuffle=shuffle,
            binarize=True,
            seed=0,
            progress=False,
        )
        found.append(history["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert not seconds or len(threads) > 1


@pytest.mark.parametrize("seconds", [0.0, 0.002])  # read directly, and in threads
def test_an_error_while_a_file_is_read_ends_the_training(seconds, tmp_path):
    class Broken(StoredRows):
        def read(self, rows):
            time.sleep(seconds)
            if torch.is_tensor(rows) and 150 in rows:
                raise OSError("the disk is gone")
            return super().read(rows)

    np.save(tmp_path / "x.npy", np.zeros((200, 6), np.float32))
    x = Broken(np.load(tmp_path / "x.npy", mmap_mode="r"))
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 6))
    q = guides.VAE(Conditional(dist.Normal, MLP(6, [4]), 2))
    with pytest.raises(OSError, match="the disk is gone"):
        fit(p, q, x, epochs=20, batch_size=10, progress=False)
