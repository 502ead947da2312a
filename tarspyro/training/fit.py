"""The function ``fit``, which trains a pair with any loss."""

__all__ = ["fit"]

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tarspyro.accelerators import current_device
from tarspyro.arguments import format_value
from tarspyro.data import Stream
from tarspyro.infer.traces import no_guide, trace_pair
from tarspyro.inputs import count_rows, each
from tarspyro.memory import keep_freed_memory
from tarspyro.programs import PROGRAM_ERRORS, layers_of
from tarspyro.runs.description import describe_pair
from tarspyro.runs.folder import Run
from tarspyro.runs.history import History
from tarspyro.scopes import (
    exclusive,
    kept_buffers,
    local_parameters,
    own_store,
    preserved_rng,
)
from tarspyro.training.advice import advise, advise_on_batches, advise_on_order
from tarspyro.training.batches import Batches
from tarspyro.training.checks import check_arguments, check_sizes, warn_of_evaluation_mode
from tarspyro.training.collapse import CollapseAlarm, both
from tarspyro.training.comparison import (
    describe_batches,
    describe_loss,
    describe_optimizer,
)
from tarspyro.training.counts import Counter
from tarspyro.training.deprecations import renew
from tarspyro.training.distributed import Processes, join
from tarspyro.training.losses import Loss, Objective
from tarspyro.training.optimizers import Optimizer, OptimizerClass, check_optimizer
from tarspyro.training.parameters import find_parameters
from tarspyro.training.schedules import Schedule
from tarspyro.training.screen import say
from tarspyro.training.start import start_near, undone_on_error
from tarspyro.training.state import TrainingState
from tarspyro.training.trainer import Trainer
from tarspyro.types import Arguments, Data, Device, Program


def fit(
    model: Program,
    guide: Program | None = None,
    data: Data | None = None,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | OptimizerClass = torch.optim.Adam,
    lr: float | None = None,
    epochs: int = 10,
    batch_size: int = 100,
    shuffle: bool = True,
    validation: Data | None = None,
    binarize: bool = False,
    schedules: Mapping[str, Schedule] | None = None,
    patience: int | None = None,
    folder: Run | str | Path | None = None,
    seed: int | None = None,
    device: Device = "auto",
    autocast: torch.dtype | None = None,
    compile: bool = False,
    progress: bool = True,
    callback: Callable[[dict[str, float]], object] | None = None,
    **former: object,
) -> History:
    """Trains a model and a guide in place, and returns the history of the training.

    The loss is divided by the number of data points that it stands for, so learning rates,
    clipping and the history are per data point. A batch stands for its rows, or for N where
    the model's plate makes it a subsample of N, ``pyro.plate("data", N, subsample=x)``. Plates
    side by side add up. Short last batches count by their rows.

    Before the first step ``fit`` checks the pair and the data. It initializes the heads of new
    ``Conditional`` distributions from the data, see ``tarspyro.initialize_from_data``, except
    under ``Adversarial`` and ``VAEGAN``. Pyro validates the first step of every new shape of the
    data, and no other. Pyro's global parameter store is left alone. Modules stay in the mode
    that they are in, training or evaluation. Real numbers, bytes and booleans of the data get
    the type of the parameters, such as double precision, and so do whole numbers in two or more
    dimensions, if the pair runs on them.

    With ``ELBO`` or a bound of weights ``fit`` warns if the KL of all latent units is next to
    nothing after two epochs, a hundred steps and two thousand data points: the posterior has
    collapsed.

    At the end the pair has the best weights if there is held-out data, and else the last ones;
    ``history.use("last", model, guide)`` changes that. In a game every player has its own
    optimizer. Game losses do not rank epochs, so the last weights are kept.

    Ctrl-C, SIGTERM and SIGHUP end the training of a run after the current step, with a checkpoint.
    Under ``torchrun`` all processes train together: ``batch_size`` counts the rows of all, and
    each process takes its share of every batch. The first process writes the run.

    The arguments in groups:

    - what is trained: ``model``, ``guide``, ``loss``;
    - data: ``data``, ``validation``, ``batch_size``, ``shuffle``, ``binarize``;
    - optimization: ``optimizer``, ``lr``, ``epochs``, ``schedules``, ``patience``;
    - the run: ``folder``, ``seed``, ``progress``, ``callback``;
    - the device: ``device``, ``autocast``, ``compile``.

    Arguments:
        model: The model, a ``StochasticModule`` or any Pyro program.
        guide: The guide, likewise. None for a model without latent variables, or for a game
            that needs no guide.
        data: Tensors, arrays, tables or lists of rows, which are kept on the device; memory
            maps and sparse matrices, whose rows are read when they are needed; a mapping by
            argument name; a ``Split`` or ``Sequences``; a torch ``Dataset``; an iterable of
            batches, such as a ``DataLoader`` or ``Sequences.batches``; or a
            ``tarspyro.data.Stream``. Bytes are not scaled, see the page on your own data.
        loss: Any bound, ``tarspyro.infer.ELBO()`` if not given; a bound of ``pyro.infer``; a
            game, such as ``tarspyro.infer.Adversarial``; or a function of the model, the guide
            and the data. Pyro's ``Jit...`` bounds and ``TraceTailAdaptive_ELBO``, which has no
            value, are refused.
        optimizer: The class of a torch optimizer; or ``tarspyro.Optimizer(...)`` with options,
            gradient clipping, options for single players of a game, and what to do about a
            loss that is not finite.
        lr: The learning rate of all players. None stands for 1e-3, or for that of the run
            that is resumed.
        epochs: The number of passes over the data in all, those of a resumed run included.
        batch_size: The number of rows of a batch. The last batch of an epoch may be shorter.
        shuffle: Whether the data has a new order in every epoch. One batch of all rows keeps
            the given order.
        validation: Held-out data. It is evaluated after every epoch, in evaluation mode and
            with the same noise every time.
        binarize: Whether to draw black and white pixels anew for every batch, with the grey
            values as probabilities. Held-out pixels are drawn once.
        schedules: Functions of the step (0, 1, ...) by name: ``"lr"``, ``"generator_lr"`` for
            the learning rate of a player, an attribute of the loss such as ``"beta"``, or a
            fixed parameter of the pair such as ``"temperature"``. Losses under different
            values cannot be compared. So the ELBO ranks the epochs if the schedule changes the
            loss and the history has an ELBO; otherwise the best epoch is the best among those
            with the last values.
        patience: How many epochs without improvement end the training. None: all are done.
        folder: The path of a run folder to write; or ``tarspyro.Run(...)`` to resume or
            overwrite a run, or to write checkpoints within an epoch. ``load_run`` reads it.
        seed: The seed of the noise and of the order of the data. With a seed the caller's
            random state is left as it was. The initial weights are the caller's.
        device: The device; ``"auto"`` takes a GPU if there is one.
        autocast: The type in which networks compute in training, such as ``torch.bfloat16``.
            Parameters, draws, densities and evaluations keep theirs.
        compile: Whether to compile the steps, see ``tarspyro.infer.Compiled``. Compilation
            takes from five seconds to a minute; a line says after how many steps it has paid.
            On a GPU a step with its update is then one CUDA graph. A program that cannot be
            compiled is trained without, with a warning.
        progress: Whether to show a progress bar.
        callback: A function that is called after every epoch and its checkpoint with the row
            of the history, such as ``TensorBoard(folder)``. It may evaluate the pair and draw
            random numbers without changing the training.
        former: Arguments of earlier versions, which are still taken with a warning.

    Returns:
        The history. Every epoch has the loss and, for ``ELBO``, the elbo and its two terms, in
        nats per data point: means over the training data, and with the prefix ``validation_``
        over the held-out data. A game has the loss and the norm of the gradient of every
        player, such as ``generator_loss`` and ``generator_gradient``.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the halves do not match, or a parameter would not be trained.
        NonFiniteError: If a loss is not finite. The pair then has the weights of the last good
            epoch.
        CollapseError: If a player of a game has won, so that the others learn nothing. The
            weights likewise.
        ProcessError: If another process of the training has died.
        RunError: If ``folder`` holds a run already, or is written by another training; or if
            a corrupted run is resumed, or one of another pair, loss or data.
        TypeError: If an argument has the wrong type, or is unknown.
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, data, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> likelihood = Conditional(dist.Bernoulli, MLP(2, [32]), 64)
        >>> p = models.VAE(default_prior(dist.Normal, 2), likelihood)
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(64, [32]), 2))
        >>> x = data.digits().train
        >>> history = fit(p, q, x, lr=2e-3, epochs=2, binarize=True, seed=0, progress=False)
        >>> history["elbo"][1] > history["elbo"][0]
        True
    """
    optimizer, folder, data, keep = renew(former, _NAMES, optimizer, folder, data)
    check_arguments(
        model,
        guide,
        counts={"epochs": epochs, "batch_size": batch_size},
        patience=patience,
        schedules=schedules,
        autocast=autocast,
        callback=callback,
    )
    optimizer = check_optimizer(optimizer, lr)
    run = folder if folder is None or isinstance(folder, Run) else Run(folder)
    objective = Objective(loss, model, no_guide if guide is None else guide)
    _check_ranking(objective, patience)
    device = join(device)
    processes = Processes()
    with _prepared(objective, device, seed, processes), _written_alone(run, processes):
        make_batches = functools.partial(
            Batches,
            program=model,
            others=[objective.pair[1]],
            batch_size=batch_size,
            device=device,
            binarize=binarize,
            processes=processes,
        )
        batches = make_batches(data, shuffle=shuffle)
        held_out = _held_out(validation, data, make_batches)
        first = _check_pair(objective, batches, held_out)
        examples = functools.partial(batches.examples, first)
        with undone_on_error(*objective.pair):  # a refused training changes nothing
            _initialize(objective, batches, first, examples)
            state = _start(objective, first, optimizer, compile, progress)
            trainer = Trainer(
                objective,
                state,
                optimizer=optimizer,
                schedules=schedules,
                count=Counter(*objective.pair),
                autocast=autocast,
                run=run,
                processes=processes,
            )
            if run is not None:
                own = epochs, batch_size, binarize, seed, shuffle, autocast and str(autocast)
                settings = _compared(own, trainer, batches, held_out)
                trainer.open(_config(objective, guide, run, settings), batches)
        trainer.train(
            batches,
            held_out,
            epochs=epochs,
            patience=patience,
            callback=both(CollapseAlarm(objective, examples, schedules), callback),
            progress=progress,
        )
        history = state.history
        history.use(keep or ("last" if held_out is None else "best"), model, guide)
    if progress and processes.first:
        say(_summary(history, objective))
    return history


# The documented arguments of fit.
_NAMES = list(inspect.signature(fit).parameters)[:-1]


def _check_ranking(objective: Objective, patience: int | None) -> None:
    """Raises a ``ValueError`` if there is a patience but no epoch is better than another."""
    if patience is not None and not objective.ranks_epochs:
        raise ValueError(
            f"patience={patience} waits for a better epoch, and game losses do not rank epochs:"
            " leave it out."
        )


def _check_validation(validation: Data, data: Data | None) -> None:
    """Raises unless held-out data is data, which can be read more than once.

    Raises:
        TypeError: If it is a number, such as a share of the data.
        ValueError: If it can be read only once.
    """
    if isinstance(validation, (int, float)):
        rows = max(2, len(data)) if isinstance(data, (Tensor, np.ndarray)) else 10_000
        count = min(
            max(1, round(validation * rows if validation < 1 else validation)), rows - 1
        )
        raise TypeError(
            f"validation must be held-out data, got {validation}: split the data, such as"
            f" fit(model, guide, x[{count}:], validation=x[:{count}])."
        )
    if isinstance(validation, (Iterator, Stream)):
        raise ValueError(
            f"validation is read after every epoch, got {format_value(validation)}, which is"
            " read once: give tensors, a data set or a DataLoader."
        )


def _held_out(
    validation: Data | None, data: Data | None, make_batches: Callable[..., Batches]
) -> Batches | None:
    """The batches of held-out data, in their order and with the same pixels every time."""
    if validation is None:
        return None
    _check_validation(validation, data)
    return make_batches(validation, shuffle=False, pixel_seed=0)


@contextlib.contextmanager
def _prepared(
    objective: Objective, device: torch.device, seed: int | None, processes: Processes
) -> Iterator[None]:
    """Moves the pair to a device, and gives the training its own random state and store."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(exclusive())
        stack.enter_context(current_device(device))
        keep_freed_memory()
        for half in objective.halves.values():
            if isinstance(half, nn.Module):
                half.to(device)
        if seed is not None or processes.size > 1:
            stack.enter_context(preserved_rng(seed))
            processes.vary_noise()
        if not objective.needs_store:
            stack.enter_context(local_parameters())
        stack.enter_context(own_store(*objective.halves.values()))
        stack.enter_context(pyro.validation_enabled(False))
        yield


@contextlib.contextmanager
def _written_alone(run: Run | None, processes: Processes) -> Iterator[None]:
    """Keeps other trainings from writing the run folder."""
    if run is None or not processes.first:
        yield
    else:
        with run.written_alone():
            yield


def _check_pair(objective: Objective, batches: Batches, held_out: Batches | None) -> Arguments:
    """Checks the pair and the data before the first step; returns the first batch."""
    first = batches.first()
    objective.check_data(first, batches.constant)
    if held_out is not None:
        objective.check_data(held_out.first(), held_out.constant)
    objective.check_players(first)
    check_sizes(objective.halves)
    _check_last_batch(objective, batches, first)
    warn_of_evaluation_mode(objective.halves)
    return first


def _initialize(
    objective: Objective,
    batches: Batches,
    first: Arguments,
    examples: Callable[[], Iterator[Arguments]],
) -> None:
    """Starts the training of a new pair near the data.

    The pair has passed its checks. If it does not run on the examples all the same, the
    training starts with the weights as they were made.
    """
    pair = objective.pair
    if objective.has_likelihood:
        with contextlib.suppress(*PROGRAM_ERRORS), undone_on_error(*pair):
            start_near(*pair, examples)
    advise(*pair, first, binarize=batches.binarize)
    weighted = getattr(objective.loss, "beta", 1.0) != 1.0  # perhaps by the share of a batch
    if len(batches) > 1 and isinstance(objective.loss, PyroELBO):
        advise_on_order(*pair, first, batches.num_rows)
        if not weighted:
            advise_on_batches(*pair, first, batches.num_rows)


def _check_last_batch(objective: Objective, batches: Batches, first: Arguments) -> None:
    """Raises a ``ValueError`` if the last batch of an epoch is too small for the pair.

    Batch normalization, for example, does not train on a single row.
    """
    rows = batches.rows_of_last
    whole = count_rows(first)
    if (
        rows is None
        or rows >= whole
        or not any(m.training for m in _normalizations(objective))
    ):
        return
    last = each(lambda part: part[:rows], first)
    halves = objective.pair
    try:
        with preserved_rng(), kept_buffers(*halves), torch.no_grad(), poutine.block():
            trace_pair(*halves, last, {})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return
        raise ValueError(
            f"batch_size={batches.batch_size} leaves {rows} row for the last batch of an epoch,"
            " on which batch normalization cannot be trained: give another batch_size."
        ) from error


def _normalizations(objective: Objective) -> list[nn.Module]:
    """The layers of a pair that normalize over a batch."""
    halves = objective.halves.values()
    return [part for part in layers_of(*halves) if isinstance(part, _BatchNorm)]


def _start(
    objective: Objective,
    first: Arguments,
    optimizer: Optimizer,
    compile: bool,
    progress: bool,
) -> TrainingState:
    """Adds the players to the objective; returns the state before the first step."""
    found = find_parameters(*objective.pair, first)
    objective.add_players(found.model, found.guide, found.frozen)
    optimizer.check_players([player.name for player in objective.players])
    optimizer.check_networks(*objective.halves.values())
    if compile:
        # A program that cannot be recorded is trained eagerly.
        objective.compile(report=say if progress else None, fallback=True)
    optimizers = [
        optimizer.make(player.name, player.parameters, captured=objective.is_compiled(player))
        for player in objective.players
    ]
    declared = {"params": found.declared} if found.declared.state_dict() else {}
    given = [optimizer.gives_rate(player.name) for player in objective.players]
    return TrainingState({**objective.halves, **declared}, optimizers, given)


def _config(
    objective: Objective, guide: Program | None, run: Run, settings: Mapping[str, object]
) -> dict[str, object]:
    """The content of ``config.json``.

    Arguments:
        objective: The loss with the model.
        guide: The guide as the user gave it.
        run: The run, with more entries.
        settings: The arguments of ``fit`` to write down.
    """
    described = describe_pair(objective.pair[0], guide)
    own = {"loss": objective.describe(), "training": settings}
    return {**described, **own, **run.settings}


# The arguments of fit that a configuration holds as they are.
_SETTINGS = ("epochs", "batch_size", "binarize", "seed", "shuffle", "autocast")


def _compared(
    own: Sequence[object], trainer: Trainer, batches: Batches, held_out: Batches | None
) -> dict[str, object]:
    """The settings and the description of the data that a resumed run must share."""
    return {
        **dict(zip(_SETTINGS, own, strict=True)),
        "lr": trainer.state.rates,
        "loss": describe_loss(trainer.objective.loss, trainer.schedules.schedules),
        "optimizer": describe_optimizer(trainer.optimizer),
        "data": describe_batches(batches),
        "validation": describe_batches(held_out),
    }


def _summary(history: History, objective: Objective) -> str:
    """A line about the weights that the pair has after the training."""
    last = len(history)
    best = history.best_epoch
    if not objective.ranks_epochs:
        return f"kept the last weights (epoch {last})"
    if history.in_hand == "best":
        return f"restored the best weights (epoch {best} of {last})"
    return f"kept the last weights (epoch {last}; the best was epoch {best})"
