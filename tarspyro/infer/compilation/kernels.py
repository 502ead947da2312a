"""The C++ kernels of compiled graphs, built together.

Inductor gives every kernel to the C++ compiler alone. That compiler needs a second to begin,
whatever the kernel, and a tenth of one for the kernel itself. Here the kernels of a graph become
a few libraries, which are built while further graphs are lowered.
"""

__all__ = ["kernels_together"]

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from tarspyro.scopes import exclusive

# A library of fewer kernels is not worth the time to begin it.
MINIMUM = 5

_HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>"
# Python's side of a library, as in Inductor's own binding of a kernel.
_BINDING = r"""
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <cstdlib>
#include <stdexcept>

static void* (*data_of)(PyObject* tensor);

template <typename Run>
static PyObject* called(Py_ssize_t given, Py_ssize_t taken, Run&& run) {
    try {
        if (given != taken) throw std::runtime_error("wrong number of arguments");
        run();
        Py_RETURN_NONE;
    } catch (std::exception const& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    } catch (...) {
        PyErr_SetString(PyExc_RuntimeError, "unhandled error");
    }
    return nullptr;
}
"""
_METHOD = r"""
static PyObject* call_{number}(PyObject*, PyObject* const* args, Py_ssize_t count) {{
    return called(count, {count}, [&] {{ kernel_{number}({arguments}); }});
}}
"""
_MODULE = r"""
static PyMethodDef methods[] = {{
    {methods}
    {{NULL, NULL, 0, NULL}}}};

static struct PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "kernel", NULL, -1, methods}};

PyMODINIT_FUNC PyInit_kernel(void) {{
    const char* address = std::getenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR");
    if (!address) {{
        PyErr_SetString(PyExc_RuntimeError, "no function for the memory of a tensor");
        return nullptr;
    }}
    data_of = reinterpret_cast<decltype(data_of)>(std::strtoull(address, nullptr, 10));
    return PyModule_Create(&definition);
}}
"""


class _Kernel(NamedTuple):
    """A kernel that waits for its library: the types of its arguments, and its source."""

    types: list[str]
    source: str

    def fits(self) -> bool:
        """Whether it can be part of a library: one function of tensors, without headers of its
        own.
        """
        return (
            all(kind.endswith("*") for kind in self.types)
            and self.source.count("#include") == self.source.count(_HEADER) == 1
            and self.source.count(" kernel(") == 1
        )

    def parts(self, number: int) -> tuple[str, str]:
        """Its function and that for Python, of this number."""
        function = self.source.replace(_HEADER, "").replace(
            " kernel(", f" kernel_{number}(", 1
        )
        arguments = ", ".join(
            f"static_cast<{kind}>(data_of(args[{place}]))"
            for place, kind in enumerate(self.types)
        )
        method = _METHOD.format(number=number, count=len(self.types), arguments=arguments)
        return function, method


class _Library:
    """Kernels that are built together.

    Arguments:
        kernels: The kernels, by the names of their functions in the compiled graph.
        scope: The names of the compiled graph.
        compiler: Inductor's compiler of kernels.
        alone: Makes the function of one kernel.
    """

    def __init__(
        self,
        kernels: dict[str, _Kernel],
        scope: dict[str, Any],
        compiler: Any,
        alone: Callable[..., Any],
    ) -> None:
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        self._kernels = kernels
        self._scope = scope
        self._compiler = compiler
        self._alone = alone
        self._built = CppPythonBindingsCodeCache.load_async(
            self._source(), "cpu", submit_fn=compiler.submit
        )

    def _source(self) -> str:
        parts = [kernel.parts(number) for number, kernel in enumerate(self._kernels.values())]
        methods = "\n    ".join(
            f'{{"kernel_{number}", (PyCFunction)(void (*)(void))call_{number},'
            ' METH_FASTCALL, ""},'
            for number in range(len(parts))
        )
        functions = [function for function, _ in parts]
        bindings = [binding for _, binding in parts]
        module = _MODULE.format(methods=methods)
        return "\n".join([_HEADER, *functions, _BINDING, *bindings, module])

    def load(self) -> None:
        """Gives the compiled graph its functions."""
        try:
            module = self._built()
            functions = [
                getattr(module, f"kernel_{number}") for number in range(len(self._kernels))
            ]
        except Exception:  # of whatever kind: each alone may be in order
            functions = [self._built_alone(kernel) for kernel in self._kernels.values()]
        self._scope.update(zip(self._kernels, functions, strict=True))

    def _built_alone(self, kernel: _Kernel) -> Callable[..., object]:
        made = self._alone(self._compiler, *kernel)
        function: Callable[..., object] = made.result() if hasattr(made, "result") else made
        return function


@contextlib.contextmanager
def kernels_together() -> Iterator[None]:
    """Builds the C++ kernels of the graphs that this thread compiles inside together; they can
    run afterwards. Inductor's functions are replaced for the whole process, so other threads
    that run or compile programs wait.
    """
    with exclusive(), _replaced() as libraries:
        try:
            yield
        finally:  # the modules of graphs before one that fails stay in Inductor's cache
            for library in libraries:
                library.load()


@contextlib.contextmanager
def _replaced() -> Iterator[list[_Library]]:
    """Replaces Inductor's functions for single kernels; gives the libraries that it builds."""
    from torch._inductor.async_compile import AsyncCompile, get_compile_threads

    thread = threading.get_ident()
    alone, wait = AsyncCompile.cpp_pybinding, AsyncCompile.wait
    libraries: list[_Library] = []

    def add(compiler: Any, types: list[str], source: str) -> object:
        kernel = _Kernel(types, source)
        if threading.get_ident() == thread and kernel.fits():
            return kernel
        return alone(compiler, types, source)

    def build(compiler: Any, scope: dict[str, Any]) -> None:
        kernels = {name: each for name, each in scope.items() if isinstance(each, _Kernel)}
        if kernels:
            count = min(get_compile_threads(), math.ceil(len(kernels) / MINIMUM))
            names = sorted(kernels, key=lambda name: len(kernels[name].source))
            for start in range(count):  # of about the same length
                part = {name: kernels[name] for name in names[start::count]}
                libraries.append(_Library(part, scope, compiler, alone))
        wait(compiler, scope)

    with (
        mock.patch.object(AsyncCompile, "cpp_pybinding", add),
        mock.patch.object(AsyncCompile, "wait", build),
    ):
        yield libraries
