"""Data of a user's own files: arrays, tables with gaps, folders of images, and what is refused."""

import gzip
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from tarspyro import Conditional, data, evaluate, fit, guides, models
from tarspyro.data import DataError, Table, load, read_table
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

TABLE = """name of city,age,smokes,income,visits,sick
Rome,30,yes,1000.5,3,1
Oslo,,no,-2.5,0,0
Rome,41,no,NA,7,
"",25,yes,0.0,2,1
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return load(path)


def test_a_table_with_all_kinds(table):
    kinds = [(column.name, column.kind, column.width) for column in table.columns]
    assert kinds == [
        ("name of city", "category", 2),
        ("age", "count", 1),
        ("smokes", "binary", 1),
        ("income", "real", 1),
        ("visits", "count", 1),
        ("sick", "binary", 1),
    ]
    nan = float("nan")
    expected = [
        [0, 1, 30, 1, 1000.5, 3, 1],
        [1, 0, nan, 0, -2.5, 0, 0],
        [0, 1, 41, 0, nan, 7, nan],
        [nan, nan, 25, 1, 0, 2, 1],
    ]
    assert torch.equal(table.x.nan_to_num(-9.0), torch.tensor(expected).nan_to_num(-9.0))
    assert table.names[:3] == ["name of city=Oslo", "name of city=Rome", "age"]
    assert table.column("visits").tolist() == [3, 0, 7, 2]
    assert table.column("name of city").shape == (4, 2)
    with pytest.raises(KeyError, match="no column 'wages': it has name of city, age"):
        table.column("wages")
    assert len(
        table[:2]
    ) == 2 and "4 rows, columns: 1 real, 2 count, 2 binary, 1 category" in repr(table)


def test_a_table_comes_back_as_it_was_read(table):
    again = read_table(table.write())
    assert again.columns == table.columns
    assert torch.equal(again.x.nan_to_num(-9.0), table.x.nan_to_num(-9.0))
    ordered = table.by_kind()
    assert [column.kind for column in ordered.columns] == [
        *("real", "count", "count", "binary", "binary", "category"),
    ]
    assert torch.equal(ordered.column("age").nan_to_num(), table.column("age").nan_to_num())
    # samples of a model are real numbers: words and whole numbers are the nearest
    sampled = table.write(torch.tensor([[0.2, 0.7, 30.4, 0.6, 1.25, 2.6, 0.2]]))
    assert sampled.splitlines()[1] == "Rome,30,yes,1.25,3,0"


@pytest.mark.parametrize(
    ("text", "shape", "kinds"),
    [
        ("1,2.5\n3,4\n", (2, 2), ["count", "real"]),
        ("a;b\n1;2\n3;4\n", (2, 2), ["count", "count"]),
        ("a\tb\n1\tx\n0\ty\n", (2, 3), ["binary", "category"]),
        ("\ufeffa,b\n-1,0\n2,1\n", (2, 2), ["real", "binary"]),
        ('a,b\n1,"x, y"\n2,z\n', (2, 3), ["count", "category"]),
        ("a,b\n1,?\n\n2,null\n3,5\n", (3, 2), ["count", "count"]),
        ("x\nyes\nno\nyes\n", (3, 1), ["binary"]),
        ('a,b\n1,"two\nlines"\n2,z\n', (2, 3), ["count", "category"]),
        ("a,b\n1,1_2\n2,1_2\n3,12_3\n", (3, 3), ["count", "category"]),
    ],
    ids=str,
)
def test_forms_of_tables(text, shape, kinds):
    found = read_table(text)
    assert tuple(found.x.shape) == shape and [c.kind for c in found.columns] == kinds


def test_kinds_that_the_user_knows_better():
    text = "year,code\n1999,1\n2004,2\n2010,1\n"
    assert [column.kind for column in read_table(text).columns] == ["count", "count"]
    found = read_table(text, kinds={"year": "real", "code": "category"})
    assert [column.kind for column in found.columns] == ["real", "category"]
    assert found.x.shape == (3, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "a header and no rows"),
        ("a,b\n1,2\n1\n", "2 cells in its first row and 1 in row 3"),
        ("a;b\n1,5;1\n2;3\n", "decimal commas in the column .a., such as .1,5.: write points"),
        ('a,b\n"1,000",1\n2,3\n', "commas in the column .a., such as .1,000.: if they part"),
        ('a\n"1,000,000"\n"2,500.5"\n', "numbers with commas.*thousands=','"),
        ("when,b\n2024-01-05,1\n2024-02-05,2\n", "dates in the column 'when'.*days since"),
        ("a,b\n1,\n2,NA\n", "no value in the column 'b': leave the column out"),
        ("a,b,a\n1,2,3\n4,5,6\n", "2 columns named 'a': give each a name of its own"),
        ("a\n1\ninf\n", "an infinite number in the column 'a'"),
        (
            "a,b\n10%,1\n20 %,2\n35.5%,3\n",
            "signs around them in the column 'a', such as '10%'",
        ),
        ("a,b\n$5,1\n€ 20.5,2\n7,3\n", "signs around them in the column 'a', such as '.5'"),
        ("a,b\n(1.5),1\n2,2\n", "signs around them in the column 'a', such as '.1.5.'"),
        ("a,b\n\u22123,1\n4,2\n", "write plain numbers, or name the column's kind"),
        ("a b\n1 2\n3 4\n", "spaces between its cells, such as '1 2': write commas"),
        ("1.5 2 3\n3 4 5\n", "spaces between its cells, such as '3 4 5'"),
        ("my data.csv", "text must be that of a table, got 'my data.csv'.*data.load"),
        ("t\n" + "\n".join(f"word {i} of text" for i in range(150)), "150 different words"),
    ],
)
def test_tables_that_are_refused(text, message):
    with pytest.raises(DataError, match=message) as error:
        read_table(text)
    assert "\n" not in str(error.value)


def test_words_that_look_a_little_like_numbers_stay_words():
    text = "a,b,c\n5 kg,1-2,v1.2\n7 kg,3-4,v1.3\n5 kg,1-2,v1.2\n"
    assert [column.kind for column in read_table(text).columns] == ["category"] * 3
    text = "a\n5%\n7%\n"
    assert read_table(text, kinds={"a": "category"}).columns[0].levels == ("5%", "7%")
    assert read_table("a\nred car\nblue car\n").x.shape == (2, 2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings_of_tables(tmp_path, encoding):
    path = tmp_path / "table.csv"
    path.write_text("town,x\nZürich,1\nGenève,2\n", encoding=encoding)
    found = load(path)
    assert found.columns[0].levels == ("Genève", "Zürich")
    assert found.x[:, -1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("first", [10**8, -(10**8), 12345678901234567890])
def test_a_warning_of_numbers_that_rounding_makes_equal(first):
    text = "id\n" + "".join(f"{first + row}\n" for row in range(30))
    with pytest.warns(UserWarning, match="30 different numbers in the column 'id'"):
        read_table(text)


def test_no_warning_of_large_numbers_that_stay_apart():
    rows = [f"{5 + row},{10**9 + 10**7 * row},{1e9 + row / 8}" for row in range(30)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_table("small,large,real\n" + "\n".join(rows))


def test_kinds_that_are_none():
    with pytest.raises(ValueError, match="kinds has 'b', which is no column: a"):
        read_table("a\n1\n2\n", kinds={"b": "real"})
    with pytest.raises(ValueError, match="kinds.*must be"):
        read_table("a\n1\n2\n", kinds={"a": "number"})
    with pytest.raises(DataError, match="'x' in the column 'a', which is no number"):
        read_table("a\nx\ny\n", kinds={"a": "real"})
    with pytest.raises(DataError, match="from -1 to 2 in the column 'a'.*count"):
        read_table("a\n-1\n2\n", kinds={"a": "count"})


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float64", torch.float32),
        ("float16", torch.float32),
        (">f4", torch.float32),
        ("uint8", torch.uint8),
        ("int32", torch.float32),
        ("uint16", torch.float32),
        ("bool", torch.bool),
    ],
)
def test_arrays(tmp_path, dtype, expected):
    array = (np.arange(12).reshape(4, 3) % 2).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    found = load(tmp_path / "a.npy")
    assert found.x.dtype is expected and found.y is None
    assert np.array_equal(found.x.numpy(), array)
    np.savez(tmp_path / "a.npz", images=array[::-1], labels=[0, 1, 2, 3])
    found = load(str(tmp_path / "a.npz"))
    assert np.array_equal(found.x.numpy(), array[::-1]) and found.y.tolist() == [0, 1, 2, 3]


def test_a_matlab_file_and_idx(tmp_path):
    savemat(tmp_path / "a.mat", {"X": np.eye(3), "y": [[1, 2, 3]]})
    found = load(tmp_path / "a.mat")
    assert torch.equal(found.x, torch.eye(3)) and found.y.tolist() == [1, 2, 3]
    content = b"\0\0\x08\x02" + np.array([2, 3], ">u4").tobytes() + bytes(range(6))
    (tmp_path / "a.idx").write_bytes(content)
    (tmp_path / "b.gz").write_bytes(gzip.compress(content))
    for name in ("a.idx", "b.gz"):
        assert load(tmp_path / name).x.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_folder_of_images(tmp_path):
    bytes_of = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    for index, image in enumerate(bytes_of):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    found = load(tmp_path)
    assert found.y is None and found.x.shape == (4, 3, 6, 5)
    assert torch.equal(found.x, torch.from_numpy(bytes_of).permute(0, 3, 1, 2) / 255)
    for index, image in enumerate(bytes_of):
        (tmp_path / "by class" / "ab"[index % 2]).mkdir(exist_ok=True, parents=True)
        Image.fromarray(image[..., 0]).save(
            tmp_path / "by class" / "ab"[index % 2] / f"{index}.png"
        )
    found = load(tmp_path / "by class")
    assert found.x.shape == (4, 1, 6, 5) and found.y.tolist() == [0, 0, 1, 1]
    assert torch.equal(found.x[1, 0], torch.from_numpy(bytes_of[2, ..., 0]) / 255)
    Image.fromarray(bytes_of[0, :3]).save(tmp_path / "9.png")
    with pytest.raises(DataError, match=r"9.png is of 3 x 5 pixels.*of 6 x 5.*size=\(6, 5\)"):
        load(tmp_path)
    assert load(tmp_path, size=(8, 7)).x.shape == (5, 3, 8, 7)


def test_what_is_no_data(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"?")
    (tmp_path / "bad.npy").write_bytes(b"?")
    (tmp_path / "bad.png").write_bytes(b"?")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "objects.npy", np.array([{}, None], object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.savez(tmp_path / "many.npz", a=np.ones(2), b=np.ones(2))
    np.savez(tmp_path / "apart.npz", x=np.ones(3), y=np.ones(2))
    for name, message in [
        ("missing.npy", "does not exist"),
        ("a.docx", "no format that is known"),
        ("bad.npy", "cannot be read"),
        ("bad.png", "one image: give the folder"),
        ("empty", "holds no images"),
        ("objects.npy", "cannot be read"),
        ("words.npy", "no real numbers"),
        ("many.npz", "arrays a, b: name the data x"),
        ("apart.npz", "3 rows and 2 labels"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            load(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"bad\.png cannot be read"):
        load(tmp_path)
    with pytest.raises(TypeError, match="path must be"):
        load(5)


def test_a_table_from_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"age": [1.5, None, 3.0], "smokes": ["yes", "no", None]})
    frame.to_parquet(tmp_path / "a.parquet")
    found = load(tmp_path / "a.parquet")
    assert isinstance(found, Table) and [c.kind for c in found.columns] == ["real", "binary"]
    assert found.x.isnan().sum() == 2


def test_public_names():
    assert {"Column", "Table", "load", "read_table"} <= set(data.__all__)


def test_counts_and_tables_train_as_they_were_read(tmp_path):
    np.save(tmp_path / "counts.npy", np.random.default_rng(0).poisson(3, (40, 4)))
    counts = load(tmp_path / "counts.npy")
    likelihoods = {
        dist.Poisson: counts,
        dist.Normal: read_table("a,b,c,d\n" + "1.5,2.5,0.1,3\n2.5,3,1.5,9\n" * 20),
    }
    for family, x in likelihoods.items():
        torch.manual_seed(0)
        p = models.VAE(default_prior(dist.Normal, 2), Conditional(family, MLP(2, [8]), 4))
        q = guides.VAE(Conditional(dist.Normal, MLP(4, [8]), 2))
        history = fit(p, q, x, epochs=1, progress=False)
        assert np.isfinite(history["loss"][0])
        assert evaluate.embed(q, x).shape == (40, 2)
