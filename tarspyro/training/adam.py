"""Steps of torch's fused Adam with little work of the host."""

__all__ = ["FusedAdam"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import optimizer as hooks


class _Group(NamedTuple):
    """The parameters of a group, and what Adam keeps for each of them."""

    options: dict[str, Any]
    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    largest_squares: list[Tensor]
    steps: list[Tensor]

    @classmethod
    def of(
        cls,
        options: dict[str, Any],
        states: Mapping[Tensor, dict[str, Tensor]],
    ) -> "_Group":
        """Returns the group of torch's dictionary, with the states of its parameters."""
        held = [states[parameter] for parameter in options["params"]]
        return cls(
            options,
            list(options["params"]),
            [state["exp_avg"] for state in held],
            [state["exp_avg_sq"] for state in held],
            [state["max_exp_avg_sq"] for state in held if "max_exp_avg_sq" in state],
            [state["step"] for state in held],
        )

    def update(self, gradients: list[Tensor]) -> None:
        """Updates the parameters by their gradients."""
        options = self.options
        beta1, beta2 = options["betas"]
        decoupled = options["decoupled_weight_decay"]
        torch._foreach_add_(self.steps, 1)
        (torch._fused_adamw_ if decoupled else torch._fused_adam_)(
            self.parameters,
            gradients,
            self.means,
            self.squares,
            self.largest_squares,
            self.steps,
            amsgrad=options["amsgrad"],
            lr=options["lr"],
            beta1=float(beta1),
            beta2=float(beta2),
            weight_decay=options["weight_decay"],
            eps=options["eps"],
            maximize=options["maximize"],
        )


class FusedAdam:
    """The step of a fused ``torch.optim.Adam`` or ``AdamW`` on a CPU.

    It calls the operation that ``optimizer.step()`` comes down to, with the same tensors, but looks
    these up once instead of in every step. State, learning rates and options stay the optimizer's.

    Arguments:
        optimizer: The optimizer, one that ``suits``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._groups: list[_Group] = []
        self._state: object = None  # the dictionary that the groups are from

    @staticmethod
    def suits(optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step of an optimizer is one of torch's fused Adam and nothing more."""
        return (
            type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
            and not (hooks._global_optimizer_pre_hooks or hooks._global_optimizer_post_hooks)
            and all(
                group["fused"] and all(each.device.type == "cpu" for each in group["params"])
                for group in optimizer.param_groups
            )
        )

    def __call__(self) -> None:
        """Makes a step."""
        if self._state is not self.optimizer.state:
            self._find_groups()
        gradients = [[each.grad for each in group.parameters] for group in self._groups]
        if not gradients or any(each is None for given in gradients for each in given):
            self.optimizer.step()
            return
        with torch.no_grad():
            for group, given in zip(self._groups, gradients, strict=True):
                group.update(given)  # type: ignore[arg-type]

    def _find_groups(self) -> None:
        """Looks the tensors up, if every parameter has made its first step."""
        self._groups = []
        states = self.optimizer.state
        groups = self.optimizer.param_groups
        if not all(states.get(each) for group in groups for each in group["params"]):
            return
        self._state = states
        self._groups = [_Group.of(group, states) for group in groups]
