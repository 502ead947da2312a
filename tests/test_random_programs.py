"""Every number that the library gives for a random pair is right, or the pair is refused in a sentence.

``benchmarks/random_programs.py`` tries 2,000 of them; ``python -m tests.random_programs SEED`` shows one in full.
"""

import pytest

from .program_judge import judge
from .random_programs import draw


@pytest.mark.parametrize("seed", range(60))
def test_every_number_is_right_or_refused(seed):
    verdict = judge(draw(seed))
    assert not verdict.failures, f"\n{verdict.pair.text()}\n\n{verdict.report()}"


def test_a_seed_decides_everything():
    assert [draw(seed).text() for seed in range(20)] == [draw(seed).text() for seed in range(20)]
