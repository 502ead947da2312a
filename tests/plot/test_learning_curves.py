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


def history(*values, best=0, measure="elbo", held_out=True):
    rows = [
        {"epoch": epoch, measure: value}
        | ({f"validation_{measure}": value - 1.0} if held_out else {})
        for epoch, value in enumerate(values, 1)
    ]
    return History(rows=rows, best_epoch=best)


def named(ax):
    return {line.get_label(): line for line in ax.lines}


def test_curves_of_several_histories_by_name():
    two = {"ELBO": history(-3.0, -2.0, best=2), "IWAE": history(-2.5, -1.5, best=1)}
    ax = plot.curves(two).axes[0]
    solid, dashed = named(ax)["ELBO"], named(ax)["_ELBO"]
    assert list(solid.get_ydata()) == [-3.0, -2.0] and solid.get_linestyle() == "-"
    assert list(dashed.get_ydata()) == [-4.0, -3.0] and dashed.get_linestyle() == "--"
    assert solid.get_color() == dashed.get_color() != named(ax)["IWAE"].get_color()
    assert list(named(ax)["IWAE"].get_ydata()) == [-2.5, -1.5]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["ELBO", "IWAE", "training", "held out", "best epoch"]
    rings = [line for line in ax.lines if line.get_label() == "_best epoch"]
    assert [list(ring.get_xydata()[0]) for ring in rings] == [[2.0, -3.0], [1.0, -3.5]]


def test_curves_of_several_runs_and_their_mean():
    runs = [history(-5.0, -3.0, -1.0, held_out=False), history(-3.0, -2.0, held_out=False)]
    ax = plot.curves({"ELBO": runs}).axes[0]
    assert list(named(ax)["ELBO"].get_xdata()) == [1, 2]  # the epochs of both
    assert list(named(ax)["ELBO"].get_ydata()) == [-4.0, -2.5]
    thin = [line for line in ax.lines if line.get_label() == "_run"]
    assert [list(line.get_ydata()) for line in thin] == [[-5.0, -3.0, -1.0], [-3.0, -2.0]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ELBO"]


def test_curves_of_a_list():
    ax = plot.curves([history(-3.0), history(-2.0)]).axes[0]
    assert list(named(ax)["run 2"].get_ydata()) == [-2.0]


def test_histories_are_drawn_by_what_all_of_them_measured():
    both = History(rows=[{"epoch": 1, "loss": 3.0, "elbo": -3.0}])
    loss = History(rows=[{"epoch": 1, "loss": 4.0}])
    ax = plot.curves({"a": both, "b": loss}).axes[0]
    assert ax.get_ylabel() == "loss (nats per data point)"
    assert list(named(ax)["a"].get_ydata()) == [3.0]
    with pytest.raises(ValueError, match=r"every history measured, .*'a': \['loss', 'elbo'\]"):
        plot.curves({"a": both, "b": loss}, names=["elbo"])


def test_two_calls_on_the_same_axes():
    figure = plot.curves(history(-3.0, -2.0))
    ax = figure.axes[0]
    plot.curves(history(-2.5, -1.5), ax=ax)
    assert named(ax).keys() == {"training", "held out", "training (2)", "held out (2)"}
    assert len({line.get_color() for line in ax.lines}) == 4
    with pytest.raises(ValueError, match=r"ax shows 'ELBO \(nats .* got curves of 'loss"):
        plot.curves(history(3.0, 2.0, measure="loss"), ax=ax)
    assert len(ax.lines) == 4


@pytest.mark.parametrize("wrong", [3, {"a": 3}, [HISTORY, "b"], {"a": [HISTORY, None]}])
def test_curves_of_something_else(wrong):
    with pytest.raises(TypeError, match="history must be a History, as fit returns it, or"):
        plot.curves(wrong)


@pytest.mark.parametrize("none", [{}, [], {"a": []}])
def test_curves_of_no_histories(none):
    with pytest.raises(ValueError, match="history must hold at least one History"):
        plot.curves(none)
