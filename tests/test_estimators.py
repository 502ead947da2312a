"""The pair as a scikit-learn estimator: what it returns, and its life in pipelines and
searches.
"""

import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from torch import nn

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.estimators import PairTransformer
from tarspyro.infer import IWAE
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder
from tests.programs import as_made


def pair(latent=2, seed=0):
    torch.manual_seed(seed)
    p = models.VAE(
        default_prior(dist.Normal, latent), Conditional(dist.Bernoulli, MLP(latent, [16]), 64)
    )
    return p, guides.VAE(Conditional(dist.Normal, MLP(64, [16]), latent))


FAST = {"lr": 1e-2}


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
    np.testing.assert_array_equal(
        scores, evaluate.log_likelihood(p, q, X, num_particles=20, seed=0)
    )
    assert fitted.score(X) == pytest.approx(scores.mean())
    np.testing.assert_array_equal(
        fitted.inverse_transform(codes), evaluate.decode(p, evaluate.embed(q, X))
    )
    np.testing.assert_array_equal(
        fitted.sample(5, seed=1), evaluate.sample(p, 5, seed=1).numpy()
    )
    untouched = pair()
    for given, fresh in zip((fitted.model, fitted.guide), untouched, strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(given.parameters(), fresh.parameters(), strict=True)
        )


def test_a_second_fit_starts_anew(X):
    estimator = PairTransformer(*pair(), epochs=1, seed=0, options=FAST)
    first, second = estimator.fit_transform(X), estimator.fit(X).transform(X)
    np.testing.assert_array_equal(first, second)


def test_parameters_and_clones(X, fitted):
    estimator = PairTransformer(*pair(), loss=IWAE(3), options=FAST).set_params(
        epochs=1, seed=4
    )
    assert (
        estimator.get_params()["epochs"] == 1
        and estimator.get_params()["loss"].num_particles == 3
    )
    again = clone(estimator)
    assert (
        again.model is not estimator.model
        and again.seed == 4
        and again.loss.num_particles == 3
    )
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
    codes = PairTransformer(
        *pair(8), epochs=20, batch_size=50, seed=0, num_particles=10, options=FAST
    )
    classifier = make_pipeline(codes, LogisticRegression(max_iter=1000))
    accuracies = cross_val_score(classifier, train.x[:800].round(), train.y[:800], cv=2)
    assert accuracies.shape == (2,) and accuracies.min() > 0.5
    far = dict(zip(("model", "guide"), as_made(*pair(8)), strict=True))
    search = GridSearchCV(clone(codes).set_params(**far), {"epochs": [1, 8]}, cv=2).fit(X)
    means = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"epochs": 8} and means[1] > means[0] + 3  # nats
    assert search.score(X) == search.best_estimator_.score_samples(X).mean()
    wider = [
        dict(zip(("model", "guide"), ([half] for half in pair(latent)), strict=True))
        for latent in (1, 4)
    ]
    search = GridSearchCV(codes, wider, cv=2).fit(train.x[:800].round())
    assert search.transform(X).shape == (300, 4)  # one latent variable is too few


def test_names_of_the_codes(X, fitted):
    assert list(fitted.get_feature_names_out()) == ["pairtransformer0", "pairtransformer1"]


def test_images_ints_tensors_and_grey_pixels(train):
    p = models.VAE(
        default_prior(dist.Normal, 2),
        Conditional(dist.Bernoulli, ConvDecoder(2, (1, 8, 8)), (1, 8, 8)),
    )
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder((1, 8, 8)), 2))
    images = train.x[:60].reshape(-1, 1, 8, 8)
    estimator = PairTransformer(p, q, epochs=1, binarize=True, seed=0, num_particles=5).fit(
        images
    )
    assert estimator.transform(images).shape == (60, 2) and estimator.sample(3).shape == (
        3,
        1,
        8,
        8,
    )
    assert estimator.inverse_transform(estimator.transform(images)).shape == (60, 1, 8, 8)
    np.testing.assert_array_equal(
        estimator.score_samples(images), estimator.score_samples(images.tolist())
    )
    whole = PairTransformer(*pair(), epochs=1, num_particles=5).fit(train.x[:60].round().int())
    assert np.isfinite(whole.score_samples(train.x[:60].round().int())).all()


def test_codes_of_several_dimensions_and_sites(X):
    p = models.VAE(
        default_prior(dist.Normal, (3, 2)), Conditional(dist.Bernoulli, nn.Flatten(-2), 64)
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(64, [16]), (3, 2)))
    estimator = PairTransformer(p, q, epochs=1).fit(X[:50])
    codes = estimator.transform(X[:50])
    assert codes.shape == (50, 6) and len(estimator.get_feature_names_out()) == 6
    np.testing.assert_array_equal(
        codes, evaluate.embed(estimator.guide_, X[:50]).reshape(50, 6)
    )
    assert estimator.inverse_transform(codes).shape == (50, 64)


def test_errors(X):
    with pytest.raises(NotFittedError):
        PairTransformer(*pair()).transform(X)
    with pytest.raises(TypeError, match="model must be a module, such as models.VAE"):
        PairTransformer(lambda x: None, pair()[1]).fit(X)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        PairTransformer(*pair(), epochs=0).fit(X)


# Scikit-learn's own checks, with a pair that takes rows of any length.


class AnyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(2, 200))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(z @ self.weight[:, : x.shape[-1]], 1.0).to_event(1), obs=x
            )


class AnyGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(200, 2))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.weight[: x.shape[-1]], 1.0).to_event(1))


# All of them, but for those of scores that are drawn, and of hashes, which differ between
# copies of a module.
CHECKS = [
    "check_complex_data",
    "check_dict_unchanged",
    "check_dont_overwrite_parameters",
    "check_dtype_object",
    "check_estimators_dtypes",
    "check_estimators_empty_data_messages",
    "check_estimators_fit_returns_self",
    "check_estimators_nan_inf",
    "check_estimators_pickle",
    "check_f_contiguous_array_estimator",
    "check_fit1d",
    "check_fit2d_1feature",
    "check_fit2d_1sample",
    "check_fit2d_predict1d",
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_fit_score_takes_y",
    "check_get_feature_names_out_error",
    "check_get_params_invariance",
    "check_n_features_in",
    "check_n_features_in_after_fitting",
    "check_pipeline_consistency",
    "check_readonly_memmap_input",
    "check_set_params",
    "check_transformer_data_not_an_array",
    "check_transformer_general",
    "check_transformer_get_feature_names_out",
    "check_transformer_preserve_dtypes",
    "check_transformers_unfitted",
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", CHECKS)
def test_passes_the_checks_of_scikit_learn(name):
    torch.manual_seed(0)
    estimator = PairTransformer(AnyModel(), AnyGuide(), epochs=1, seed=0, num_particles=2)
    getattr(estimator_checks, name)("PairTransformer", estimator)


def test_a_row_is_not_taken_for_a_column(fitted, X):
    for method in (fitted.transform, fitted.score_samples, fitted.score, clone(fitted).fit):
        with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
            method(X[0])
        with pytest.raises(ValueError, match="Found array with 0 sample"):
            method(X[:0])
    assert fitted.n_features_in_ == 64
    with pytest.raises(
        ValueError,
        match="X has 63 features, but PairTransformer is expecting 64 features as input",
    ):
        fitted.transform(X[:, 1:])
    with pytest.raises(ValueError, match="codes must have the 2 columns of transform, got 3"):
        fitted.inverse_transform(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
        fitted.inverse_transform(np.zeros(2))


def test_features_of_images_are_their_pixels(train):
    """However shaped: other steps of a pipeline leave flat rows."""
    images = train.x[:40].reshape(-1, 1, 8, 8).numpy().round()
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), (1, 8, 8))
    )
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder((1, 8, 8), [4]), 2))
    codes = PairTransformer(p, q, epochs=1, seed=0).fit(images)
    assert codes.n_features_in_ == 64
    np.testing.assert_array_equal(
        codes.transform(images), codes.transform(images.reshape(40, 64))
    )
    np.testing.assert_array_equal(codes.transform(images.tolist()), codes.transform(images))
    with pytest.raises(
        ValueError, match="X has 32 features, but PairTransformer is expecting 64"
    ):
        codes.transform(images[:, :, :4])


def test_an_unknown_option_gets_a_suggestion(X):
    estimator = PairTransformer(*pair(), options={"learning_rate": 1e-2})
    with pytest.raises(TypeError, match="no argument 'learning_rate': did you mean lr"):
        estimator.fit(X)


def test_the_learning_rate_is_an_argument_of_its_own(X):
    fits = [
        PairTransformer(*pair(), epochs=1, seed=0, lr=1e-2),
        PairTransformer(*pair(), epochs=1, seed=0, options={"lr": 1e-2}),
    ]
    histories = [estimator.fit(X).history_.step_losses for estimator in fits]
    assert histories[0] == histories[1]
