"""The command that writes the report of a run as one page: ``tarspyro report``."""

__all__ = ["report_run"]

import base64
import html
import io
import shlex
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import tarspyro
from tarspyro.commands.methods.reports import Trained
from tarspyro.commands.reuse import known_report
from tarspyro.commands.running import open_run, pictures_of, versions, write_report
from tarspyro.plot.pages import page
from tarspyro.runs import Run
from tarspyro.runs.history import has_best_epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """<style>
.sheets { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: 1rem; align-items: start; }
.sheets figure { margin: 0; max-width: 44rem; }
.sheets img { width: 100%; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; }
.sheets figcaption { color: var(--faint); font-size: .875rem; }
</style>
"""


def report_run(options: Namespace) -> None:
    """Writes the report of a run, ``report.html`` in its folder, or ``--out``.

    Raises:
        ValueError: If ``--out`` does not end in ``.html``.
    """
    run = Path(options.run)
    out = Path(options.out) if options.out else run / "report.html"
    if out.suffix != ".html":
        raise ValueError(f"--out {out}: its name does not end in .html.")
    trained = open_run(options, options.run)
    lines = known_report(run, options.which, None) or write_report(trained, run)
    text = page(run.resolve().name, _body(trained, lines))
    if options.out:
        out.write_text(text, encoding="utf-8")
    else:
        Run(run).write(out.name, text.encode())
    print(f"{out} ({len(text) / 1e6:.1f} MB)")


def _body(t: Trained, lines: Iterable[str]) -> str:
    """Returns the page below its title."""
    figures = dict(pictures_of(t))
    losses = figures.pop("curves", None)
    pair = "\n".join(str(half) for half in (t.model, t.guide) if half is not None)
    explorer = _explorer(t)
    if "<canvas" in explorer:
        figures.pop("latents", None)  # which shows the same codes
    return "\n".join(
        [
            _STYLE,
            _table(_facts(t)),
            "<h2>Estimates</h2>",
            _text("\n".join(lines)),
            "<h2>Model and guide</h2>",
            _text(pair),
            *([] if losses is None else ["<h2>Losses</h2>", _sheets([("curves", losses)])]),
            *(["<h2>Codes</h2>", explorer] if explorer else []),
            *(
                ["<h2>Samples and other pictures</h2>", _sheets(figures.items())]
                * bool(figures)
            ),
            "<h2>Settings</h2>",
            _text(_command(t)),
            _table(_settings(t)),
        ]
    )


def _facts(t: Trained) -> Iterator[tuple[str, str]]:
    """The rows of a table of the run: method, data, time, versions."""
    history = t.history
    config = t.run.config
    train, test = t.data.sizes_of_parts
    yield "method", f"{t.method.title} ({t.method.paper})"
    yield "data", f"{t.data.name}: {train} training {t.data.unit}s, {test} held out"
    weights = "the weights of the last one"
    if has_best_epoch(history.rows):
        weights = f"the best one {history.best_epoch}; weights in hand: {history.in_hand}"
    yield "training", f"{len(history)} epochs, {weights}"
    if t.data.own is None:
        yield "seed", str(t.method.seed)
    else:
        yield "seed", f"{t.method.seed}; the rows are divided with a fixed seed"
    trained = config.get("versions")
    if isinstance(trained, dict):
        yield "trained with", _listed(trained)
    yield "reported with", _listed(versions())


def _listed(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _command(t: Trained) -> str:
    """Returns the command that trains such a run."""
    words = ["tarspyro", "train", t.method.name, "--data", t.data.name]
    defaults = type(t.method)().completed(t.data.name, {}).options
    for setting in t.method.settings:
        value = getattr(t.method, setting.name)
        if value == defaults[setting.name] or value is None:
            continue
        if value is False:
            words.append(setting.flag.replace("--", "--no-", 1))
        elif value is True:
            words.append(setting.flag)
        else:
            several = setting.several and not isinstance(value, str)
            words += [setting.flag, *map(str, value if several else [value])]
    return shlex.join(words)


def _settings(t: Trained) -> Iterator[tuple[str, str]]:
    for name, value in t.method.options.items():
        if value is not None:
            words = value if isinstance(value, (list, tuple)) else [value]
            yield name.replace("_", " "), " ".join(map(str, words))


def _explorer(t: Trained) -> str:
    """Returns the explorer of the codes, or why there is none; nothing without codes."""
    if t.run.guide is None or not t.method.codes:
        return ""
    labels = t.data.labels
    if labels is not None and labels.is_floating_point() and labels.dim() == 1:
        labels = None  # numbers to predict, not classes
    reason = "the data are no images"
    if t.data.image_shape is not None:
        if len(t.data.test) > 1:
            reason = "the guide sees more than the images"
        else:
            try:
                return tarspyro.plot.explore(
                    t.model,
                    t.guide,
                    t.data.test[0],
                    labels=labels,
                    image_shape=t.data.image_shape,
                ).part
            except (NotImplementedError, ValueError, TypeError) as error:
                reason = " ".join(str(error).split()).rstrip(".")
    return f'<p class="faint">There is no map of the codes: {html.escape(reason)}.</p>'


def _text(content: str) -> str:
    return f"<pre>{html.escape(content)}</pre>"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _sheets(figures: "Iterable[tuple[str, Figure]]") -> str:
    """Returns figures as pictures inside the page."""
    sheets = []
    for name, figure in figures:
        content = io.BytesIO()
        figure.savefig(content, dpi=110, format="png", bbox_inches="tight")
        source = base64.b64encode(content.getvalue()).decode("ascii")
        caption = html.escape(name)
        sheets.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{source}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="sheets">{"".join(sheets)}</div>'
