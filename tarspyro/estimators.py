"""Pairs as estimators of scikit-learn, which only this module imports."""

__all__ = ["PairTransformer"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted
from torch import nn

from tarspyro.arguments import format_value
from tarspyro.evaluate import decode, embed, log_likelihood, sample
from tarspyro.modules import copy_modules
from tarspyro.training.fit import fit
from tarspyro.training.losses import Loss
from tarspyro.types import ArrayLike

if TYPE_CHECKING:
    from sklearn.utils import Tags


class PairTransformer(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    r"""A transformer of scikit-learn: rows become codes, the means of their posteriors.

    .. math:: x \mapsto \mathbb{E}_{q(z \mid x)}[z]

    As in every estimator of scikit-learn, ``fit`` does not change the arguments. It trains
    copies of the pair and of the loss, from the same initial weights each time, so that
    ``clone``, ``cross_val_score`` and ``GridSearchCV`` work. If the halves share a module, such
    as a recurrent cell, the copies share it too.

    The data X has the shape ``(N, *event)``, in any form that ``numpy.asarray`` takes. After
    ``fit``, rows may also come flat, as other steps of a pipeline return them. Codes are arrays
    of shape (N, D). X has to suit the likelihood: for a Bernoulli, black and white pixels, or
    grey ones with ``binarize=True``.

    Arguments:
        model: The model, a module that takes x alone, such as ``models.VAE(...)``.
        guide: The guide, likewise.
        loss: Any bound or game, ``ELBO()`` if not given.
        lr: The learning rate.
        epochs: The number of passes over the data.
        batch_size: The number of rows of a batch.
        binarize: Whether to draw black and white pixels, see ``tarspyro.fit``. In
            ``score_samples`` they are drawn once.
        seed: The seed of the training and of the scores.
        site: The latent variable that is the code. It may be left out if there is only one.
        num_particles: K, the number of draws of a log-likelihood.
        options: More arguments of ``tarspyro.fit``, such as ``{"patience": 5}``.

    Attributes:
        model_: The trained model.
        guide_: The trained guide.
        history_: The history of the training.
        n_features_in_: The number of features of a row, such as all pixels of an image.
        feature_names_in_: Their names, if X had names.

    Raises:
        TypeError: If a half is not a module, or an option is no argument of ``tarspyro.fit``.
        ValueError: If X has no rows, other features than in ``fit``, or a value that is not
            finite.
        NotFittedError: If it is used before ``fit``.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from tarspyro import Conditional, data, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> _ = torch.manual_seed(0)
        >>> likelihood = Conditional(dist.Bernoulli, MLP(8, [64]), 64)
        >>> p = models.VAE(default_prior(dist.Normal, 8), likelihood)
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(64, [64]), 8))
        >>> digits = data.digits()
        >>> codes = PairTransformer(p, q, binarize=True, seed=0)
        >>> classifier = make_pipeline(codes, LogisticRegression(max_iter=1000))
        >>> classifier = classifier.fit(digits.train.x, digits.train.y)
        >>> classifier.score(digits.test.x, digits.test.y) > 0.7
        True
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        *,
        loss: Loss | None = None,
        lr: float = 1e-3,
        epochs: int = 10,
        batch_size: int = 100,
        binarize: bool = False,
        seed: int | None = None,
        site: str | None = None,
        num_particles: int = 100,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.loss = loss
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.binarize = binarize
        self.seed = seed
        self.site = site
        self.num_particles = num_particles
        self.options = options

    def __sklearn_tags__(self) -> "Tags":
        tags = super().__sklearn_tags__()
        # Codes have the type of the guide's parameters.
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __sklearn_clone__(self) -> "PairTransformer":
        # Scikit-learn copies the arguments one by one, so that the halves would no longer share
        # modules. Here all arguments are copied together.
        return type(self)(**copy_modules(self.get_params(deep=False)))

    def fit(self, X: ArrayLike, y: object = None) -> "PairTransformer":
        """Trains copies of the pair on X of shape ``(N, *event)``; y is ignored."""
        for name, half in (("model", self.model), ("guide", self.guide)):
            if not isinstance(half, nn.Module):
                raise TypeError(
                    f"{name} must be a module, such as {name}s.VAE(...), of which fit trains a"
                    f" copy, got {format_value(half)}."
                )
        x = self._rows(X, reset=True)
        self.model_, self.guide_, loss = copy_modules((self.model, self.guide, self.loss))
        options: dict[str, Any] = {
            "lr": self.lr,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "binarize": self.binarize,
            "seed": self.seed,
            "progress": False,
        }
        options |= self.options or {}
        self.history_ = fit(self.model_, self.guide_, x, loss=loss, **options)
        self._code_shape = self._codes(x[:1]).shape[1:]
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Returns the posterior means of X, of shape (N, D)."""
        check_is_fitted(self)
        x = self._rows(X)
        return self._codes(x).reshape(len(x), -1)

    def inverse_transform(self, codes: ArrayLike) -> np.ndarray:
        """Returns the means of p(x | z), of shape ``(N, *event)``, at codes of shape (N, D)."""
        check_is_fitted(self)
        z = check_array(codes, dtype=np.float64, input_name="codes")
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"codes must have the {self._n_features_out} columns of transform, got"
                f" {z.shape[1]}."
            )
        z = z.reshape(len(z), *self._code_shape)
        means = decode(self.model_, z, latent=self.site or "z")
        return np.asarray(means)

    def score_samples(self, X: ArrayLike, y: object = None) -> np.ndarray:
        """Returns importance weighted estimates of log p(x) for every row of X, in nats."""
        check_is_fitted(self)
        scores: np.ndarray = log_likelihood(
            self.model_,
            self.guide_,
            self._rows(X),
            num_particles=self.num_particles,
            binarize=self.binarize,
            seed=self.seed,
        )
        return scores

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Returns the mean of ``score_samples``, which a grid search maximizes."""
        return float(self.score_samples(X).mean())

    def sample(self, num_samples: int = 1, *, seed: int | None = None) -> np.ndarray:
        """Returns draws from the model, of shape ``(num_samples, *event)``."""
        check_is_fitted(self)
        draws: np.ndarray = sample(self.model_, num_samples, seed=seed).numpy(force=True)
        return draws

    def _rows(self, X: ArrayLike, *, reset: bool = False) -> np.ndarray:
        """X as an array of the pair's shape; scikit-learn checks the number of features.

        Arguments:
            X: The data.
            reset: Whether X defines the shape and the features, as in ``fit``.
        """
        # Tables keep the names of their columns.
        table: Any = X if hasattr(X, "shape") else np.asarray(X)
        flat = table if len(table.shape) < 3 else np.asarray(table).reshape(len(table), -1)
        x = _validated(self, flat, reset=reset, dtype=np.float64)
        if reset:
            self._event_shape = table.shape[1:]
        return x.reshape(len(x), *self._event_shape)

    def _codes(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(embed(self.guide_, x, site=self.site))

    @property
    def _n_features_out(self) -> int:
        return int(np.prod(self._code_shape))


def _validated(estimator: BaseEstimator, X: ArrayLike, **options: object) -> np.ndarray:
    """X as an array, checked by scikit-learn."""
    x: np.ndarray
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:
        # Before scikit-learn 1.6 it was a method.
        x = estimator._validate_data(X, **options)
    else:
        x = validate_data(estimator, X, **options)
    return x
