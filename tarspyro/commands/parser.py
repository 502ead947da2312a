"""The arguments of the command line.

The parser is argparse, filled from the dataclasses of the methods. We weighed two libraries
that make a command line of dataclasses or functions. tyro does not tell an option that was
given from its default, which ``--resume`` needs, knows no defaults by data set, and writes an
error in a box of several lines, without a suggestion for a misspelled method. typer takes a
function for each command, so that methods could not share settings by inheritance.
"""

__all__ = ["UsageError", "parse", "tree"]

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from tarspyro import __version__
from tarspyro.commands.completion import SHELLS
from tarspyro.commands.methods import METHODS
from tarspyro.commands.methods.forms import as_list
from tarspyro.commands.methods.method import Method
from tarspyro.commands.methods.settings import DATA, GROUPS, TRAINING, Setting
from tarspyro.commands.methods.sources import SOURCES

_COMMANDS = (
    "list",
    "train",
    "sweep",
    "evaluate",
    "sample",
    "plot",
    "embed",
    "impute",
    "compare",
    "report",
    "completion",
)
_FOLDER = "the run folder"


class UsageError(ValueError):
    """Arguments that the command line does not understand."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of a command, and its name as ``command``.

    Raises:
        UsageError: If the arguments cannot be understood.
    """
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        raise UsageError(_unknown(unknown, options.parser, getattr(options, "method", None)))
    return options


class _Parser(argparse.ArgumentParser):
    """A parser that raises its errors, each in one sentence."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        wrong = re.match("(COMMAND|METHOD): invalid choice: '([^']*)'", message)
        if wrong:
            message = _unknown_name(wrong[1].lower(), wrong[2])
        raise UsageError(f"{message} (see {self.prog} --help)")


def _unknown_name(kind: str, name: str) -> str:
    """The sentence on a command or a method that does not exist."""
    if kind == "command":
        hint = _did_you_mean(name, _COMMANDS) or f": give {as_list(_COMMANDS)}"
        if name in METHODS:
            hint = f": did you mean tarspyro train {name}?"
    else:
        hint = _did_you_mean(name, METHODS) or ": tarspyro list shows all methods"
    return f"there is no {kind} {name!r}{hint}"


def _unknown(
    unknown: Sequence[str], parser: argparse.ArgumentParser, method: str | None
) -> str:
    """The sentence on arguments that a command does not have."""
    options = (text for text in unknown if text.startswith("-"))
    name = next(options, unknown[0]).partition("=")[0]
    see = f"(see {parser.prog} --help)"
    known = re.findall("--[a-z-]+", parser.format_help())

    of_others = any(name == s.flag for m in METHODS.values() for s in m.settings)
    if method is not None and of_others and f"{name}s" not in known:
        applies = ", ".join(setting.flag for setting in METHODS[method].settings)
        return f"{name} does not apply to {method}, whose options are {applies} {see}"

    kind = "option" if name.startswith("-") else "argument"
    return f"there is no {kind} {name}{_did_you_mean(name, known)} {see}"


def _did_you_mean(name: str, known: Collection[str]) -> str:
    """A question with the name that is the closest; empty if none is close."""
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean {close[0]}?" if close else ""


# --- the values of options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _positive(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def choice(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(
                f"must be {as_list(choices)}, got {text!r}{_did_you_mean(text, choices)}"
            )
        return text

    return choice


def _looks_like_a_path(text: str) -> bool:
    return os.sep in text or os.path.splitext(text)[1] != ""


def _data_of(method: Method) -> Callable[[str], str]:
    names = method.form.names

    def data(text: str) -> str:
        if text in names or os.path.exists(os.path.expanduser(text)):
            return text
        if text not in SOURCES and _looks_like_a_path(text):
            raise argparse.ArgumentTypeError(f"there is no file or folder {text}")

        accepted = f"{method.name} takes {method.form.title}: {as_list(names)}"
        if text in SOURCES:
            raise argparse.ArgumentTypeError(
                f"{text} holds {SOURCES[text].kind}, and {accepted}"
            )
        hint = _did_you_mean(text, names)
        raise argparse.ArgumentTypeError(
            f"there is no data set {text!r}{hint or f', and {accepted}, or a file or folder'}"
        )

    return data


# --- parsers


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "tarspyro",
        **_help(
            "Deep generative models as pairs of Pyro programs: train any method of the library"
            " on any data it suits.",
            "tarspyro train vae --data digits --latent 10",
            "tarspyro train vae --data table.csv",
            "tarspyro sample runs/vae-digits",
        ),
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"tarspyro {__version__}",
        help="show the version",
    )
    commands = parser.add_subparsers(
        required=True,
        metavar="COMMAND",
        dest="command",
        title="commands",
        parser_class=_Parser,
    )

    def command(name: str, text: str, *examples: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name, help=text, **_help(text, *examples)
        )
        added.set_defaults(parser=added)
        return added

    _add_commands(command)
    _add_commands_on_files(command)
    return parser


# Adds the parser of a command, called with its name, its help and examples.
_Add = Callable[..., argparse.ArgumentParser]


def _add_commands(command: _Add) -> None:
    """Adds the commands that list, train and judge."""
    command(
        "list", "show the methods with their papers, settings and commands", "tarspyro list"
    )
    _add_training(
        command(
            "train",
            "train a method; leaves a run folder with its report and pictures",
            "tarspyro train vae",
            "tarspyro train gan --data ring --divergence hinge --lr 1e-3",
            "tarspyro train vae --help      (the options of a method)",
        )
    )
    _add_sweep(
        command(
            "sweep",
            "train a method with several values of its settings and several seeds",
            "tarspyro sweep vae --lr 1e-3 3e-4 --latent 2 10 --seeds 3",
            "tarspyro sweep vae --hidden 256 512,512 --jobs 2",
            "tarspyro sweep vae --lr 1e-3 3e-4 --part 2/6      (one task of a cluster's array)",
        )
    )
    _add_evaluation(
        command(
            "evaluate",
            "print what a run is worth: bounds, likelihoods, shares of right answers",
            "tarspyro evaluate runs/vae-digits",
        )
    )
    _add_sampling(
        command(
            "sample",
            "draw what the model of a run generates; given labels, a row for each",
            "tarspyro sample runs/vae-digits",
        )
    )
    _add_comparison(
        command(
            "compare",
            "compare the log-likelihoods of runs on the same held-out data",
            "tarspyro compare runs/vae-digits runs/iwae-digits",
        )
    )


def _add_commands_on_files(command: _Add) -> None:
    """Adds the commands that draw and write, and the one for a shell."""
    _add_run(
        command("plot", "draw the pictures of a run again", "tarspyro plot runs/vae-digits")
    )
    _add_report(
        command(
            "report",
            "write a page on a run: losses, estimates, codes, samples, settings, versions",
            "tarspyro report runs/vae-digits",
            "tarspyro report runs/vae-digits --out vae.html",
        )
    )
    _add_embedding(
        command(
            "embed",
            "write the codes of data points",
            "tarspyro embed runs/vae-table --out codes.csv",
            "tarspyro embed runs/vae-table --data other.csv --out codes.npz",
        )
    )
    _add_imputation(
        command(
            "impute",
            "fill the gaps of a file, empty cells or NaN",
            "tarspyro impute runs/vae-table --data table.csv --out filled.csv",
        )
    )
    shell = command(
        "completion",
        "print a script that completes commands and options in a shell",
        'eval "$(tarspyro completion bash)"      (in ~/.bashrc; zsh likewise)',
        "tarspyro completion fish > ~/.config/fish/completions/tarspyro.fish",
    )
    shell.add_argument(
        "shell", type=_one_of(SHELLS), metavar=f"{{{','.join(SHELLS)}}}", help="the shell"
    )


def tree() -> dict[str, dict[str, list[str]]]:
    """Returns the options by command and by what follows it, a method or nothing."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, parser in _choices(_parser()).items():
        if name == "completion":
            found[name] = {shell: [] for shell in SHELLS}
        else:
            followers = _choices(parser) or {"": parser}
            found[name] = {
                follower: sorted(
                    flag
                    for action in of._actions
                    for flag in action.option_strings
                    if flag.startswith("--")
                )
                for follower, of in followers.items()
            }
    return found


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the parsers of the commands or of the methods, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _help(text: str, *examples: str) -> dict[str, Any]:
    """Options of a parser, for a help with examples at its end."""
    lines = "\n".join(f"  {example}" for example in examples)
    return {
        "description": text,
        "epilog": f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of all commands on a run."""
    parser.add_argument("run", help="the run folder")
    _add_loading(parser)


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="run", help="the run folders")
    _add_loading(parser)
    parser.add_argument(
        "--num-particles",
        type=_count,
        help="draws for the log-likelihood (default: the first training's)",
    )


def _add_loading(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of loading a run."""
    parser.add_argument(
        "--which",
        type=_one_of(("best", "last")),
        metavar="{best,last}",
        default="best",
        help="the epoch whose weights to use (default: best)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="where to compute, such as cpu, cuda or mps (default: auto)",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        help="a module with classes of the run",
        metavar="NAME",
    )


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--num-particles",
        type=_count,
        help="draws for the log-likelihood (default: the training's)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="compute the report also if evaluation.json has it for these weights and data",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--num", type=_count, help="how many (default: what fills the picture)"
    )
    parser.add_argument("--seed", type=_whole, default=0, help="of the draws (default: 0)")
    parser.add_argument(
        "--draws", action="store_true", help="draw pixels instead of showing their means"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="a .png picture, or numbers as .npz or .csv (default: samples.png in the run)",
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="an .html file (default: report.html in the run)"
    )


def _add_embedding(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="the data (default: all rows of the training's file, or the test part of a data"
        " set)",
    )
    _add_out(parser)


def _add_imputation(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--data", metavar="PATH", required=True, help="the file with gaps")
    parser.add_argument("--seed", type=_whole, default=0, help="of the draws (default: 0)")
    parser.add_argument(
        "--draws", action="store_true", help="fill the gaps with draws instead of means"
    )
    _add_out(parser)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="the file to write, .npz or .csv"
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    methods = parser.add_subparsers(
        required=True, metavar="METHOD", dest="method", title="methods", parser_class=_Parser
    )
    for name, method in METHODS.items():
        last = method.form.names[-1]
        added = methods.add_parser(
            name,
            help=method.title,
            **_help(
                f"{method.title} ({method.paper})",
                f"tarspyro train {name}",
                f"tarspyro train {name} --data {last} --epochs 5 --lr 0.002",
            ),
        )
        added.set_defaults(parser=added, given={})
        _add_options(added, method)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    methods = parser.add_subparsers(
        required=True, metavar="METHOD", dest="method", title="methods", parser_class=_Parser
    )
    for name, method in METHODS.items():
        added = methods.add_parser(
            name,
            help=method.title,
            **_help(
                f"{method.title} ({method.paper}). Settings take several values; lists are"
                " written with commas.",
                f"tarspyro sweep {name} --lr 1e-3 3e-4 --seeds 3",
            ),
        )
        added.set_defaults(parser=added, given={})
        groups = _groups(added, method)
        for setting in method.settings:
            if setting.name != "seed":
                _add_setting(groups[setting.group], method, setting, varied=True)
        folder = groups[_FOLDER]
        folder.add_argument(
            "--folder", help="where the runs are (default: sweeps/METHOD-DATA)"
        )
        folder.add_argument(
            "--part", type=_part, default=(1, 1), metavar="K/N", help="the runs to train here"
        )
        groups[TRAINING].add_argument(
            "--seeds", type=_count, default=3, help="seeds for each combination (default: 3)"
        )
        groups[TRAINING].add_argument(
            "--jobs", type=_count, default=1, help="runs at a time, with joblib (default: 1)"
        )
        groups[TRAINING].add_argument(
            "--device", default="auto", help="such as cpu or cuda (default: auto)"
        )


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"must be like 2/6, the second of six, got {text!r}")
    return int(found[1]), int(found[2])


def _listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def several(text: str) -> list[Any]:
        return [kind(word) for word in text.split(",")]

    return several


def _groups(
    parser: argparse.ArgumentParser, method: Method
) -> "dict[str, argparse._ArgumentGroup]":
    """Adds the groups of options, and the option for the data."""
    groups = {title: parser.add_argument_group(title) for title in (*GROUPS, _FOLDER)}
    names = method.form.names
    groups[DATA].add_argument(
        "--data",
        type=_data_of(method),
        metavar="NAME or PATH",
        help=f"{as_list(names)} (default: {names[0]}), or a file or folder of your own, with"
        f" {method.own_data}",
    )
    return groups


def _add_options(parser: argparse.ArgumentParser, method: Method) -> None:
    groups = _groups(parser, method)
    for setting in method.settings:
        _add_setting(groups[setting.group], method, setting)

    folder = groups[_FOLDER]
    folder.add_argument("--run", help="where it is (default: runs/METHOD-DATA)")
    folder.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run that is there, and its options",
    )
    folder.add_argument(
        "--overwrite", action="store_true", help="replace the run that is there"
    )

    groups[TRAINING].add_argument(
        "--device", default="auto", help="such as cpu, cuda or mps (default: auto)"
    )
    groups[TRAINING].add_argument("--quiet", action="store_true", help="no progress bar")


class _Given(argparse.Action):
    """Collects the settings that were given. The defaults are the method's alone."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        value = values
        if self.nargs == 0:
            value = option_string is None or not option_string.startswith("--no-")
        namespace.given = {**namespace.given, self.dest: value}


def _add_setting(
    group: "argparse._ArgumentGroup", method: Method, setting: Setting, *, varied: bool = False
) -> None:
    """Adds the option of a setting, with several values if it may be varied."""
    default = method.options[setting.name]
    flags = [setting.flag]
    options: dict[str, Any] = {
        "action": _Given,
        "dest": setting.name,
        "default": argparse.SUPPRESS,
    }
    if setting.kind is bool:
        options["nargs"] = 0
        if default:
            flags.append(setting.flag.replace("--", "--no-", 1))
    elif setting.choices:
        options["type"] = _one_of(setting.choices)
        options["metavar"] = f"{{{','.join(setting.choices)}}}"
    else:
        options["type"] = {
            int: _whole if setting.least is None else _count,
            float: _positive if setting.positive else _number,
        }.get(setting.kind, str)
        options["metavar"] = {int: "N", float: "X"}.get(setting.kind, "NAME")
        if setting.several and varied:
            options["type"] = _listed(options["type"])
        if setting.several:
            options["nargs"] = "+"
    if varied and setting.kind is not bool:
        options["nargs"] = "+"

    group.add_argument(*flags, help=setting.help + _told(method, setting, default), **options)


def _told(method: Method, setting: Setting, default: object) -> str:
    """The default of a setting, as text for the help."""
    if setting.name == "epochs":
        text = ", ".join(f"{method.epochs_of(data)} of {data}" for data in method.form.names)
    elif default is None or default is False:
        return ""
    elif default is True:
        text = "yes"
    elif setting.several:
        assert isinstance(default, Sequence)
        text = " ".join(map(str, default))
    else:
        text = str(default)
    return f" (default: {text})"
