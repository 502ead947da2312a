"""The pair as a scikit-learn estimator: what it returns, and its life in pipelines and searches."""

import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from torch import nn

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.estimators import PairTransformer
from tarspyro.infer import IWAE
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder


def pair(latent=2, seed=0):
    torch.manual_seed(seed)
    p = models.VAE(default_prior(dist.Normal, latent), Conditional(dist.Bernoulli, MLP(latent, [16]), 64))
    return p, guides.VAE(Conditional(dist.Normal, MLP(64, [16]), latent))


FAST = {"optimizer_options": {"lr": 1e-2}}


@pytest.fixture(scope="module")
def train():
    return digits().train


@pytest.fixture(scope="module")
def X(train):
    return train.x[:300].numpy().astype(np.float64).round()


@pytest.fixture(scope="module")
def fitted(X):
    return PairTransformer(*pair(), epochs=3, seed=0, num_particles=20, options=FAST).fit(X)


def test_fits_copies_and_returns_what_the_library_does(X, fitted):
    p, q = pair()
    history = fit(p, q, X, epochs=3, seed=0, progress=False, **FAST)
    assert fitted.history_["loss"] == history["loss"]
    codes, scores = fitted.transform(X), fitted.score_samples(X)
    assert isinstance(codes, np.ndarray) and codes.shape == (300, 2) and scores.shape == (300,)
    np.testing.assert_array_equal(codes, evaluate.embed(q, X))
    np.testing.assert_array_equal(scores, evaluate.log_likelihood(p, q, X, num_particles=20, seed=0))
    assert fitted.score(X) == pytest.approx(scores.mean())
    np.testing.assert_array_equal(fitted.inverse_transform(codes), evaluate.decode(p, evaluate.embed(q, X)))
    np.testing.assert_array_equal(fitted.sample(5, seed=1), evaluate.sample(p, 5, seed=1).numpy())
    untouched = pair()
    for given, fresh in zip((fitted.model, fitted.guide), untouched, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(given.parameters(), fresh.parameters(), strict=True))


def test_a_second_fit_starts_anew(X):
    estimator = PairTransformer(*pair(), epochs=1, seed=0, options=FAST)
    first, second = estimator.fit_transform(X), estimator.fit(X).transform(X)
    np.testing.assert_array_equal(first, second)


def test_parameters_and_clones(X, fitted):
    estimator = PairTransformer(*pair(), loss=IWAE(3), options=FAST).set_params(epochs=1, seed=4)
    assert estimator.get_params()["epochs"] == 1 and estimator.get_params()["loss"].num_particles == 3
    again = clone(estimator)
    assert again.model is not estimator.model and again.seed == 4 and again.loss.num_particles == 3
    np.testing.assert_array_equal(again.fit_transform(X), estimator.fit_transform(X))
    assert not hasattr(clone(fitted), "model_")
    restored = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(restored.transform(X), fitted.transform(X))


def test_what_the_halves_share_a_clone_s_halves_share():
    shared = nn.Linear(2, 2)
    p, q = pair()
    p.shared, q.shared = shared, shared
    copied = clone(PairTransformer(p, q))
    assert copied.model.shared is copied.guide.shared is not shared


def test_in_a_pipeline_a_cross_validation_and_a_search(train, X):
    codes = PairTransformer(*pair(8), epochs=20, batch_size=50, seed=0, num_particles=10, options=FAST)
    classifier = make_pipeline(codes, LogisticRegression(max_iter=1000))
    accuracies = cross_val_score(classifier, train.x[:800].round(), train.y[:800], cv=2)
    assert accuracies.shape == (2,) and accuracies.min() > 0.5
    search = GridSearchCV(codes, {"epochs": [1, 8]}, cv=2).fit(X)
    means = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"epochs": 8} and means[1] > means[0] + 3  # nats
    assert search.score(X) == search.best_estimator_.score_samples(X).mean()
    wider = [dict(zip(("model", "guide"), ([half] for half in pair(latent)), strict=True)) for latent in (1, 4)]
    search = GridSearchCV(codes, wider, cv=2).fit(train.x[:800].round())
    assert search.transform(X).shape == (300, 4)  # one latent variable is too few


def test_names_of_the_codes(X, fitted):
    assert list(fitted.get_feature_names_out()) == ["pairtransformer0", "pairtransformer1"]


def test_images_ints_tensors_and_grey_pixels(train):
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, ConvDecoder(2, (1, 8, 8)), (1, 8, 8)))
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder((1, 8, 8)), 2))
    images = train.x[:60].reshape(-1, 1, 8, 8)
    estimator = PairTransformer(p, q, epochs=1, binarize=True, seed=0, num_particles=5).fit(images)
    assert estimator.transform(images).shape == (60, 2) and estimator.sample(3).shape == (3, 1, 8, 8)
    assert estimator.inverse_transform(estimator.transform(images)).shape == (60, 1, 8, 8)
    np.testing.assert_array_equal(estimator.score_samples(images), estimator.score_samples(images.tolist()))
    whole = PairTransformer(*pair(), epochs=1, num_particles=5).fit(train.x[:60].round().int())
    assert np.isfinite(whole.score_samples(train.x[:60].round().int())).all()


def test_codes_of_several_dimensions_and_sites(X):
    p = models.VAE(default_prior(dist.Normal, (3, 2)), Conditional(dist.Bernoulli, nn.Flatten(-2), 64))
    q = guides.VAE(Conditional(dist.Normal, MLP(64, [16]), (3, 2)))
    estimator = PairTransformer(p, q, epochs=1).fit(X[:50])
    codes = estimator.transform(X[:50])
    assert codes.shape == (50, 6) and len(estimator.get_feature_names_out()) == 6
    np.testing.assert_array_equal(codes, evaluate.embed(estimator.guide_, X[:50]).reshape(50, 6))
    assert estimator.inverse_transform(codes).shape == (50, 64)


def test_errors(X):
    with pytest.raises(NotFittedError):
        PairTransformer(*pair()).transform(X)
    with pytest.raises(TypeError, match="model must be a module, such as models.VAE"):
        PairTransformer(lambda x: None, pair()[1]).fit(X)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        PairTransformer(*pair(), epochs=0).fit(X)
