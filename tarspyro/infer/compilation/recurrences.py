"""Recurrences of a recorded graph: the step of each is compiled once and called for every step.

The graph of a program of T steps contains its recurrence T times, forward and backward. A
compiler that gets all of it works for a time that grows with T. Here the graph is split: what
comes before the recurrence, its step, what comes between the steps forward and backward, and
so on. Each part is compiled once, whatever T is.

Operations are of one class if they are repetitions of each other (``repeats.py``). The classes
that lie on a common cycle are a recurrence: what an operation of step t feeds comes back to the
same operation of step t + 1.
"""

__all__ = ["in_parts"]

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from tarspyro.infer.compilation.graphs import is_product, is_pure, layout_of
from tarspyro.infer.compilation.repeats import OperationKeys, form_of
from tarspyro.scopes import preserved_rng

# A shorter recurrence is compiled as it stands.
MINIMUM_STEPS = 5
# How many steps back a step may read.
LONGEST_LAG = 3

TensorFunction: TypeAlias = Callable[..., Sequence[Tensor]]
Compiler: TypeAlias = Callable[[GraphModule, Sequence[Tensor]], TensorFunction]

_ATEN = torch.ops.aten


def in_parts(
    graph: GraphModule, inputs: Sequence[Tensor], compiler: Compiler
) -> TensorFunction | None:
    """Compiles a graph in parts, the step of each recurrence once.

    Arguments:
        graph: The graph, see ``simplified``; it stays as it is.
        inputs: Tensors of the shapes that the parts will be for.
        compiler: Makes a function of a graph, for tensors of some shapes.

    Returns:
        The function; None if the graph has no recurrence of at least ``MINIMUM_STEPS`` steps,
        or changes tensors in place.
    """
    if any(_changes(node) for node in graph.graph.nodes):
        return None
    loops = [*_loops(graph)]
    function = _InParts.of(graph, loops) if loops else None
    if function is None or not function.compile(inputs, compiler):
        return None
    return function


class _InParts:
    """A graph as a function that runs segments and loops in turn."""

    def __init__(self, graph: GraphModule, parts: "Sequence[_Segment | _Loop]") -> None:
        self._inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self._results = graph.graph.output_node().args[0]
        self._parts = parts
        self._done = self._last_reads()

    @classmethod
    def of(cls, graph: GraphModule, loops: "Sequence[_Loop]") -> "_InParts | None":
        """Returns the parts of a graph; None if steps of a loop need what others come of."""
        stages = _stages(graph, loops)
        if stages is None:
            return None
        loop_of = {node: loop for loop in loops for step in loop.steps for node in step}
        segments: dict[int, list[Node]] = defaultdict(list)
        for node in graph.graph.nodes:
            if node.op == "call_function" and node not in loop_of:
                segments[stages[node]].append(node)
        needed = {*graph.graph.output_node().all_input_nodes}
        for loop in loops:
            needed.update(loop.inputs)
        parts: dict[int, list[_Segment | _Loop]] = defaultdict(list)
        for stage in sorted(segments, reverse=True):
            segment = _Segment.of(segments[stage], needed, loop_of)
            needed.update(segment.inputs)
            parts[stage].append(segment)
        for loop in loops:
            parts[stages[loop]].append(loop)
        return cls(graph, [part for stage in sorted(parts) for part in parts[stage]])

    def _last_reads(self) -> list[list[Node]]:
        """The nodes whose values no part after each one reads, so that their memory is free."""
        kept = {leaf for leaf in pytree.tree_leaves(self._results) if isinstance(leaf, Node)}
        done: list[list[Node]] = []
        for part in reversed(self._parts):
            read = {*part.inputs, *part.outputs} - kept
            done.append([*read])
            kept |= read
        return done[::-1]

    def compile(self, inputs: Sequence[Tensor], compiler: Compiler) -> bool:
        """Compiles the parts, for inputs of these shapes; returns whether every step of a loop
        has tensors of the same layout.
        """
        examples: list[list[Tensor]] = []
        with torch.no_grad(), preserved_rng():
            values = dict(zip(self._inputs, inputs, strict=True))
            for part in self._parts:
                example = part.trial(values)
                if example is None:
                    return False
                examples.append(example)
        for part, example in zip(self._parts, examples, strict=True):
            part.function = compiler(part.graph, example)
        return True

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Returns what the graph returns."""
        values = dict(zip(self._inputs, inputs, strict=True))
        for part, done in zip(self._parts, self._done, strict=True):
            part.run(values)
            for node in done:
                del values[node]
        results: Sequence[Tensor] = pytree.tree_map_only(
            Node, values.__getitem__, self._results
        )
        return results


def _stages(graph: GraphModule, loops: "Sequence[_Loop]") -> dict[Any, int] | None:
    """When each node and loop runs: loops in odd stages, all other nodes in even ones, as early
    as what they need allows. None if there is no such order.
    """
    import networkx

    unit_of: dict[Node, Any] = {node: node for node in graph.graph.nodes}
    unit_of |= {node: loop for loop in loops for step in loop.steps for node in step}
    needs = networkx.DiGraph()
    needs.add_nodes_from(unit_of.values())
    for node, unit in unit_of.items():
        for source in map(unit_of.__getitem__, node.all_input_nodes):
            if source is not unit:
                needs.add_edge(source, unit)
    if not networkx.is_directed_acyclic_graph(needs):
        return None
    stages: dict[Any, int] = {}
    for unit in networkx.topological_sort(needs):
        is_loop = isinstance(unit, _Loop)
        earliest = 0
        for source in needs.predecessors(unit):
            after_loop = is_loop and isinstance(source, _Loop)
            earliest = max(earliest, stages[source] + after_loop)
        stages[unit] = earliest + (earliest % 2 != is_loop)
    return stages


class _Segment:
    """Operations outside the loops, as one graph.

    Arguments:
        graph: The graph.
        columns: The nodes that it reads; for each placeholder one, or the nodes of several
            steps of a loop, which are the rows of one tensor.
        outputs: The nodes whose values it returns.
    """

    def __init__(
        self,
        graph: GraphModule,
        columns: Sequence[Node | tuple[Node, ...]],
        outputs: Sequence[Node],
    ) -> None:
        self.graph = graph
        self.function: TensorFunction = graph
        self.outputs = outputs
        self._columns = columns

    @property
    def inputs(self) -> list[Node]:
        """The nodes that it reads."""
        return [
            node
            for column in self._columns
            for node in (column if isinstance(column, tuple) else [column])
        ]

    @classmethod
    def of(
        cls,
        nodes: Sequence[Node],
        needed: Collection[Node],
        loop_of: "Mapping[Node, _Loop]",
    ) -> "_Segment":
        """Returns the segment of some nodes, of which others are needed outside."""
        builder = _Builder(nodes, loop_of)
        for node in nodes:
            builder.copy(node)
        outputs = [node for node in nodes if node in needed]
        return cls(builder.finished(outputs), builder.columns, outputs)

    def trial(self, values: dict[Node, Tensor]) -> list[Tensor]:
        """Adds the values of the nodes; returns the tensors that the graph was called with."""
        given = self._given(values)
        self.run(values)
        return given

    def run(self, values: dict[Node, Tensor]) -> None:
        """Adds the values of the nodes."""
        results = self.function(*self._given(values))
        values.update(zip(self.outputs, results, strict=True))

    def _given(self, values: Mapping[Node, Tensor]) -> list[Tensor]:
        return [
            torch.stack([values[node] for node in column])
            if isinstance(column, tuple)
            else values[column]
            for column in self._columns
        ]


class _Builder:
    """A graph that is made of the nodes of another one.

    Nodes of a loop that it reads in many steps are rows of one input, so that the graph does not
    grow with their number.
    """

    def __init__(self, nodes: Sequence[Node], loop_of: "Mapping[Node, _Loop]") -> None:
        self.columns: list[Node | tuple[Node, ...]] = []
        self._graph = Graph()
        self._made: dict[Node, Node] = {}
        # Rows of a tensor: a column of a loop, or a node and a dimension.
        self._rows: dict[Node, tuple[tuple[Any, ...], int]] = {}
        self._stacks: dict[tuple[Any, ...], Node] = {}
        inner = set(nodes)
        read = dict.fromkeys(
            source for node in nodes for source in node.all_input_nodes if source not in inner
        )
        for loop in dict.fromkeys(loop_of[node] for node in read if node in loop_of):
            for column in zip(*loop.steps, strict=True):
                if sum(node in read for node in column) >= MINIMUM_STEPS:
                    self._add_column(column)
        for node in read:
            if node not in self._rows:
                self._made[node] = self._placeholder(node)

    def _add_column(self, column: tuple[Node, ...]) -> None:
        self._stacks[column] = self._placeholder(column)
        self._rows |= {node: (column, row) for row, node in enumerate(column)}

    def _placeholder(self, column: Node | tuple[Node, ...]) -> Node:
        self.columns.append(column)
        return self._graph.placeholder(f"input_{len(self.columns)}")

    def copy(self, node: Node) -> None:
        """Adds a node, whose arguments are there."""
        dimension = node.args[1] if len(node.args) > 1 else 0
        if node.target is _ATEN.stack.default and not node.kwargs:
            joined = self._joined(node)
            if dimension != 0:
                joined = self._call(_ATEN.movedim.int, joined, 0, dimension)
                joined = self._call(_ATEN.contiguous.default, joined)
            self._made[node] = joined
        elif node.target is _ATEN.cat.default and dimension == 0 and not node.kwargs:
            self._made[node] = self._joined(node)
        else:
            self._made[node] = self._graph.node_copy(node, self._of)
        if node.target is _ATEN.select.int:
            source, dimension, row = node.args
            assert isinstance(row, int)
            self._rows[node] = ((source, dimension), row)

    def _of(self, node: Node) -> Node:
        if node not in self._made:
            column, row = self._rows[node]
            self._made[node] = self._call(_ATEN.select.int, self._stack(column), 0, row)
        return self._made[node]

    def _stack(self, column: tuple[Any, ...]) -> Node:
        """The node whose rows are those of a column."""
        if column not in self._stacks:
            source, dimension = column
            rows = self._call(_ATEN.movedim.int, self._of(source), dimension, 0)
            self._stacks[column] = rows
        return self._stacks[column]

    def _joined(self, node: Node) -> Node:
        """The node of a concatenation or a stack, in which successive steps are one part."""
        joined = _sources(node)
        stacks = node.target is _ATEN.stack.default
        parts: list[Node] = []
        for first, last in self._runs(joined):
            if first is last:
                part = self._of(first)
                parts.append(self._call(_ATEN.unsqueeze.default, part, 0) if stacks else part)
                continue
            column, start = self._rows[first]
            _, end = self._rows[last]
            low, high = min(start, end), max(start, end)
            rows = self._call(_ATEN.slice.Tensor, self._stack(column), 0, low, high + 1)
            if start > end:
                rows = self._call(_ATEN.flip.default, rows, [0])
            parts.append(rows if stacks else self._call(_ATEN.flatten.using_ints, rows, 0, 1))
        return self._call(_ATEN.cat.default, parts)

    def _runs(self, nodes: Sequence[Node]) -> Iterator[tuple[Node, Node]]:
        """Yields first and last of each run of successive rows, upwards or downwards."""
        start = 0
        direction = 0
        for end in range(1, len(nodes) + 1):
            step = self._step(nodes[end - 1], nodes[end]) if end < len(nodes) else 0
            if step and direction in (0, step):
                direction = step
                continue
            yield nodes[start], nodes[end - 1]
            start = end
            direction = 0

    def _step(self, node: Node, following: Node) -> int:
        """1 or -1 if two nodes are successive rows of one input; 0 if not."""
        column, row = self._rows.get(node, (None, 0))
        other, following_row = self._rows.get(following, (None, 0))
        distance = following_row - row
        one = column is not None and column == other and min(row, following_row) >= 0
        return distance if one and abs(distance) == 1 else 0

    def _call(self, operation: Any, *args: Any) -> Node:
        return self._graph.call_function(operation, args)

    def finished(self, outputs: Sequence[Node]) -> GraphModule:
        """Returns the graph, with these nodes as outputs."""
        self._graph.output([self._of(node) for node in outputs])
        self._graph.eliminate_dead_code()
        return GraphModule({}, self._graph)


def _changes(node: Node) -> bool:
    """Whether a node may change a tensor that others see: not a draw into new memory."""
    if node.op != "call_function" or is_pure(node):
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None or "batch_norm" in str(node.target):
        return True
    source = node.args[0] if node.args else None
    fresh = isinstance(source, Node) and source.target is _ATEN.empty.memory_format
    return bool(schema.is_mutable) and not fresh


class _Loop:
    """Successive steps of a recurrence: the same operations in the same order, on other tensors.

    Arguments:
        steps: The operations of each step.
    """

    def __init__(self, steps: Sequence[tuple[Node, ...]]) -> None:
        self.steps = steps
        inner = [set(step) for step in steps]
        self._outputs = [
            operations
            for operations in zip(*steps, strict=True)
            if any(
                not own.issuperset(node.users)
                for own, node in zip(inner, operations, strict=True)
            )
        ]
        self._columns = self._read()
        self.graph = self._graph()
        self.function: TensorFunction = self.graph

    def _read(self) -> "list[_Column]":
        inner = set(self.steps[0])
        columns: dict[tuple[Node, ...], None] = {}
        for operations in zip(*self.steps, strict=True):
            for sources in zip(*map(_sources, operations), strict=True):
                if sources[0] not in inner:
                    columns.setdefault(sources)
        return [_Column.of(nodes, self._outputs) for nodes in columns]

    def _graph(self) -> GraphModule:
        """The graph of a step."""
        graph = Graph()
        made: dict[Node, Node] = {}
        by_place: dict[tuple[Node, ...], Node] = {}
        for column in self._columns:
            by_place[column.nodes] = graph.placeholder(f"input_{len(by_place)}")
        first = self.steps[0]
        for operations in zip(*self.steps, strict=True):
            sources = zip(*map(_sources, operations), strict=True)
            arguments = [
                made[nodes[0]] if nodes[0] in first else by_place[nodes] for nodes in sources
            ]
            node = operations[0]
            leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
            remaining = iter(arguments)
            args, kwargs = pytree.tree_unflatten(
                [next(remaining) if isinstance(leaf, Node) else leaf for leaf in leaves], spec
            )
            assert callable(node.target)
            made[node] = graph.call_function(node.target, args, kwargs)
        graph.output([made[nodes[0]] for nodes in self._outputs])
        return GraphModule({}, graph)

    def is_regular(self) -> bool:
        """Whether all that a step reads of others comes from the few before it, and it gives and
        takes tensors alone.
        """
        own = {node for step in self.steps for node in step}
        return own.isdisjoint(self.inputs) and not any(
            map(_has_parts, (*self.inputs, *self.outputs))
        )

    @property
    def inputs(self) -> list[Node]:
        """The nodes outside the loop whose values it reads."""
        return [node for column in self._columns for node in column.needed()]

    @property
    def outputs(self) -> list[Node]:
        """The nodes whose values others read."""
        return [node for nodes in self._outputs for node in nodes]

    def trial(self, values: dict[Node, Tensor]) -> list[Tensor] | None:
        """Adds the values of the nodes; returns the tensors that the graph was called with at the
        first step, or None if another step has tensors of another layout.
        """
        columns = [column[: len(self.steps)] for column in self.run(values)]
        if any(len({layout_of(tensor) for tensor in column}) > 1 for column in columns):
            return None
        return [column[0] for column in columns]

    def run(self, values: dict[Node, Tensor]) -> list[list[Tensor]]:
        """Adds the values of the nodes that others read; returns the tensors of all steps for each
        input.
        """
        count = len(self.steps)
        made: list[list[Tensor]] = [[] for _ in self._outputs]
        columns = [column.tensors(values) for column in self._columns]
        carried = [
            (column.carried, tensors)
            for column, tensors in zip(self._columns, columns, strict=True)
            if column.carried is not None
        ]
        function = self.function
        for step in range(count):
            results = function(*[column[step] for column in columns])
            for rows, result in zip(made, results, strict=True):
                rows.append(result)
            for place, tensors in carried:
                tensors.append(results[place])
        for nodes, rows in zip(self._outputs, made, strict=True):
            values.update(zip(nodes, rows, strict=True))
        return columns


class _Column(NamedTuple):
    """The tensors that the steps of a loop get for one input.

    Attributes:
        nodes: The node of each step.
        carried: The output of an earlier step that it is; None if it comes from outside.
        lag: How many steps before.
        source: The node whose rows they are; None if they are no rows.
        dimension: The dimension of the rows.
        rows: The row of each step.
    """

    nodes: tuple[Node, ...]
    carried: int | None = None
    lag: int = 0
    source: Node | None = None
    dimension: int = 0
    rows: tuple[int, ...] = ()

    @classmethod
    def of(cls, nodes: tuple[Node, ...], outputs: Sequence[tuple[Node, ...]]) -> "_Column":
        """Returns the column of some nodes, in a loop of these outputs."""
        for lag in range(1, LONGEST_LAG + 1):
            for place, output in enumerate(outputs):
                if output[:-lag] == nodes[lag:]:
                    return cls(nodes, carried=place, lag=lag)
        first = nodes[0]
        if all(
            node.target is _ATEN.select.int and node.args[:2] == first.args[:2]
            for node in nodes
        ):
            source, dimension = first.args[:2]
            if len(set(nodes)) > 1:
                rows = tuple(node.args[2] for node in nodes)
                return cls(nodes, None, 0, source, dimension, rows)  # type: ignore[arg-type]
        return cls(nodes)

    def needed(self) -> list[Node]:
        """The nodes whose values are needed."""
        if self.carried is not None:
            return [*self.nodes[: self.lag]]
        return [*self.nodes] if self.source is None else [self.source]

    def tensors(self, values: Mapping[Node, Tensor]) -> list[Tensor]:
        """Returns the tensors of all steps; those that are known before the loop runs."""
        if self.carried is not None:
            return [values[node] for node in self.nodes[: self.lag]]
        if self.source is not None:
            rows = values[self.source].unbind(self.dimension)
            return [rows[row] for row in self.rows]
        return [values[node] for node in self.nodes]


def _sources(node: Node) -> list[Node]:
    """The nodes among the arguments of a node, in their order, with repetitions."""
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Node)]


def _loops(graph: GraphModule) -> Iterator[_Loop]:
    """Yields the recurrences of a graph that have enough steps."""
    import networkx  # which torch needs, too

    keys = OperationKeys(graph)
    class_of: dict[Node, Hashable] = {
        node: keys.of(node) if node.op == "call_function" else node
        for node in graph.graph.nodes
    }
    feeds = networkx.DiGraph()
    for node, kind in class_of.items():
        feeds.add_node(kind)
        feeds.add_edges_from((class_of[source], kind) for source in node.all_input_nodes)
    taken: set[Node] = set()
    found: list[Sequence[tuple[Node, ...]]] = []
    component_of = {
        kind: number
        for number, component in enumerate(networkx.strongly_connected_components(feeds))
        for kind in component
    }
    components: dict[int, list[Node]] = defaultdict(list)
    for node, kind in class_of.items():
        components[component_of[kind]].append(node)
    for nodes in components.values():
        for steps in _repetitions(nodes, class_of):
            taken.update(nodes)
            found.append(steps)
    for steps in found:
        steps = _widened(steps, taken)
        taken.update(node for step in steps for node in step)
        loop = _Loop(steps)
        if loop.is_regular():
            yield loop


def _repetitions(
    nodes: Sequence[Node], class_of: Mapping[Node, Hashable]
) -> Iterator[Sequence[tuple[Node, ...]]]:
    """Yields the steps of each recurrence among some nodes that depend on each other.

    A recurrence and its derivative are two, among the same nodes if an operation is in both.
    """
    while True:
        members: dict[Hashable, list[Node]] = defaultdict(list)
        for node in nodes:
            members[class_of[node]].append(node)
        counts: Counter[int] = Counter()
        for same in members.values():
            if len(same) > 1:
                counts[len(same)] += len(same)
        products = [same for same in members.values() if is_product(same[0])]
        if not counts or not products:
            return
        usual, _ = counts.most_common(1)[0]
        last = min(products, key=lambda same: abs(len(same) - usual))
        steps = _equal_steps(_steps(nodes, set(last)))
        if len(steps) < MINIMUM_STEPS:
            return
        yield steps
        done = {node for step in steps for node in step}
        nodes = [node for node in nodes if node not in done]


def _steps(nodes: Sequence[Node], last: Collection[Node]) -> list[tuple[Node, ...]]:
    """The nodes of a recurrence step by step: a node belongs to step t if it depends on t of
    those with which a step ends.
    """
    needs: dict[Node, int] = {}  # bit i: whether a node depends on the i-th of these
    bits: dict[Node, int] = {}
    steps: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        needs[node] = 0
        for source in node.all_input_nodes:
            needs[node] |= needs.get(source, 0) | bits.get(source, 0)
        if node in last:
            bits[node] = 1 << len(bits)
        steps[needs[node].bit_count()].append(node)
    return [tuple(steps[number]) for number in sorted(steps)]


def _equal_steps(steps: Sequence[tuple[Node, ...]]) -> Sequence[tuple[Node, ...]]:
    """The longest run of successive steps with the same operations."""
    forms = [_form_of_step(step) for step in steps]
    longest: Sequence[tuple[Node, ...]] = ()
    start = 0
    for end in range(1, len(steps) + 1):
        if end == len(steps) or forms[end] != forms[start]:
            if end - start > len(longest):
                longest = steps[start:end]
            start = end
    return longest


def _widened(
    steps: Sequence[tuple[Node, ...]], taken: Collection[Node]
) -> Sequence[tuple[Node, ...]]:
    """Steps with what every one of them needs or feeds alone, such as the terms of its loss, but
    for nodes that are taken.
    """
    while True:
        columns = [*_needed_alone(steps, taken)]
        if columns:
            steps = [
                (*new, *step)
                for new, step in zip(zip(*columns, strict=True), steps, strict=True)
            ]
            continue
        columns = [*_fed_alone(steps, taken)]
        if not columns:
            return steps
        steps = [
            (*step, *new) for new, step in zip(zip(*columns, strict=True), steps, strict=True)
        ]


def _needed_alone(
    steps: Sequence[tuple[Node, ...]], taken: Collection[Node]
) -> Iterator[tuple[Node, ...]]:
    """Yields operations, one for each step, that no other step reads."""
    inner = [set(step) for step in steps]
    found: set[tuple[Node, ...]] = set()
    for operations in zip(*steps, strict=True):
        for nodes in zip(*map(_sources, operations), strict=True):
            if (
                nodes not in found
                and len(set(nodes)) == len(nodes)
                and all(
                    _is_movable(node)
                    and node not in taken
                    and node not in own
                    and own.issuperset(node.users)
                    and not any(_is_divided(source, own) for source in _sources(node))
                    for own, node in zip(inner, nodes, strict=True)
                )
                and len({_form_of_step([node]) for node in nodes}) == 1
            ):
                found.add(nodes)
                yield nodes


def _fed_alone(
    steps: Sequence[tuple[Node, ...]], taken: Collection[Node]
) -> Iterator[tuple[Node, ...]]:
    """Yields operations, one for each step, of which each reads its own step alone."""
    found: dict[Hashable, list[Node]] = defaultdict(list)
    for step in steps:
        places = {node: place for place, node in enumerate(step)}
        users = dict.fromkeys(user for node in step for user in node.users)
        for user in users:
            sources = _sources(user)
            inner = all(source in places or source.op == "placeholder" for source in sources)
            if user not in places and user not in taken and _is_movable(user) and inner:
                leaves, spec = pytree.tree_flatten((user.args, user.kwargs))
                form = (places.get(leaf, repr(leaf)) for leaf in leaves)
                found[(user.target, str(spec), *form)].append(user)
    for nodes in found.values():
        if len(nodes) == len(steps):
            yield tuple(nodes)


def _has_parts(node: Node) -> bool:
    """Whether the value of a node is several tensors, which no other graph can take."""
    return isinstance(node.meta.get("val"), (tuple, list))


def _is_divided(node: Node, step: set[Node]) -> bool:
    """Whether a node has several tensors, and not the step alone reads them."""
    return _has_parts(node) and not all(
        part in step or step.issuperset(part.users) for part in node.users
    )


def _is_movable(node: Node) -> bool:
    """Whether a node may become part of a step: rows of a tensor are taken outside."""
    return node.op == "call_function" and is_pure(node) and node.target is not _ATEN.select.int


def _form_of_step(step: Sequence[Node]) -> Hashable:
    """A key of a step, equal for steps with the same operations."""
    places: dict[Node, Hashable] = {node: place for place, node in enumerate(step)}

    def form(leaf: object) -> Hashable:
        if not isinstance(leaf, Node):
            return repr(leaf)
        return places.get(leaf, _layout(leaf))

    rows = []
    for node in step:
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        rows.append((node.target, str(spec), _layout(node), *map(form, leaves)))
    return tuple(rows)


def _layout(node: Node) -> Hashable:
    """The layout of a node's value; of several tensors their shapes."""
    value = node.meta.get("val")
    return layout_of(value) if torch.is_tensor(value) else form_of(value)
