"""Repeated operations of a recorded program, computed as one operation on stacked tensors.

A program of T steps repeats its operations T times: it runs the same decoder on the latent
variables of each step, and adds T log densities of the same form. Where no repetition depends
on another one, their arguments can be stacked, and one operation does the work of T. The graph
becomes shorter, compiles in less time, and has fewer and larger matrix products. What depends
on the step before, such as a recurrence, stays as it is.
"""

__all__ = ["MINIMUM", "OperationKeys", "RepeatedOperations", "form_of", "sums_of"]

import heapq
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from tarspyro.infer.compilation.graphs import changed_nodes, constant_of, is_product, is_pure

# Fewer repetitions are not worth a stack.
MINIMUM = 4
# How many operations back two operations must agree, to be repetitions of each other.
DEPTH = 8

_ADD = torch.ops.aten.add.Tensor
_SELECT = torch.ops.aten.select.int


class RepeatedOperations:
    """A graph as a function that computes its repeated operations at once.

    Arguments:
        graph: The graph, see ``record``.

    Attributes:
        saved_products: How many matrix products, convolutions and recurrent cells become part
            of others.
    """

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self._units = _units(graph)
        self.saved_products = sum(
            len(unit.nodes) - 1 for unit in self._units if is_product(unit.nodes[0])
        )

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Returns what the graph returns."""
        values = _Values()
        remaining = iter(inputs)
        result: Sequence[Tensor] = ()
        for unit in self._units:
            node = unit.nodes[-1]
            if unit.terms:
                values.add(node, values.stacked(unit.terms).sum(0))
            elif len(unit.nodes) > 1:
                values.add_group(unit.nodes, _at_once(unit.nodes, values))
            elif node.op == "placeholder":
                values.add(node, next(remaining))
            elif node.op == "get_attr":
                values.add(node, constant_of(self.graph, node))
            elif node.op == "call_function":
                args, kwargs = pytree.tree_map_only(Node, values.of, (node.args, node.kwargs))
                values.add(node, _function(node)(*args, **kwargs))
            else:
                result = pytree.tree_map_only(Node, values.of, node.args[0])
        return result


class _Unit(NamedTuple):
    """Nodes that are computed together: one alone, repetitions of an operation, or a sum of
    many terms.
    """

    nodes: tuple[Node, ...]
    terms: tuple[Node, ...] = ()

    def inputs(self) -> Iterator[Node]:
        """Yields the nodes whose values are needed."""
        yield from self.terms
        if not self.terms:
            for node in self.nodes:
                yield from node.all_input_nodes


class _Values:
    """The values of a graph's nodes; those of a group are the rows of one tensor."""

    def __init__(self) -> None:
        self._values: dict[Node, Any] = {}
        self._places: dict[Node, tuple[tuple[Node, ...], int]] = {}
        self._groups: dict[tuple[Node, ...], Any] = {}
        self._stacks: dict[tuple[Node, ...], Tensor] = {}

    def add(self, node: Node, value: object) -> None:
        """Adds the value of a node."""
        self._values[node] = value

    def add_group(self, group: tuple[Node, ...], value: object) -> None:
        """Adds the stacked values of the nodes of a group, a tensor or a list of tensors."""
        self._groups[group] = value
        for row, node in enumerate(group):
            self._places[node] = group, row

    def of(self, node: Node) -> Any:
        """Returns the value of a node."""
        if node not in self._values:
            group, _ = self._places[node]
            value = self._groups[group]
            # All rows by one operation, whose derivative is one stack.
            rows: Sequence[object] = (
                value.unbind()
                if torch.is_tensor(value)
                else [*zip(*(part.unbind() for part in value), strict=True)]
            )
            self._values.update(zip(group, rows, strict=True))
        return self._values[node]

    def of_group(self, group: tuple[Node, ...]) -> Any:
        """Returns the stacked values of the nodes of a group."""
        return self._groups[group]

    def stacked(self, nodes: Sequence[Node]) -> Tensor:
        """Returns the values of nodes, which are tensors, as the rows of one tensor."""
        nodes = tuple(nodes)
        if nodes not in self._stacks:
            parts = [self._part(nodes[start:end]) for start, end in self._runs(nodes)]
            self._stacks[nodes] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._stacks[nodes]

    def _runs(self, nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
        """Yields the bounds of the longest parts that are successive rows of one group, or in
        no group.
        """
        start = 0
        for end in range(1, len(nodes) + 1):
            if end == len(nodes) or not self._follows(nodes[end - 1], nodes[end]):
                yield start, end
                start = end

    def _follows(self, node: Node, other: Node) -> bool:
        if node not in self._places or other not in self._places:
            return node not in self._places and other not in self._places
        group, row = self._places[node]
        return self._places[other] == (group, row + 1)

    def _part(self, nodes: Sequence[Node]) -> Tensor:
        if nodes[0] not in self._places:
            return torch.stack([self.of(node) for node in nodes])
        group, row = self._places[nodes[0]]
        rows: Tensor = self._groups[group][row : row + len(nodes)]
        return rows


def _at_once(group: tuple[Node, ...], values: _Values) -> object:
    """Returns the stacked values of a group's nodes."""
    first = group[0]
    if first.target is _SELECT:
        source, dimension, start = first.args
        assert isinstance(source, Node)
        assert isinstance(start, int)
        return values.of(source).movedim(dimension, 0)[start : start + len(group)]
    if first.target is operator.getitem:
        return values.of_group(_sources(group))[first.args[1]]

    arguments, spec = pytree.tree_flatten((first.args, first.kwargs))
    columns = zip(
        *(pytree.tree_leaves((node.args, node.kwargs)) for node in group), strict=True
    )
    stacks: dict[int, Tensor] = {}
    for position, column in enumerate(columns):
        if not isinstance(column[0], Node):
            continue
        if len(set(column)) > 1:
            stacks[position] = values.stacked(column)
        else:
            arguments[position] = values.of(column[0])

    def operation(*rows: Tensor) -> object:
        given = [*arguments]
        for position, row in zip(stacks, rows, strict=True):
            given[position] = row
        args, kwargs = pytree.tree_unflatten(given, spec)
        return _function(first)(*args, **kwargs)

    with warnings.catch_warnings():
        # Where torch would run an operation row by row, it warns, and nothing is gained.
        warnings.simplefilter("error")
        return torch.vmap(operation)(*stacks.values())


def _function(node: Node) -> Callable[..., Any]:
    assert callable(node.target)
    return node.target


def _sources(group: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes whose parts a group of ``getitem`` takes."""
    return tuple(node.all_input_nodes[0] for node in group)


def _units(graph: GraphModule) -> list[_Unit]:
    """All nodes of a graph as units, in an order in which they can be computed."""
    ordered = _ordered_nodes(graph)
    groups = [
        *_repetitions(graph, ordered),
        *(_Unit(nodes, terms) for nodes, terms in sums_of(graph, set(ordered))),
    ]
    while True:
        known = {unit.nodes for unit in groups}
        groups = [
            unit
            for unit in groups
            if unit.nodes[0].target is not operator.getitem or _sources(unit.nodes) in known
        ]
        units = _with_singles(graph, groups)
        order = _in_order(units, ordered)
        if len(order) == len(units):
            return order
        # Two groups need rows of each other: the smallest of them is computed one by one.
        done = set(order)
        groups.remove(min((unit for unit in groups if unit not in done), key=_size))


def _size(unit: _Unit) -> int:
    return len(unit.nodes)


def _with_singles(graph: GraphModule, groups: Sequence[_Unit]) -> list[_Unit]:
    """Groups and all other nodes, in the order of their last nodes."""
    last = {unit.nodes[-1]: unit for unit in groups}
    grouped = {node for unit in groups for node in unit.nodes}
    return [
        last.get(node, _Unit((node,)))
        for node in graph.graph.nodes
        if node in last or node not in grouped
    ]


def _ordered_nodes(graph: GraphModule) -> list[Node]:
    """The nodes that must stay in their order: random draws, and all that changes a tensor or
    reads one that is changed.
    """
    changed = changed_nodes(graph)
    return [
        node
        for node in graph.graph.nodes
        if node.op == "output"
        or node in changed
        or changed.intersection(node.all_input_nodes)
        or (node.op == "call_function" and not is_pure(node))
    ]


def _in_order(units: Sequence[_Unit], ordered: Sequence[Node]) -> list[_Unit]:
    """The units in an order in which they can be computed, without those that cannot."""
    unit_of = {node: number for number, unit in enumerate(units) for node in unit.nodes}
    needs = [{unit_of[node] for node in unit.inputs()} for unit in units]
    for node, following in pairwise(ordered):
        needs[unit_of[following]].add(unit_of[node])

    users: dict[int, list[int]] = defaultdict(list)
    for number, needed in enumerate(needs):
        for other in needed:
            users[other].append(number)
    missing = [len(needed) for needed in needs]
    ready = [number for number, count in enumerate(missing) if count == 0]
    order = []
    while ready:
        number = heapq.heappop(ready)
        order.append(units[number])
        for user in users[number]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, user)
    return order


def _repetitions(graph: GraphModule, ordered: Sequence[Node]) -> Iterator[_Unit]:
    """Yields the repetitions of each operation that do not depend on each other."""
    kept = set(ordered)
    keys = OperationKeys(graph)
    kinds: dict[Hashable, list[Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        repeatable = isinstance(node.target, OpOverload) or node.target is operator.getitem
        if node.op == "call_function" and repeatable and node not in kept:
            kinds[keys.of(node)].append(node)
    positions = {node: position for position, node in enumerate(graph.graph.nodes)}
    ancestors = _ancestors(graph)
    for nodes in kinds.values():
        if len(nodes) < MINIMUM or (nodes[0].target is _SELECT and not _successive(nodes)):
            continue
        members = sum(1 << positions[node] for node in nodes)
        if not any(ancestors[node] & members for node in nodes):
            yield _Unit(tuple(nodes))


def _ancestors(graph: GraphModule) -> dict[Node, int]:
    """The nodes that each node depends on; bit i of a number stands for the i-th node."""
    ancestors: dict[Node, int] = {}
    bits: dict[Node, int] = {}
    for position, node in enumerate(graph.graph.nodes):
        bits[node] = 1 << position
        ancestors[node] = 0
        for source in node.all_input_nodes:
            ancestors[node] |= ancestors[source] | bits[source]
    return ancestors


def _successive(nodes: Sequence[Node]) -> bool:
    """Whether nodes select successive entries of one tensor."""
    start = nodes[0].args[2]
    return isinstance(start, int) and all(
        node.args == (*nodes[0].args[:2], start + step) and start >= 0
        for step, node in enumerate(nodes)
    )


class OperationKeys:
    """Keys of operations, equal for repetitions: the operation, its constants, shapes,
    parameters, and the same of the operations before it.

    Arguments:
        graph: The graph.
    """

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self._known: dict[tuple[Node, int], int] = {}
        self._numbers: dict[Hashable, int] = {}

    def of(self, node: Node) -> int:
        """Returns the key of a node."""
        return self._of(node, DEPTH)

    def _of(self, node: Node, depth: int) -> int:
        # A number for each key: the keys themselves are deep, and slow to compare.
        if (node, depth) not in self._known:
            found = self._found(node, depth)
            self._known[node, depth] = self._numbers.setdefault(found, len(self._numbers))
        return self._known[node, depth]

    def _found(self, node: Node, depth: int) -> Hashable:
        if node.op == "get_attr":
            return id(constant_of(self.graph, node))
        if node.op != "call_function":
            return node.name
        shape = form_of(node.meta.get("val"))
        # Before a product its parameters tell what it is; what comes in may differ, as the
        # state of a recurrence does at its first step.
        below = -1 if is_product(node) else depth - 1
        if depth < 0 or (depth == 0 and not is_product(node)):
            return shape
        arguments, spec = pytree.tree_flatten((node.args, node.kwargs))
        if node.target is _SELECT:
            arguments = arguments[:2]
        return (
            str(node.target),
            shape,
            str(spec),
            *(
                self._of(value, below) if isinstance(value, Node) else repr(value)
                for value in arguments
            ),
        )


def form_of(value: object) -> Hashable:
    """The shape and type of a tensor, or of each in a list."""
    if torch.is_tensor(value):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(form_of(part) for part in value)
    return repr(value)


def sums_of(
    graph: GraphModule, kept: Collection[Node] = ()
) -> Iterator[tuple[tuple[Node, ...], tuple[Node, ...]]]:
    """Yields the sums of many terms of one shape, added one after the other: their additions,
    and their terms.

    Arguments:
        graph: The graph.
        kept: Nodes that are not part of a sum.
    """
    inner: set[Node] = set()
    for last in reversed(graph.graph.nodes):
        if last in inner or not _is_plain_sum(last) or last in kept:
            continue
        nodes = [last]
        terms: list[Node] = [last.args[1]]
        while (first := nodes[-1].args[0]) and _is_plain_sum(first) and len(first.users) == 1:
            if first in kept:
                break
            nodes.append(first)
            terms.append(first.args[1])
        terms.append(nodes[-1].args[0])
        if len(terms) >= MINIMUM:
            inner.update(nodes)
            yield tuple(reversed(nodes)), tuple(reversed(terms))


def _is_plain_sum(node: Node) -> bool:
    """Whether a node adds two tensors of the shape and type of the result."""
    return (
        node.target is _ADD
        and not node.kwargs
        and all(
            isinstance(term, Node)
            and form_of(term.meta.get("val")) == form_of(node.meta.get("val"))
            for term in node.args
        )
    )
