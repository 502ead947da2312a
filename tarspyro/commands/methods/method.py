"""The base of all methods of the command line, and settings that several of them share."""

__all__ = [
    "Built",
    "EarlyStopping",
    "Loss",
    "Method",
    "Pixels",
    "Variational",
    "WithBound",
    "WithLabels",
]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import tarspyro
from tarspyro.commands.methods.forms import Form, PreparedData
from tarspyro.commands.methods.layout import FAMILIES, Layout, Seen
from tarspyro.commands.methods.networks import Make, likelihood_of
from tarspyro.commands.methods.settings import (
    BOUND,
    DATA,
    PAIR,
    REPORT,
    TRAINING,
    Setting,
    setting,
    settings_of,
)
from tarspyro.commands.methods.sources import SOURCES

if TYPE_CHECKING:
    from pyro.infer import ELBO
    from torch import nn

    from tarspyro import StochasticModule
    from tarspyro.commands.methods.pictures import Drawn
    from tarspyro.commands.methods.reports import Finding, Trained
    from tarspyro.commands.methods.samples import Sampler
    from tarspyro.infer import Game
    from tarspyro.infer.bounds.base import Bound


# The default of steps on a file of the user's own, and of epochs at most.
_STEPS = 5000
_MOST_EPOCHS = 300


class Built(NamedTuple):
    """The model, the guide and the loss of a method; a GAN and a classifier have no guide."""

    model: "StochasticModule"
    guide: "StochasticModule | None"
    loss: "ELBO | Game"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the command line: one dataclass holds its settings, pair, report and
    pictures.

    The fields made by ``setting`` are the options of ``tarspyro train NAME``. No module of
    this package imports PyTorch at its top, so that help and errors of usage answer at once:
    ``import tarspyro`` is light, and ``tarspyro.models`` loads what it needs when it is used.

    Attributes:
        name: The name on the command line.
        title: The name in a sentence.
        paper: The source.
        pair: The class name of its halves in ``tarspyro.models`` and ``tarspyro.guides``.
        form: The form in which it takes data.
        report: Functions that describe the trained pair in lines.
        figures: Functions that draw the trained pair.
        sampler: Draws samples of the model; None if it does not generate data.
        optimizer: Further options of the optimizer.
        epochs_on: The default number of epochs by data set, if it is not the data set's own.
        site: The name of the observed site.
        latent_site: The name of the latent site to draw, if there are several.
        classes: Whether it needs labels that are classes.
        images_alone: Whether a file of the user's own has to hold images.
        whole_input: Whether the guide sees x alone, so that its first layers may suit counts,
            columns of several kinds and gaps.
        codes: Whether the guide gives every data point a code.

    Example:
        >>> from tarspyro.commands import METHODS
        >>> vae = METHODS["vae"].completed("digits", {"latent": 10})
        >>> vae.options["latent"], vae.options["likelihood"], vae.epochs
        (10, 'Bernoulli', 300)
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    pair: ClassVar[str]
    form: ClassVar[Form]
    report: "ClassVar[tuple[Callable[[Trained], Iterator[Finding]], ...]]"
    figures: "ClassVar[tuple[Callable[[Trained], Iterator[Drawn]], ...]]"
    sampler: "ClassVar[Sampler | None]" = None
    optimizer: ClassVar[Mapping[str, Any]] = {}
    epochs_on: ClassVar[Mapping[str, int]] = {}
    site: ClassVar[str] = "x"
    latent_site: ClassVar[str | None] = None
    classes: ClassVar[bool] = False
    images_alone: ClassVar[bool] = False
    whole_input: ClassVar[bool] = False
    codes: ClassVar[bool] = True

    size: Sequence[int] | None = setting(
        None, DATA, "of a folder, scale its images to this height and width"
    )
    without: Sequence[str] | None = setting(None, DATA, "of a table, leave these columns out")
    rows: int | None = setting(
        None, DATA, "of a file, use so many rows, evenly spaced; all if not given"
    )
    epochs: int = setting(0, TRAINING, "passes over the data")  # 0: the data set decides
    batch_size: int = setting(100, TRAINING, "data points in a step")
    lr: float = setting(1e-3, TRAINING, "the learning rate of Adam", positive=True)
    clip_norm: float | None = setting(
        None, TRAINING, "the largest norm of the gradient", positive=True
    )
    seed: int = setting(
        0, TRAINING, "of the initial weights, the noise and the order of the data", least=None
    )
    compile: bool = setting(
        False, TRAINING, "compile the steps, which pays off in long trainings"
    )

    # Fixed here, and settings of the methods below that can choose.
    grey: bool = True
    patience: int | None = None
    likelihood_particles: int = 100

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings: of every training first, then the method's own and shared ones."""
        return settings_of(Method, *type(self).__mro__)

    @property
    def options(self) -> dict[str, Any]:
        """The values of all settings by name."""
        return {setting.name: getattr(self, setting.name) for setting in self.settings}

    def epochs_of(self, data: str) -> int:
        """Returns the default number of epochs on a data set."""
        return self.epochs_on.get(data, SOURCES[data].epochs)

    def family_of(self, seen: Seen) -> str | None:
        """Returns the likelihood of a file's values; None for the one that suits them."""
        return "Normal"

    @property
    def own_data(self) -> str:
        """The kinds of data that a file of the user's own may hold, in words."""
        return self.form.own.replace(" or a table", "") if self.images_alone else self.form.own

    def check_takes(self, path: str, layout: Layout) -> None:
        """Raises a ``ValueError`` if the method cannot take what a file holds."""
        taken = f"{path} cannot train {self.name}, which takes {self.own_data}"
        if self.form.sequences and layout.kind == "a table":
            raise ValueError(
                f"{taken}: save an .npz file with an array (steps, features) for each sequence,"
                " or one array (sequences, steps, features)."
            )
        if self.images_alone and layout.kind != "images":
            raise ValueError(f"{taken}: tarspyro train vae takes it.")
        if layout.gaps and not self.whole_input:
            raise ValueError(
                f"{path} has gaps, which {self.name} cannot train on: tarspyro train vae can, and"
                " tarspyro impute fills them."
            )

    def completed(self, data: str, given: Mapping[str, Any]) -> "Method":
        """Returns the method with the given settings; the data set decides on those that
        are not given.
        """
        method = replace(self, **given)
        if data not in SOURCES:
            return method
        return replace(method, epochs=method.epochs or self.epochs_of(data))

    def settled(self, data: PreparedData) -> "Method":
        """Returns the method with what the contents of a file decide."""
        if data.own is None or self.epochs:
            return self
        steps = -(-data.sizes_of_parts[0] // self.batch_size)
        return replace(self, epochs=min(_MOST_EPOCHS, -(-_STEPS // steps)))

    def build(self, data: PreparedData) -> Built:
        """Returns the pair and its loss, with new weights."""
        raise NotImplementedError


# --- settings that several methods share. The classes without a base are mixins: they stand
# before the base in the list of a method's bases, so that their fields replace the base's.

Loss = Literal["elbo", "iwae", "renyi", "fivo", "wake-sleep", "tvo", "f-divergence"]


@dataclass(frozen=True, kw_only=True)
class WithBound:
    """Methods that maximize a bound of the log-likelihood."""

    loss: Loss = setting(
        "elbo",
        BOUND,
        "the bound",
        choices=("elbo", "iwae", "renyi", "wake-sleep", "tvo", "f-divergence"),
    )
    num_particles: int | None = setting(
        None, BOUND, "draws from the guide for each data point"
    )
    beta: float | None = setting(None, BOUND, "the weight of the ELBO's KL term")
    alpha: float | None = setting(
        None, BOUND, "the order of the Renyi bound; 0.5 if not given"
    )
    f: str | None = setting(
        None,
        BOUND,
        "the f-divergence that the guide minimizes; jensen-shannon if not given",
        choices=(
            "inclusive-kl",
            "exclusive-kl",
            "chi2",
            "hellinger",
            "jensen-shannon",
            "total-variation",
        ),
    )

    def bound(self) -> "Bound":
        """Returns the bound that ``--loss`` names.

        Raises:
            ValueError: If an option was given that the bound does not have.
        """
        bounds: dict[str, tuple[Any, tuple[str, ...]]] = {
            "elbo": (tarspyro.infer.ELBO, ("num_particles", "beta")),
            "iwae": (tarspyro.infer.IWAE, ("num_particles",)),
            "renyi": (tarspyro.infer.Renyi, ("alpha", "num_particles")),
            "fivo": (tarspyro.infer.FIVO, ("num_particles",)),
            "wake-sleep": (tarspyro.infer.ReweightedWakeSleep, ("num_particles",)),
            "tvo": (tarspyro.infer.TVO, ("num_particles",)),
            "f-divergence": (tarspyro.infer.FDivergence, ("num_particles", "f")),
        }
        bound, takes = bounds[self.loss]
        given = {
            name: value
            for name in ("num_particles", "beta", "alpha", "f")
            if (value := getattr(self, name)) is not None
        }
        for name in given:
            if name not in takes:
                (other,) = (loss for loss, (_, options) in bounds.items() if name in options)
                raise ValueError(
                    f"--{name.replace('_', '-')} is not for --loss {self.loss}: leave it out,"
                    f" or take --loss {other}."
                )

        if self.loss == "renyi":
            given.setdefault("alpha", 0.5)
        if self.loss == "f-divergence":
            given.setdefault("f", "jensen-shannon")
        built: Bound = bound(**given)
        return built


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Methods whose loss ranks the epochs."""

    patience: int | None = setting(
        None, TRAINING, "stop after so many epochs without a better one"
    )


@dataclass(frozen=True, kw_only=True)
class _Likelihood:
    likelihood_particles: int = setting(100, REPORT, "draws for the log-likelihood at the end")


@dataclass(frozen=True, kw_only=True)
class WithLabels:
    """Methods that need labels or targets."""

    target: str | None = setting(
        None, DATA, "of a file, the column or the other file with the labels"
    )


@dataclass(frozen=True, kw_only=True)
class Pixels(Method):
    """Methods whose likelihood is Bernoulli, of binary or grey pixels, Normal, or what suits
    a file of the user's own.
    """

    likelihood: str | None = setting(
        None,
        PAIR,
        "the family of the data; what suits the data if not given",
        choices=FAMILIES,
    )
    scale: float | None = setting(
        None, PAIR, "the scale of the Normal likelihood; learned if not given"
    )
    grey: bool = setting(False, DATA, "train on grey pixels instead of binarizing them")

    def completed(self, data: str, given: Mapping[str, Any]) -> Method:
        method = super().completed(data, given)
        assert isinstance(method, Pixels)
        if data not in SOURCES:
            return method

        likelihood = method.likelihood or SOURCES[data].likelihood
        binary = likelihood == "Bernoulli" and "images" in SOURCES[data].kind
        return replace(method, likelihood=likelihood, grey=method.grey or not binary)

    def settled(self, data: PreparedData) -> Method:
        method = super().settled(data)
        assert isinstance(method, Pixels)
        if data.layout is None:
            return method
        return replace(method, likelihood=data.layout.family)

    def family_of(self, seen: Seen) -> str | None:
        if self.likelihood is None and seen.values in ("counts", "mixed"):
            return None if self.whole_input else "Normal"
        return self.likelihood

    def observed(
        self, data: PreparedData, trunk: "nn.Module", make: Make | None = None
    ) -> "nn.Module":
        """Returns p(x | inputs of the trunk), of the family that ``--likelihood`` names.

        Arguments:
            data: The data.
            trunk: The network.
            make: The class of the distribution, ``Conditional`` if not given.
        """
        assert self.likelihood is not None, "the data decides if the user does not"
        # The log-probability of grey pixels that are not binarized is a cross-entropy.
        grey = not data.binarize and (data.layout is None or data.layout.values != "binary")
        return likelihood_of(
            self.likelihood, trunk, data, scale=self.scale, grey=grey, make=make
        )


@dataclass(frozen=True, kw_only=True)
class Variational(WithBound, EarlyStopping, _Likelihood, Pixels):
    """Methods with latent variables, trained by a bound and judged by the log-likelihood."""
