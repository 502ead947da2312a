"""Fuzz tests: with wrong arguments, every call works or raises one sentence of this library.

Each test replaces one or two arguments of a call that works. No bare error of torch, Pyro or
Python may escape. Every run tries a few fixed examples; ``TARSPYRO_EXAMPLES=500`` tries more.
"""

import linecache
import math
import traceback
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from pyro.distributions.transforms import Planar
from torch import nn

from tarspyro import (
    Autoregressive,
    Blocks,
    Conditional,
    Deterministic,
    Transformed,
    VectorQuantized,
    data,
    distributions,
    embed,
    evaluate,
    fit,
    guides,
    infer,
    load_run,
    models,
    plot,
)
from tarspyro import nn as networks
from tarspyro.data import DataError
from tarspyro.distributions import Prior, default_prior
from tarspyro.nn import MLP, Canvas, IdentityTrunk, Recurrence, Write
from tarspyro.runs import RunError
from tarspyro.training.checks import CollapseError, NonFiniteError

ROOT = Path(__file__).parents[2]
OURS = [ROOT / name for name in ("tarspyro", "models", "guides")]
ERRORS = (
    ValueError,
    TypeError,
    NotImplementedError,
    ImportError,
    RunError,
    DataError,
    NonFiniteError,
    CollapseError,
)
# What the base classes in torch say of parameters and values out of range, over several lines,
# and name.
TORCH_VALIDATES = (
    "Expected parameter",
    "Expected value argument",
    "Value is not broadcastable",
)

X = data.digits().train.x[:8].round()
Y = data.digits().train.y[:8]


def pair(latent=2, family=dist.Normal):
    likelihood = Conditional(dist.Bernoulli, MLP(latent, [4]), 64)
    return models.VAE(default_prior(family, latent), likelihood), guides.VAE(
        Conditional(family, MLP(64, [4]), latent)
    )


def trained(loss=None, **options):
    """A training of a new pair, so that no example sees what another has done."""
    torch.manual_seed(0)
    p, q = pair()
    return fit(
        **{
            "model": p,
            "guide": q,
            "data": X,
            "loss": loss,
            "epochs": 1,
            "progress": False,
            **options,
        }
    )


P, Q = pair()
CELL = Recurrence(nn.GRUCell(66, 4))
CANVAS = Canvas(Recurrence(nn.GRUCell(2, 4)), Write(4, (1, 8, 8)))
LANGUAGE = networks.LanguageRNN(nn.Embedding(5, 2), nn.GRU(2, 3), nn.GRU(2, 3))
DECODER = Conditional(dist.Bernoulli, MLP(2, [4]), 64)
ENCODER = Conditional(dist.Normal, MLP(64, [4]), 2)
PRIOR = default_prior(dist.Normal, 2)
CRITIC = networks.Discriminator(MLP(64, [4]))

JUNK = [
    *(
        -1,
        0,
        1,
        2,
        3,
        2.5,
        -0.5,
        math.nan,
        math.inf,
        True,
        None,
        "a",
        "",
        b"ab",
        (),
        [],
        {},
        [1, "a"],
        {"x": 1},
    ),
    *(
        (2, 2),
        [3, -1],
        (1, 8, 8),
        np.int64(3),
        np.zeros(3),
        np.zeros((8, 64)),
        np.array(["a"]),
        object(),
        int,
    ),
    *(
        nn.ReLU,
        nn.ReLU(),
        torch.relu,
        lambda *values: values,
        dist.Normal,
        dist.Normal(0.0, 1.0),
        MLP(3, [2]),
        PRIOR,
        P,
    ),
    *(
        torch.tensor(1.0),
        torch.zeros(3),
        torch.zeros(8, 3),
        torch.zeros(0, 64),
        torch.ones(8, 64),
        torch.zeros(2, 1, 8, 8),
    ),
    *(
        X.double(),
        X.half(),
        X.long(),
        X.bool(),
        X + 0j,
        X * 0.5,
        X - 3,
        X / 0,
        X.to_sparse(),
        X.to("meta"),
    ),
    *("cuda", "cpu", "meta", "nonsense", torch.device("cpu"), torch.float64, torch.Size([64])),
]

CALLS = {
    "networks": [
        (
            MLP,
            {
                "in_features": 3,
                "hidden_features": [4],
                "activation": nn.ReLU,
                "normalization": None,
                "dropout": 0.5,
            },
        ),
        (
            networks.ConvEncoder,
            {
                "in_shape": (1, 8, 8),
                "channels": [2],
                "activation": nn.ReLU,
                "normalization": None,
            },
        ),
        (
            networks.ConvDecoder,
            {"in_features": 2, "out_shape": (1, 8, 8), "channels": [2], "activation": nn.ReLU},
        ),
        (
            networks.UNet,
            {"in_features": 2, "in_shape": (1, 8, 8), "channels": [2, 3], "dropout": 0.1},
        ),
        (
            networks.PatchGAN,
            {"in_shapes": [(1, 8, 8)], "channels": [2], "normalization": None},
        ),
        (networks.Discriminator, {"trunk": MLP(3, [2])}),
        (networks.AttentionRead, {"in_features": 4, "shape": (1, 8, 8), "size": 2}),
        (networks.AttentionWrite, {"in_features": 4, "shape": (1, 8, 8), "size": 2}),
        (networks.Read, {"shape": (1, 8, 8)}),
        (networks.Write, {"in_features": 4, "shape": (1, 8, 8)}),
        (networks.ConvRead, {"shape": (1, 8, 8), "channels": 2, "stride": 2}),
        (networks.ConvWrite, {"in_shape": (2, 4, 4), "shape": (1, 8, 8)}),
        (networks.FeatureMap, {"in_shapes": (2, 4, 4), "kernel_size": 3}),
        (networks.IdentityTrunk, {"shape": (1, 8, 8)}),
        (
            networks.Canvas,
            {"cell": Recurrence(nn.GRUCell(2, 4)), "write": Write(4, (1, 8, 8)), "view": None},
        ),
        (networks.Recurrence, {"cell": nn.GRUCell(2, 4), "trunk": None}),
        (networks.ConvLSTMCell, {"in_channels": 2, "shape": (2, 4, 4), "kernel_size": 3}),
        (networks.Backward, {"rnn": nn.GRU(2, 4)}),
        (
            networks.LanguageRNN,
            {
                "embedding": nn.Embedding(5, 2),
                "forward_rnn": nn.GRU(2, 3),
                "backward_rnn": nn.GRU(2, 3),
            },
        ),
        (LANGUAGE, {0: torch.tensor([[0, 4, 1]]), 1: torch.tensor([2])}),
        (networks.Alignment, {"in_features": 4, "word_features": 6, "units": 2}),
        (
            networks.MADE,
            {
                "in_shape": 6,
                "hidden_features": [4],
                "order": "random",
                "num_masks": 2,
                "context": 2,
                "num_classes": None,
                "activation": nn.ReLU,
                "seed": 1,
            },
        ),
        (
            networks.PixelCNN,
            {
                "in_shape": (1, 4, 4),
                "channels": 2,
                "num_layers": 1,
                "kernel_size": 3,
                "context": None,
                "num_classes": None,
            },
        ),
        (
            networks.CausalConv1d,
            {"in_shape": 6, "channels": 2, "num_layers": 1, "kernel_size": 2, "context": None},
        ),
        (networks.CausalRNN, {"in_shape": (6, 2), "hidden_size": 2, "cell": nn.GRU}),
        (networks.Codebook, {"num_codes": 4, "size": 2, "decay": 0.9}),
        (networks.RandomWeights, {"network": nn.Linear(2, 2)}),
        (networks.GaussianNoise, {"scale": 0.5}),
        (networks.MaskingNoise, {"p": 0.5}),
        (networks.initialize, {"network": nn.Linear(2, 2)}),
        (networks.spread_kinks, {"network": nn.Linear(2, 2), "x": X[:, :2]}),
        (networks.event_ndims, {"network": nn.Linear(2, 2)}),
    ],
    "what networks see": [
        (MLP(64, [4]), {0: X}),
        (MLP([64, 64], [4]), {0: X, 1: X}),
        (networks.ConvEncoder((1, 8, 8), [2]), {0: X}),
        (networks.ConvDecoder(64, (1, 8, 8), [2]), {0: X}),
        (networks.Discriminator(MLP(64, [4])), {0: X}),
        (networks.AttentionWrite(64, (1, 4, 4), 2), {0: X}),
        (networks.AttentionRead(64, (1, 8, 8), 2), {0: X, 1: X, 2: X}),
        (networks.UNet(64, (1, 8, 8), [2]), {0: X, 1: X}),
        (networks.MADE(64, [4], context=64), {0: X, 1: X}),
        (networks.PixelCNN((1, 8, 8), 2, 1), {0: X}),
        (networks.CausalConv1d(64, 2, 1), {0: X}),
        (Autoregressive(dist.Bernoulli, networks.MADE(64, [4]), 64).log_prob, {0: X}),
        (
            Autoregressive(dist.Normal, networks.MADE(2, [4], context=64), 2).log_prob,
            {0: X[:, :2], 1: X},
        ),
        (
            Autoregressive(dist.Normal, networks.MADE(2, [4], context=64), 2).sample,
            {0: X, "sample_shape": 2},
        ),
        (VectorQuantized(MLP(64, [4]), networks.Codebook(4, 2), 2), {0: X}),
        (Conditional(dist.Normal, MLP(64, [4]), 2), {0: X}),
        (Conditional(dist.Normal, nn.Linear(64, 4), 2), {0: X}),
        (Conditional(dist.Bernoulli, MLP(64, [4]), 64).log_prob, {0: X, 1: X}),
        (Conditional(dist.Normal, MLP(64, [4]), 2).sample, {0: X, "sample_shape": (3,)}),
        (Conditional(dist.Normal, MLP(64, [4]), 2).mean, {0: X}),
        (Conditional(dist.Normal, MLP(64, [4]), 2).kl, {0: PRIOR, 1: X}),
        (Deterministic(MLP(64, [4]), 2), {0: X}),
        (Blocks(Conditional(dist.Normal, MLP(64, [4]), 2), PRIOR), {0: X}),
    ],
    "conditionals": [
        (
            Conditional,
            {
                "family": dist.Normal,
                "trunk": MLP(3, [2]),
                "event_shape": 2,
                "transforms": None,
                "param_shapes": None,
                "scale": 0.1,
            },
        ),
        (
            Conditional,
            {
                "family": distributions.Gamma,
                "trunk": MLP(3, [2]),
                "event_shape": (2, 2),
                "boost": 2,
            },
        ),
        (
            Conditional,
            {
                "family": distributions.GumbelSoftmax,
                "trunk": MLP(3, [2]),
                "event_shape": 3,
                "temperature": 0.5,
            },
        ),
        (
            Autoregressive,
            {
                "family": dist.Normal,
                "trunk": networks.MADE(2, [4]),
                "event_shape": 2,
                "order": None,
                "transforms": None,
                "param_shapes": None,
                "scale": 0.1,
            },
        ),
        (
            VectorQuantized,
            {
                "trunk": MLP(3, [2]),
                "codebook": networks.Codebook(4, 2),
                "event_shape": 2,
                "commitment": 0.5,
            },
        ),
        (
            distributions.CodePrior,
            {"codebook": networks.Codebook(4, 2), "event_shape": (2, 3), "indices": None},
        ),
        (Deterministic, {"trunk": MLP(3, [2]), "event_shape": 2, "transform": None}),
        (Blocks, {0: DECODER, 1: DECODER}),
        (Transformed, {"base": PRIOR, "transforms": [Planar(2)], "trunk": None}),
        (Prior, {"family": dist.Normal, "event_shape": 2, "loc": 0.0, "scale": 1.0}),
        (default_prior, {"family": dist.Normal, "event_shape": 2}),
        (distributions.VampPrior, {"posterior": ENCODER, "pseudo_inputs": (3, 64)}),
    ],
    "distributions": [
        (
            distributions.Gamma,
            {
                "concentration": torch.ones(3),
                "rate": 2.0,
                "boost": 4,
                "reparameterization": "implicit",
            },
        ),
        (
            distributions.Beta,
            {"concentration1": torch.ones(3), "concentration0": 2.0, "boost": 4},
        ),
        (distributions.Dirichlet, {"concentration": torch.ones(3), "boost": 4}),
        (distributions.InverseGamma, {"concentration": torch.ones(3), "rate": 2.0}),
        (distributions.Chi2, {"df": torch.ones(3)}),
        (distributions.StudentT, {"df": torch.ones(3), "loc": 0.0, "scale": 1.0}),
        (
            distributions.GumbelSoftmax,
            {"logits": torch.zeros(3), "temperature": 0.5, "score": None},
        ),
        (distributions.GumbelSoftmax, {"probs": torch.ones(3) / 3, "temperature": 0.5}),
        (
            distributions.GumbelSigmoid,
            {"logits": torch.zeros(3), "temperature": 0.5, "score": "density"},
        ),
        (distributions.Kumaraswamy, {"concentration1": torch.ones(3), "concentration0": 2.0}),
        (
            distributions.LowRankMultivariateNormal,
            {
                "loc": torch.zeros(3),
                "cov_factor": torch.ones(3, 1),
                "cov_diag": torch.ones(3),
            },
        ),
        (
            distributions.StickBreaking,
            {"breaks": dist.Beta(torch.ones(3), torch.ones(3)).to_event(1)},
        ),
        (
            distributions.StickBreakingBeta,
            {"concentration1": torch.ones(3), "concentration0": torch.ones(3)},
        ),
        (
            distributions.StickBreakingKumaraswamy,
            {"concentration1": torch.ones(3), "concentration0": torch.ones(3)},
        ),
        (distributions.VonMisesFisher, {"loc": torch.eye(3)[0], "concentration": 2.0}),
        (distributions.PowerSpherical, {"loc": torch.eye(3)[0], "concentration": 2.0}),
        (
            distributions.ProductOfExperts,
            {"experts": [dist.Normal(torch.zeros(3), 1.0)] * 2, "prior": None},
        ),
        (
            distributions.MixtureOfExperts,
            {"experts": [dist.Normal(torch.zeros(3), 1.0)] * 2, "prior": None},
        ),
        (
            distributions.Concatenate,
            {"blocks": [dist.Normal(torch.zeros(3), 1.0).to_event(1)]},
        ),
    ],
    "bounds and games": [
        (
            infer.ELBO,
            {
                "num_particles": 2,
                "beta": 0.5,
                "free_bits": 0.0,
                "gradient": "pathwise",
                "max_plate_nesting": 1,
            },
        ),
        (
            infer.IWAE,
            {"num_particles": 2, "num_groups": 1, "gradient": "dreg", "chunk_size": None},
        ),
        (infer.Renyi, {"alpha": 0.5, "num_particles": 2, "num_groups": 1}),
        (infer.CIWAE, {"beta": 0.5, "num_particles": 2}),
        (infer.PIWAE, {"num_particles": 2, "num_groups": 2}),
        (infer.FIVO, {"num_particles": 2, "threshold": 0.5, "resampling": "systematic"}),
        (infer.Compiled, {"bound": infer.ELBO()}),
        (
            infer.Adversarial,
            {
                "discriminator": CRITIC,
                "divergence": None,
                "every": 1,
                "l1": 0.0,
                "patience": 10,
            },
        ),
        (
            infer.VAEGAN,
            {
                "discriminator": CRITIC,
                "divergence": None,
                "layer": "trunk",
                "gamma": 1.0,
                "likelihood": 0.0,
                "bound": None,
            },
        ),
        (
            infer.AdversarialAutoencoder,
            {"discriminator": CRITIC, "weight": 1.0, "patience": None},
        ),
        (infer.WAE, {"weight": 1.0}),
        (infer.BetaTCVAE, {"data_size": 10, "beta": 2.0, "weighting": "stratified"}),
        (infer.FactorVAE, {"discriminator": CRITIC, "gamma": 1.0}),
        (infer.ReweightedWakeSleep, {"num_particles": 2, "num_groups": 1}),
        (infer.FDivergence, {"f": "chi2", "num_particles": 2, "num_groups": 1}),
        (infer.TVO, {"num_particles": 2, "num_partitions": 3, "first_beta": 0.1}),
        (infer.ModalityKL, {"bound": infer.ELBO(), "alpha": 1.0}),
        (infer.SemiSupervised, {"bound": infer.ELBO(), "alpha": 1.0}),
        (infer.ModalityStrata, {"bound": infer.ELBO()}),
        (infer.ModalitySubsets, {"bound": infer.ELBO(), "num_subsets": 1}),
    ],
    "models and guides": [
        (models.VAE, {"prior": PRIOR, "likelihood": DECODER}),
        (models.GAN, {"prior": PRIOR, "likelihood": DECODER}),
        (models.Autoencoder, {"likelihood": DECODER, "code_shape": 2}),
        (models.ConditionalVAE, {"prior": PRIOR, "likelihood": DECODER}),
        (models.CMMA, {"prior": ENCODER, "likelihood": DECODER}),
        (
            models.HierarchicalVAE,
            {"prior": PRIOR, "conditionals": [ENCODER], "likelihood": DECODER},
        ),
        (
            models.SemiSupervisedVAE,
            {"prior": PRIOR, "label_prior": PRIOR, "likelihood": DECODER, "num_labelled": 3},
        ),
        (models.JMVAE, {"prior": PRIOR, "likelihoods": [DECODER, DECODER]}),
        (models.MVAE, {"prior": PRIOR, "likelihoods": [DECODER, DECODER]}),
        (models.VRNN, {"cell": CELL, "prior": PRIOR, "likelihood": DECODER}),
        (
            models.DeepMarkovModel,
            {"prior": PRIOR, "transition": ENCODER, "likelihood": DECODER},
        ),
        (models.DRAW, {"prior": PRIOR, "canvas": CANVAS, "likelihood": DECODER, "steps": 2}),
        (
            models.AlignDRAW,
            {
                "prior": PRIOR,
                "transition": ENCODER,
                "language": LANGUAGE,
                "align": networks.Alignment(4, 6, 2),
                "canvas": CANVAS,
                "likelihood": DECODER,
                "steps": 2,
            },
        ),
        (models.BayesianRegression, {"prior": PRIOR, "likelihood": DECODER, "num_data": 5}),
        (models.Classifier, {"likelihood": ENCODER}),
        (models.Density, {"likelihood": PRIOR}),
        (guides.VAE, {"posterior": ENCODER}),
        (guides.Autoencoder, {"encoder": ENCODER}),
        (guides.ConditionalVAE, {"posterior": ENCODER}),
        (guides.HierarchicalVAE, {"posteriors": [ENCODER], "chain": "means"}),
        (
            guides.SemiSupervisedVAE,
            {"classifier": ENCODER, "posterior": ENCODER, "num_labelled": 3},
        ),
        (guides.JMVAE, {"posterior": ENCODER, "posteriors": [ENCODER]}),
        (guides.MVAE, {"posteriors": [ENCODER], "prior": PRIOR, "experts": "product"}),
        (
            guides.AlignDRAW,
            {
                "posterior": ENCODER,
                "encoder": CELL,
                "read": networks.Read((1, 8, 8)),
                "language": LANGUAGE,
                "align": networks.Alignment(4, 6, 2),
                "canvas": CANVAS,
                "likelihood": DECODER,
                "steps": 2,
            },
        ),
        (guides.VRNN, {"cell": CELL, "posterior": ENCODER}),
        (P, {"batch_size": 3}),
        (P, {0: X}),
        (
            models.ConditionalVAE(PRIOR, Conditional(dist.Bernoulli, MLP([2, 64], [4]), 64)),
            {0: X, 1: X},
        ),
        (Q, {0: X}),
    ],
    "training": [
        (
            trained,
            {
                "model": P,
                "guide": Q,
                "data": X,
                "loss": None,
                "validation": X,
                "epochs": 1,
                "batch_size": 4,
                "patience": None,
                "optimizer": torch.optim.Adam,
                "lr": 1e-3,
                "schedules": {},
                "device": "cpu",
                "seed": 0,
                "autocast": None,
                "folder": None,
            },
        ),
    ],
    "evaluation": [
        (embed, {"guide": Q, "x": X, "site": None, "num_samples": 2}),
        (evaluate.activity, {"guide": Q, "x": X, "site": None, "num_particles": 3}),
        (evaluate.active_units, {"guide": Q, "x": X, "threshold": 0.1}),
        (evaluate.reconstruct, {"model": P, "guide": Q, "x": X, "site": "x"}),
        (
            evaluate.decode,
            {"model": P, "z": torch.zeros(3, 2), "given": None, "latent": "z", "site": "x"},
        ),
        (
            evaluate.sample,
            {"model": P, "num_samples": 3, "given": None, "site": "x", "seed": 0},
        ),
        (
            evaluate.log_likelihood,
            {"model": P, "guide": Q, "x": X, "num_particles": 3, "seed": 0},
        ),
        (evaluate.elbo, {"model": P, "guide": Q, "x": X, "num_particles": 3, "seed": 0}),
        (
            evaluate.annealed_log_likelihood,
            {
                "model": P,
                "guide": Q,
                "x": X,
                "num_steps": 2,
                "num_chains": 2,
                "num_leapfrog": 1,
                "start": "prior",
            },
        ),
        (
            evaluate.gaps,
            {
                "model": P,
                "guide": Q,
                "x": X,
                "num_particles": 2,
                "num_steps": 1,
                "num_draws": 1,
                "lr": 0.1,
            },
        ),
        (
            evaluate.log_densities,
            {"model": P, "guide": Q, "x": X, "z": {"z": torch.zeros(8, 3, 2)}},
        ),
        (
            evaluate.anomaly_score,
            {"model": P, "guide": Q, "x": X, "score": "elbo", "num_particles": 2},
        ),
        (
            evaluate.impute,
            {
                "model": P,
                "guide": Q,
                "x": X,
                "mask": X > 0,
                "num_rounds": 1,
                "num_particles": 2,
                "seed": 0,
            },
        ),
        (
            evaluate.imputation_log_likelihood,
            {
                "model": P,
                "guide": Q,
                "x": X,
                "mask": X > 0,
                "num_particles": 2,
                "num_rounds": 1,
            },
        ),
        (
            evaluate.nearest_neighbours,
            {"guide": Q, "x": X, "among": X, "num": 2, "site": None},
        ),
        (
            evaluate.arithmetic,
            {
                "model": P,
                "guide": Q,
                "a": X,
                "b": X,
                "c": X,
                "scale": 1.0,
                "latent": "z",
                "site": "x",
            },
        ),
        (
            evaluate.parzen_log_likelihood,
            {"samples": X, "x": X, "scales": 1.0, "validation": None},
        ),
        (evaluate.frechet_distance, {"features": X[:, :3], "others": X[:, :3]}),
        (evaluate.precision_recall, {"features": X, "others": X, "k": 2}),
        (
            evaluate.mode_coverage,
            {"samples": X, "means": X, "scale": 1.0, "within": 3.0, "at_least": 1},
        ),
        (
            evaluate.knn_accuracy,
            {"codes": X, "labels": Y, "test_codes": X, "test_labels": Y, "k": 2},
        ),
        (evaluate.auroc, {"scores": torch.rand(8), "labels": torch.tensor([0, 1] * 4)}),
        (evaluate.accuracy, {"guide": Q, "x": X, "y": Y, "site": "y"}),
        (
            evaluate.canvases,
            {
                "model": models.DRAW(
                    PRIOR, CANVAS, Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64), 2
                )
            },
        ),
        (evaluate.particle_filter, {"model": P, "guide": Q, "x": X, "num_particles": 2}),
    ],
    "pictures": [
        (
            plot.latents,
            {"guide": Q, "data": X, "labels": Y, "site": None, "method": "pca", "ax": None},
        ),
        (
            plot.manifold,
            {"model": P, "num": 2, "extent": None, "given": None, "image_shape": (8, 8)},
        ),
        (
            plot.reconstructions,
            {"model": P, "guide": Q, "data": X, "num": 3, "image_shape": None},
        ),
        (plot.samples, {"model": P, "num": 3, "seed": 0, "image_shape": None, "given": None}),
        (
            plot.traversal,
            {
                "model": P,
                "code": None,
                "codes": None,
                "units": [0],
                "num": 2,
                "latent": "z",
                "site": "x",
            },
        ),
        (
            plot.interpolation,
            {
                "model": P,
                "guide": Q,
                "a": X[:2],
                "b": X[2:4],
                "num": 2,
                "latent": "z",
                "site": "x",
            },
        ),
        (plot.active_units, {"activities": torch.rand(3), "threshold": 0.1}),
        (
            plot.imputations,
            {"x": X, "mask": X > 0, "imputed": X, "num": 2, "image_shape": None},
        ),
        (plot.neighbours, {"guide": Q, "x": X[:2], "among": X, "num": 2}),
        (plot.arithmetic, {"model": P, "guide": Q, "a": X[:2], "b": X[:2], "c": X[:2]}),
        (plot.graph, {"program": P, 1: X}),
        (plot.piano_roll, {"x": torch.zeros(3, 88)}),
        (plot.curves, {"history": trained()}),
    ],
    "data": [
        (data.mnist, {"validation": -1}),
        (data.uci, {"name": "none"}),
        (data.ring, {"num": 5, "modes": 3, "radius": 1.0, "scale": 0.1, "seed": 0}),
        (data.grid, {"num": 5, "side": 2, "step": 1.0, "scale": 0.1, "seed": 0}),
        (data.quadrants, {"x": X, "given": 1}),
        (data.join_quadrants, {"missing": X[:, :48], "given": X[:, :16]}),
        (data.lower_half, {"x": X, "image_shape": (8, 8)}),
        (data.off_grid, {"x": X, "step": 2, "image_shape": None}),
        (data.random_pixels, {"x": X, "missing": 0.5, "seed": 0}),
        (data.labelled_subset, {"split": data.digits().train, "num_labels": 10, "seed": 0}),
        (
            data.PartlyLabelled,
            {
                "labelled": data.digits().test,
                "unlabelled": X,
                "batch_size": 2,
                "labelled_batch_size": 2,
                "num_classes": 10,
            },
        ),
        (data.Split(X, Y).one_hot, {"num_classes": 10}),
        (data.Split(X, Y).reshape, {0: 1, 1: 8, 2: 8}),
        (data.Sequences, {"x": torch.zeros(3, 4, 2), "lengths": torch.tensor([1, 2, 3])}),
        (data.Sequences.padded, {"sequences": [torch.zeros(3, 2)]}),
        (
            data.SequenceBatches,
            {
                "sequences": data.Sequences.padded([torch.zeros(3, 2)]),
                "batch_size": 1,
                "multiple_of": 2,
            },
        ),
        (load_run, {"folder": "no such run", "which": "best"}),
    ],
}
BAD_TO_BEGIN_WITH = {
    data.mnist,
    data.uci,
    load_run,
    evaluate.accuracy,
    evaluate.particle_filter,
}


def outcome(function, arguments):
    """Returns None if the call works, and its error otherwise: one sentence of this library."""
    positional = [
        arguments[key] for key in sorted(key for key in arguments if isinstance(key, int))
    ]
    named = {key: value for key, value in arguments.items() if isinstance(key, str)}
    if function is plot.graph:
        positional = [named.pop("program"), *positional]
    try:
        torch.manual_seed(0)
        function(*positional, **named)
    except ERRORS as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        sentence = str(error).partition("\n")[0]
        said_by_us = any(
            Path(last.filename).resolve().is_relative_to(folder.resolve()) for folder in OURS
        )
        raised = linecache.getline(last.filename, last.lineno).strip().startswith("raise")
        signature = isinstance(error, TypeError) and (
            "argument" in sentence and "()" in sentence
        )
        fine = (said_by_us and raised) or sentence.startswith(TORCH_VALIDATES) or signature
        assert fine, f"{type(error).__name__} of {last.filename}:{last.lineno}: {error}"
        assert (
            sentence
            and len(sentence) < 700
            and (
                sentence == str(error)
                or sentence.startswith(TORCH_VALIDATES)
                or isinstance(error, ValueError)
            )
        )
        return error
    return None


@pytest.mark.parametrize("group", CALLS)
def test_what_is_replaced_works_as_it_is(group):
    for function, arguments in CALLS[group]:
        error = outcome(function, arguments)
        assert (error is not None) == (function in BAD_TO_BEGIN_WITH), f"{function}: {error}"


@pytest.mark.parametrize("group", CALLS)
@pytest.mark.filterwarnings("ignore")
@given(st.data())
def test_junk_gets_a_sentence_of_ours(group, data):
    function, arguments = data.draw(st.sampled_from(CALLS[group]))
    changed = data.draw(
        st.lists(st.sampled_from(list(arguments)), min_size=1, max_size=2, unique=True)
    )
    junk = {name: JUNK[data.draw(st.integers(0, len(JUNK) - 1))] for name in changed}
    outcome(function, {**arguments, **junk})
