"""Optimizers of torch: made with the options that suit a step, and their states as one."""

__all__ = ["load_states", "make_optimizer", "states_of"]

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def make_optimizer(
    parameters: Sequence[Tensor],
    optimizer: Callable[..., Optimizer],
    options: Mapping[str, Any],
    *,
    captured: bool,
) -> Optimizer:
    """Returns an optimizer of the parameters; ``captured`` steps may become part of a CUDA
    graph.
    """
    options = {"lr": 1e-3, **options}
    if (
        optimizer in (torch.optim.Adam, torch.optim.AdamW)
        and not {"foreach", "fused", "capturable"} & options.keys()
    ):
        # One pass over all parameters instead of a dozen; torch has it for these two devices.
        options["fused"] = all(
            p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters
        )
    device = parameters[0].device
    if (
        captured
        and device.type == "cuda"
        and "capturable" in inspect.signature(optimizer).parameters
    ):
        # Its step becomes part of a CUDA graph, which reads the rate and the count of steps on
        # the device.
        options |= {
            "capturable": True,
            "lr": torch.tensor(float(options["lr"]), device=device),
        }
    try:
        return optimizer(parameters, **options)
    except (TypeError, ValueError) as error:
        name = getattr(optimizer, "__name__", "the optimizer")
        raise type(error)(
            f"optimizer_options do not suit {name}: {str(error).rstrip('.')}."
        ) from error


def states_of(optimizers: Sequence[Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the states of several optimizers as that of one, all parameters counted through:
    tensors, and values.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    start = 0
    for optimizer in optimizers:
        state = optimizer.state_dict()
        for group in state["param_groups"]:
            values = {
                name: float(value) if torch.is_tensor(value) else value
                for name, value in group.items()
            }
            groups.append(values | {"params": [start + index for index in group["params"]]})
        for index, entries in state["state"].items():
            for name, value in entries.items():
                kept: dict[str, Any] = tensors if torch.is_tensor(value) else numbers
                kept[f"{start + index}.{name}"] = value
        start += sum(len(group["params"]) for group in state["param_groups"])
    return tensors, {"param_groups": groups, "numbers": numbers}


def load_states(
    optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Puts what ``states_of`` returned into optimizers of the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**values["numbers"], **tensors}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups, start = list(values["param_groups"]), 0
    for optimizer in optimizers:
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        own = [groups.pop(0) for _ in optimizer.param_groups]
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(
            {
                "state": {
                    index - start: entries
                    for index, entries in state.items()
                    if 0 <= index - start < count
                },
                "param_groups": [
                    g | {"params": [index - start for index in g["params"]]} for g in own
                ],
            }
        )
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if torch.is_tensor(rate):
                group["lr"] = rate.fill_(group["lr"])
        start += count
