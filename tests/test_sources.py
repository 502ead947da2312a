"""Every container at every door gives the values of the plain tensor."""

import importlib.util
import itertools
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from tarspyro import Conditional, Run, data, evaluate, fit, guides, models, plot
from tarspyro.data import Column, Sequences, Split, Table
from tarspyro.distributions import default_prior
from tarspyro.infer.traces import InputError, PairError
from tarspyro.nn import MLP
from tarspyro.sources import Source

from .programs import as_made

ROWS, SIZE = 30, 6
COUNTS = np.random.default_rng(0).poisson(2.0, (ROWS, SIZE))
LABELS = np.random.default_rng(1).integers(0, 3, ROWS)
X = torch.tensor(COUNTS, dtype=torch.float32)
PANDAS = importlib.util.find_spec("pandas") is not None


class Rows(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return X[index]


class Pairs(Rows):
    def __getitem__(self, index):
        return X[index], int(LABELS[index])


class Named(Rows):
    def __getitem__(self, index):
        return {"x": COUNTS[index], "path": f"{index}.png"}


class Images(Rows):
    """Rows in a form that torch's loaders do not know."""

    def __getitem__(self, index):
        return np.ma.masked_array(COUNTS[index]), "a word"


class Unsized(IterableDataset):
    def __iter__(self):
        return iter(X)


class Sized(Unsized):
    def __len__(self):
        return ROWS


class Listed:
    """Rows by index that are no data set of torch."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return COUNTS[index]


def read_only():
    array = COUNTS.astype("float32")
    array.setflags(write=False)
    return array


def compressed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the layout a beta version
        return X.to_sparse_csr()


def mapped(dtype, folder):
    path = folder / "x.dat"
    written = np.memmap(path, mode="w+", dtype=dtype, shape=(ROWS, SIZE))
    written[:] = COUNTS
    written.flush()
    return np.memmap(path, mode="r", dtype=dtype, shape=(ROWS, SIZE))


def saved(folder):
    np.save(folder / "x.npy", COUNTS.astype("float32"))
    return np.load(folder / "x.npy", mmap_mode="r")


def archive(folder):
    np.savez(folder / "x.npz", x=COUNTS)
    return np.load(folder / "x.npz")


TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float16", "float64"]
CONTAINERS = {
    **{kind: lambda _, kind=kind: COUNTS.astype(kind) for kind in [*TYPES, ">f8", ">i4"]},
    "tensor of whole numbers": lambda _: torch.tensor(COUNTS),
    "half precision": lambda _: X.half(),
    "flipped": lambda _: np.ascontiguousarray(COUNTS[::-1])[::-1],
    "Fortran order": lambda _: np.asfortranarray(COUNTS),
    "read only": lambda _: read_only(),
    "objects": lambda _: COUNTS.astype(object),
    "masked array": lambda _: np.ma.masked_array(COUNTS),
    "requires a gradient": lambda _: X.clone().requires_grad_(),
    "list of arrays": lambda _: list(COUNTS.astype("float32")),
    "tuple of arrays": lambda _: tuple(COUNTS),
    "list of tensors": lambda _: list(X),
    "list of lists": lambda _: COUNTS.tolist(),
    "list of pairs": lambda _: list(zip(X, LABELS.tolist(), strict=True)),
    "memory map of bytes": lambda folder: mapped("uint8", folder),
    "memory map of doubles": lambda folder: mapped(">f8", folder)[::-1][::-1],
    "mapped .npy": saved,
    ".npz": archive,
    "csr": lambda _: scipy.sparse.csr_matrix(COUNTS),
    "csc": lambda _: scipy.sparse.csc_array(COUNTS.astype("float64")),
    "sparse coo": lambda _: X.to_sparse(),
    "sparse csr": lambda _: compressed(),
    "data set": lambda _: Rows(),
    "data set of pairs": lambda _: Pairs(),
    "data set by name": lambda _: Named(),
    "data set of objects": lambda _: Images(),
    "TensorDataset": lambda _: TensorDataset(X, torch.tensor(LABELS)),
    "Subset": lambda _: Subset(Pairs(), range(ROWS)),
    "ConcatDataset": lambda _: ConcatDataset([Subset(Rows(), range(9)), Pairs9()]),
    "rows by index": lambda _: Listed(),
    "iterable": lambda _: Unsized(),
    "iterable with a length": lambda _: Sized(),
    "DataLoader": lambda _: DataLoader(Rows(), 8, generator=torch.Generator()),
    "DataLoader of pairs": lambda _: DataLoader(Pairs(), 8, generator=torch.Generator()),
    "DataLoader of names": lambda _: DataLoader(Named(), 8, generator=torch.Generator()),
    "DataLoader without a length": lambda _: DataLoader(
        Unsized(), 8, generator=torch.Generator()
    ),
    "Split": lambda _: Split(X, torch.tensor(LABELS)),
    "Split of arrays": lambda _: Split(COUNTS, LABELS),
    "Split of a memory map": lambda folder: Split(saved(folder), LABELS),
    "Table": lambda _: Table(X, tuple(Column(str(i), "count") for i in range(SIZE))),
    "mapping": lambda _: {"x": COUNTS},
    "tuple of one part": lambda _: (COUNTS,),
}
if PANDAS:
    import pandas

    CONTAINERS |= {
        "DataFrame": lambda _: pandas.DataFrame(COUNTS).astype({0: "float32", 1: "int8"}),
        "nullable DataFrame": lambda _: pandas.DataFrame(COUNTS).astype("Int64"),
        "list of Series": lambda _: [pandas.Series(row) for row in COUNTS],
    }


class Pairs9(Rows):
    def __len__(self):
        return ROWS - 9

    def __getitem__(self, index):
        return X[index + 9]


def pair(family=dist.Poisson, size=SIZE):
    torch.manual_seed(0)
    return (
        models.VAE(default_prior(dist.Normal, 2), Conditional(family, MLP(2, [8]), size)),
        guides.VAE(Conditional(dist.Normal, MLP(size, [8]), 2)),
    )


P, Q = pair()
FIT = {"batch_size": 8, "seed": 0, "progress": False, "shuffle": False}
DOORS = {
    "fit": lambda x: fit(*as_made(*pair()), x, epochs=1, **FIT)["elbo"],
    "embed": lambda x: evaluate.embed(Q, x),
    "log_likelihood": lambda x: evaluate.log_likelihood(P, Q, x, num_particles=3, seed=0),
    "mask": lambda x: data.random_pixels(x, seed=0),
}
WANTED = {}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_at_every_door(container, door, tmp_path):
    if door == "mask" and container in ("tuple of one part", "list of pairs", "rows by index"):
        pytest.skip("a mask is of the rows of one list")
    if door not in WANTED:
        WANTED[door] = np.asarray(DOORS[door](X))
    found = np.asarray(DOORS[door](CONTAINERS[container](tmp_path)))
    np.testing.assert_allclose(found, WANTED[door], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "container", ["csr", "data set of pairs", "memory map of bytes", "int8"]
)
def test_held_out_data_of_every_container(container, tmp_path):
    def trained(x):
        return fit(*pair(), X, epochs=1, validation=x, **FIT)["validation_elbo"]

    assert trained(CONTAINERS[container](tmp_path)) == pytest.approx(trained(X))


@pytest.mark.parametrize("container", ["csr", "data set of pairs", "DataLoader", "int32"])
def test_pictures_take_every_container(container, tmp_path):
    x = CONTAINERS[container](tmp_path)
    for figure in (
        plot.latents(Q, x),
        plot.reconstructions(P, Q, x, num=3, image_shape=(2, 3)),
    ):
        assert figure.axes


def test_arrays_give_arrays(tmp_path):
    for container in ("int16", "csr", "list of arrays", "memory map of bytes", "mapping"):
        assert isinstance(evaluate.embed(Q, CONTAINERS[container](tmp_path)), np.ndarray)
    for container in ("list of tensors", "data set", "sparse coo", "Split of arrays"):
        assert torch.is_tensor(evaluate.embed(Q, CONTAINERS[container](tmp_path)))


# --- what is not copied


def test_bytes_stay_bytes_until_they_are_used():
    source = Source(COUNTS.astype("uint8"), P, Q)
    assert source.in_memory[0].dtype is torch.uint8
    assert source.rows(slice(3))[0].dtype is torch.float32
    # They are not divided by 255: the likelihood sees the bytes as numbers.
    torch.testing.assert_close(source.rows(slice(3))[0], X[:3])


def test_arrays_larger_than_memory_are_read_by_batches(tmp_path):
    class Enough(Exception):
        pass

    def stop(step):
        if step == 3:
            raise Enough
        return 1e-3

    def model(x):
        rate = pyro.param("rate", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate.expand(size)).to_event(1), obs=x)

    size = 200_000
    stored = np.memmap(tmp_path / "x", mode="w+", dtype="uint8", shape=(100_000, size))
    stored[5] = 1
    stored = np.memmap(tmp_path / "x", mode="r", dtype="uint8", shape=stored.shape)
    assert stored.nbytes == 20e9
    before = peak_of_memory()
    with pytest.raises(Enough):
        fit(model, None, stored, batch_size=8, progress=False, schedules={"lr": stop})
    assert Source(stored, model).first(8)[0][5].sum() == size
    # Four batches of 8 rows are 26 MB of numbers.
    assert peak_of_memory() - before < 500


def peak_of_memory():
    """In MB."""
    try:
        with open("/proc/self/status") as file:
            return int(file.read().split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        pytest.skip("this system does not tell the peak of the memory")


def test_a_large_sparse_matrix_is_dense_by_batches():
    rows, columns = 1_000_000, 50_000
    rng = np.random.default_rng(0)
    places = rng.integers(0, rows, 10_000), rng.integers(0, columns, 10_000)
    matrix = scipy.sparse.csr_matrix((np.ones(10_000), places), (rows, columns))
    source = Source(matrix, lambda x: None)
    index = torch.tensor([int(places[0][0]), 0, 999_999])
    wanted = torch.tensor(matrix[index.numpy()].toarray())
    torch.testing.assert_close(source.rows(index)[0], wanted)


# --- whole numbers


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.network = nn.GRU(4, 8, batch_first=True)

    def forward(self, x):
        return self.network(self.embedding(x))[1][0]


def test_tokens_stay_whole_and_counts_do_not():
    tokens = torch.randint(12, (20, 5))
    likelihood = Conditional(
        dist.Categorical, MLP(2, [8]), 5, param_shapes={"logits": (5, 12)}
    )
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    q = guides.VAE(Conditional(dist.Normal, Tokens(), 2))
    assert Source(tokens, p, q).whole()[0].dtype is torch.int64
    assert fit(p, q, tokens.numpy().astype("int16"), epochs=1, progress=False)["elbo"]
    assert evaluate.embed(q, tokens.int()).shape == (20, 2)
    assert Source(COUNTS, P, Q).whole()[0].dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32])
def test_tokens_of_any_whole_type(dtype):
    tokens = torch.randint(2, (20, 5)).to(dtype)
    likelihood = Conditional(dist.Categorical, MLP(2, [8]), 5, param_shapes={"logits": (5, 2)})
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    q = guides.VAE(Conditional(dist.Normal, Tokens(), 2))
    assert Source(tokens, p, q).whole()[0].dtype is torch.int64
    assert fit(p, q, tokens, epochs=1, progress=False)["elbo"]
    assert torch.equal(evaluate.embed(q, tokens), evaluate.embed(q, tokens.long()))


def test_bytes_beside_an_embedding_of_labels_are_real_numbers():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_shapes = [(SIZE,), ()]
            self.embedding = nn.Embedding(3, 4)
            self.network = nn.Linear(SIZE + 4, 8)

        def forward(self, x, y):
            return self.network(torch.cat([x, self.embedding(y)], -1))

    q = guides.ConditionalVAE(Conditional(dist.Normal, Encoder(), 2))
    labels = torch.tensor(LABELS)
    for dtype in (torch.uint8, torch.int64):
        found = Source((X.byte(), labels.to(dtype)), q).whole()
        assert [part.dtype for part in found] == [torch.float32, torch.int64]


def test_a_number_beside_parts_of_one_length_is_that_of_a_batch():
    """Such as an annealing factor; beside a single part it is a target of one data point."""

    def model(x, y, factor=1.0):
        pass

    batches = [(X[:20], X[:20], 0.3), (X[20:], X[20:], 1.0)]
    assert Source(batches, model).parts is None
    assert Source([{"x": X, "y": X, "factor": 0.3}], model).parts is None
    for labels in (LABELS.tolist(), X[:, 0].tolist()):
        parts = Source(list(zip(X, labels, strict=True)), model).parts
        assert [len(part) for part in parts] == [ROWS, ROWS]
    rows = list(zip(X, X, LABELS.tolist(), strict=True))
    parts = Source(rows, lambda x, y, label: None).parts
    assert [len(part) for part in parts] == [ROWS] * 3


def _censored(mask):
    """Survival times, some of which are only known to be longer."""

    def model(t, seen):
        with pyro.plate("data", len(t)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=mask(seen)):
                pyro.sample("t", dist.Exponential(z.exp()), obs=t)
            with pyro.poutine.mask(mask=~mask(seen)):
                pyro.factor("longer", -z.exp() * t)

    def guide(t, seen):
        a = pyro.param("a", torch.tensor(0.3))
        with pyro.plate("data", len(t)):
            pyro.sample("z", dist.Normal(0.2 - a * t, 0.9))

    return model, guide


def test_masks_stay_masks_where_numbers_do_not_run():
    generator = torch.Generator().manual_seed(0)
    t, seen = torch.rand(12, generator=generator) * 2 + 0.1, torch.arange(12) % 3 != 0
    results = []
    for mask in (lambda seen: seen, lambda seen: seen > 0.5):  # the second takes numbers too
        pyro.clear_param_store()
        pair = _censored(mask)
        values = evaluate.log_likelihood(*pair, (t, seen), num_particles=50, seed=0)
        history = fit(*pair, (t.numpy(), seen.numpy()), epochs=2, seed=0, progress=False)
        results.append((values, history["loss"]))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]

    z = torch.linspace(-8, 8, 4001)[:, None]
    log_p = torch.where(seen, z, 0.0) - z.exp() * t + dist.Normal(0.0, 1.0).log_prob(z)
    exact = log_p.logsumexp(0) + torch.tensor(16 / 4000).log()
    pyro.clear_param_store()
    estimate = evaluate.log_likelihood(
        *_censored(lambda seen: seen), (t, seen), num_particles=5000, errors=True, seed=0
    )
    off = (estimate.log_likelihood - exact).abs()
    assert (off < 4 * estimate.standard_error).all()


def test_a_pair_that_runs_on_no_types_shows_its_fault_and_not_that_of_the_types():
    """The sentence is about the plate, not about a mask of numbers."""

    def guide(x, seen):
        for t in range(2):
            with pyro.plate("data", len(x)):
                pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))

    def model(x, seen):
        for t in range(2):
            with pyro.plate("data", len(x)):
                z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                with pyro.poutine.mask(mask=seen):
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    data = (torch.zeros(6, 2), torch.arange(6) < 3)
    with pytest.raises(PairError, match="the plate 'data' is made twice"):
        fit(model, guide, data, progress=False)
    with pytest.raises(PairError, match="the plate 'data' is made twice"):
        evaluate.log_likelihood(model, guide, data)


def test_only_the_parts_that_are_masks_stay_so():
    """Black and white pixels are numbers, beside the mask of rows."""

    def model(x, seen):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
            pyro.sample("x", dist.Bernoulli(0.3).expand([4]).to_event(1), obs=x)

    x, seen = torch.arange(20).reshape(5, 4) % 3 == 0, torch.arange(5) < 3
    value = evaluate.log_likelihood(model, None, (x, seen))
    exact = dist.Bernoulli(0.3).log_prob(x.float()).sum(1) * seen
    assert torch.allclose(value, exact)


@pytest.mark.parametrize("keywords", [True, False])
def test_parts_by_name_need_arguments_with_names(keywords):
    def by_keyword(*, x, scale):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    def by_position(x, scale):
        by_keyword(x=x, scale=scale)

    parts = {"x": torch.zeros(3), "scale": torch.ones(3)}
    model = by_keyword if keywords else lambda *parts: by_position(*parts)
    with pytest.raises(ValueError, match="'x', 'scale', and .* name them before any"):
        evaluate.log_likelihood(model, None, parts)
    exact = dist.Normal(0.0, 1.0).log_prob(parts["x"])
    assert torch.equal(evaluate.log_likelihood(by_position, None, parts), exact)


def test_whole_labels_stay_whole():
    def model(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.eye(3)[y], 1.0).to_event(1), obs=x)

    x = np.ones((ROWS, 3), dtype="int8")
    found, labels = Source((x, LABELS), model).whole()
    assert found.dtype is torch.float32 and labels.dtype is torch.int64
    with pytest.raises(InputError, match="one-hot vectors"):
        fit(*conditional_pair(), {"x": X, "y": LABELS}, progress=False)


def conditional_pair():
    return (
        models.ConditionalVAE(
            default_prior(dist.Normal, 2), Conditional(dist.Poisson, MLP([2, 3], [8]), SIZE)
        ),
        guides.ConditionalVAE(Conditional(dist.Normal, MLP([SIZE, 3], [8]), 2)),
    )


def test_the_trial_of_whole_numbers_changes_nothing():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    Source(COUNTS, P, Q)
    assert torch.equal(torch.random.get_rng_state(), state)

    def program(x):
        pyro.param("declared", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(x.new_ones(SIZE)).to_event(1), obs=x)

    Source(COUNTS, program)
    assert "declared" not in pyro.get_param_store()


# --- sequences


def test_ragged_lists_are_padded_where_the_program_takes_lengths():
    def model(x, lengths):
        return x, lengths

    ragged = [np.ones((t, 2)) for t in (3, 5, 4)]
    wanted = Sequences.padded(ragged)
    for given in (ragged, tuple(ragged), [a.tolist() for a in ragged], ragged[:2]):
        x, lengths = Source(given, model).whole()
        count = len(given)
        assert lengths.tolist() == wanted.lengths[:count].tolist()
        torch.testing.assert_close(x, wanted.x[:count])

    class Ragged(Rows):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return ragged[index], index

    x, lengths = Source(Ragged(), model).first(3)
    assert lengths.tolist() == [3, 5, 4]
    torch.testing.assert_close(x, wanted.x)
    words, lengths = Source([[3, 1], [2]], model).whole()
    assert words.dtype in (torch.int64, torch.float32) and words.tolist() == [[3, 1], [2, 0]]
    with pytest.raises(ValueError, match="takes no lengths of sequences"):
        Source(ragged, P)


# --- loaders


def test_a_shuffling_loader_is_evaluated_in_the_order_of_its_data():
    loader = DataLoader(Pairs(), 7, shuffle=True, drop_last=True)
    torch.testing.assert_close(evaluate.embed(Q, loader), evaluate.embed(Q, X))
    state = torch.random.get_rng_state()
    evaluate.embed(Q, loader)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_loaders_with_a_sampler_of_their_own_keep_its_order():
    order = list(reversed(range(ROWS)))
    loader = DataLoader(Rows(), 7, sampler=order)
    torch.testing.assert_close(evaluate.embed(Q, loader), evaluate.embed(Q, X[order]))


def test_binarized_pixels_do_not_depend_on_the_container():
    grey = torch.rand(ROWS, SIZE, generator=torch.Generator().manual_seed(0))
    p, q = pair(dist.Bernoulli)
    options = {"num_particles": 2, "binarize": True, "seed": 0}
    wanted = evaluate.log_likelihood(p, q, grey, **options)
    for x in (DataLoader(TensorDataset(grey), 4), Subset(TensorDataset(grey), range(ROWS))):
        torch.testing.assert_close(evaluate.log_likelihood(p, q, x, **options), wanted)


@pytest.mark.parametrize("container", ["iterable", "data set of pairs", "memory map of bytes"])
def test_a_resumed_run_is_the_same_as_one_without_a_stop(container, tmp_path):
    class Stop(Exception):
        pass

    def stop_after(rows):
        def callback(row):
            if row["epoch"] == rows:
                raise Stop

        return callback

    x = CONTAINERS[container](tmp_path)
    options = FIT | {"shuffle": True, "epochs": 3}
    p, q = pair()
    wanted = fit(p, q, x, folder=tmp_path / "whole", **options)
    p, q = pair()
    with pytest.raises(Stop):
        fit(p, q, x, folder=tmp_path / "run", callback=stop_after(2), **options)
    p, q = pair()
    found = fit(p, q, x, folder=Run(tmp_path / "run", resume=True), **options)
    assert found["loss"] == wanted["loss"]


def test_an_iterable_that_is_read_once_is_refused_in_the_second_epoch():
    class Once(IterableDataset):
        rows = iter(X)

        def __iter__(self):
            return self.rows

    with pytest.raises(ValueError, match="no batches in this epoch: if it can be read once"):
        fit(*pair(), Once(), epochs=2, **FIT)


# --- sentences


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ((row for row in X), "an iterator, which can be read once"),
        ((X, LABELS), "2 parts but models.VAE takes 1"),
        ([], "empty"),
        (3, "must be tensors, arrays, a data set"),
        (np.zeros((0, SIZE)), "empty"),
        (list(X.split(8)), "differ in length, from 6 to 8 rows.*torch.cat"),
        ([X[0], X[0, :3], X[:2]], "rows of shapes|parts"),
        ({"y": X}, "'y', which models.VAE does not take"),
    ],
)
def test_what_is_no_data_gets_one_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        fit(*pair(), wrong, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (np.array([["a", "b"]]), "got words such as 'a': for a table"),
        ("mnist", "read a file first, tarspyro.data.load"),
        (np.zeros(3, dtype=[("a", "f8"), ("b", "f8")]), "named fields a, b"),
        (np.array([["1", 2]], dtype=object), "an array of object"),
    ],
)
def test_words_are_no_numbers(wrong, sentence):
    with pytest.raises(TypeError, match=sentence):
        fit(*pair(), wrong, progress=False)


@pytest.mark.skipif(not PANDAS, reason="pandas is not installed")
def test_tables_with_words_name_the_column():
    frame = pandas.DataFrame(COUNTS).assign(kind="a")
    with pytest.raises(TypeError, match="column 'kind' holds none: leave it out, or read"):
        fit(*pair(), frame, progress=False)


def test_missing_values_of_tables_are_nan():
    array = np.ma.masked_array(COUNTS.astype(float), mask=COUNTS == 0)
    (found,) = Source(array, lambda x: None).whole()
    assert torch.equal(found.isnan(), torch.tensor(COUNTS == 0))
    if PANDAS:
        frame = pandas.DataFrame(COUNTS).astype("Int64").mask(COUNTS == 0)
        (found,) = Source(frame, lambda x: None).whole()
        assert torch.equal(found.isnan(), torch.tensor(COUNTS == 0))


class Frame:
    """A table as pandas 3 has it: its values cannot be written to, unless they are a copy."""

    def __init__(self, values, dtype):
        self.values = values
        self.columns = list(range(values.shape[1]))
        self.dtypes = [np.dtype(dtype)] * values.shape[1]

    def isna(self):
        gaps = [[entry is None or entry != entry for entry in row] for row in self.values]
        return Frame(np.array(gaps), bool)

    def __array__(self, dtype=None, copy=None):
        return self.to_numpy(dtype)

    def to_numpy(self, dtype=None, copy=False, na_value=None):
        if na_value is not None and dtype is object and not copy:
            raise ValueError("assignment destination is read-only")
        array = self.values.astype(dtype or self.values.dtype)
        if na_value is not None:
            array[self.isna().values] = na_value
        return array


@pytest.mark.parametrize("dtype", ["float32", "float64", object])
def test_gaps_of_a_table_that_cannot_be_written_to(dtype):
    values = np.where(COUNTS == 0, np.nan, COUNTS).astype(dtype)
    (found,) = Source(Frame(values, dtype), P).whole()
    assert torch.equal(found.isnan(), torch.tensor(COUNTS == 0))
    assert torch.equal(found.nan_to_num(0.0), X)


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "Int64", "boolean", "Float32", object]
)
def test_gaps_of_a_frame_of_any_type(dtype):
    pandas = pytest.importorskip("pandas")
    whole = COUNTS > 1 if dtype == "boolean" else COUNTS
    frame = pandas.DataFrame(whole).astype(dtype).mask(COUNTS == 0)
    (found,) = Source(frame, P).whole()
    assert torch.equal(found.isnan(), torch.tensor(COUNTS == 0))
    wanted = torch.tensor(np.where(COUNTS == 0, 0, whole)).float()
    assert torch.equal(found.nan_to_num(0.0), wanted)
    (column,) = Source([frame[0]], lambda x: None).whole()
    assert torch.equal(column.isnan(), torch.tensor(COUNTS[:, 0] == 0))


def test_all_batches_have_one_size():
    sizes = [7, 1, 12, 10]
    batches = [(part,) for part in X.split(sizes)]
    found = list(itertools.chain.from_iterable(Source(batches, P).batches(8)))
    assert [len(part) for part in found] == [8, 8, 8, 6]
    assert torch.equal(torch.cat(found), X)


@pytest.mark.parametrize("default", [1.0, True, "mean"])
def test_labels_of_a_data_set_are_no_setting_of_a_program(default):
    def model(x, setting=default):
        assert setting == default
        logits = torch.zeros(X.shape[1])
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(logits.exp()).to_event(1), obs=x)

    pairs = TensorDataset(X, torch.tensor(LABELS))
    rows = list(zip(X, LABELS.tolist(), strict=True))
    for given in (pairs, DataLoader(pairs, batch_size=7), Pairs(), rows):
        assert [len(parts) for parts in Source(given, model).batches(ROWS)] == [1]
    for explicit in ((X, LABELS), [X, torch.tensor(LABELS)], {"x": X, "setting": LABELS}):
        with pytest.raises(ValueError, match=r"2 parts but model takes 1 \(x\)"):
            Source(explicit, model)
    # Weights of the rows are real numbers, and labels are an argument without a setting.
    assert len(Source((X, torch.ones(ROWS)), lambda x, weight=1.0: None).whole()) == 2
    for model in (lambda x, y: None, lambda x, y=None: None, lambda x, y=0: None):
        assert len(Source(pairs, model).whole()) == 2


def test_parts_by_other_names_are_refused():
    class Other(Rows):
        def __getitem__(self, index):
            return {"image": X[index], "label": int(LABELS[index])}

    for given in (Other(), DataLoader(Other(), batch_size=7), [Other()[0], Other()[1]]):
        with pytest.raises(ValueError, match=r"named 'image', 'label', .*\['x'") as found:
            Source(given, P).first(3)
        assert "{'x': row['image']}" in str(found.value)
        assert "model(image, label)" in str(found.value)

    def renamed(row):
        return {"x": row["image"], "label": row["label"]}

    rows = [renamed(Other()[index]) for index in range(ROWS)]
    assert torch.equal(Source(rows, P).whole()[0], X)
    with pytest.raises(ValueError, match="names no arguments"):
        Source(Other(), lambda *args: None).first(3)
