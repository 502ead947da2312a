"""The methods of the library as the command line knows them: papers, settings, what is built,
reported and drawn.
"""

__all__ = ["METHODS", "Method", "OneOf", "completed"]

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tarspyro.commands import builders, games, painters, pictures, reports
from tarspyro.commands.builders import Built
from tarspyro.commands.material import FORMS, SOURCES, Form, Material


class OneOf(tuple[str, ...]):
    """The values that a setting may have, its default first."""


class Method(NamedTuple):
    """What the command line knows of a method.

    Attributes:
        title: What it is called.
        paper: Where it comes from.
        covers: The names of its classes in ``tarspyro.models``.
        form: How it takes data.
        build: Makes the pair and the loss, from the completed options and the data.
        settings: The options that it has beside those of every training, with their defaults.
        reports: What is said of a trained pair.
        pictures: What is drawn of it.
        sampler: What is drawn of the model alone; None where it does not generate.
        fixed: What its builder reads in place of options that it does not have.
        optimizer: Further options of the optimizer.
        epochs: By the data set, how many epochs there are, where the data set's own number
            does not suit.
        site: The name of the observed site.
        latent: The name of the latent site to look at, where there are several.
    """

    title: str
    paper: str
    covers: tuple[str, ...]
    form: Form
    build: Callable[[Any, Material], Built]
    settings: Mapping[str, Any]
    reports: tuple[reports.Report, ...]
    pictures: tuple[Callable[[reports.Trained], Any], ...]
    sampler: pictures.Sampler | None = None
    fixed: Mapping[str, Any] = {}
    optimizer: Mapping[str, Any] = {}
    epochs: Mapping[str, int] = {}
    site: str = "x"
    latent: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """All options by name, with their defaults."""
        return {**_TRAINING, **self.settings}

    def epochs_of(self, data: str) -> int:
        """How many epochs of a data set a training takes if nothing else is said."""
        return self.epochs.get(data, SOURCES[data].epochs)


def completed(method: Method, data: str, given: Mapping[str, Any]) -> Namespace:
    """Returns the options of a method that were given, and the defaults of all others."""
    defaults = {
        name: default[0] if isinstance(default, OneOf) else default
        for name, default in method.options.items()
    }
    o = Namespace(**{"grey": True, **method.fixed, **defaults, **given})
    images = "images" in SOURCES[data].kind
    if "likelihood" in method.settings:
        o.likelihood = o.likelihood or SOURCES[data].likelihood
    if "grey" in method.settings:
        o.grey = o.grey or o.likelihood != "Bernoulli" or not images
    o.epochs = o.epochs or method.epochs_of(data)
    return o


_TRAINING: dict[str, Any] = {
    "epochs": None,
    "batch_size": 100,
    "lr": 1e-3,
    "clip_norm": None,
    "seed": 0,
    "compile": False,
}
_PATIENCE = {"patience": None}
_PIXELS = {"likelihood": None, "scale": None, "grey": False}
_BOUND = {
    "loss": OneOf(("elbo", "iwae", "renyi")),
    "num_particles": None,
    "beta": None,
    "alpha": None,
}
_WITH_BOUND = {**_PIXELS, **_BOUND, **_PATIENCE, "likelihood_particles": 1000}
_OF_STEPS = {
    **_WITH_BOUND,
    "loss": OneOf(("elbo", "iwae", "renyi", "fivo")),
    "likelihood_particles": 100,
    "lr": 3e-3,
}
_PAINTING = {
    "steps": 8,
    **_WITH_BOUND,
    "likelihood_particles": 100,
    "clip_norm": 5.0,
    "lr": 3e-3,
}
_ATTENTION = {"attention": True, "read_size": 2, "write_size": 5}
_CORRUPTION = {"masking_noise": None, "gaussian_noise": None}
_TRUNK = {"trunk": OneOf(("mlp", "conv"))}
_GAME = {"divergence": OneOf(("jensen-shannon", "least-squares", "hinge", "wasserstein"))}
_GREY_BERNOULLI = {"likelihood": "Bernoulli", "scale": None}
_GREY_NORMAL = {"likelihood": "Normal"}
_ADAM_OF_GAMES = {"betas": (0.5, 0.999)}

_SEEN = (pictures.reconstructions, pictures.latents, pictures.curves)
_BOUND_AND_LIKELIHOOD = (reports.bound, reports.likelihood_of("x"))
_GIVEN_LABELS = (reports.bound, reports.likelihood_of("x | y"))


def _sizes(latent: Any, hidden: Any = (256, 256)) -> dict[str, Any]:
    return {"latent": latent, "hidden": list(hidden)}


METHODS = {
    "vae": Method(
        "variational autoencoder, also denoising, with a VampPrior or with flows",
        "Kingma and Welling 2013, arXiv:1312.6114",
        ("VAE",),
        FORMS["images"],
        builders.vae,
        {
            **_sizes(2),
            **_TRUNK,
            "family": "Normal",
            "prior": OneOf(("standard", "vamp", "flow")),
            "posterior": OneOf(("diagonal", "flow")),
            **_CORRUPTION,
            **_WITH_BOUND,
        },
        (*_BOUND_AND_LIKELIHOOD, reports.active_units),
        (*_SEEN, pictures.manifold),
        pictures.samples,
    ),
    "autoencoder": Method(
        "autoencoder, also denoising",
        "Hinton and Salakhutdinov 2006; denoising: Vincent et al. 2008",
        ("Autoencoder",),
        FORMS["images"],
        builders.autoencoder,
        {**_sizes(2), **_TRUNK, **_CORRUPTION, **_PIXELS, **_PATIENCE},
        (reports.bound,),
        _SEEN,
    ),
    "conditional-vae": Method(
        "conditional variational autoencoder, of images given labels",
        "Sohn, Lee and Yan 2015",
        ("ConditionalVAE",),
        FORMS["labelled images"],
        builders.conditional_vae,
        {**_sizes(10), "prior": OneOf(("standard", "learned")), **_WITH_BOUND},
        (*_GIVEN_LABELS, reports.active_units),
        (*_SEEN, pictures.analogies),
        pictures.of_each_class,
    ),
    "hierarchical-vae": Method(
        "variational autoencoder with layers of latent variables",
        "Burda et al. 2015, arXiv:1509.00519",
        ("HierarchicalVAE",),
        FORMS["images"],
        builders.hierarchical_vae,
        {**_sizes([16, 8], [256]), "chain": OneOf(("samples", "means")), **_WITH_BOUND},
        (*_BOUND_AND_LIKELIHOOD, reports.active_units),
        (*_SEEN, pictures.units),
        pictures.samples,
        latent="z_1",
    ),
    "ladder-vae": Method(
        "ladder variational autoencoder",
        "Sonderby et al. 2016, arXiv:1602.02282",
        ("LadderVAE",),
        FORMS["images"],
        builders.ladder_vae,
        {**_sizes([16, 8], [256]), **_WITH_BOUND},
        (*_BOUND_AND_LIKELIHOOD, reports.active_units),
        (*_SEEN, pictures.units),
        pictures.samples,
        latent="z_1",
    ),
    "semi-supervised-vae": Method(
        "semi-supervised variational autoencoder (M2), of few labels among many images",
        "Kingma et al. 2014, arXiv:1406.5298",
        ("SemiSupervisedVAE",),
        FORMS["few labels"],
        builders.semi_supervised_vae,
        {
            **_sizes(10, [256]),
            "labels": 100,
            "classifier_weight": 5.0,
            **_WITH_BOUND,
            "likelihood_particles": 100,
        },
        (*_BOUND_AND_LIKELIHOOD, reports.classification),
        (*_SEEN, pictures.analogies),
        pictures.of_each_class,
        latent="z",
    ),
    "jmvae": Method(
        "joint multimodal variational autoencoder (JMVAE-kl), of images and labels",
        "Suzuki et al. 2016, arXiv:1611.01891",
        ("JMVAE",),
        FORMS["labelled images"],
        builders.jmvae,
        {**_sizes(16), "modality_weight": 0.1, **_WITH_BOUND},
        (reports.bound, reports.likelihood_of("x, y"), reports.labels_from_images),
        (*_SEEN, pictures.images_from_labels),
        pictures.samples,
        site="x_1",
    ),
    "mvae": Method(
        "multimodal variational autoencoder, a product or a mixture of experts, of images and"
        " labels",
        "Wu and Goodman 2018, arXiv:1802.05335; mixture: Shi et al. 2019, arXiv:1911.03393",
        ("MVAE",),
        FORMS["labelled images"],
        builders.mvae,
        {**_sizes(16), "experts": OneOf(("product", "mixture")), **_WITH_BOUND},
        (reports.bound, reports.likelihood_of("x, y"), reports.labels_from_images),
        (*_SEEN, pictures.images_from_labels),
        pictures.samples,
        site="x_1",
    ),
    "cmma": Method(
        "conditional multimodal autoencoder, of images given labels",
        "Pandey and Dukkipati 2016, arXiv:1603.01801",
        ("CMMA",),
        FORMS["labelled images"],
        builders.cmma,
        {**_sizes(16), **_WITH_BOUND},
        (*_GIVEN_LABELS, reports.active_units),
        _SEEN,
        pictures.of_each_class,
    ),
    "vrnn": Method(
        "variational recurrent neural network, of sequences",
        "Chung et al. 2015, arXiv:1506.02216",
        ("VRNN",),
        FORMS["sequences"],
        builders.vrnn,
        {**_sizes(16, [64]), "units": 64, **_OF_STEPS},
        (reports.bound, reports.filtered),
        (pictures.continuations, pictures.curves),
        pictures.sequences,
        epochs={"digits": 100},
    ),
    "deep-markov-model": Method(
        "deep Markov model, of sequences",
        "Krishnan, Shalit and Sontag 2017, arXiv:1609.09869",
        ("DeepMarkovModel",),
        FORMS["sequences"],
        builders.deep_markov_model,
        {**_sizes(16, [64]), "units": 64, **_OF_STEPS},
        (reports.bound, reports.filtered),
        (pictures.continuations, pictures.curves),
        pictures.sequences,
        epochs={"digits": 100},
    ),
    "draw": Method(
        "DRAW, which paints an image step by step, with attention or without",
        "Gregor et al. 2015, arXiv:1502.04623",
        ("DRAW",),
        FORMS["images"],
        painters.draw,
        {"latent": 10, "units": 128, **_ATTENTION, **_PAINTING},
        _BOUND_AND_LIKELIHOOD,
        (pictures.canvases, pictures.curves),
        pictures.samples,
        epochs={"digits": 100},
    ),
    "conv-draw": Method(
        "convolutional DRAW",
        "Gregor et al. 2016, arXiv:1604.08772",
        ("ConvDRAW",),
        FORMS["images"],
        painters.conv_draw,
        {"latent": 2, "units": 32, **_PAINTING},
        _BOUND_AND_LIKELIHOOD,
        (pictures.canvases, pictures.curves),
        pictures.samples,
        epochs={"digits": 50},
    ),
    "conditional-draw": Method(
        "DRAW of images given labels",
        "Gregor et al. 2015, arXiv:1502.04623; Sohn, Lee and Yan 2015",
        ("ConditionalDRAW",),
        FORMS["labelled images"],
        painters.conditional_draw,
        {"latent": 10, "units": 128, **_ATTENTION, **_PAINTING},
        _GIVEN_LABELS,
        (pictures.canvases, pictures.curves),
        pictures.of_each_class,
        epochs={"digits": 100},
    ),
    "gan": Method(
        "generative adversarial network",
        "Goodfellow et al. 2014, arXiv:1406.2661",
        ("GAN",),
        FORMS["images or points"],
        games.gan,
        {**_sizes(16, [128, 128]), **_GAME, "lr": 5e-4},
        (reports.game,),
        (pictures.curves,),
        pictures.samples,
        optimizer=_ADAM_OF_GAMES,
    ),
    "conditional-gan": Method(
        "conditional generative adversarial network, of images given labels",
        "Mirza and Osindero 2014, arXiv:1411.1784",
        ("ConditionalGAN",),
        FORMS["labelled images"],
        games.conditional_gan,
        {**_sizes(16, [128, 128]), **_GAME, "lr": 5e-4},
        (reports.game,),
        (pictures.curves,),
        pictures.of_each_class,
        optimizer=_ADAM_OF_GAMES,
    ),
    "vae-gan": Method(
        "VAE-GAN, a variational autoencoder with a learned similarity",
        "Larsen et al. 2015, arXiv:1512.09300",
        ("VAE",),
        FORMS["images"],
        games.vae_gan,
        {**_sizes(16, [128, 128]), "gamma": 0.1, **_GAME, "lr": 5e-4},
        (reports.reconstruction_error, reports.game),
        (*_SEEN, pictures.manifold),
        pictures.samples,
        fixed=_GREY_BERNOULLI,
        optimizer=_ADAM_OF_GAMES,
    ),
    "adversarial-autoencoder": Method(
        "adversarial autoencoder",
        "Makhzani et al. 2015, arXiv:1511.05644",
        ("VAE",),
        FORMS["images"],
        games.adversarial_autoencoder,
        {**_sizes(2, [128, 128]), "scale": 0.3, "weight": 5.0, **_GAME},
        (reports.reconstruction_error, reports.codes, reports.game),
        (*_SEEN, pictures.manifold),
        pictures.samples,
        fixed=_GREY_NORMAL,
    ),
    "wasserstein-autoencoder": Method(
        "Wasserstein autoencoder with the maximum mean discrepancy (WAE-MMD)",
        "Tolstikhin et al. 2017, arXiv:1711.01558",
        ("VAE",),
        FORMS["images"],
        games.wasserstein_autoencoder,
        {**_sizes(2, [128, 128]), "scale": 0.3, "weight": 100.0, **_PATIENCE},
        (reports.reconstruction_error, reports.codes),
        (*_SEEN, pictures.manifold),
        pictures.samples,
        fixed=_GREY_NORMAL,
    ),
    "bayesian-regression": Method(
        "Bayesian neural network, of a number or of a class",
        "Kingma and Welling 2013, arXiv:1312.6114, appendix F",
        ("BayesianRegression",),
        FORMS["targets"],
        builders.bayesian_regression,
        {"hidden": [50], **_BOUND},
        (reports.predictions,),
        (pictures.regression, pictures.curves),
    ),
    "classifier": Method(
        "classifier, without latent variables",
        "maximum likelihood",
        ("Classifier",),
        FORMS["labelled images"],
        builders.classifier,
        {"hidden": [256, 256], **_PATIENCE},
        (reports.classes,),
        (pictures.curves,),
        epochs={"digits": 100},
    ),
}
