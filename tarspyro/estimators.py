"""A pair as an estimator of scikit-learn, which is imported with this module and not with the
library.
"""

__all__ = ["PairTransformer"]

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted
from torch import nn

from tarspyro.evaluate import decode, embed, log_likelihood, sample
from tarspyro.training.fit import fit


class PairTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""A pair that stands in a ``Pipeline``: rows become codes, the means of their posteriors.

    .. math:: x \mapsto \mathbb{E}_{q(z \mid x)}[z]

    As with every estimator of scikit-learn the arguments stay as they were given: ``fit``
    trains copies of the pair and of the loss, from the same initial weights each time, so that
    ``clone``, ``cross_val_score`` and ``GridSearchCV`` work. What the halves share, such as a
    recurrent cell, the copies share too.

    The data X are numbers of shape ``(N, *event)``, in any form that ``numpy.asarray`` takes,
    and what is returned are arrays. Their rows may also come flat, as other steps leave them,
    once the pair is fitted. Codes are flat, of shape (N, D). Give X as the model's likelihood
    has it: the steps before this one must leave black and white pixels to a Bernoulli, for
    example, or grey ones with ``binarize=True``.

    Arguments:
        model: The model, a module that takes x alone, such as ``models.VAE(...)``.
        guide: The guide, likewise.
        loss: Any bound or game, ``ELBO()`` if not given.
        epochs: How many passes over the data.
        batch_size: The number of rows of a batch.
        binarize: Draw black and white pixels, see ``tarspyro.fit``; in ``score_samples`` they
            are drawn once.
        seed: Makes the training and the scores those of this seed.
        site: Which latent variable is the code; not needed if there is one.
        num_particles: K, the number of draws of a log-likelihood.
        options: More arguments of ``tarspyro.fit``, such as ``{"optimizer_options": {"lr":
            1e-2}}``.

    Attributes:
        model_: The trained model.
        guide_: The trained guide.
        history_: What the training measured.
        n_features_in_: The number of features of a row, all of an image's pixels.
        feature_names_in_: Their names, if X had some.

    Raises:
        TypeError: If a half is no module: ``fit`` could not train a copy.
        ValueError: If X has no rows or other features than in ``fit``, or a number is not
            finite, in the words of scikit-learn.
        NotFittedError: If it is used before ``fit``.

    Example:
        >>> import pyro.distributions as dist
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from tarspyro import Conditional, data, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> p = models.VAE(default_prior(dist.Normal, 8), Conditional(dist.Bernoulli, MLP(8, [64]), 64))
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(64, [64]), 8))
        >>> digits = data.digits()
        >>> codes = PairTransformer(p, q, binarize=True, seed=0)
        >>> classifier = make_pipeline(codes, LogisticRegression(max_iter=1000))
        >>> classifier.fit(digits.train.x, digits.train.y).score(digits.test.x, digits.test.y) > 0.7
        True
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        *,
        loss: Any = None,
        epochs: int = 10,
        batch_size: int = 100,
        binarize: bool = False,
        seed: int | None = None,
        site: str | None = None,
        num_particles: int = 100,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.guide, self.loss = model, guide, loss
        self.epochs, self.batch_size, self.binarize = epochs, batch_size, binarize
        self.seed, self.site, self.num_particles, self.options = (
            seed,
            site,
            num_particles,
            options,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # codes have the type of the guide's parameters
        return tags

    def __sklearn_clone__(self) -> "PairTransformer":
        # All arguments in one copy: scikit-learn copies one by one, which would part what the
        # halves share.
        return type(self)(**copy.deepcopy(self.get_params(deep=False)))

    def fit(self, X: Any, y: Any = None) -> "PairTransformer":
        """Trains copies of the pair on X of shape ``(N, *event)``; y is ignored."""
        for name, half in (("model", self.model), ("guide", self.guide)):
            if not isinstance(half, nn.Module):
                raise TypeError(
                    f"{name} must be a module, such as {name}s.VAE(...), of which fit trains a"
                    f" copy: {half!r}."
                )
        x = self._rows(X, reset=True)
        self.model_, self.guide_, loss = copy.deepcopy((self.model, self.guide, self.loss))
        self.history_ = fit(
            self.model_,
            self.guide_,
            x,
            loss=loss,
            epochs=self.epochs,
            batch_size=self.batch_size,
            binarize=self.binarize,
            seed=self.seed,
            **{"progress": False, **(self.options or {})},
        )
        self._code_shape = self._codes(x[:1]).shape[1:]
        return self

    def transform(self, X: Any) -> Any:
        """Returns the posterior means of X, of shape (N, D)."""
        check_is_fitted(self)
        x = self._rows(X)
        return self._codes(x).reshape(len(x), -1)

    def inverse_transform(self, codes: Any) -> Any:
        """Returns the means of p(x | z) at codes of shape (N, D), of shape ``(N, *event)``."""
        check_is_fitted(self)
        z = check_array(codes, dtype=np.float64, input_name="codes")
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"codes must have the {self._n_features_out} columns of transform, got"
                f" {z.shape[1]}."
            )
        return decode(
            self.model_, z.reshape(len(z), *self._code_shape), latent=self.site or "z"
        )

    def score_samples(self, X: Any, y: Any = None) -> Any:
        """Returns importance weighted estimates of log p(x), in nats, one for each row of X."""
        check_is_fitted(self)
        return log_likelihood(
            self.model_,
            self.guide_,
            self._rows(X),
            num_particles=self.num_particles,
            binarize=self.binarize,
            seed=self.seed,
        )

    def score(self, X: Any, y: Any = None) -> float:
        """Returns the mean of ``score_samples``, what a grid search maximizes."""
        return float(self.score_samples(X).mean())

    def sample(self, num_samples: int = 1, *, seed: int | None = None) -> Any:
        """Returns so many draws from the model, of shape ``(num_samples, *event)``."""
        check_is_fitted(self)
        return sample(self.model_, num_samples, seed=seed).numpy(force=True)

    def _rows(self, X: Any, *, reset: bool = False) -> Any:
        """X as an array of the pair's shape; scikit-learn checks the number of features,
        however they are shaped.
        """
        X = (
            X if hasattr(X, "shape") else np.asarray(X)
        )  # tables keep the names of their columns
        flat = X if len(X.shape) < 3 else np.asarray(X).reshape(len(X), -1)
        x = _validated(self, flat, reset=reset, dtype=np.float64)
        if reset:
            self._event_shape = X.shape[1:]
        return x.reshape(len(x), *self._event_shape)

    def _codes(self, x: Any) -> Any:
        return embed(self.guide_, x, site=self.site)

    @property
    def _n_features_out(self) -> int:
        return int(np.prod(self._code_shape))


def _validated(estimator: Any, X: Any, **options: Any) -> Any:
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:  # before scikit-learn 1.6 it was a method
        return estimator._validate_data(X, **options)
    return validate_data(estimator, X, **options)
