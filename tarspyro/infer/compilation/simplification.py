"""A recorded graph of a loss and its gradients with fewer operations.

It has no changes of tensors in place where none can be seen, no operations that return their
argument, one matrix product in place of a sum of many, and one draw in place of many alike.
"""

__all__ = ["simplified"]

import operator
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _make_graph_module
from torch.utils import _pytree as pytree

from tarspyro.infer.compilation.graphs import (
    fake_mode_of,
    layout_of,
    merge_equal_operations,
    unstable_nodes,
)
from tarspyro.infer.compilation.repeats import MINIMUM, sums_of

_ATEN = torch.ops.aten
_PARTS = (_ATEN.split.Tensor, _ATEN.unsafe_split.Tensor, _ATEN.unbind.int, _ATEN.chunk.default)
_DRAWS = (
    _ATEN.normal_.default,
    _ATEN.uniform_.default,
    _ATEN.exponential_.default,
    _ATEN.log_normal_.default,
)
# Operations that return the values of their argument. Views that equal their argument are those
# that ``merge_equal_operations`` drops.
_COPIES = (_ATEN.detach.default, _ATEN.clone.default, _ATEN._unsafe_view.default)


def simplified(graph: GraphModule) -> GraphModule:
    """Returns a graph of the same values with fewer operations; the given one stays as it is.

    Draws are distributed as before, but come from another stream of random numbers.
    """
    copy = Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    result = _make_graph_module(graph, copy)
    _change_nothing_in_place(result)
    _select_rows(result)
    _drop_operations_that_do_nothing(result)
    merge_equal_operations(result)
    _sum_in_products(result)
    _draw_at_once(result)
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def _change_nothing_in_place(graph: GraphModule) -> None:
    """Replaces operations in place by those that return a new tensor, where no other node reads
    the changed one.
    """
    positions = {node: position for position, node in enumerate(graph.graph.nodes)}
    sources = {node: _source_of_memory(node) for node in graph.graph.nodes}
    views: dict[Node, list[Node]] = defaultdict(list)
    for node, source in sources.items():
        if source is not None:
            views[source].append(node)

    for node in list(graph.graph.nodes):
        replacement = _without_change(node)
        if replacement is None:
            continue
        if all(
            other.op == "call_function"
            and max((positions[user] for user in other.users), default=0) <= positions[node]
            for other in _sharing_memory(node, sources, views)
        ):
            node.target = replacement


def _without_change(node: Node) -> OpOverload | None:
    """The operation that returns what one in place writes; None if there is none."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return None
    if node.target.namespace != "aten" or node.target in _DRAWS:
        return None
    name = node.target._schema.name.split("::")[1]
    packet = getattr(_ATEN, name.removesuffix("_"), None)
    replacement = getattr(packet, node.target._overloadname, None)
    if not name.endswith("_") or replacement is None:
        return None
    types = {value.dtype for value in map(_value, node.all_input_nodes) if value is not None}
    return replacement if len(types) == 1 else None


def _source_of_memory(node: Node) -> Node | None:
    """The argument whose memory the result of a node may share, or is written to."""
    if node.target is operator.getitem or "unsafe" in str(node.target):
        return node.all_input_nodes[0]
    if not isinstance(node.target, OpOverload):
        return None
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and position < len(node.args):
            value = node.args[position]
            return value if isinstance(value, Node) else None
    return None


def _sharing_memory(
    node: Node, sources: dict[Node, Node | None], views: dict[Node, list[Node]]
) -> Iterator[Node]:
    """Yields the nodes that share memory with the tensor that a node changes, without what comes
    of the changed tensor.
    """
    below: Node | None = None
    current = sources[node]
    while current is not None:
        yield current
        # Parts of a split are apart from each other.
        apart = below is not None and current.target in _PARTS
        for view in [] if apart else views[current]:
            if view is not node and view is not below:
                yield from _with_views(view, views)
        below = current
        current = sources[current]


def _with_views(node: Node, views: dict[Node, list[Node]]) -> Iterator[Node]:
    yield node
    for view in views[node]:
        yield from _with_views(view, views)


def _select_rows(graph: GraphModule) -> None:
    """Replaces ``unbind(x)[i]`` by ``select(x, i)``."""
    for node in list(graph.graph.nodes):
        if node.target is not operator.getitem or node.args[0].target is not _ATEN.unbind.int:
            continue
        source, *dimension = node.args[0].args
        with graph.graph.inserting_before(node):
            row = _call(graph, _ATEN.select.int, source, *dimension or [0], node.args[1])
        node.replace_all_uses_with(row)
        graph.graph.erase_node(node)


def _drop_operations_that_do_nothing(graph: GraphModule) -> None:
    unstable = unstable_nodes(graph)
    for node in list(graph.graph.nodes):
        # The copy of a tensor that is changed in place keeps its former value.
        same = None if node in unstable else _same_value(node)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)


def _same_value(node: Node) -> Node | None:
    """The node with the value of another one; None if it must be computed."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None
    if node.target is _ATEN.t.default and source.target is _ATEN.t.default:
        first = source.args[0]
        return first if isinstance(first, Node) else None
    if node.target is _ATEN.mul.Scalar:
        return source if node.args[1] == 1 and _alike(node, source) else None
    if node.target is _ATEN.slice_backward.default:
        value = _value(source)
        return source if value is not None and list(value.shape) == node.args[1] else None
    if node.target in _COPIES and _alike(node, source):
        return source
    return None


def _sum_in_products(graph: GraphModule) -> None:
    """Replaces sums of matrix products, such as the gradient of a weight that every step of a
    sequence uses, by one product of longer matrices; and sums of sums over rows by one sum.
    """
    for nodes, terms in sums_of(graph, unstable_nodes(graph)):
        last = nodes[-1]
        parts: dict[Hashable, list[Node]] = defaultdict(list)
        for term in terms:
            parts[_kind_of_term(term)].append(term)
        made: list[Node] = []
        with graph.graph.inserting_before(last):
            for kind, group in parts.items():
                if kind is None or len(group) < MINIMUM:
                    made += group
                elif group[0].target is _ATEN.mm.default:
                    made.append(_product(graph, group))
                else:
                    made.append(_sum_of_rows(graph, group))
            if len(made) == len(terms):
                continue
            total = made[0]
            for term in made[1:]:
                total = _call(graph, _ATEN.add.Tensor, total, term)
        last.replace_all_uses_with(total)
    graph.graph.eliminate_dead_code()


def _kind_of_term(term: Node) -> Hashable:
    """The kind of a term: terms of one kind are summed by one product, or one sum over rows."""
    if len(term.users) > 1:
        return None
    if term.target is _ATEN.mm.default:
        first = term.args[0]
        assert isinstance(first, Node)
        return "product" if first.target is _ATEN.t.default else None
    if term.target is _ATEN.view.default:
        rows = term.args[0]
        assert isinstance(rows, Node)
        if rows.target is _ATEN.sum.dim_IntList and rows.args[1:] == ([0], True):
            value = _value(rows.all_input_nodes[0])
            return "rows" if value is not None and value.dim() == 2 else None
    return None


def _product(graph: GraphModule, terms: Sequence[Node]) -> Node:
    """The sum of ``t(g) @ x`` over terms: ``t(G) @ X`` with all rows."""
    left = _concatenated(graph, [term.args[0].args[0] for term in terms])  # type: ignore
    right = _concatenated(graph, [term.args[1] for term in terms])  # type: ignore
    return _call(graph, _ATEN.mm.default, _call(graph, _ATEN.t.default, left), right)


def _sum_of_rows(graph: GraphModule, terms: Sequence[Node]) -> Node:
    rows = _concatenated(graph, [term.args[0].args[0] for term in terms])  # type: ignore
    return _call(graph, _ATEN.sum.dim_IntList, rows, [0])


def _concatenated(graph: GraphModule, nodes: Sequence[Node]) -> Node:
    return _call(graph, _ATEN.cat.default, list(nodes))


def _draw_at_once(graph: GraphModule) -> None:
    """Replaces draws of one distribution and shape by one draw and its rows."""
    alike: dict[Hashable, list[Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if node.target in _DRAWS and isinstance(empty := node.args[0], Node):
            fresh = empty.target is _ATEN.empty.memory_format and len(empty.users) == 1
            if fresh and not node.all_input_nodes[1:]:
                settings = node.target, node.args[1:], node.kwargs, empty.args, empty.kwargs
                alike[repr(settings)].append(node)
    for nodes in alike.values():
        if len(nodes) < MINIMUM:
            continue
        first = nodes[0]
        empty = first.args[0]
        assert isinstance(empty, Node)
        (shape,) = empty.args
        assert isinstance(shape, (list, tuple))
        with graph.graph.inserting_before(first):
            memory = _call(graph, empty.target, [len(nodes), *shape], **empty.kwargs)
            draw = _call(graph, first.target, memory, *first.args[1:], **first.kwargs)
        for row, node in enumerate(nodes):
            with graph.graph.inserting_before(node):
                part = _call(graph, _ATEN.select.int, draw, 0, row)
            node.replace_all_uses_with(part)
            graph.graph.erase_node(node)


def _call(graph: GraphModule, operation: object, *args: object, **kwargs: object) -> Node:
    """A new node, with the form of its value."""
    assert callable(operation)
    node = graph.graph.call_function(operation, args, kwargs)  # type: ignore[arg-type]
    given, named = pytree.tree_map_only(Node, lambda each: each.meta["val"], (args, kwargs))
    with fake_mode_of(graph):
        node.meta["val"] = operation(*given, **named)
    return node


def _value(node: Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if torch.is_tensor(value) else None


def _alike(node: Node, other: Node) -> bool:
    """Whether the tensors of two nodes have the same layout; False if one is not known."""
    value = _value(node)
    other_value = _value(other)
    if value is None or other_value is None:
        return False
    return layout_of(value) == layout_of(other_value)
