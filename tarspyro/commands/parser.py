"""The arguments of the command line."""

__all__ = ["UsageError", "parse"]

import argparse
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from tarspyro.commands.material import SOURCES, Form, listed
from tarspyro.commands.methods import METHODS, Method, OneOf
from tarspyro.commands.running import RUN_COMMANDS, list_methods, train


class UsageError(ValueError):
    """A command that cannot be understood."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, as one sentence."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        wrong = re.match("METHOD: invalid choice: '([^']*)'", message)
        if wrong:
            close = difflib.get_close_matches(wrong[1], METHODS, 1)
            hint = (
                f"perhaps {close[0]}"
                if close
                else "give one of tarspyro list, then its options"
            )
            message = f"there is no method {wrong[1]!r}, {hint}"
        raise UsageError(f"{message} (see {self.prog} --help)")


def count(text: str) -> int:
    """Returns a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def number(text: str) -> float:
    """Returns a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def whole(text: str) -> int:
    """Returns a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


# Of every setting that a method may have: the group in its help, what its text means, and what
# it is for.
_DATA, _PAIR, _BOUND, _TRAINING = "the data", "the pair", "the loss", "the training"
_REPORT, _FOLDER = "the report", "the run folder"
_SETTINGS: dict[str, tuple[str, Callable[[str], Any] | None, str]] = {
    "trunk": (_PAIR, str, "the kind of network"),
    "hidden": (_PAIR, count, "the sizes of a network's hidden layers, an encoder's first"),
    "latent": (
        _PAIR,
        count,
        "the number of latent units; of several layers, the one nearest the data first",
    ),
    "units": (_PAIR, count, "the hidden units of the recurrence, or the channels of its maps"),
    "family": (_PAIR, str, "the latent family, such as Normal, Gamma or Dirichlet"),
    "prior": (_PAIR, str, "the prior of the latent variable"),
    "posterior": (
        _PAIR,
        str,
        "the posterior, diagonal or sent through an autoregressive flow",
    ),
    "chain": (_PAIR, str, "what a layer of the guide passes on"),
    "experts": (_PAIR, str, "how the posteriors of the modalities are combined"),
    "steps": (_PAIR, count, "in how many steps an image is painted"),
    "attention": (_PAIR, None, "whether to read and write through a window"),
    "read_size": (_PAIR, count, "the filters along a side of the window that reads"),
    "write_size": (_PAIR, count, "the filters along a side of the window that writes"),
    "likelihood": (_PAIR, str, "the family of the data; what suits the data set if not given"),
    "scale": (_PAIR, number, "the scale of the Normal likelihood; learned if not given"),
    "masking_noise": (
        _PAIR,
        number,
        "hide so large a share of the input from the guide, which makes it denoising",
    ),
    "gaussian_noise": (
        _PAIR,
        number,
        "add noise of this standard deviation to the guide's input, likewise",
    ),
    "loss": (_BOUND, str, "the bound"),
    "num_particles": (_BOUND, count, "draws from the guide for each data point"),
    "beta": (_BOUND, number, "the weight of the ELBO's KL term"),
    "alpha": (_BOUND, number, "the order of the Renyi bound; 0.5 if not given"),
    "modality_weight": (
        _BOUND,
        number,
        "the weight of the KLs to the posteriors given one modality",
    ),
    "classifier_weight": (
        _BOUND,
        number,
        "the weight of the classifier's own loss, alpha in the paper",
    ),
    "divergence": (_BOUND, str, "what the players of the game minimize"),
    "gamma": (_BOUND, number, "the weight of the similarity in the generator's loss"),
    "weight": (_BOUND, number, "the weight of the codes beside the reconstruction"),
    "grey": (_DATA, None, "train on grey pixels instead of binarizing them"),
    "labels": (_DATA, count, "how many training images keep their labels"),
    "epochs": (_TRAINING, count, "passes over the data"),
    "batch_size": (_TRAINING, count, "data points in a step"),
    "lr": (_TRAINING, number, "the learning rate of Adam"),
    "clip_norm": (_TRAINING, number, "the largest norm of the gradient"),
    "patience": (_TRAINING, count, "stop after so many epochs without a better one"),
    "seed": (_TRAINING, whole, "of the initial weights, the noise and the order of the data"),
    "compile": (_TRAINING, None, "compile the steps, which pays off in long trainings"),
    "likelihood_particles": (_REPORT, count, "draws for the log-likelihood at the end"),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of a command, with ``command``, the function that runs it.

    Raises:
        UsageError: If they cannot be understood.
    """
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        raise UsageError(_unknown(unknown, options.parser, getattr(options, "method", None)))
    return options


def _unknown(
    unknown: Sequence[str], parser: argparse.ArgumentParser, method: str | None
) -> str:
    """The sentence on arguments that a command does not have."""
    name = next((text for text in unknown if text.startswith("-")), unknown[0]).partition("=")[
        0
    ]
    helped = f"(see {parser.prog} --help)"
    if method is not None and name.lstrip("-").replace("-", "_") in _SETTINGS:
        applies = ", ".join(_flag(setting) for setting in METHODS[method].options)
        return f"{name} does not apply to {method}, whose options are {applies} {helped}"
    close = difflib.get_close_matches(name, re.findall("--[a-z-]+", parser.format_help()), 1)
    kind = "option" if name.startswith("-") else "argument"
    return f"there is no {kind} {name}{f', perhaps {close[0]}' if close else ''} {helped}"


def _parser() -> argparse.ArgumentParser:
    parser = _new(
        _Parser,
        "tarspyro",
        "Deep generative models as pairs of Pyro programs: train any method of the library on"
        " any data it suits.",
        "tarspyro train vae --data digits --latent 10",
        "tarspyro sample runs/vae-digits",
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", title="commands", parser_class=_Parser
    )

    def command(name: str, text: str, *examples: str) -> argparse.ArgumentParser:
        return _new(commands.add_parser, name, text, *examples, help=text)

    listing = command(
        "list", "show the methods with their papers, settings and commands", "tarspyro list"
    )
    listing.set_defaults(command=list_methods, parser=listing)

    training = command(
        "train",
        "train a method; leaves a run folder with its report and pictures",
        "tarspyro train vae",
        "tarspyro train gan --data ring --divergence hinge --lr 1e-3",
        "tarspyro train vae --help      (the options of a method)",
    )
    methods = training.add_subparsers(
        required=True, metavar="METHOD", dest="method", title="methods", parser_class=_Parser
    )
    for name, method in METHODS.items():
        _add_method(methods.add_parser, name, method)

    evaluation = _run_command(
        command,
        "evaluate",
        "print what a run is worth: bounds, likelihoods, shares of right answers",
    )
    evaluation.add_argument(
        "--num-particles",
        type=count,
        help="draws for the log-likelihood (default: the training's)",
    )
    sampling = _run_command(
        command,
        "sample",
        "draw what the model of a run generates; given labels, a row for each",
    )
    sampling.add_argument(
        "--num", type=count, help="how many (default: what fills the picture)"
    )
    sampling.add_argument("--seed", type=whole, default=0, help="of the draws (default: 0)")
    sampling.add_argument(
        "--draws", action="store_true", help="draw pixels instead of showing their means"
    )
    sampling.add_argument("--out", help="the picture's file (default: samples.png in the run)")
    _run_command(command, "plot", "draw the pictures of a run again")
    return parser


def _new(
    make: Callable[..., argparse.ArgumentParser],
    name: str,
    text: str,
    *examples: str,
    **options: Any,
) -> argparse.ArgumentParser:
    """A parser with examples below its help."""
    lines = "\n".join(f"  {example}" for example in examples)
    named = {"prog": name} if make is _Parser else {}
    made = make(
        *([] if named else [name]),
        **named,
        description=text,
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )
    return made


def _run_command(command: Callable[..., Any], name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = command(name, text, f"tarspyro {name} runs/vae-digits")
    parser.set_defaults(command=RUN_COMMANDS[name], parser=parser)
    parser.add_argument("run", help="the run folder")
    parser.add_argument(
        "--which",
        choices=("best", "last"),
        default="best",
        help="the epoch whose weights to use (default: best)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="where to compute, such as cpu or cuda (default: auto)",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        help="a module with classes of the run",
        metavar="NAME",
    )
    return parser


def _add_method(make: Callable[..., Any], name: str, method: Method) -> None:
    names = method.form.names
    examples = [
        f"tarspyro train {name}",
        f"tarspyro train {name} --data {names[-1]} --epochs 5 --lr 0.002",
    ]
    parser = _new(make, name, f"{method.title} ({method.paper})", *examples, help=method.title)
    parser.set_defaults(command=train, parser=parser, method=name, given={})
    groups = {
        title: parser.add_argument_group(title)
        for title in (_DATA, _PAIR, _BOUND, _TRAINING, _REPORT, _FOLDER)
    }
    groups[_DATA].add_argument(
        "--data",
        type=_data(name, method.form),
        metavar="NAME",
        help=f"{listed(names)} (default: {names[0]})",
    )
    for setting, default in method.options.items():
        _add_setting(groups, method, setting, default)
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
    groups[_TRAINING].add_argument(
        "--device", default="auto", help="such as cpu or cuda (default: auto)"
    )
    groups[_TRAINING].add_argument("--quiet", action="store_true", help="no progress bar")


class _Given(argparse.Action):
    """Notes a setting as given, so that the defaults are the method's alone."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        value = self.const if self.nargs == 0 else values
        if option_string is not None and option_string.startswith("--no-"):
            value = False
        namespace.given = {**namespace.given, self.dest: value}


def _add_setting(
    groups: Mapping[str, Any], method: Method, setting: str, default: Any
) -> None:
    title, kind, text = _SETTINGS[setting]
    options: dict[str, Any] = {"action": _Given, "dest": setting, "default": argparse.SUPPRESS}
    flags = [_flag(setting)]
    if kind is None:
        options |= {"nargs": 0, "const": True}
        if default:
            flags.append(f"--no-{setting.replace('_', '-')}")
    elif isinstance(default, OneOf):
        options["choices"] = default
        default = default[0]
    elif setting == "likelihood":
        options["choices"] = ("Bernoulli", "Normal")
    elif isinstance(default, list):
        options |= {"type": kind, "nargs": "+", "metavar": "N"}
        default = " ".join(map(str, default))
    else:
        options |= {
            "type": kind,
            "metavar": "NAME" if kind is str else "N" if kind is not number else "X",
        }
    if setting == "epochs":
        default = ", ".join(
            f"{method.epochs_of(data)} of {data}" for data in method.form.names
        )
    told = (
        ""
        if default is None or kind is None and not default
        else f" (default: {'yes' if default is True else default})"
    )
    groups[title].add_argument(*flags, help=text + told, **options)


def _data(name: str, form: Form) -> Callable[[str], str]:
    def data(text: str) -> str:
        if text in form.names:
            return text
        found = (
            f"{text} holds {SOURCES[text].kind}"
            if text in SOURCES
            else f"there is no data set {text!r}"
        )
        raise argparse.ArgumentTypeError(
            f"{found}, and {name} takes {form.what}: {listed(form.names)}"
        )

    return data


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"
