"""The training loop: one function over any bound and any game."""

__all__ = ["fit"]

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from tarspyro.arguments import as_count, check_choice, check_positive, format_value
from tarspyro.infer import ELBO, Compiled, Game, PairError, Player
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.traces import name_of, no_guide, trace_pair
from tarspyro.inputs import check_inputs
from tarspyro.nn import GaussianNoise
from tarspyro.runs.description import describe, describe_pair
from tarspyro.runs.folder import Run
from tarspyro.runs.history import Declared, History
from tarspyro.scopes import evaluating, find_device, local_parameters, own_store, preserved_rng
from tarspyro.training.batches import Batches
from tarspyro.training.checks import check_training
from tarspyro.training.counts import Counter
from tarspyro.training.distributed import Processes, join
from tarspyro.training.optimizers import make_optimizer
from tarspyro.training.trainer import Trainer, is_differentiable

_MODAL = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, GaussianNoise)


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None = None,
    data: Any = None,
    *,
    loss: Any = None,
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
    optimizer_options: Mapping[str, Any] | None = None,
    epochs: int = 10,
    batch_size: int = 100,
    steps_per_epoch: int | None = None,
    validation: Any = None,
    binarize: bool = False,
    schedules: Mapping[str, Callable[[int], float]] | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    patience: int | None = None,
    keep: str | None = None,
    folder: str | Path | None = None,
    resume: bool | str = False,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    seed: int | None = None,
    shuffle: bool = True,
    progress: bool = True,
    compile: bool = False,
    autocast: torch.dtype | None = None,
    on_nonfinite: str = "stop",
    checkpoint_steps: int | None = None,
    keep_checkpoints: int = 1,
    callback: Callable[[dict[str, float]], Any] | None = None,
) -> History:
    """Trains a model and a guide, in place, and returns what was measured.

    The loss is divided by the number of data points that it stands for, so that learning
    rates, clipping and the numbers of the history are per data point: the rows of the batch,
    or N where the model's plate makes the batch a subsample of N, ``pyro.plate("data", N,
    subsample=x)``; plates side by side count together. Every batch counts for what it holds,
    the last short one of an epoch and a process's share included. Pyro's global parameter
    store is not touched.

    Modules stay in the mode that they are in: one that is in evaluation mode, such as a frozen
    network with batch normalization, keeps its statistics; a warning says so of a whole half.
    Real numbers, bytes and booleans of the data get the type of the parameters, so that a pair
    in double precision trains in it.

    A game, such as ``tarspyro.infer.Adversarial``, has several players, which move in turn in
    every step, each with an optimizer of its own parameters. None of their losses tells which
    weights are the best, so the last ones are.

    Ctrl-C and SIGTERM end the training of a run after the step that is under way, with a
    checkpoint. Under ``torchrun``, or wherever processes have joined with
    ``torch.distributed``, they train together: ``batch_size`` counts the rows of all, each
    takes its share of every batch with noise of its own, and gradients and measurements are
    those of the whole batch; the first process writes the run, in a folder that all can read.

    Before the first step the pair and the data are checked; Pyro's validation runs on the
    first step of every new shape and is off afterwards.

    Arguments:
        model: The model, a ``StochasticModule`` or any Pyro program.
        guide: The guide, likewise; None for a model without latent variables, or a game that
            needs no guide.
        data: Tensors or arrays (kept on the device), a mapping by argument name, a ``Split``
            or ``Sequences``, a torch ``Dataset``, or an iterable of batches such as a
            ``DataLoader`` or ``Sequences.batches``; or a stream, an iterator of batches of any
            sizes, single rows too, which may never end (see ``steps_per_epoch``).
        loss: Any bound, ``tarspyro.infer.ELBO()`` if not given, or one of ``pyro.infer``; or a
            game. Those of Pyro that torch compiles, such as ``JitTrace_ELBO``, and
            ``TraceTailAdaptive_ELBO``, which has no value, are refused.
        optimizer: The class of a torch optimizer, for all parameters together, or all of a
            player.
        optimizer_options: Its options, such as ``{"lr": 1e-4}``; the learning rate is 1e-3 if
            not given. Under the name of a player, others for its own: ``{"lr": 2e-4,
            "discriminator": {"lr": 1e-4}}``.
        epochs: How many passes over the data in all, those of a resumed run included.
        batch_size: The number of rows of a batch; the last, shorter one of an epoch is trained
            on too.
        steps_per_epoch: How many batches of a stream are called an epoch, after which there is
            a row of the history, a look at the held-out data and a checkpoint. Each batch is
            seen once; with the stream the training ends. A resumed run goes on with whatever
            comes next. Where N is known, the plate of the model says so (see above), so that
            every batch estimates the bound of all N.
        validation: Held-out data, judged after every epoch in evaluation mode with the same
            noise every time.
        binarize: Draw black and white pixels anew for every batch, on the device, with the
            grey values as probabilities. Held-out pixels are drawn once.
        schedules: Functions of the step (0, 1, ...): ``"lr"`` for the learning rate,
            ``"generator_lr"`` for a player's, any other name for an attribute of the loss such
            as ``"beta"``, or else for a fixed parameter such as ``"temperature"`` in the pair.
            Losses under different values are not comparable: the best epoch is then judged by
            the elbo, if the schedule is of the loss and the history has one, and else it is
            the best among those with the last values.
        clip_norm: The largest norm of the whole gradient, or of a player's (applied first).
        clip_value: The largest absolute value of a gradient's entry.
        patience: Stop after so many epochs without a better objective.
        keep: The weights in hand at the end, ``"best"`` or ``"last"``; the best if there is
            validation data.
        folder: A run folder to write; see ``load_run``.
        resume: Go on with the run in ``folder`` where it stopped, in the middle of an epoch
            too; with ``"auto"``, or begin it if there is none. On a CPU and without
            ``compile`` the finished run is then bit by bit what it would have been without the
            stop, if the data's own randomness, such as that of a loader, is torch's.
        overwrite: Replace the run in ``folder``.
        settings: More entries for the run's ``config.json``.
        device: Where to train; ``"auto"`` takes a GPU if there is one.
        seed: Makes the noise and the order of the data those of this seed, and leaves the
            caller's random state as it was. The initial weights are the caller's.
        shuffle: Whether every epoch has another order.
        progress: Whether to show a progress bar.
        compile: Whether to compile the steps, see ``Compiled``, which also makes the steps
            that are slower when compiled go on as they were. It takes from ten seconds to a
            minute; a line says after how many steps it has paid. On a GPU a step, the
            optimizer's part included, is then one CUDA graph. A program that reads values back
            goes on eagerly, with a warning that names the line.
        autocast: The type in which networks compute while they train, such as
            ``torch.bfloat16``. Parameters, draws, densities and evaluations stay as they are.
        on_nonfinite: What to do when a loss or a gradient is not finite: ``"stop"``, or
            ``"skip"`` the step, with a warning that names what went wrong, from the last good
            weights if it has spoiled them; twenty such steps in a row stop too. On a GPU
            ``"skip"`` reads every loss back before the step, where ``"stop"`` reads now and
            then.
        checkpoint_steps: Write a checkpoint after every so many steps too, not only after
            every epoch.
        keep_checkpoints: How many checkpoints to keep: ``state.safetensors``, before it
            ``state-1.safetensors``, ....
        callback: A function that is called after every epoch, once its checkpoint is written,
            with the epoch's row of the history, such as ``TensorBoard(folder)``. It may
            evaluate the pair, and draw what it likes: the training stays the same.

    Returns:
        The history: for every epoch the loss, and for ``ELBO`` the elbo and its two terms, on
        the training data (while it trained) and with the prefix ``validation_`` on the
        held-out data; of a game every player's loss and the norm of its gradient, such as
        ``generator_loss`` and ``generator_gradient``, and what the game adds.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the halves do not match, or a parameter would not be trained.
        NonFiniteError: If a loss is not finite; the weights are then those of the last good
            epoch.
        CollapseError: If a player of a game has won, so that the others learn nothing; the
            weights likewise.
        ProcessError: If another process of the training has died.
        RunError: If ``folder`` holds a run already, or a corrupted one is to be resumed.
        TypeError: If an argument is of another kind than it has to be.
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, data, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [32]), 64))
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(64, [32]), 2))
        >>> history = fit(p, q, data.digits().train, epochs=2, binarize=True, seed=0, progress=False)
        >>> history["elbo"][1] > history["elbo"][0]
        True
    """
    counts = {
        "epochs": epochs,
        "batch_size": batch_size,
        "steps_per_epoch": steps_per_epoch,
        "patience": patience,
        "checkpoint_steps": checkpoint_steps,
        "keep_checkpoints": keep_checkpoints,
    }
    _check_arguments(counts, keep, resume, folder, on_nonfinite)
    check_training(
        model, guide, loss, optimizer, optimizer_options, schedules, settings, autocast
    )
    for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if limit is not None:
            check_positive(name, limit)
    loss = ELBO() if loss is None else loss
    if isinstance(loss, Game) and patience is not None:
        raise ValueError(
            f"patience waits for a better objective, and a game has none, got {patience}:"
            " leave it out."
        )
    described_guide, guide = guide, no_guide if guide is None else guide
    halves: dict[str, Any] = {"model": model, "guide": guide} | (
        {"loss": loss} if isinstance(loss, Game) else {}
    )
    device = join(find_device(device))
    processes = Processes()
    with contextlib.ExitStack() as stack:
        for program in halves.values():
            if isinstance(program, nn.Module):
                program.to(device)
        if seed is not None or processes.size > 1:
            stack.enter_context(preserved_rng(seed))
            processes.vary_noise()
        stack.enter_context(own_store())
        # Bounds without a differentiable loss train what they find in the store, so there it
        # has to be.
        if isinstance(loss, Game) or is_differentiable(loss):
            stack.enter_context(local_parameters())
        stack.enter_context(pyro.validation_enabled(False))
        common: dict[str, Any] = {
            "others": [guide],
            "batch_size": batch_size,
            "device": device,
            "binarize": binarize,
            "processes": processes,
        }
        batches = Batches(
            data, model, shuffle=shuffle, steps_per_epoch=steps_per_epoch, **common
        )
        held_out = (
            None
            if validation is None
            else Batches(validation, model, shuffle=False, pixel_seed=0, **common)
        )
        first = batches.first()
        theirs = isinstance(loss, pyro.infer.ELBO) and not isinstance(loss, Bound)
        pair = None if isinstance(loss, Game) else "names" if theirs else "whole"
        check_inputs(model, guide, first, None if binarize else batches.tensors, pair=pair)
        if held_out is not None:
            check_inputs(
                model,
                guide,
                held_out.first(),
                None if binarize else held_out.tensors,
                pair=pair,
            )
        if isinstance(loss, Game):
            with pyro.validation_enabled(True):
                loss.check(model, guide, *first)
        _warn_of_modes(halves)
        of_model, of_guide, frozen, declared = _parameters(model, guide, first)
        if declared.tensors:
            halves["params"] = declared
        players = _players(loss, of_model, of_guide, frozen)
        if compile and not isinstance(loss, Compiled):
            report = tqdm.write if progress else None
            players = [
                replace(player, loss=Compiled(player.loss, report=report))
                for player in players
            ]
            for player in players:
                player.loss.fallback = (
                    True  # a program that cannot be recorded trains all the same
                )
        trainer = Trainer(
            halves,
            loss,
            list(
                zip(
                    players,
                    _optimizers(players, optimizer, optimizer_options or {}),
                    strict=True,
                )
            ),
            schedules=schedules or {},
            count=Counter(model, guide),
            clip_norm=clip_norm,
            clip_value=clip_value,
            autocast=autocast,
            on_nonfinite=on_nonfinite,
            checkpoint_steps=checkpoint_steps,
            keep_checkpoints=keep_checkpoints,
            run=None if folder is None else Run(folder),
            processes=processes,
            callback=callback,
        )
        if folder is not None:
            described = {
                **describe_pair(model, described_guide),
                "loss": _describe_loss(loss.original if isinstance(loss, Compiled) else loss),
                "training": {
                    "epochs": epochs,
                    "batch_size": batch_size,
                    "binarize": binarize,
                    "seed": seed,
                },
                **(settings or {}),
            }
            trainer.open(described, resume=resume, overwrite=overwrite)
        trainer.train(batches, held_out, epochs, patience, progress)
        history = trainer.history
        history.use(keep or ("last" if validation is None else "best"), model, guide)
    if progress and processes.first:
        tqdm.write(
            f"weights in hand: {history.in_hand} (best epoch {history.best_epoch} of"
            f" {len(history)})"
        )
    return history


def _check_arguments(
    counts: Mapping[str, int | None],
    keep: str | None,
    resume: bool | str,
    folder: str | Path | None,
    on_nonfinite: str,
) -> None:
    for name, value in counts.items():
        if value is not None or name in ("epochs", "batch_size", "keep_checkpoints"):
            as_count(name, value)
    if keep is not None:
        check_choice("keep", keep, ("best", "last"))
    check_choice("on_nonfinite", on_nonfinite, ("stop", "skip"))
    if not (isinstance(resume, bool) or resume == "auto"):
        raise ValueError(f"resume must be True, False or 'auto', got {format_value(resume)}.")
    if not isinstance(folder, str | Path | None):
        raise TypeError(
            f"folder must be the path of a run folder, got {format_value(folder)}."
        )
    if resume and folder is None:
        raise ValueError(
            f"resume={resume!r} needs the folder of the run to go on with, folder=..."
        )


def _warn_of_modes(halves: Mapping[str, Any]) -> None:
    """Says that a half as a whole is in evaluation mode, where that makes a difference:
    perhaps it was forgotten.
    """
    for name, half in halves.items():
        if (
            isinstance(half, nn.Module)
            and not half.training
            and any(isinstance(m, _MODAL) for m in half.modules())
        ):
            warnings.warn(
                f"The {name}, {name_of(half)}, is in evaluation mode and stays in it: its"
                " dropout and batch normalization rest. Call its method train() before fit if"
                " they should not.",
                stacklevel=3,
            )


def _players(
    loss: Any, model: list[Tensor], guide: list[Tensor], frozen: list[Tensor]
) -> list[Player]:
    """The players of a game, or a bound as the only one, without a name."""
    # What is frozen may be unfrozen on the way: an optimizer leaves alone what has no
    # gradient.
    one = [Player("", loss, [*model, *guide, *frozen])]
    players = loss.players(model, guide) if isinstance(loss, Game) else one
    for player in players:
        if not any(parameter.requires_grad for parameter in player.parameters):
            who = f"The {player.name} has" if player.name else "The model and the guide have"
            raise PairError(f"{who} no parameters to train.")
    return players


def _optimizers(
    players: Sequence[Player], optimizer: Callable[..., Optimizer], options: Mapping[str, Any]
) -> list[Optimizer]:
    """An optimizer for every player, with its own options over those of all."""
    of_players = {name: value for name, value in options.items() if isinstance(value, Mapping)}
    names = [player.name for player in players]
    for name in of_players:
        if name not in names:
            known = ", ".join(names) if any(names) else "those of a game, and a bound has none"
            raise ValueError(
                f"optimizer_options has {name!r}, which is no player: the players are {known}."
            )
    common = {name: value for name, value in options.items() if name not in of_players}
    return [
        make_optimizer(
            player.parameters,
            optimizer,
            {**common, **of_players.get(player.name, {})},
            captured=isinstance(player.loss, Compiled),
        )
        for player in players
    ]


def _parameters(
    model: Any, guide: Any, arguments: Sequence[Any]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Declared]:
    """The parameters of the model and of the guide, those that both have among the model's;
    those of both that are frozen; and, by name, what functions declare with ``pyro.param`` and
    ``pyro.module``.
    """
    own = {
        id(p): p
        for half in (model, guide)
        if isinstance(half, nn.Module)
        for p in half.parameters()
    }
    with preserved_rng(), evaluating(model, guide), poutine.trace(param_only=True) as capture:
        trace_pair(model, guide, arguments, {})
    with preserved_rng(), evaluating(model, guide), poutine.trace(param_only=True) as guided:
        guide(*arguments)
    sites: dict[str, Any] = {name: site["value"] for name, site in capture.trace.nodes.items()}
    unconstrained = {name: value.unconstrained() for name, value in sites.items()}
    declared = {name: value for name, value in unconstrained.items() if id(value) not in own}
    in_guide = {
        id(unconstrained[name]) for name in guided.trace.nodes if name in unconstrained
    }
    if isinstance(guide, nn.Module):
        in_guide |= {id(parameter) for parameter in guide.parameters()}
    if isinstance(model, nn.Module):
        in_guide -= {id(parameter) for parameter in model.parameters()}
    everything = own | {id(value): value for value in declared.values()}
    trained = {
        key: parameter for key, parameter in everything.items() if parameter.requires_grad
    }
    return (
        [parameter for key, parameter in trained.items() if key not in in_guide],
        [parameter for key, parameter in trained.items() if key in in_guide],
        [p for key, p in everything.items() if key not in trained and p.is_floating_point()],
        Declared(declared),
    )


def _describe_loss(loss: Any) -> Any:
    try:
        return describe(loss)
    except TypeError:
        return {"unavailable": repr(loss)}
