"""Streams: epochs of an iterator."""

import itertools

import pytest

from tarspyro.data import Stream


def test_epochs_follow_each_other():
    stream = Stream(itertools.count(), steps_per_epoch=3)
    assert len(stream) == 3
    assert list(stream) == [0, 1, 2]
    assert stream.peek() == [3] == stream.peek()
    assert list(stream) == [3, 4, 5]


def test_a_stream_ends():
    stream = Stream(iter("ab"), steps_per_epoch=3)
    assert list(stream) == ["a", "b"]
    assert list(stream) == [] == stream.peek()


def test_errors():
    with pytest.raises(TypeError, match=r"batches must be an iterator.* got \[1\]"):
        Stream([1])
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1, got 0"):
        Stream(iter([1]), 0)
