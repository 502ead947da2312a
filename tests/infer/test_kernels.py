"""The C++ kernels of compiled graphs, built together."""

import threading

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tarspyro.infer.compilation import kernels
from tarspyro.infer.compilation.steps import compile_graph
from tarspyro.scopes import exclusive


@pytest.fixture
def libraries(monkeypatch, tmp_path):
    """The libraries that are built, with an empty cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    made = []

    class Noted(kernels._Library):
        def __init__(self, *args):
            made.append(self)
            super().__init__(*args)

    monkeypatch.setattr(kernels, "_Library", Noted)
    return made


def function(x):
    return x.sin().sum(), (x @ x).tanh().sum(0), (x + 1).cumsum(0).exp()


def compiled(size):
    x = torch.randn(size, size)
    return compile_graph(make_fx(function, tracing_mode="fake")(x), [x], "inductor"), x


def test_the_kernels_of_a_graph_are_one_library_with_the_values_of_the_function(libraries):
    step, x = compiled(17)
    (library,) = libraries
    assert len(library._kernels) > 1
    for found, expected in zip(step(x), function(x), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_library_that_cannot_be_built_gives_way_to_kernels_alone(libraries, monkeypatch):
    monkeypatch.setattr(kernels, "_BINDING", "no C++")
    step, x = compiled(19)
    assert libraries
    for found, expected in zip(step(x), function(x), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [kernels.kernels_together, exclusive])
def test_a_thread_waits_until_another_has_compiled_or_run(context):
    """Inductor's functions are replaced for the process: whoever ends gives back the right ones.

    One lock stands for programs and compilations: of two, each thread could hold one and wait
    for the other.
    """
    from torch._inductor.async_compile import AsyncCompile

    before = AsyncCompile.cpp_pybinding, AsyncCompile.wait
    began, inside, leave = threading.Event(), threading.Event(), threading.Event()

    def other():
        began.set()
        with kernels.kernels_together():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with context():
        thread.start()
        began.wait(60)
        assert not inside.wait(0.3)
    assert inside.wait(60)
    leave.set()
    thread.join()
    assert (AsyncCompile.cpp_pybinding, AsyncCompile.wait) == before
