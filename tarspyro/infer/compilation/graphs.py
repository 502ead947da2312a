"""Changes of recorded graphs: merged operations, memory layouts, lifted constants."""

__all__ = [
    "changed_nodes",
    "constant_of",
    "constants_of",
    "count_products",
    "fake_mode_of",
    "is_product",
    "is_pure",
    "lay_out_convolutions",
    "layout_of",
    "lift_constants",
    "merge_equal_operations",
    "unstable_nodes",
]

import operator
from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node

_DETACH = torch.ops.aten.detach.default
# They return a view of each tensor in a list.
_VIEWS_OF_EACH = (
    torch.ops.aten.broadcast_tensors.default,
    torch.ops.aten.atleast_1d.Sequence,
    torch.ops.aten.atleast_2d.Sequence,
    torch.ops.aten.atleast_3d.Sequence,
)
_PRODUCTS = ("linear", "matmul", "mm", "mv", "conv", "gru", "lstm", "rnn")


def merge_equal_operations(graph: GraphModule) -> GraphModule:
    """Computes equal operations once and drops unused ones; returns the graph, which is
    changed in place.

    Random draws are never equal. Operations on tensors that are changed in place stay as they
    are.
    """
    unstable = unstable_nodes(graph)
    known: dict[object, Node] = {}
    for node in list(graph.graph.nodes):
        key: object
        if node.op == "get_attr":
            key = id(constant_of(graph, node))
        elif node.op == "call_function" and is_pure(node):
            key = (node.target, repr(node.args), repr(node.kwargs))
        else:
            continue
        if node in unstable:
            continue
        same = known.get(key) or _argument_returned_by(node)
        if same is not None:
            _replace(graph, node, same)
        else:
            known[key] = node
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _replace(graph: GraphModule, node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    graph.graph.erase_node(node)


def unstable_nodes(graph: GraphModule) -> set[Node]:
    """Returns the nodes whose values depend on when they are computed: tensors that are changed
    in place, and what pure operations make of them, which may be views.
    """
    unstable = changed_nodes(graph)
    for node in graph.graph.nodes:
        if node.op == "call_function" and is_pure(node):
            if unstable.intersection(node.all_input_nodes):
                unstable.add(node)
    return unstable


def changed_nodes(graph: GraphModule) -> set[Node]:
    """Returns the nodes whose tensors are changed in place, views included."""
    changed: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        changed.update(_aliases(node, written=True))
        if node in changed:  # then the tensor of which it is a view is changed, too
            changed.update(_aliases(node, written=False))
    constants = [node for node in graph.graph.nodes if node.op == "get_attr"]
    # Several nodes may stand for the same tensor.
    tensors = {id(constant_of(graph, node)) for node in constants if node in changed}
    changed.update(node for node in constants if id(constant_of(graph, node)) in tensors)
    return changed


def _argument_returned_by(node: Node) -> Node | None:
    """Returns the argument that a view equals, such as a vector flattened; None if it differs.

    Without the view, further operations on it and on its argument are equal.
    """
    source: object = node.args[0] if node.args else None
    if node.target is operator.getitem and isinstance(source, Node):
        if source.target not in _VIEWS_OF_EACH:
            return None
        # An equal result is the argument itself: what comes later was recorded as its user.
        source = source.args[0][node.args[1]]  # type: ignore[index]
    elif not isinstance(node.target, OpOverload) or node.target is _DETACH:
        return None
    else:
        returned = node.target._schema.returns
        if not returned or returned[0].alias_info is None:
            return None
    if not isinstance(source, Node):
        return None
    view = node.meta.get("val")
    value = source.meta.get("val")
    if not torch.is_tensor(view) or not torch.is_tensor(value):
        return None
    same_start = view.storage_offset() == value.storage_offset()
    return source if same_start and layout_of(view) == layout_of(value) else None


def layout_of(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    """Returns shape, strides and type of a tensor."""
    return tensor.shape, tensor.stride(), tensor.dtype


def _aliases(node: Node, *, written: bool) -> Iterator[Node]:
    """Yields the arguments that an operation writes to, or those that its result may share
    memory with.
    """
    # Operations such as unsafe_split return views of their input, though their signatures
    # deny it.
    if not written and (node.target is operator.getitem or "unsafe" in str(node.target)):
        yield from node.all_input_nodes
    if not isinstance(node.target, OpOverload):
        return
    for position, argument in enumerate(node.target._schema.arguments):
        alias = argument.alias_info
        if alias is None or (written and not alias.is_write):
            continue
        by_position = node.args[position] if position < len(node.args) else None
        value = node.kwargs.get(argument.name, by_position)
        if isinstance(value, Node):
            yield value


def is_pure(node: Node) -> bool:
    """Whether an operation gives equal results for equal arguments, and changes nothing."""
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or node.target._schema.is_mutable:
        return False
    draws = torch.Tag.nondeterministic_seeded in node.target.tags
    # Batch normalization changes its statistics, though its signature does not say so.
    return not draws and "batch_norm" not in str(node.target)


def lay_out_convolutions(graph: GraphModule) -> bool:
    """Puts the channels of two-dimensional convolutions on a CPU last in memory; returns
    whether there are any.

    With the channels last, the library of convolutions and the compiler's loops agree. With
    the channels first, the compiler writes every feature map up to three times, once for each
    layout that an operation asks for.
    """
    weights: dict[Node, Tensor | None] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and "conv" in str(node.target):
            weight = node.args[1]
            if isinstance(weight, Node):
                weights[weight] = weight.meta.get("val")
    found = False
    for weight, value in weights.items():
        if value is not None and value.dim() == 4 and value.device.type == "cpu":
            with graph.graph.inserting_after(weight):
                copy = graph.graph.call_function(
                    torch.ops.aten.clone.default,
                    (weight,),
                    {"memory_format": torch.channels_last},
                )
            weight.replace_all_uses_with(copy, partial(operator.is_not, copy))
            found = True
    graph.recompile()
    return found


def lift_constants(graph: GraphModule) -> list[Tensor]:
    """Makes the tensors that a graph holds its last inputs; returns them."""
    held: dict[int, tuple[Tensor, Node]] = {}
    names: set[str] = set()
    fake = fake_mode_of(graph)
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = constant_of(graph, node)
        names.add(str(node.target))
        if id(tensor) not in held:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"held_{len(held)}")
            last.meta["val"] = fake.from_tensor(tensor.detach(), static_shapes=True)
            held[id(tensor)] = tensor, last
        _replace(graph, node, held[id(tensor)][1])
    for name in names:
        delattr(graph, name)
    graph.recompile()
    return [tensor for tensor, _ in held.values()]


def fake_mode_of(graph: GraphModule) -> FakeTensorMode:
    """Returns the mode of the tensors without values that a graph was recorded with."""
    values = (node.meta.get("val") for node in graph.graph.nodes)
    return next(value.fake_mode for value in values if isinstance(value, FakeTensor))


def constants_of(graph: GraphModule) -> list[Tensor]:
    """Returns the tensors that a graph holds."""
    return [constant_of(graph, node) for node in graph.graph.nodes if node.op == "get_attr"]


def constant_of(graph: GraphModule, node: Node) -> Tensor:
    """Returns the tensor that a node of a graph stands for."""
    tensor: Tensor = getattr(graph, str(node.target))
    return tensor


def count_products(graph: GraphModule) -> int:
    """Returns the number of matrix products, convolutions and recurrent cells."""
    return sum(is_product(node) for node in graph.graph.nodes)


def is_product(node: Node) -> bool:
    """Whether a node is a matrix product, a convolution or a recurrent cell."""
    return node.op == "call_function" and _is_product(node.target)


@cache
def _is_product(target: object) -> bool:
    return any(kind in str(target) for kind in _PRODUCTS)
