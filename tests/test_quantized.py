"""Vector-quantized codes: the codebook, the bound, and a prior learned on the codes."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import (
    Autoregressive,
    Conditional,
    VectorQuantized,
    data,
    evaluate,
    fit,
    guides,
    models,
)
from tarspyro.distributions import CodePrior
from tarspyro.infer import ELBO, Compiled, ReweightedWakeSleep
from tarspyro.nn import MADE, MLP, Codebook, ConvEncoder
from tarspyro.runs import load_run
from tests.programs import as_made

SHAPE = (3, 2, 1)  # two codes of size three


def pair(num_codes=4, **options):
    torch.manual_seed(0)
    posterior = VectorQuantized(MLP(6, [16]), Codebook(num_codes, 3), SHAPE, **options)
    likelihood = Conditional(dist.Normal, MLP(SHAPE, [16]), 6, scale=0.5)
    return models.VAE(posterior.prior(), likelihood), guides.VAE(posterior)


def groups(count=200):
    torch.manual_seed(1)
    means = torch.randn(5, 6) * 2
    return means[torch.randint(5, (count,))] + 0.1 * torch.randn(count, 6)


# --- the codebook


def test_nearest_and_moving_averages():
    torch.manual_seed(0)
    codebook = Codebook(2, 2, decay=0.5)
    x = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    codebook.update(x)  # both are dead at first, and start at the two vectors
    assert sorted(codebook.codes.tolist()) == x.tolist()
    more = torch.tensor([[1.0, 0.0], [3.0, 1.0], [5.0, 1.0], [0.0, 2.0]])
    low = int(codebook.codes[:, 0].argmin())
    assert codebook.nearest(more).eq(low).tolist() == [True, False, False, True]
    codebook.update(more)
    # (1/2 of a vector at the origin + 1/2 of the two new ones) / (1/2 + 1)
    torch.testing.assert_close(codebook.codes[low], torch.tensor([0.5, 1.0]) / 1.5)
    torch.testing.assert_close(codebook.codes[1 - low], torch.tensor([6.0, 1.0]) / 1.5)


def test_dead_codes_start_again():
    torch.manual_seed(0)
    codebook = Codebook(8, 2, decay=0.9)
    with torch.no_grad():
        codebook.codes.fill_(100.0)
        codebook.counts.fill_(10.0)
        codebook.sums.fill_(1000.0)
    x = torch.randn(400, 2)
    for _ in range(60):
        codebook.update(x)
    used = torch.bincount(codebook.nearest(x), minlength=8)
    assert (used > 0).all()


# --- the pair


def test_evaluation_is_a_bound_by_enumeration():
    """The ELBO is the term of one of all pairs of codes in the sum that is p(x)."""
    p, q = pair()
    x = groups(6)
    q(x)  # in training mode: the codes start at outputs
    codebook = q.posterior.codebook
    pairs = torch.tensor(list(itertools.product(range(4), repeat=2)))
    z = codebook.vectors(pairs).movedim(-1, 1).unsqueeze(-1)
    with torch.no_grad():
        joint = p.likelihood(z).log_prob(x.unsqueeze(1)) - 2 * math.log(4)
    log_p = joint.logsumexp(1)
    found = evaluate.elbo(p, q, x)
    index = q.posterior.indices(x)
    assert index.shape == (6, 2, 1)
    chosen = joint[torch.arange(6), 4 * index[:, 0, 0] + index[:, 1, 0]]
    torch.testing.assert_close(found.elbo, chosen)
    assert (found.elbo <= log_p).all()
    torch.testing.assert_close(found.kl, torch.full((6,), 2 * math.log(4)))


def test_training_adds_the_penalty_and_gradients_go_straight_through():
    p, q = pair(commitment=0.7)
    x = groups(6)
    q(x)
    codebook = q.posterior.codebook
    codebook.decay = 1.0  # the codes stay where they are
    loss = ELBO().differentiable_loss(p, q, x)
    values = q.posterior.outputs(x)["value"].movedim(1, -1)
    codes = codebook.vectors(codebook.nearest(values)).detach()
    penalty = 0.7 * (values - codes).square().sum()
    torch.testing.assert_close(loss, -evaluate.elbo(p, q, x).elbo.sum() + penalty)

    # The gradient of the likelihood at z, put in the place of that of the outputs.
    z = codes.movedim(-1, 1).requires_grad_()
    at_z = torch.autograd.grad(p.likelihood(z).log_prob(x).sum(), z)[0]
    expected = torch.autograd.grad(
        penalty - (at_z.movedim(1, -1) * values).sum(), list(q.parameters())
    )
    for one, other in zip(
        torch.autograd.grad(loss, list(q.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(one, other)


def test_evaluation_does_not_move_the_codes():
    p, q = pair()
    x = groups(20)
    q(x)
    before = q.posterior.codebook.codes.clone()
    evaluate.log_likelihood(p, q, x, num_particles=5)
    ELBO().structure(p, q, x)
    assert q.posterior.codebook.codes.equal(before)


def test_losses_of_given_draws_take_a_guide_of_codes():
    # Both codes are the same vector, so that every weight is p(x | z).
    p, q = pair(num_codes=2)
    x = groups(7)
    q.eval()
    q.posterior.codebook.codes.zero_()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", p.prior())

    found = ReweightedWakeSleep(5).loss(p, guide, x)
    wake = -evaluate.reconstruction(p, q, x).sum().item()
    assert found == pytest.approx(wake, rel=1e-5)


def test_compiled_steps_move_the_codes_likewise():
    x = groups()
    results = []
    for loss in (ELBO(), Compiled(ELBO(), backend="eager")):
        p, q = pair(num_codes=8)
        q(x)
        torch.manual_seed(0)
        values = [loss.differentiable_loss(p, q, x).item() for _ in range(3)]
        results.append((values, q.posterior.codebook.codes.clone()))
    (eager, codes), (compiled, moved) = results
    assert compiled == pytest.approx(eager, rel=1e-5)
    torch.testing.assert_close(moved, codes)


def test_fit_finds_the_groups():
    p, q = pair(num_codes=8)
    x = groups()
    fit(p, q, x, epochs=60, lr=1e-2, batch_size=20, seed=0, progress=False)
    error = (evaluate.reconstruct(p, q, x) - x).square().mean()
    assert error < 0.05  # the groups are 0.1 wide, and apart by 2
    assert len(q.posterior.indices(x).flatten(1).unique(dim=0)) >= 5


def test_a_prior_learned_on_the_codes():
    p, q = pair(num_codes=8)
    x = groups()
    fit(p, q, x, epochs=40, lr=1e-2, seed=0, progress=False)
    index = q.posterior.indices(x)
    trunk = MADE((2, 1), [32], num_classes=8)
    codes = Autoregressive(dist.Categorical, trunk, (2, 1), param_shapes={"logits": (2, 1, 8)})
    fit(models.Density(codes), data=index, epochs=100, lr=3e-2, seed=0, progress=False)
    better = models.VAE(q.posterior.prior(codes), p.likelihood)

    # The bound gains what the prior does, and its best value is minus the codes' entropy.
    before, after = (evaluate.elbo(m, q, x) for m in (p, better))
    torch.testing.assert_close(after.reconstruction, before.reconstruction)
    share = index.flatten(1).unique(dim=0, return_counts=True)[1] / len(index)
    entropy = -(share * share.log()).sum().item()
    assert entropy - 1e-4 <= after.kl.mean().item() <= entropy + 0.1
    drawn = evaluate.sample(better, 200, seed=0)
    nearest = torch.cdist(drawn, x).min(1).values
    assert nearest.median() < 2.0


def test_digits_as_maps_of_codes():
    torch.manual_seed(0)
    x = data.digits(flatten=False).train.x[:300].round()
    posterior = VectorQuantized(ConvEncoder((1, 8, 8), [8]), Codebook(16, 4), (4, 2, 2))
    likelihood = Conditional(dist.Bernoulli, MLP((4, 2, 2), [32]), (1, 8, 8))
    p, q = as_made(models.VAE(posterior.prior(), likelihood), guides.VAE(posterior))
    history = fit(p, q, x, epochs=10, lr=1e-2, batch_size=50, seed=0, progress=False)
    assert history["elbo"][-1] > history["elbo"][0] + 10
    assert evaluate.embed(q, x[:7]).shape == (7, 4, 2, 2)


def test_runs_share_the_codebook(tmp_path):
    p, q = pair()
    x = groups(20)
    fit(p, q, x, epochs=2, folder=tmp_path / "run", seed=0, progress=False)
    run = load_run(tmp_path / "run")
    assert run.model.prior.codebook is run.guide.posterior.codebook
    one, other = (
        evaluate.elbo(*halves, x).elbo for halves in ((p, q), (run.model, run.guide))
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("build", "kind", "words"),
    [
        (lambda: VectorQuantized(3, Codebook(4, 2), 2), TypeError, "trunk must be a"),
        (
            lambda: VectorQuantized(MLP(6, [4]), 4, 2),
            TypeError,
            "codebook must be a tarspyro.nn.Codebook",
        ),
        (
            lambda: VectorQuantized(MLP(6, [4]), Codebook(4, 2), 2, commitment=-1.0),
            ValueError,
            "commitment must",
        ),
        (lambda: Codebook(1, 2), ValueError, "num_codes must be at least 2"),
        (lambda: Codebook(4, 2, decay=2.0), ValueError, "decay must"),
        (lambda: CodePrior(3, (2, 2)), TypeError, "codebook must be a tarspyro.nn.Codebook"),
        (
            lambda: CodePrior(Codebook(4, 3), (2, 2)),
            ValueError,
            "begin with the size of a code",
        ),
        (
            lambda: CodePrior(Codebook(4, 3), (3, 2), dist.Categorical(torch.ones(4)))(),
            ValueError,
            "indices must be a distribution over the positions",
        ),
    ],
)
def test_errors(build, kind, words):
    with pytest.raises(kind, match=words):
        build()
