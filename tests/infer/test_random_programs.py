"""Every number that the library gives for a random pair is right, or the pair is refused in a
sentence.

``benchmarks/random_programs.py`` tries 2,000 of them; ``python -m tests.random_programs SEED``
shows one in full.
"""

import math

import pytest

from tarspyro.infer import ELBO, IWAE, PairError, Renyi

from ..program_judge import FAILED, judge
from ..random_programs import draw


@pytest.mark.parametrize("seed", range(60))
def test_every_number_is_right_or_refused(seed):
    verdict = judge(draw(seed))
    assert not verdict.failures, f"\n{verdict.pair.text()}\n\n{verdict.report()}"


def test_a_seed_decides_everything():
    assert [draw(seed).text() for seed in range(20)] == [
        draw(seed).text() for seed in range(20)
    ]


PLAIN = 321  # rows with a local latent variable, of which everything is right


def test_the_judge_sees_a_bound_that_is_off(monkeypatch):
    assert judge(draw(PLAIN)).outcome == "right"
    right = Renyi.loss
    monkeypatch.setattr(
        Renyi, "loss", lambda self, *args: right(self, *args) - math.log(self.num_particles)
    )
    found = {finding.quantity: finding.verdict for finding in judge(draw(PLAIN)).findings}
    assert [quantity for quantity, verdict in found.items() if verdict == FAILED] == [
        "iwae 8",
        "renyi",
    ]


def test_the_judge_sees_a_gradient_that_is_off(monkeypatch):
    right = ELBO.differentiable_loss
    monkeypatch.setattr(
        ELBO, "differentiable_loss", lambda self, *args: 1.1 * right(self, *args)
    )
    found = {finding.quantity: finding.verdict for finding in judge(draw(PLAIN)).findings}
    assert found["elbo gradient"] == FAILED


def test_the_judge_sees_a_refusal_that_is_needless(monkeypatch):
    def refuse(self, *args):
        raise PairError("no")

    monkeypatch.setattr(IWAE, "loss", refuse)
    assert judge(draw(PLAIN)).outcome == FAILED
