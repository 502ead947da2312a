"""Pyro's own examples, written anew: bounds against Pyro's and the evidence, and training."""

import functools
import math
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from tarspyro import fit
from tarspyro.data import digits
from tarspyro.infer import ELBO, IWAE, Compiled, PairError, RecordingError

from .. import pyro_programs as programs

SCALES = r"(?=.*scale)(?=.*ELBO)"
READS = r"pyro_programs.py, line \d+, (reads a value back|cannot be recorded .*): "
PACKED = READS + r"(packed =|states, _ = self.rnn\(packed)"


class Row(NamedTuple):
    """A program, Pyro's bound for it, and what is expected where something cannot be."""

    build: Callable
    pyro: type = Trace_ELBO
    nesting: int = 1
    mean_field: bool = False  # TraceMeanField_ELBO accepts it
    refused: str | None = None  # why a weighted bound cannot be
    summed: bool = False  # the model sums sites out
    alone: bool = False  # a particle at a time: it takes no plate of particles
    recorded: str | None = None  # the line that no recording can hold
    score: bool = False  # gradients of score functions differ in their baselines
    batch_size: int = 3


def of(build, *args, **kwargs):
    return functools.partial(build, *args, **kwargs)


ROWS = {
    "VAE": Row(programs.vae, mean_field=True),
    "conditional VAE": Row(
        programs.conditional_vae,
        mean_field=True,
        alone=True,
        recorded=READS + r"masked = probs\[\(xs == -1\)",
    ),
    "M2, labels summed in the guide": Row(programs.m2_summed_in_the_guide, TraceEnum_ELBO),
    "M2, labels summed in the model": Row(
        programs.m2_summed_in_the_model, TraceEnum_ELBO, summed=True
    ),
    "M2, labels given": Row(programs.m2_labelled, mean_field=True),
    "M2, auxiliary loss": Row(programs.m2_auxiliary_loss, mean_field=True),
    "deep Markov model": Row(programs.deep_markov_model, mean_field=True, recorded=PACKED),
    "deep Markov model, masked by a handler": Row(
        of(programs.deep_markov_model, mask_by_handler=True), mean_field=True, recorded=PACKED
    ),
    "deep Markov model, annealed": Row(
        of(programs.deep_markov_model, 0.3), mean_field=True, refused=SCALES, recorded=PACKED
    ),
    "HMM, one by one": Row(
        of(programs.hidden_markov_model, "one by one"),
        TraceEnum_ELBO,
        summed=True,
        alone=True,
        recorded=READS + "for i in pyro.plate",
        batch_size=4,
    ),
    "HMM": Row(
        programs.hidden_markov_model,
        TraceEnum_ELBO,
        2,
        summed=True,
        alone=True,
        recorded=READS + "for t in pyro.markov",
        batch_size=4,
    ),
    "HMM, subsampled": Row(
        of(programs.hidden_markov_model, batch_size=2),
        TraceEnum_ELBO,
        2,
        summed=True,
        alone=True,
        recorded=READS + "for t in pyro.markov",
        batch_size=4,
    ),
    "HMM without priors": Row(
        programs.hidden_markov_model_without_priors,
        TraceEnum_ELBO,
        2,
        summed=True,
        recorded=READS + "for t in pyro.markov",
        batch_size=4,
    ),
    "AIR": Row(
        programs.attend_infer_repeat, TraceGraph_ELBO, alone=True, score=True, batch_size=6
    ),
    "AIR, subsampled": Row(
        of(programs.attend_infer_repeat, 4),
        TraceGraph_ELBO,
        alone=True,
        score=True,
        batch_size=6,
    ),
    "sparse gamma DEF": Row(programs.sparse_gamma_def, mean_field=True, batch_size=4),
    "sparse gamma DEF, AutoDiagonalNormal": Row(
        of(programs.sparse_gamma_def, "AutoDiagonalNormal"), batch_size=4
    ),
    "sparse gamma DEF, AutoNormal": Row(
        of(programs.sparse_gamma_def, "AutoNormal"), batch_size=4
    ),
    "sparse gamma DEF, EasyGuide": Row(
        of(programs.sparse_gamma_def, "EasyGuide"), batch_size=4
    ),
    "LDA": Row(
        programs.latent_dirichlet_allocation,
        TraceEnum_ELBO,
        2,
        summed=True,
        alone=True,
        batch_size=6,
    ),
    "LDA, subsampled": Row(
        of(programs.latent_dirichlet_allocation, 2),
        TraceEnum_ELBO,
        2,
        summed=True,
        alone=True,
        batch_size=6,
    ),
    "ProdLDA": Row(
        programs.prodlda, mean_field=True, alone=True, recorded=READS + "total_count = int"
    ),
    "scANVI, labels summed in the guide": Row(programs.scanvi_unlabelled, TraceEnum_ELBO),
    "scANVI, labels given": Row(programs.scanvi_labelled, score=True),
    "scANVI, the counts with a scale of their own": Row(
        of(programs.scanvi_unlabelled, 0.5), TraceEnum_ELBO, refused=SCALES
    ),
    "GMM": Row(
        programs.gaussian_mixture, TraceEnum_ELBO, summed=True, alone=True, batch_size=5
    ),
    "GMM, full guide": Row(
        programs.gaussian_mixture_full_guide, TraceEnum_ELBO, alone=True, batch_size=5
    ),
    "Bayesian regression, AutoDiagonalNormal": Row(
        programs.bayesian_regression, alone=True, batch_size=8
    ),
    "hierarchical regression, AutoNormal": Row(
        programs.hierarchical_regression, batch_size=18
    ),
}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def row(request):
    return ROWS[request.param]


@pytest.fixture
def pair(row):
    pair = row.build()
    with torch.random.fork_rng():
        pair.guide(*pair.args)  # makes the parameters
        pair.model(*pair.args)
    return pair


every_row = pytest.mark.parametrize("row", ROWS, indirect=True)


def rows(**expected):
    chosen = [
        name
        for name, row in ROWS.items()
        if all(bool(getattr(row, k)) == v for k, v in expected.items())
    ]
    return pytest.mark.parametrize("row", chosen, indirect=True)


def value(bound, pair, seed, guide=None):
    torch.manual_seed(seed)
    return -bound.loss(pair.model, guide or pair.guide, *pair.args)


def pyro_s(row, kind=None):
    return (kind or row.pyro)(max_plate_nesting=row.nesting)


def weighted(row, pair, particles):
    """A weighted bound that has found out how its particles run: one after another where there
    is a reason for it.
    """
    bound = IWAE(particles)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bound.loss(pair.model, pair.guide, *pair.args)
    # All data of a subsample that share a variable have one weight, which is only estimated.
    known = "one after another|a subsample only estimates it"
    assert all(re.search(known, str(warning.message)) for warning in caught)
    assert row.alone or not caught
    return bound


@every_row
def test_the_elbo_is_pyro_s(row, pair):
    for seed in range(3):
        theirs = value(pyro_s(row), pair, seed)
        assert value(ELBO(analytic_kl=False), pair, seed) == pytest.approx(theirs, rel=1e-6)


@rows(mean_field=True)
def test_closed_forms_are_pyro_s(row, pair):
    for seed in range(3):
        theirs = value(pyro_s(row, TraceMeanField_ELBO), pair, seed)
        assert value(ELBO(), pair, seed) == pytest.approx(theirs, rel=1e-6)


@rows(mean_field=False)
def test_closed_forms_change_nothing_in_expectation(row, pair):
    theirs = pyro_s(row)
    off = torch.tensor(
        [value(ELBO(), pair, seed) - value(theirs, pair, seed) for seed in range(30)]
    )
    assert off.mean().abs() <= 4 * off.std() / len(off) ** 0.5 + 1e-6


@every_row
def test_one_weight_is_pyro_s_elbo(row, pair):
    bound = weighted(row, pair, 1)
    for seed in range(3):
        # Validation minds that Trace_ELBO draws what is marked for enumeration.
        with pyro.validation_enabled(False):
            theirs = value(pyro_s(row, None if row.summed else Trace_ELBO), pair, seed)
        assert value(bound, pair, seed) == pytest.approx(theirs, rel=1e-6)


@every_row
def test_weighted_bounds_lie_between_the_elbo_and_the_evidence(row, pair):
    for module in pair.modules:
        module.eval()
    if row.refused:
        with pytest.raises(PairError, match=row.refused):
            value(IWAE(8), pair, 0)
        return
    with torch.no_grad():
        evidence = pair.evidence() if pair.evidence else math.inf  # it is not known
    evidence, error = evidence if isinstance(evidence, tuple) else (evidence, 0.0)
    bounds = [ELBO(), weighted(row, pair, 8)] + [weighted(row, pair, 500)] * (not row.alone)
    draws = torch.tensor(
        [[value(bound, pair, seed) for seed in range(24)] for bound in bounds]
    )
    means, errors = draws.mean(1), draws.std(1) / draws.shape[1] ** 0.5
    assert (means <= evidence + 4 * (errors.square() + error**2).sqrt() + 1e-9).all()
    noise = (errors[1:].square() + errors[:-1].square()).sqrt()
    assert (means.diff() >= -4 * noise - 1e-9).all()


def by_hand(pair, particles):
    """With joint weights of everything; and nested, with weights of rows given what they
    share.
    """

    def weights(guide):
        """Of all sites, of those shared, and of the rows."""
        q = poutine.trace(guide).get_trace(*pair.args)
        p = poutine.trace(poutine.replay(pair.model, trace=q)).get_trace(*pair.args)
        p.compute_log_prob(), q.compute_log_prob()
        logs = {"obs": p.nodes["obs"]["log_prob"]}
        for name in q.stochastic_nodes:
            logs[name] = p.nodes[name]["log_prob"] - q.nodes[name]["log_prob"]
        shared = sum(value.sum() for name, value in logs.items() if name.startswith("w_"))
        rows = sum(value for name, value in logs.items() if not name.startswith("w_"))
        return rows.sum() + shared, shared, rows

    joint = torch.stack([weights(pair.guide)[0] for _ in range(particles)]).logsumexp(0)
    once = poutine.trace(pair.guide).get_trace(*pair.args)
    for name in [name for name in once.nodes if name.startswith("z_")]:
        once.remove_node(name)
    given = [weights(poutine.replay(pair.guide, trace=once)) for _ in range(particles)]
    nested = torch.stack([rows for _, _, rows in given]).logsumexp(0) - math.log(particles)
    return joint - math.log(particles), given[0][1] + nested.sum()


def test_many_weights_beside_the_data():
    """At the sizes of Pyro's example, on digits; 5,560 weights apart would be 2,900 nats
    above.
    """
    family = programs.SparseGammaDEF(
        16 * digits().train.x[:100].double(), (100, 40, 15), 0.1, 0.1
    )
    pair = programs.Pair(family.model, family.guide, (family.x,))
    pair.guide(*pair.args)
    with torch.no_grad():
        truth = torch.tensor([by_hand(pair, 8) for _ in range(6)])
        draws = torch.tensor([[value(IWAE(8), pair, seed)] for seed in range(6)])
    noise = (truth.var(0) + draws.var(0)).sqrt() / 6**0.5
    assert ((draws.mean(0) - truth.mean(0)).abs() <= 4 * noise).any()


def gradients(bound, row, pair):
    """By name, of whatever the pair keeps in Pyro's store."""
    torch.manual_seed(0)
    loss = bound.differentiable_loss(pair.model, pair.guide, *pair.args)
    parameters = dict(pyro.get_param_store().named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: value for name, value in zip(parameters, found, strict=True) if value is not None
    }


@rows(score=False)
def test_gradients_are_pyro_s(row, pair):
    ours, theirs = (
        gradients(bound, row, pair) for bound in (ELBO(analytic_kl=False), pyro_s(row))
    )
    assert theirs
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-8)
    assert ours.keys() == theirs.keys()


def train(row, pair, **options):
    data = pair.args
    if isinstance(data[-1], float):  # an annealing factor, which is another one at every step
        data = [(*data[:-1], factor) for factor in (0.2, 0.6, 1.0)]
    return fit(
        pair.model,
        pair.guide,
        data,
        batch_size=row.batch_size,
        epochs=2,
        progress=False,
        **options,
    )


@every_row
def test_trains(row, pair):
    history = train(row, pair, loss=ELBO())
    assert all(map(math.isfinite, history["loss"]))


@every_row
def test_trains_with_pyro_s_bound(row):
    """As with ours, from the same start and noise, where their gradients are the same."""
    histories = []
    for bound in (pyro_s(row), ELBO(analytic_kl=False)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        histories.append(train(row, row.build(), loss=bound, seed=1))
    theirs, ours = (history["loss"] for history in histories)
    assert all(map(math.isfinite, theirs)) and theirs[0] != theirs[1]
    if not row.score:
        assert ours == pytest.approx(theirs, rel=1e-6)


@every_row
def test_compiles_or_names_the_line(row, pair):
    sentence, choices = None, {"backend": "eager", "choose": False}
    try:
        train(row, pair, loss=Compiled(ELBO(), **choices))
    except RecordingError as error:
        sentence = str(error)
    if row.recorded:
        assert re.search(row.recorded, sentence)
    else:
        assert sentence is None
    if sentence:
        with pytest.warns(UserWarning, match="goes on eagerly"):
            history = train(row, pair, loss=Compiled(ELBO(), fallback=True, **choices))
        assert all(map(math.isfinite, history["loss"]))
