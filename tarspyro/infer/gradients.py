"""Leaf tensors of a number, and numbers with precomputed gradients."""

__all__ = ["leaves_of", "reachable_leaves", "with_gradients"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node


def leaves_of(loss: Tensor) -> list[Tensor]:
    """Returns the parameters that a number depends on, in the order of the graph."""
    leaves: dict[int, Tensor] = {}
    stack: list[Node | None] = [loss.grad_fn]
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        stack.extend(function for function, _ in node.next_functions)
    return list(leaves.values())


def reachable_leaves(leaves: Sequence[Tensor]) -> Callable[[Tensor], frozenset[int]]:
    """Returns a function that tells which of the leaves a tensor depends on, by their ``id``.

    The function visits every node of the autograd graph once, however many tensors it is asked
    for.
    """
    wanted = frozenset(id(leaf) for leaf in leaves)
    known: dict[Node, frozenset[int]] = {}

    def reachable(value: Tensor) -> frozenset[int]:
        if value.grad_fn is None:
            return wanted & frozenset([id(value)])
        stack = [value.grad_fn]
        while stack:
            node = stack[-1]
            before = [function for function, _ in node.next_functions if function is not None]
            waiting = [function for function in before if function not in known]
            if node not in known and waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if node not in known:
                own = wanted & frozenset([id(getattr(node, "variable", None))])
                known[node] = own.union(*(known[function] for function in before))
        return known[value.grad_fn]

    return reachable


def with_gradients(
    value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Tensor:
    """Returns a number that autograd differentiates to the given gradients.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> loss = with_gradients(torch.tensor(5.0), [weight], [torch.tensor([1.0, 2.0])])
        >>> (3 * loss).backward()
        >>> weight.grad
        tensor([3., 6.])
    """
    result: Tensor = _WithGradients.apply(value, list(gradients), *parameters)
    return result


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, outer[0])
