"""Parzen windows against SciPy and mixtures."""

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import gaussian_kde

from tarspyro import evaluate


def test_parzen_windows_are_scipys():
    samples, x = (
        torch.randn(50, 1, dtype=torch.float64),
        torch.linspace(-3, 3, 230, dtype=torch.float64)[:, None],
    )
    kde = gaussian_kde(samples[:, 0].numpy())
    found = evaluate.parzen_log_likelihood(
        samples, x, scales=float(kde.factor * samples.std())
    )
    expected = torch.as_tensor(kde.logpdf(x[:, 0].numpy()))
    torch.testing.assert_close(found.log_likelihood, expected)
    assert found.mean == pytest.approx(expected.mean().item())
    assert found.standard_error == pytest.approx(expected.std().item() / 230**0.5)


def test_parzen_windows_are_a_mixture_in_any_shape():
    samples, x = torch.rand(7, 1, 4, 4), torch.rand(5, 1, 4, 4)
    components = dist.Normal(samples.flatten(1), 0.3).to_event(1)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(7)), components
    )
    found = evaluate.parzen_log_likelihood(samples, x, scales=0.3)
    torch.testing.assert_close(found.log_likelihood.float(), mixture.log_prob(x.flatten(1)))


def test_the_window_is_chosen_on_validation_data():
    """Of draws of N(0, I), the window that fits other draws best is known: by the mean over
    samples and points.
    """
    torch.manual_seed(0)
    samples, held_out, x = torch.randn(300, 2), torch.randn(500, 2), 10 + torch.randn(20, 2)
    scales = [0.05, 0.2, 0.4, 1.0, 3.0]
    found = evaluate.parzen_log_likelihood(samples, x, validation=held_out, scales=scales)
    means = [
        evaluate.parzen_log_likelihood(samples, held_out, scales=scale).mean
        for scale in scales
    ]
    assert found.scale == scales[max(range(5), key=means.__getitem__)] and found.scale in (
        0.2,
        0.4,
    )
    # x itself would have chosen another: it is far away, and was not asked.
    assert (
        max(
            scales,
            key=lambda scale: evaluate.parzen_log_likelihood(samples, x, scales=scale).mean,
        )
        == 3.0
    )
    torch.testing.assert_close(
        found.log_likelihood,
        evaluate.parzen_log_likelihood(samples, x, scales=found.scale).log_likelihood,
    )
