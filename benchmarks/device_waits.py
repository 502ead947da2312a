"""Steps of every method on an accelerator that is not there: none leaves it or waits for it.

Tensors have shapes but no values. Above them every operation is watched: it may not read a
value back to the host, mix tensors of two devices, or copy between devices and wait. The cases
are all methods of the command line with their choices, and the bounds and families.

    python benchmarks/device_waits.py                   # all cases: a minute of one core
    python benchmarks/device_waits.py --every 8         # one in eight

Results are written to ``benchmarks/results/device_waits.json``.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from captured import ROOT, small_method
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tarspyro.commands.methods import METHODS
from tarspyro.infer import CIWAE, ELBO, FIVO, IWAE, PIWAE, Game, PairError, Player, Renyi
from tarspyro.scopes import local_parameters
from tests.accelerator.pretended import NAME, WAITS, register

RESULTS = ROOT / "benchmarks" / "results"
BOUNDS: dict[str, Callable[[], Any]] = {
    "ELBO, 3 particles": lambda: ELBO(3),
    "ELBO, sampled": lambda: ELBO(analytic_kl=False),
    "ELBO, stl": lambda: ELBO(gradient="stl"),
    "ELBO, free bits": lambda: ELBO(free_bits=0.1),
    "IWAE": lambda: IWAE(3, num_groups=2),
    "IWAE, dreg": lambda: IWAE(3, gradient="dreg"),
    "IWAE, in chunks": lambda: IWAE(4, chunk_size=2),
    "IWAE, one by one": lambda: IWAE(2, vectorize_particles=False),
    "PIWAE": lambda: PIWAE(2, 2),
    "CIWAE": lambda: CIWAE(0.3, 3),
    **{
        f"Renyi, {alpha}": functools.partial(Renyi, alpha, 3)
        for alpha in (float("-inf"), -1.0, 0.5, 2.0)
    },
}
FAMILIES = (
    "MultivariateNormal",
    "Laplace",
    "Gamma",
    "Beta",
    "Dirichlet",
    "GumbelSoftmax",
    "GumbelSigmoid",
    "Kumaraswamy",
    "StudentT",
)
Case = tuple[str, dict[str, object], str | None, Callable[[], Any] | None]


def cases() -> Iterator[Case]:
    """Yields all cases: a method, its settings, and another bound than its own."""
    for name, method in METHODS.items():
        choices = {
            setting.name: setting.choices
            for setting in method.settings
            if setting.choices and setting.name not in ("loss", "f", "family")
        }
        options: list[dict[str, object]] = [
            {},
            *({key: value} for key, values in choices.items() for value in values[1:]),
        ]
        extra: list[dict[str, object]] = [{"masking_noise": 0.3}, {"gaussian_noise": 0.3}]
        options += [one for one in extra if one.keys() <= method.options.keys()]
        for number, chosen in enumerate(options):
            yield name, chosen, None, None
            if number == 0 and "loss" in method.options:
                few = BOUNDS if name == "vae" else ["IWAE", "IWAE, dreg"]
                for bound in few:
                    yield name, chosen, bound, BOUNDS[bound]
                if "fivo" in str([s.choices for s in method.settings if s.name == "loss"]):
                    yield name, chosen, "FIVO", lambda: FIVO(3)
        if name == "vae":
            for family in FAMILIES:
                for bound in (None, "IWAE, dreg"):
                    given: dict[str, object] = {"family": family, "latent": 3}
                    yield name, given, bound, None if bound is None else BOUNDS[bound]


class Watch(TorchDispatchMode):
    """Raises on operations that leave the device or wait for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = str(func)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        if any(tensor.device.type == NAME for tensor in given):
            _check(name, args, given)
        result = func(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves(result) if torch.is_tensor(leaf)]
        places = {tensor.device.type for tensor in (*given, *leaves)}
        copies = name.startswith(("aten._to_copy", "aten.copy_"))
        if len(places) > 1 and copies and not kwargs.get("non_blocking"):
            raise RuntimeError(f"{name} between devices waits")
        return result


def _check(name: str, args: tuple[Any, ...], given: list[Tensor]) -> None:
    waits = name.startswith(WAITS)
    if name.startswith(("aten.index.", "aten.index_put")):
        masked = torch.bool in [index.dtype for index in args[1] if index is not None]
        # To fill where a mask is true does not wait.
        waits = masked and (name.startswith("aten.index.") or args[2].dim() > 0)
    if waits:
        raise RuntimeError(f"{name} waits for the device")
    if any(tensor.device.type == "cpu" and tensor.dim() for tensor in given):
        raise RuntimeError(f"{name} meets tensors of two devices")


class WithoutValues(FakeTensorMode):
    """Tensors made of numbers are made on the CPU and moved, which ``Watch`` sees."""

    avoid_device_init = True


def _moved(mode: FakeTensorMode, programs: list[nn.Module]) -> None:
    """Replaces the tensors of modules by others on the device, without values."""
    known: dict[int, Tensor] = {}
    modules = [module for program in programs for module in program.modules()]
    for module in modules:
        if type(module)._apply is not nn.Module._apply and not module._parameters:
            # Such as a transform, which moves its tensors itself.
            module._apply(lambda tensor: mode.from_tensor(tensor).to(NAME))
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for table in tables:
            for name, tensor in table.items():
                if tensor is None or tensor.device.type != "cpu":
                    continue
                if id(tensor) not in known:
                    there = mode.from_tensor(tensor.detach()).to(NAME)
                    trained = isinstance(tensor, nn.Parameter)
                    known[id(tensor)] = (
                        nn.Parameter(there, tensor.requires_grad) if trained else there
                    )
                table[name] = known[id(tensor)]


def step(model: Any, guide: Any, loss: Any, batch: tuple[Tensor, ...]) -> None:
    """Runs a step of all players, and raises if it leaves the device or waits."""
    programs = [part for part in (model, guide, loss) if isinstance(part, nn.Module)]
    loss.prepare(model, guide, batch, {})
    with WithoutValues(allow_non_fake_inputs=True) as mode:
        _moved(mode, programs)
        there = [mode.from_tensor(part).to(NAME) for part in batch]
        own = [
            list(half.parameters()) if isinstance(half, nn.Module) else []
            for half in (model, guide)
        ]
        players = loss.players(*own) if isinstance(loss, Game) else [Player("", loss, None)]  # type: ignore[arg-type]
        for player in players:
            with Watch():
                value, terms = player.loss.loss_and_terms(model, guide, *there)
                value.backward(inputs=player.parameters)
            for name, term in {"loss": value, **terms}.items():
                if term.device.type != NAME:
                    raise RuntimeError(f"the term {name} is on the CPU")


def measure(
    name: str, chosen: dict[str, object], make: Callable[[], Any] | None
) -> str | None:
    """Returns the fault of a case, with its line; None if there is none, and an empty text if
    the bound is not for the pair.
    """
    torch.manual_seed(0)
    built, material = small_method(name, **chosen)
    guide = built.guide or (lambda *data: None)
    source = material.batches
    batch = material.train if isinstance(source, tuple) else next(iter(source))
    loss = built.loss if make is None else make()
    try:
        step(built.model, guide, loss, tuple(part[:6] for part in batch))
    except PairError:
        return ""
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "site-packages" not in frame.filename]
        last = [frame for frame in own if frame.filename != __file__] or own
        reason = str(error).partition("\n")[0]
        return f"{Path(last[-1].filename).name}:{last[-1].lineno}: {reason[:150]}"
    return None


def main() -> None:
    """Prints and writes the faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="one in so many cases")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--only", help="the cases with this in their names")
    parser.add_argument("--out", type=Path, default=RESULTS / "device_waits.json")
    options = parser.parse_args()
    register()
    found: dict[str, str | None] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(local_parameters())
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        chosen_cases = list(cases())[options.first :: options.every]
        for name, chosen, bound, make in chosen_cases:
            settings = "".join(f", {key} {value}" for key, value in chosen.items())
            title = f"{name}{settings}, {bound or 'its own loss'}"
            if options.only and options.only not in title:
                continue
            fault = measure(name, chosen, make)
            if fault != "":
                found[title] = fault
                print(f"{title}: {fault or 'stays'}", flush=True)
    faults = {title: fault for title, fault in found.items() if fault}
    print(f"{len(found)} cases, {len(faults)} faults")
    result = {"torch": torch.__version__, "cases": len(found), "faults": faults}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.flush()
    os._exit(0)  # threads of the device, which autograd has started, abort an ordinary end


if __name__ == "__main__":
    main()
