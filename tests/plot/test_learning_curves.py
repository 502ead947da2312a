"""Learning curves draw the history."""

import pytest

from tarspyro import plot
from tarspyro.runs import History

from .pictures import HISTORY


def test_curves_of_training_and_held_out_data():
    ax = plot.curves(HISTORY).axes[0]
    lines = {line.get_label(): line for line in ax.lines}
    assert lines.keys() == {"training", "held out", "best epoch"}
    assert list(lines["training"].get_xdata()) == [1, 2] and list(
        lines["training"].get_ydata()
    ) == [-29.0, -28.0]
    assert list(lines["held out"].get_ydata()) == [-30.0, -29.0]
    assert list(lines["best epoch"].get_xdata()) == [2, 2]
    assert ax.get_ylabel() == "ELBO (nats per data point)" and ax.get_xlabel() == "epoch"


def test_curves_without_validation_and_of_another_bound():
    history = History(rows=[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}])
    ax = plot.curves(history).axes[0]
    assert [line.get_label() for line in ax.lines] == ["training"]
    assert ax.get_ylabel() == "loss (nats per data point)"


def test_curves_by_name():
    history = History(rows=[{"epoch": 1, "loss": 2.0, "elbo": -2.0, "kl": 0.5}])
    assert list(
        plot.curves(history, names=["nothing", "kl"]).axes[0].lines[0].get_ydata()
    ) == [0.5]


def test_curves_of_what_was_measured_in_some_epochs():
    """A run may be resumed with held-out data that it did not have before."""
    history = History(
        rows=[{"epoch": 1, "elbo": -3.0}, {"epoch": 2, "elbo": -2.0, "validation_elbo": -4.0}]
    )
    training, held_out = plot.curves(history).axes[0].lines
    assert list(training.get_xdata()) == [1, 2]
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([2], [-4.0])


@pytest.mark.parametrize(
    ("history", "names"),
    [(History(), ("elbo", "loss")), (HISTORY, ("accuracy",))],
    ids=["empty", "names"],
)
def test_curves_of_nothing(history, names):
    with pytest.raises(
        ValueError,
        match=rf"names must hold something measured, got .* the history has {len(history)} epochs",
    ):
        plot.curves(history, names=names)
