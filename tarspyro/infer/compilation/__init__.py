"""Compiled bounds: their steps, recorded as graphs of tensor operations and compiled.

- ``compiled``: ``Compiled``, which decides whether a step runs eagerly or compiled.
- ``keys``: the key of a step, whose change asks for another recording.
- ``steps``: one step, recorded, compiled and run.
- ``recording``: a function of tensors as a graph, and ``RecordingError``.
- ``values``: functions without gradients, such as log weights, compiled.
- ``simplification``: a recorded graph with fewer operations.
- ``repeats``: repeated operations on different tensors, computed at once.
- ``recurrences``: recurrences, whose step is compiled once and called for every step.
- ``kernels``: the C++ kernels of compiled graphs, built together.
- ``graphs``: changes of recorded graphs that make them faster.
- ``capture``: functions on a GPU as CUDA graphs.
"""
