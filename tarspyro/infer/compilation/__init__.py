"""Compiled bounds: their steps, recorded as graphs of tensor operations and compiled.

- ``compiled``: ``Compiled``, which decides whether a step runs eagerly or compiled.
- ``keys``: the key of a step, whose change asks for another recording.
- ``steps``: one step, recorded, compiled and run.
- ``recording``: a function of tensors as a graph, and ``RecordingError``.
- ``graphs``: changes of recorded graphs that make them faster.
- ``capture``: functions on a GPU as CUDA graphs.
"""
