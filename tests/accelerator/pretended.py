"""A pretended accelerator: the device "gpu", which computes, waits, captures and replays as CUDA
does, on any machine.

A tensor of the device holds a tensor of the CPU, and every operation runs on the tensors that
its arguments hold. As CUDA does, the device refuses operations on tensors of two devices, raises
on operations that wait for it if ``set_sync_debug_mode("error")`` says so, and has a random
state of its own. It has two of its kind, ``gpu:0`` and ``gpu:1``. Graphs are in ``recorded``.

``install`` changes the process for good, and autograd's threads of the device abort an ordinary
end: a process that has called it ends with ``os._exit``.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

NAME = "gpu"
COUNT = 2

# It relies on torch's own parts, which every version may change.
SUPPORTED = torch.__version__.startswith("2.13.")

# Operations that read values back to the host, or whose result's shape depends on values.
WAITS = (
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.masked_select",
    "aten._unique",
    "aten.unique",
    "aten.equal",
    "aten._linalg_check_errors",
    "aten._linalg_eigh",
    "aten._linalg_svd",
    "aten.is_nonzero",
    "aten.repeat_interleave.Tensor",
    "aten.bincount",
)
_COPIES = ("aten._to_copy", "aten.copy_", "aten._copy_from")
_RETURN_VALUES = ("aten._local_scalar_dense.default", "aten.equal.default")


class Device:
    """What is true of the pretended devices now.

    Attributes:
        current: The number of the current device.
        sync: The mode of ``set_sync_debug_mode``.
        recording: The graph that captures what is given to the current device.
        generators: The random states.
        waits: What has waited.
    """

    current = 0
    sync = "default"
    recording: Any = None
    generators = tuple(torch.Generator().manual_seed(0) for _ in range(COUNT))
    waits: list[str] = []


class DeviceTensor(torch.Tensor):
    """A tensor of the device, which holds a tensor of the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, index: int) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, index),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __repr__(self, **how: Any) -> str:
        return f"{NAME}({self.held!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()


class DeviceMode(TorchDispatchMode):
    """Sees operations without a tensor of the device, such as ``torch.zeros(3, device="gpu")``."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def wait(what: str) -> None:
    """Waits for the device, if that is allowed now."""
    Device.waits.append(what)
    if Device.recording is not None:
        raise RuntimeError(f"operation not permitted when stream is capturing: {what} waits")
    if Device.sync == "error":
        raise RuntimeError(f"called a synchronizing operation: {what}")


def is_ours(device: torch.device | str | None) -> bool:
    """Whether a device is a pretended one."""
    return device is not None and torch.device(device).type == NAME


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on what its arguments hold."""
    leaves = tree_leaves((args, kwargs))
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    if fake or any(isinstance(leaf, torch._subclasses.FakeTensor) for leaf in leaves):
        return func(*args, **kwargs)  # a recorder's, which needs no values
    given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in given if isinstance(tensor, DeviceTensor)]
    asked = kwargs.get("device")
    if not ours and not is_ours(asked):
        return func(*args, **kwargs)

    _check(str(func), args, kwargs, given)
    index = _index_of(ours, asked)
    result, known = _compute(func, args, kwargs, index)
    if str(func).startswith("aten.copy_"):
        return args[0]
    if str(func) in _RETURN_VALUES:
        return result
    if asked is not None and not is_ours(asked):  # a copy to the CPU
        return result.clone() if result is args[0].held else result
    return tree_map(lambda value: _as_ours(value, known, index), result)


def _check(name: str, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> None:
    """Raises if an operation mixes devices, or waits where it must not."""
    copies = name.startswith(_COPIES)
    places = {tensor.device for tensor in given if tensor.dim() or is_ours(tensor.device)}
    if not copies and len(places) > 1:
        indexed = name.startswith(("aten.index.", "aten.index_put"))
        if not indexed or len([place for place in places if is_ours(place)]) > 1:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but got"
                f" {sorted(map(str, places))} in {name}"
            )
        wait(f"{name} with indices of the CPU")
    if name.startswith(WAITS):
        wait(name)
    # To fill where a mask is true does not wait, to look for these places does.
    if name.startswith(("aten.index.", "aten.index_put")):
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        if masks and (name.startswith("aten.index.") or args[2].dim()):
            wait(f"{name} with a mask")
    if copies and not kwargs.get("non_blocking"):
        asked = kwargs.get("device")
        kinds = {tensor.device.type for tensor in given}
        kinds |= set() if asked is None else {torch.device(asked).type}
        if len(kinds) > 1:
            wait(f"{name} between {' and '.join(sorted(kinds))}")


def _index_of(ours: list[DeviceTensor], asked: Any) -> int:
    """The number of the device on which the result is."""
    if is_ours(asked):
        found = torch.device(asked).index
        return Device.current if found is None else found
    return ours[0].device.index or 0


def _compute(
    func: Any, args: Any, kwargs: dict[str, Any], index: int
) -> tuple[Any, dict[int, DeviceTensor]]:
    """Runs an operation on the CPU.

    Returns:
        The result, and the tensors of the device by what they hold.
    """
    known: dict[int, DeviceTensor] = {}

    def held(value: Any) -> Any:
        if isinstance(value, DeviceTensor):
            known[id(value.held)] = value
            return value.held
        if isinstance(value, torch.device) and is_ours(value):
            return torch.device("cpu")
        return value

    name = str(func)
    inner_args, inner_kwargs = tree_map(held, (args, kwargs))
    inner_kwargs.pop("pin_memory", None)
    if name.startswith(_COPIES):
        inner_kwargs.pop("device", None)
    work = func
    for cell, fused in (("gru", _fused_gru), ("lstm", _fused_lstm)):
        if f"_thnn_fused_{cell}_cell" in name:
            work = functools.partial(fused, name)
    draws = torch.Tag.nondeterministic_seeded in func.tags
    if draws and kwargs.get("generator") is None:
        with drawing_from(Device.generators[index]):
            return _record(func, work, inner_args, inner_kwargs, index), known
    return _record(func, work, inner_args, inner_kwargs, index), known


def _record(func: Any, work: Any, args: Any, kwargs: dict[str, Any], index: int) -> Any:
    graph = Device.recording
    if graph is None:
        return work(*args, **kwargs)
    if index != graph.index:
        raise RuntimeError(f"device {index} is given work, and device {graph.index} captures")
    return graph.record(func, work, args, kwargs)


@contextlib.contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Lets the operations of the CPU draw from the random state of a device."""
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


def _as_ours(value: Any, known: dict[int, DeviceTensor], index: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else DeviceTensor(value, index)


def _fused_gru(name: str, *args: Any) -> tuple[Any, ...]:
    """The recurrent cell that torch runs as one operation on accelerators, and its gradient."""
    if "backward" in name:
        grad, work, bias = args
        r, z, n, h, hn = work.chunk(5, 1)
        dz = grad * (h - n) * z * (1 - z)
        dn = grad * (1 - z) * (1 - n * n)
        dr = dn * hn * r * (1 - r)
        inputs = torch.cat([dr, dz, dn], 1)
        hidden = torch.cat([dr, dz, dn * r], 1)
        biases = (inputs.sum(0), hidden.sum(0)) if bias else (None, None)
        return inputs, hidden, grad * z, *biases
    gates_of_input, gates_of_hidden, h, *biases = args
    if biases and biases[0] is not None:
        gates_of_input = gates_of_input + biases[0]
        gates_of_hidden = gates_of_hidden + biases[1]
    ir, iz, inn = gates_of_input.chunk(3, 1)
    hr, hz, hn = gates_of_hidden.chunk(3, 1)
    r = (ir + hr).sigmoid()
    z = (iz + hz).sigmoid()
    n = (inn + r * hn).tanh()
    return n + z * (h - n), torch.cat([r, z, n, h, hn], 1)


def _fused_lstm(name: str, *args: Any) -> tuple[Any, ...]:
    """The same for the long short-term memory."""
    if "backward" in name:
        grad_h, grad_c, before, c, work, _ = args
        i, f, g, o = work.chunk(4, 1)
        grad_h = torch.zeros_like(c) if grad_h is None else grad_h
        grad_c = torch.zeros_like(c) if grad_c is None else grad_c
        squashed = c.tanh()
        dc = grad_c + grad_h * o * (1 - squashed * squashed)
        di = dc * g * i * (1 - i)
        df = dc * before * f * (1 - f)
        dg = dc * i * (1 - g * g)
        do = grad_h * squashed * o * (1 - o)
        gates = torch.cat([di, df, dg, do], 1)
        return gates, dc * f, gates.sum(0)
    gates_of_input, gates_of_hidden, before, *biases = args
    gates = gates_of_input + gates_of_hidden
    for bias in biases:
        gates = gates if bias is None else gates + bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * before + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], 1)


class Graph:
    """The work that is given to a device under capture, undone, and done by every replay.

    Work that is captured has not run: its results are NaN until the first replay, and what it
    changes in place is as before. So a value that the host has put into the captured step, and
    changes later, shows.
    """

    def __init__(self) -> None:
        self.index = Device.current
        self.tape: list[tuple[Callable[..., Any], Any, Any, list[Tensor], list[bool]]] = []
        self._saved: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}
        self._fresh: list[Tensor] = []
        self._noise = Device.generators[self.index].get_state()

    def pool(self) -> tuple[int, int]:
        return 0, id(self)

    def begin(self) -> None:
        self._noise = Device.generators[self.index].get_state()
        Device.recording = self

    def record(self, func: Any, work: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs an operation, with the function that does its work here, and notes it."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # Batch normalization changes its statistics, though its signature does not say so.
        changes = func._schema.is_mutable or "batch_norm" in str(func)
        if changes:
            for tensor in given:
                storage = tensor.untyped_storage()
                self._saved.setdefault(storage.data_ptr(), (tensor, storage.clone()))
        result = work(*args, **kwargs)
        memory = {tensor.untyped_storage().data_ptr() for tensor in given}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        new = [tensor.untyped_storage().data_ptr() not in memory for tensor in made]
        if changes or any(new):
            self.tape.append((work, args, kwargs, made, new))
        self._fresh += [tensor for tensor, is_new in zip(made, new, strict=True) if is_new]
        return result

    def end(self) -> None:
        """Undoes what was captured."""
        Device.recording = None
        Device.generators[self.index].set_state(self._noise)
        for tensor, storage in self._saved.values():
            tensor.untyped_storage().copy_(storage)
        for tensor in self._fresh:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        self._saved.clear()
        self._fresh.clear()

    def replay(self) -> None:
        """Does the work."""
        if Device.current != self.index:
            raise RuntimeError(f"device {Device.current} is to replay a graph of {self.index}")
        with (
            _disable_current_modes(),
            torch.no_grad(),
            drawing_from(Device.generators[self.index]),
        ):
            for work, args, kwargs, made, new in self.tape:
                again = [
                    leaf
                    for leaf in tree_leaves(work(*args, **kwargs))
                    if isinstance(leaf, Tensor)
                ]
                for tensor, value, is_new in zip(made, again, new, strict=True):
                    if is_new:
                        tensor.copy_(value)


class graph:
    """Captures what the current device is given inside, as ``torch.cuda.graph`` does."""

    def __init__(self, made: Graph, pool: object = None) -> None:
        self.made = made

    def __enter__(self) -> None:
        self.made.begin()

    def __exit__(self, *error: object) -> None:
        self.made.end()


class device:
    """Makes a device the current one, as ``torch.cuda.device`` does."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self) -> None:
        self.before = Device.current
        Device.current = self.index

    def __exit__(self, *error: object) -> None:
        Device.current = self.before


class Stream:
    pass


class Generator(torch._C.Generator):
    """A generator of the device draws on the CPU, as its operations do."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        return super().__new__(cls, "cpu" if is_ours(device) else device)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        pass


def install() -> None:
    """Makes the device, for the whole process."""
    register()
    _teach_torch()
    _teach_autocast()
    DeviceMode().__enter__()


def register() -> None:
    """Tells torch the name of the device; its tensors have no values."""
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )

    class Module(_DummyBackendModule):
        """What ``torch.cuda`` is for CUDA."""

        CUDAGraph = Graph
        graph = graph
        device = device
        Stream = Stream

        def stream(self, stream: Stream) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

        def device_count(self) -> int:
            return COUNT

        def current_device(self) -> int:
            return Device.current

        def set_device(self, device: int) -> None:
            Device.current = device

        def get_device_name(self, device: object = None) -> str:
            return "a pretended device"

        def synchronize(self, device: object = None) -> None:
            if Device.recording is not None:
                raise RuntimeError("operation not permitted when stream is capturing")

        def set_sync_debug_mode(self, mode: str) -> None:
            Device.sync = mode

        def is_current_stream_capturing(self) -> bool:
            return Device.recording is not None

        def get_rng_state(self, device: object = None) -> Tensor:
            return Device.generators[Device.current].get_state()

        def set_rng_state(self, state: Tensor, device: object = None) -> None:
            Device.generators[Device.current].set_state(state)

        def get_rng_state_all(self) -> list[Tensor]:
            return [generator.get_state() for generator in Device.generators]

        def set_rng_state_all(self, states: list[Tensor]) -> None:
            for generator, state in zip(Device.generators, states, strict=True):
                generator.set_state(state)

        def manual_seed_all(self, seed: int) -> None:
            for generator in Device.generators:
                generator.manual_seed(seed)

        manual_seed = manual_seed_all

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    _teach_shapes()


def _teach_torch() -> None:
    """Lets parts of torch that know their devices by name know this one."""
    from torch._subclasses import fake_tensor
    from torch.fx.experimental import proxy_tensor

    optimizer = torch.optim.Optimizer
    apply = torch.nn.Module._apply

    def moved(module: torch.nn.Module, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Moves a module in place: parameters stay the same objects, as they do on CUDA."""
        with torch.no_grad():
            if all(function(t) is t for t in (*module.parameters(), *module.buffers())):
                return module
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(module, function, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    def check_capture(self: torch.optim.Optimizer) -> None:
        """What torch checks on CUDA before a step."""
        whole = all(group["capturable"] for group in self.param_groups)
        if Device.recording is not None and not whole:
            raise RuntimeError("Attempting graph capture of step(), but capturable is False")

    torch.Generator = Generator
    torch.nn.Module._apply = moved
    optimizer._accelerator_graph_capture_health_check = check_capture
    sys.modules["torch.optim.optimizer"]._foreach_supported_types.append(DeviceTensor)
    check = fake_tensor._check_for_subclass_arg
    fake_tensor._check_for_subclass_arg = lambda x: (
        not isinstance(x, DeviceTensor) and check(x)
    )
    proxy_tensor.HANDLED_TYPES = (*proxy_tensor.HANDLED_TYPES, DeviceTensor)
    torch._C._set_only_lift_cpu_tensors(True)


def _teach_shapes() -> None:
    """Tells recorders the shapes of the one operation that torch has for accelerators alone."""

    def cell(inputs: Tensor, hidden: Tensor, h: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
        return h.clone(), h.new_empty(len(h), 5 * h.shape[1])

    def backward(grad: Tensor, work: Tensor, bias: bool) -> tuple[Tensor | None, ...]:
        gates = grad.new_empty(len(grad), 3 * grad.shape[1])
        biases = (gates.sum(0), gates.sum(0)) if bias else (None, None)
        return gates, gates.clone(), grad.clone(), *biases

    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("_thnn_fused_gru_cell", cell)
    library.impl("_thnn_fused_gru_cell_backward", backward)
    _kept.append(library)  # which unregisters at its end


def _teach_autocast() -> None:
    """Lets autocast run matrix products in its type, and everything else as it comes."""
    key = "AutocastPrivateUse1"
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, key)
    products = torch.library.Library("aten", "IMPL")
    _kept.extend([others, products])
    without = torch._C.DispatchKeySet(torch._C._parse_dispatch_key(key))

    def lowered(func: Any, *args: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)
        own = [
            arg.to(dtype) if isinstance(arg, Tensor) and arg.dtype is torch.float32 else arg
            for arg in args
        ]
        with torch._C._ExcludeDispatchKeyGuard(without):
            return func(*own)

    for name in ("linear", "matmul", "addmm", "mm", "conv2d"):
        func = getattr(torch.ops.aten, name)
        overload = "aten::conv2d" if name == "conv2d" else f"aten::{name}"
        products.impl(overload, functools.partial(lowered, func), key)


_kept: list[object] = []
