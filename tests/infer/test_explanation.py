"""Explanations of bounds, whose statements are compared with values of known programs."""

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints

from tarspyro import infer
from tarspyro.infer import ELBO, IWAE, PairError, Renyi, explain
from tarspyro.infer.traces import no_guide

from ..random_programs import draw

X = torch.tensor([0.5, 2.0, -1.0])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def site(found, name):
    return next(row for row in found.sites if row.name == name)


def test_weights_and_sites_of_a_plain_pair():
    state = torch.get_rng_state()
    found = explain(IWAE(5), model, guide, X)
    assert torch.equal(state, torch.get_rng_state())
    assert found.is_lower_bound and not found.findings
    assert found.weights == "a weight for each index of 'data' (3)"
    assert site(found, "z")[1:] == (
        "latent",
        "Normal",
        "Normal",
        "data",
        "1",
        "data point",
        "pathwise",
        "inside the weight",
    )
    assert "<td>z</td>" in found._repr_html_() and "z " in str(found)


def test_a_site_outside_the_plate_of_pyros_bound_makes_one_weight_of_all():
    def counted(x):
        model(x)
        pyro.deterministic("count", torch.tensor(3.0))

    theirs = pyro.infer.RenyiELBO(alpha=0, num_particles=5)
    assert explain(theirs, model, guide, X).weights.startswith("a weight for each")
    found = explain(theirs, counted, guide, X)
    assert found.weights == "one weight of all data" and found.is_lower_bound
    assert "looser bound" in found.findings[0]
    ours = explain(Renyi(0, num_particles=5), counted, guide, X)
    assert ours.weights.startswith("a weight for each") and not ours.findings


def test_a_scale_inside_the_logarithm_is_no_bound():
    def part(x):
        with pyro.plate("data", 30, subsample=torch.arange(3)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def wide(x):
        with pyro.plate("data", 30, subsample=torch.arange(3)):
            pyro.sample("z", dist.Normal(x / 2, 2.0))

    theirs = pyro.infer.RenyiELBO(alpha=0, num_particles=1000, vectorize_particles=True)
    found = explain(theirs, part, wide, X)
    assert not found.is_lower_bound and "inside the logarithm" in found.kind
    exact = 10 * float(dist.Normal(0.0, 2**0.5).log_prob(X).sum())
    torch.manual_seed(0)
    assert -theirs.loss(part, wide, X) > exact + 1  # Pyro's value exceeds the evidence
    ours = explain(IWAE(1000), part, wide, X)
    assert ours.is_lower_bound and "3 of 30" in ours.weights
    assert site(ours, "z").scale == "10 (subsample)"
    assert explain(ELBO(), part, wide, X).is_lower_bound


@pytest.mark.parametrize(
    "bound, holds",
    [
        (ELBO(), True),
        (ELBO(beta=4.0), True),
        (ELBO(beta=0.5), False),
        (Renyi(0.5, num_particles=5), True),
        (Renyi(-1.0, num_particles=5), False),
        (Renyi(-1.0, num_particles=1), True),
        (pyro.infer.Trace_ELBO(), True),
        (pyro.infer.TraceMeanField_ELBO(), True),
        (pyro.infer.RenyiELBO(alpha=-1, num_particles=5), False),
        (pyro.infer.ReweightedWakeSleep(num_particles=2), False),
    ],
)
def test_the_kind_of_bound(bound, holds):
    assert explain(bound, model, guide, X).is_lower_bound is holds


def test_scales_of_one_half_or_of_the_latent_variables():
    def annealed(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    assert "scale 0.1 in the model and 1" in explain(ELBO(), annealed, guide, X).kind

    def guide_too(x):
        with poutine.scale(scale=0.1):
            guide(x)

    assert "the KL has scale 0.1" in explain(ELBO(), annealed, guide_too, X).kind


def test_the_closed_form_follows_the_order_of_the_guide():
    def chain(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def upwards(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(x, 1.0))
            pyro.sample("a", dist.Normal(b / 2, 1.0))

    found = explain(ELBO(), chain, upwards, X)
    assert found.is_lower_bound
    assert site(found, "b").kl.startswith("sampled: the guide draws 'a'")
    assert site(found, "a").kl == "closed form"
    theirs = explain(pyro.infer.TraceMeanField_ELBO(), chain, upwards, X)
    assert not theirs.is_lower_bound and "closed form" in theirs.kind


class Forgetful(torch.distributions.Transform):
    """y = 3 x, without its Jacobian."""

    domain = codomain = constraints.real
    bijective = True

    def _call(self, x):
        return 3 * x

    def _inverse(self, y):
        return y / 3

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


class TestJacobians:
    def scaled(self, transforms):
        def flow(x):
            with pyro.plate("data", len(x)):
                base = dist.Normal(x / 2, 0.2)
                pyro.sample("z", dist.TransformedDistribution(base, transforms))

        return flow

    def test_a_transform_without_its_jacobian(self):
        right = [torch.distributions.AffineTransform(1.0, 3.0)]
        assert not explain(ELBO(), model, self.scaled(right), X).findings
        found = explain(ELBO(), model, self.scaled([Forgetful()]), X)
        assert not found.is_lower_bound
        assert "Forgetful.log_abs_det_jacobian" in found.findings[0]

    def test_a_delta_without_its_jacobian(self):
        def positive(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def by_hand(x, counts=0.0):
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", dist.Normal(x, 0.5), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(u.exp(), log_density=-counts * u))

        found = explain(ELBO(), positive, by_hand, X)
        assert not found.is_lower_bound and "leaves out the Jacobian" in found.findings[0]
        right = explain(ELBO(), positive, lambda x: by_hand(x, 1.0), X)
        assert right.is_lower_bound and not right.findings
        assert site(right, "u").role == "auxiliary"

        auto = pyro.infer.autoguide.AutoNormal(positive)
        auto(X)
        assert explain(ELBO(), positive, auto, X).is_lower_bound
        auto = pyro.infer.autoguide.AutoMultivariateNormal(positive)
        auto(X)
        assert explain(ELBO(), positive, auto, X).is_lower_bound


def test_a_plate_that_holds_nothing():
    def empty(x):
        with pyro.plate("data", len(x)):
            pass
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    found = explain(ELBO(), empty, guide, X)
    assert found.findings == (
        "The plate 'data' holds no site: indent the sites that belong to it.",
    )


def test_gradients_of_draws_that_are_not_reparameterized():
    def discrete(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def probabilities(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.sigmoid(x)))

    ours = explain(ELBO(num_particles=2), discrete, probabilities, X)
    assert site(ours, "z").gradient.startswith("score: not reparameterized, baseline")
    marked = pyro.infer.config_enumerate(probabilities)
    assert site(explain(ELBO(), discrete, marked, X), "z").gradient == "exact: summed out"
    theirs = explain(pyro.infer.RenyiELBO(num_particles=2), discrete, probabilities, X)
    assert "no gradient or a biased one" in theirs.findings[0]


def test_shared_latent_variables():
    def grouped(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guides(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((m + x) / 2, 1.0))

    found = explain(IWAE(5), grouped, guides, X)
    assert site(found, "m").weight == "shared" and site(found, "z").weight == "data point"
    assert "given one draw of m" in found.weights


WEIGHTS = {"local": "a weight for each", "shared": "one weight", "joint": "one weight"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(24))
def test_random_arrangements_of_plates(seed):
    pair = draw(seed)
    programs = pair.build()
    elbo = explain(ELBO(), programs.model, programs.guide, *programs.args)
    found = explain(IWAE(4), programs.model, programs.guide, *programs.args)
    if pair.wrong:
        assert not found.is_lower_bound and found.findings
        return
    assert found.weights.startswith(WEIGHTS.get(pair.structure, ""))
    if pair.scaling in ("", "all", "given", "size"):
        assert elbo.is_lower_bound
    try:
        IWAE(4).loss(programs.model, programs.guide, *programs.args)
    except PairError:
        # An explanation needs no refusal, but it must not promise a bound then.
        assert not found.is_lower_bound or programs_enumerate(programs)
    else:
        assert "refuses" not in found.kind


def programs_enumerate(programs):
    """Whether the model sums a latent variable out, which weighted bounds refuse."""
    structure = ELBO().structure(programs.model, programs.guide, *programs.args)
    return bool(structure.enumerated)


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="bound must be a bound"):
        explain(infer.WAE, model, guide, X)
    found = explain(pyro.infer.Trace_ELBO(), model, no_guide, X)
    assert not found.is_lower_bound and "do not match" in found.kind


def test_a_guide_outside_the_plates_of_pyros_weights_is_no_bound():
    x = torch.tensor([[-1.5, 0.6], [1.8, -2.0], [-0.3, -0.9]])

    def nested(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 2, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    auto = pyro.infer.autoguide.AutoMultivariateNormal(nested, init_scale=0.4)
    auto(x)
    theirs = pyro.infer.RenyiELBO(
        alpha=0, num_particles=8, vectorize_particles=True, max_plate_nesting=2
    )
    found = explain(theirs, nested, auto, x)
    assert not found.is_lower_bound and "counted more than once" in found.kind
    assert "take tarspyro.infer.Renyi" in found.findings[0]
    covariance = torch.ones(2, 2) + torch.eye(2)
    exact = float(dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x).sum())
    values = torch.tensor([-theirs.loss(nested, auto, x) for _ in range(200)])
    assert values.mean() - 4 * values.std() / 200**0.5 > exact  # above the evidence
    ours = explain(Renyi(0, num_particles=8), nested, auto, x)
    assert ours.is_lower_bound and not ours.findings


def test_rows_that_depend_on_each_other_in_the_weights_of_pyro():
    def mixed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.flip(-1), 1.0), obs=x)

    theirs = pyro.infer.RenyiELBO(alpha=0, num_particles=8)
    found = explain(theirs, mixed, guide, X)
    assert not found.is_lower_bound and "depend on each other" in found.kind
    assert explain(IWAE(8), mixed, guide, X).is_lower_bound


def test_what_is_summed_out_is_part_of_a_weight():
    def discrete(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def empty(x):
        pass

    found = explain(IWAE(4), discrete, empty, X)
    assert found.is_lower_bound and found.weights == "a weight for each index of 'data' (3)"
    assert explain(ELBO(), discrete, empty, X).is_lower_bound
