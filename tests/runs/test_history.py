"""Histories: columns by name, tables in print, DataFrames."""

import builtins
import sys
from types import SimpleNamespace

import pytest

from tarspyro.runs import History

TWO = History(
    rows=[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "validation_loss": 3.0}]
)


def long(epochs):
    rows = [
        {"epoch": epoch, "step": 7 * epoch, "loss": 100 / epoch, "elbo": -100 / epoch}
        for epoch in range(1, epochs + 1)
    ]
    return History(rows=rows, best_epoch=epochs - 1, in_hand="best")


def test_columns():
    assert len(TWO) == 2
    assert TWO["loss"] == [2.0, 1.0]
    assert TWO["validation_loss"] == [3.0]
    assert TWO.columns == list(TWO) == ["epoch", "loss", "validation_loss"]
    assert "loss" in TWO and "elbo" not in TWO


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("validation_los", "did you mean 'validation_loss'"),
        ("Loss", "did you mean 'loss'"),
        ("w", "no column 'w'. It has epoch, loss, validation_loss."),
        (-1, r"no column -1: history\.rows\[-1\] is a row of it\."),
    ],
)
def test_an_unknown_column_is_named(name, hint):
    with pytest.raises(KeyError, match=hint):
        TWO[name]


def test_an_unknown_column_of_a_history_without_held_out_data_or_epochs():
    with pytest.raises(KeyError, match="'validation_elbo', as fit got no validation data"):
        long(3)["validation_elbo"]
    with pytest.raises(KeyError, match="'elbo': it has no epochs yet"):
        History()["elbo"]


def test_a_short_history_prints_all_rows():
    title, header, *rows = repr(TWO).split("\n")
    assert title == "History of 2 epochs, the last weights in hand"
    assert header.split() == ["epoch", "loss", "validation_loss"]
    assert [row.split() for row in rows] == [["1", "2"], ["2", "1", "3"]]
    assert repr(History()) == "History of 0 epochs, the last weights in hand"


def test_a_long_history_prints_its_first_and_its_last_rows():
    title, header, first, dots, *last = repr(long(1000)).split("\n")
    assert (
        title == "History of 1000 epochs, of which 999 is the best, the best weights in hand"
    )
    assert first.split() == ["1", "7", "100", "-100"] and dots.strip() == "..."
    assert [row.split()[0] for row in last] == [str(epoch) for epoch in range(993, 1001)]
    assert last[-1].split() == ["1000", "7000", "0.1", "-0.1"]
    assert {len(row) for row in (header, first, *last)} == {len(header)}  # aligned


def test_columns_that_do_not_fit_are_counted():
    names = [f"measure_{index}" for index in range(30)]
    text = repr(History(rows=[dict.fromkeys(names, 0.25)] * 50))
    lines = text.split("\n")
    assert len(lines) <= 15 and max(map(len, lines)) <= 95
    shown = len(lines[1].split())
    assert lines[-1].startswith(f"and {30 - shown} more columns: measure_{shown}, ")


def test_a_frame_is_what_pandas_makes_of_the_rows(monkeypatch):
    made = []

    def frame(rows, columns):
        made.append((rows, columns))
        return "frame"

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=frame))
    assert TWO.to_frame() == "frame"
    assert made == [(TWO.rows, ["epoch", "loss", "validation_loss"])]


def test_a_frame_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = TWO.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["loss"].tolist() == [2.0, 1.0]
    assert frame["validation_loss"].isna().tolist() == [True, False]


def test_a_frame_without_pandas(monkeypatch):
    found = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pandas":
            raise ImportError(name)
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs pandas, .* or take history\.rows"):
        TWO.to_frame()
