"""Adversarial training on MNIST: the quality of samples, by Parzen windows and by a classifier
of the library's own.

    # 25 epochs: six minutes on one core
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py gan --compile
    # 40 epochs
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py conditional --compile
    # 10 epochs, which with --folder go on where they stopped
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py dcgan --folder runs --decay
    # 12 epochs of each of two pairs
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py vaegan --compile
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py vaegan-convolutions --folder runs
    # 12 epochs of each of two pairs
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py jmvae-gan --compile
    # with a share of the pixels' log-density; --only jmvae-gan leaves the first pair out
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py jmvae-gan --compile --likelihood 0.1
    # 4 epochs of 10,000 images
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py pix2pix
    TARSPYRO_DATA=... python benchmarks/gan_mnist.py pix2pix-thumbnails --l1 10

``--full`` trains five times as long (pix2pix on all images). Grey images, 50,000 for training
unless said otherwise, batches of 100; MLPs with ReLU in encoders, ReLU and batch normalization
in generators and decoders, LeakyReLU(0.2) and dropout of 0.3 in discriminators, 784-512-256-1.
GANs have Adam at 5e-4 with betas of 0.5 and 0.999.

gan: noise of 100 dimensions, 100-256-512-784 with a sigmoid. Its figure is the log-likelihood
of test images under a Parzen window around each of 10,000 samples, sigma chosen on 1,000
validation images, as Goodfellow et al. (2014) report 225 +- 2 and Mirza and Osindero (2014)
132 +- 1.8.

conditional: the same with the one-hot label beside noise and image. Its figure is the share of
10,000 samples that the classifier takes for the asked label.

dcgan: noise and label into transposed convolutions, 7x7x128, 14x14x64, 28x28, with batch
normalization; a discriminator of convolutions of 32 and 64 channels, with a unit for each
label; the moving average of the generator. The same figures.

vaegan: a VAE with z of 32 dimensions, 784-512-256 and back and the cross-entropy of grey
values; and the same networks as a VAE-GAN: the similarity in the discriminator's first layer,
gamma = 0.3, beta = 0.05 (that is, a variance of 0.05 in the layer). Adam at 1e-3, of the
VAE-GAN with a beta of 0.5, its discriminator at 2e-4.

vaegan-convolutions: the same with convolutions of 16 and 32 channels in the guide, dcgan's
decoder with 64 and 32 channels, and a discriminator of 16, 32 and 64 channels with a penalty on
its gradient. The similarity is in the discriminator's second layer, gamma = 0.1, beta = 1; Adam
at 5e-4 for all three, with a beta of 0.5, and of the VAE at 1e-3.

jmvae-gan: image and label, the joint guide and one for each, JMVAE-kl with alpha = 0.1, with
and without an adversary on the image, as above; images from labels.

pix2pix: from the edges of digits to digits, U-Net and PatchGAN of 16 and 32 channels with
batch normalization (without it the U-Net ends in black images), L1 with a weight of 100;
beside it the L1 alone (a weight of 10,000 against a discriminator that does not learn).

pix2pix-thumbnails: the same from images of 7x7 pixels, which leave open what the edges tell.

The judge is a convolutional classifier of the training images, kept in ``--classifier``, or
trained anew: features of its last layer of 128 for Frechet distance, precision and recall.
They are not Inception's: no figure compares with a published FID, but each with the real
data's own, test against validation images. Results and pictures go to ``benchmarks/results/``.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import (
    Conditional,
    Deterministic,
    Optimizer,
    Run,
    data,
    evaluate,
    fit,
    guides,
    load_run,
    models,
    plot,
)
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, VAEGAN, Adversarial, ModalityKL, MovingAverage
from tarspyro.nn import MLP, ConvEncoder, Discriminator, PatchGAN, UNet
from tarspyro.plot.figures import axes_of, sheet_of, show

SHAPE = (1, 28, 28)
ADVERSARIAL = {"lr": 5e-4, "betas": (0.5, 0.999)}
GENERATOR, DISCRIMINATOR = [128, 64], [32, 64]
CONVOLUTIONAL = {"gamma": 0.1, "r1": 0.1}
HYBRID = {"lr": 1e-3, "betas": (0.5, 0.999), "discriminator": {"lr": 2e-4}}


def leaky():
    return nn.LeakyReLU(0.2)


def critic(sizes):
    return Discriminator(MLP(sizes, [512, 256], activation=leaky, dropout=0.3))


def decoder(sizes):
    return MLP(sizes, [256, 512], normalization=nn.BatchNorm1d)


def hybrid(arguments, bound, **options):
    return VAEGAN(
        critic(784),
        layer="trunk.layers.1",
        gamma=arguments.gamma,
        likelihood=arguments.likelihood,
        bound=bound,
        **options,
    )


def classifier_of(mnist, arguments):
    """The judge, and its share of test images told right."""
    folder = arguments.classifier
    if folder is not None and (Path(folder) / "config.json").exists():
        judge = load_run(folder).model
    else:
        torch.manual_seed(0)
        trunk = nn.Sequential(
            ConvEncoder(SHAPE, [16, 32]), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Dropout(0.3)
        )
        judge = models.Classifier(Conditional(dist.OneHotCategorical, trunk, 10))
        images = mnist.reshape(*SHAPE).one_hot()
        options = {
            "epochs": arguments.judge_epochs,
            "batch_size": 200,
            "seed": 0,
            "progress": False,
        }
        fit(judge, data=images.train, folder=folder, compile=arguments.compile, **options)
    right = evaluate.agreement(judge, mnist.test.x.reshape(-1, *SHAPE), mnist.test.y)
    print(f"the judge's accuracy on {len(mnist.test)} test images: {right:.4f}", flush=True)
    return judge, round(right, 4)


def trained(p, q, x, arguments, name, **options):
    options = {"optimizer": Optimizer(**ADVERSARIAL), "callback": print, **options}
    if arguments.folder is not None:
        options["folder"] = Run(Path(arguments.folder) / name, resume="auto")
    history = fit(
        p,
        q,
        x,
        epochs=arguments.epochs,
        seed=arguments.seed,
        device=arguments.device,
        compile=arguments.compile,
        progress=False,
        **options,
    )
    shown = [
        name
        for name in history.rows[-1]
        if name.endswith(("loss", "gradient")) or name in ("real", "fake")
    ]
    last = {name: round(history[name][-1], 4) for name in shown}
    return {"seconds of training": round(sum(history["seconds"]), 1), "last epoch": last}


def chosen(arguments, *names):
    """The pairs to train, of those of a use."""
    return [name for name in names if arguments.only is None or name in arguments.only]


def compared(judge, samples, mnist, arguments):
    """Frechet distance, precision and recall of samples, against test images."""
    count = min(len(samples), len(mnist.test))
    real, fake = (
        judge.features(x[:count].reshape(-1, *SHAPE)) for x in (mnist.test.x, samples)
    )
    near = min(count, 5000)
    precision, recall = evaluate.precision_recall(real[:near], fake[:near])
    distance = round(evaluate.frechet_distance(real, fake), 2)
    return {
        "Frechet distance": distance,
        "precision": round(precision, 3),
        "recall": round(recall, 3),
    }


def gan(arguments, mnist, judge, pictures):
    torch.manual_seed(arguments.seed)
    generator = Deterministic(decoder(100), 784, transform=nn.Sigmoid())
    p = models.GAN(default_prior(dist.Normal, 100), generator)
    row = trained(p, None, mnist.train.x, arguments, "gan", loss=Adversarial(critic(784)))
    samples = evaluate.sample(p, arguments.samples, seed=0).cpu()
    pictures["gan"] = plot.samples(p, seed=0)
    test = mnist.test.x
    validation = mnist.validation.x[:1000]
    for name, windows in {
        "gan": samples,
        "training images": mnist.train.x[: arguments.samples],
    }.items():
        found = evaluate.parzen_log_likelihood(windows, test, validation=validation)
        row[f"Parzen log-likelihood, {name}"] = [
            round(found.mean, 1),
            round(found.standard_error, 1),
        ]
        row[f"sigma, {name}"] = round(found.scale, 3)
    return row | compared(judge, samples, mnist, arguments)


def conditional(arguments, mnist, judge, pictures):
    torch.manual_seed(arguments.seed)
    generator = Deterministic(decoder([100, 10]), 784, transform=nn.Sigmoid())
    p = models.ConditionalGAN(default_prior(dist.Normal, 100), generator)
    train = mnist.one_hot().train
    loss = Adversarial(critic([784, 10]))
    row = trained(p, None, (train.x, train.y), arguments, "conditional", loss=loss)
    asked = torch.eye(10).repeat(-(-arguments.samples // 10), 1)[: arguments.samples]
    samples = evaluate.sample(p, len(asked), given={"y": asked}, seed=0).cpu()
    row["samples recognized as asked"] = round(
        evaluate.agreement(judge, samples.reshape(-1, *SHAPE), asked), 4
    )
    found = evaluate.parzen_log_likelihood(
        samples, mnist.test.x, validation=mnist.validation.x[:1000]
    )
    row["Parzen log-likelihood"] = [round(found.mean, 1), round(found.standard_error, 1)]
    pictures["conditional"] = plot.samples(
        p, given={"y": torch.eye(10).repeat_interleave(10, 0)}, num=100, seed=0
    )
    return row | compared(judge, samples, mnist, arguments)


class TransposedConvolutions(nn.Module):
    """The generator of DCGAN (Radford et al. 2016, arXiv:1511.06434), from 7x7 to 28x28."""

    def __init__(self, sizes, channels):
        super().__init__()
        self.in_shapes = tuple((size,) for size in sizes)
        first, self.last = channels
        self.layers = nn.Sequential(
            nn.Linear(sum(sizes), first * 49),
            nn.Unflatten(1, (first, 7, 7)),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.ConvTranspose2d(first, self.last, 4, stride=2, padding=1),
            nn.BatchNorm2d(self.last),
            nn.ReLU(),
        )

    def forward(self, *inputs):
        return self.layers(torch.cat(inputs, 1))

    def head(self, shape):
        return nn.ConvTranspose2d(self.last, shape[0], 4, stride=2, padding=1)


class LabelledDiscriminator(nn.Module):
    """A discriminator with a unit for all images and one for each label, of which the label's
    is added (Miyato and Koyama 2018, arXiv:1802.05637, eq. 3).
    """

    def __init__(self, channels, labels=10):
        super().__init__()
        self.trunk = ConvEncoder(SHAPE, channels, kernel_size=4, activation=leaky)
        self.units = nn.Linear(self.trunk.out_features, 1 + labels)

    def forward(self, x, y):
        scores = self.units(self.trunk(x))
        return scores[:, 0] + (scores[:, 1:] * y).sum(1)


def as_asked(p, judge, mnist, arguments, count):
    """Images from labels, and how the judge finds them."""
    asked = torch.eye(10).repeat(-(-count // 10), 1)[:count]
    parts = enumerate(asked.split(1000))
    samples = torch.cat(
        [evaluate.sample(p, len(y), given={"y": y}, seed=seed).cpu() for seed, y in parts]
    )
    right = evaluate.agreement(judge, samples, asked)
    found = compared(judge, samples, mnist, arguments)
    return samples, {"samples recognized as asked": round(right, 4), **found}


def dcgan(arguments, mnist, judge, pictures):
    torch.manual_seed(arguments.seed)
    network = TransposedConvolutions([100, 10], GENERATOR)
    generator = Deterministic(network, SHAPE, transform=nn.Sigmoid())
    p = models.ConditionalGAN(default_prior(dist.Normal, 100), generator)
    average = MovingAverage(p)
    loss = Adversarial(LabelledDiscriminator(DISCRIMINATOR), average=average)
    train = mnist.reshape(*SHAPE).one_hot().train

    def say(row):
        _, found = as_asked(average.model, judge, mnist, arguments, 2000)
        print(row, found, flush=True)

    options = {}
    if arguments.decay:
        steps = arguments.epochs * -(-len(train) // 100)
        rate = ADVERSARIAL["lr"]
        options["schedules"] = {"lr": lambda step: rate * min(1.0, 2 - 2 * step / steps)}
    row = trained(
        p,
        None,
        (train.x, train.y),
        arguments,
        "dcgan",
        loss=loss,
        callback=say,
        **options,
    )
    renewed = copy.deepcopy(average)
    renewed.renew_statistics(given={"y": torch.eye(10).repeat(10, 1)}, seed=0)
    for name, model in {
        "the last weights": p,
        "the average, statistics of the last weights": average.model,
        "the average": renewed.model,
    }.items():
        samples, row[name] = as_asked(model, judge, mnist, arguments, arguments.samples)
    found = evaluate.parzen_log_likelihood(
        samples.flatten(1), mnist.test.x, validation=mnist.validation.x[:1000]
    )
    row["Parzen log-likelihood"] = [round(found.mean, 1), round(found.standard_error, 1)]
    pictures["dcgan"] = plot.samples(
        average.model, given={"y": torch.eye(10).repeat_interleave(10, 0)}, num=100, seed=0
    )
    return row


def sheet(images, columns=10):
    figure, ax = axes_of(None, (6.4, 6.4 * len(images) / columns**2))
    show(ax, sheet_of(images, columns, (28, 28)))
    return figure


def steepness(x):
    """The mean length of the gradient from pixel to pixel: how sharp images are."""
    images = x.reshape(-1, 28, 28)
    across = images[:, 1:, 1:] - images[:, 1:, :-1]
    down = images[:, 1:, 1:] - images[:, :-1, 1:]
    return (across**2 + down**2).sqrt().mean().item()


def reconstructed(judge, x, means, y):
    """Accuracy and sharpness of reconstructions."""
    features = [judge.features(images.reshape(-1, *SHAPE)) for images in (x, means)]
    return {
        "reconstructions with the label kept": round(
            evaluate.agreement(judge, means.reshape(-1, *SHAPE), y), 4
        ),
        "squared error of pixels": round(
            (x - means).square().flatten(1).sum(1).mean().item(), 2
        ),
        "squared error of features": round(
            (features[0] - features[1]).square().sum(1).mean().item(), 2
        ),
        "steepness": round(steepness(means), 4),
    }


def grey(latent):
    """The cross-entropy of grey values."""
    return Conditional(dist.Bernoulli, decoder(latent), 784, validate_args=False)


def vaegan(arguments, mnist, judge, pictures):
    rows = {}
    for name in chosen(arguments, "vae", "vae-gan"):
        torch.manual_seed(arguments.seed)
        p = models.VAE(default_prior(dist.Normal, 32), grey(32))
        q = guides.VAE(Conditional(dist.Normal, MLP(784, [512, 256]), 32))
        loss, options = ELBO(), {"lr": 1e-3}
        if name == "vae-gan":
            loss, options = hybrid(arguments, ELBO(beta=arguments.beta)), HYBRID
        rows[name] = pair_trained(p, q, name, loss, options, mnist, judge, arguments)
        pictures |= pair_drawn(p, q, name, mnist)
    return {**rows, "steepness of test images": round(steepness(mnist.test.x), 4)}


def vaegan_convolutions(arguments, mnist, judge, pictures):
    rows = {}
    images = mnist.reshape(*SHAPE)
    channels = [16, 32]
    for name in chosen(arguments, "vae", "vae-gan"):
        torch.manual_seed(arguments.seed)
        decoder = TransposedConvolutions([32], [64, 32])
        p = models.VAE(
            default_prior(dist.Normal, 32),
            Conditional(dist.Bernoulli, decoder, SHAPE, validate_args=False),
        )
        encoder = nn.Sequential(
            ConvEncoder(SHAPE, channels), nn.Linear(32 * 49, 128), nn.ReLU()
        )
        q = guides.VAE(Conditional(dist.Normal, encoder, 32))
        loss, options = ELBO(), {"lr": 1e-3}
        if name == "vae-gan":
            critic = Discriminator(ConvEncoder(SHAPE, [*channels, 64], activation=leaky))
            loss = VAEGAN(critic, layer="trunk.layers.3", **CONVOLUTIONAL)
            options = ADVERSARIAL
        name = f"{name}_convolutions"
        rows[name] = pair_trained(p, q, name, loss, options, images, judge, arguments)
        pictures |= pair_drawn(p, q, name, images)
    rows["steepness of test images"] = round(steepness(mnist.test.x), 4)
    return {**rows, **CONVOLUTIONAL, "beta": 1.0}


def pair_trained(p, q, name, loss, options, mnist, judge, arguments):
    """A VAE or a VAE-GAN, its samples and its reconstructions."""

    def say(row):
        samples = evaluate.sample(p, 2000, mean=True, seed=0).cpu()
        print(row, compared(judge, samples, mnist, arguments), flush=True)

    row = trained(
        p,
        q,
        mnist.train.x,
        arguments,
        name,
        loss=loss,
        optimizer=Optimizer(**options),
        callback=say,
    )
    test = mnist.test[: arguments.samples]
    samples = evaluate.sample(p, arguments.samples, mean=True, seed=0).cpu()
    means = evaluate.reconstruct(p, q, test.x).cpu()
    row |= compared(judge, samples, mnist, arguments)
    renewed = with_statistics_of_samples(p)
    samples = evaluate.sample(renewed, arguments.samples, mean=True, seed=0).cpu()
    row["statistics of samples"] = compared(judge, samples, mnist, arguments)
    row |= reconstructed(judge, test.x, means, test.y)
    print(name, row, flush=True)
    return row


def with_statistics_of_samples(p):
    """The model whose batch normalization has the statistics of images given codes of the prior.
    Those of the training are of images given codes of the guide too.
    """
    average = MovingAverage(p)
    average.renew_statistics(seed=0)
    return average.model


def pair_drawn(p, q, name, mnist):
    """Pictures of samples and of reconstructions."""
    return {
        f"{name}_samples": plot.samples(with_statistics_of_samples(p), mean=True, seed=0),
        f"{name}_reconstructions": plot.reconstructions(p, q, mnist.test.x[:10]),
    }


def jmvae_gan(arguments, mnist, judge, pictures):
    rows = {}
    train = mnist.one_hot().train
    asked = torch.eye(10).repeat(-(-arguments.samples // 10), 1)[: arguments.samples]
    for name in chosen(arguments, "jmvae", "jmvae-gan"):
        torch.manual_seed(arguments.seed)
        label = Conditional(dist.OneHotCategorical, MLP(32, [256]), 10)
        p = models.JMVAE(default_prior(dist.Normal, 32), [grey(32), label])
        own = [Conditional(dist.Normal, MLP(size, [512, 256]), 32) for size in (784, 10)]
        q = guides.JMVAE(Conditional(dist.Normal, MLP([784, 10], [512, 256]), 32), own)
        bound = ModalityKL(
            ELBO(beta=arguments.beta if name == "jmvae-gan" else 1.0), alpha=0.1
        )
        loss = bound
        if name == "jmvae-gan":
            loss = hybrid(arguments, bound, site="x_1")
        options = {"lr": 1e-3} if name == "jmvae" else HYBRID
        rows[name] = trained(
            p,
            q,
            (train.x, train.y),
            arguments,
            name,
            loss=loss,
            optimizer=Optimizer(**options),
        )
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            codes = q(None, asked.to(next(q.parameters()).device))
        images = evaluate.decode(p, codes, site="x_1").cpu()
        rows[name]["images from labels recognized"] = round(
            evaluate.agreement(judge, images.reshape(-1, *SHAPE), asked), 4
        )
        rows[name]["steepness"] = round(steepness(images), 4)
        rows[name] |= compared(judge, images, mnist, arguments) | lit(images, mnist)
        by_label = (
            images[:100].reshape(10, 10, 784).transpose(0, 1).reshape(100, 784)
        )  # a row for each label
        pictures[name] = sheet(by_label)
        print(name, rows[name], flush=True)
    return rows


def lit(images, mnist):
    """The pixels that no training image sets: how many there are, the largest mean of one over
    the images, and the row and column of each with a mean above one half.
    """
    dark = (mnist.train.x == 0).all(0)
    means = torch.where(dark, images.mean(0), 0.0)
    places = [divmod(pixel, SHAPE[-1]) for pixel in (means > 0.5).nonzero().flatten().tolist()]
    return {
        "pixels dark in all training images": int(dark.sum()),
        "largest mean of one": round(means.max().item(), 4),
        "lit, by row and column": places,
    }


def thumbnails(x):
    """Images of 7x7 pixels, each the mean of 4x4, shown as large as the images."""
    small = nn.functional.avg_pool2d(x, 4)
    return nn.functional.interpolate(small, scale_factor=4.0, mode="nearest")


def edges(x):
    """Edges of images: pixels that differ from a neighbour by more than a third."""
    padded = nn.functional.pad(x, (0, 1, 0, 1))
    across = padded[..., :-1, 1:] - x
    down = padded[..., 1:, :-1] - x
    return ((across**2 + down**2).sqrt() > 1 / 3).float()


def pix2pix(arguments, mnist, judge, pictures, drawing=edges):
    images = mnist.reshape(*SHAPE)
    train = images.train.x
    test = images.test
    rows = {}
    if not arguments.full:
        train = train[:10_000]
    for name in chosen(arguments, "L1 alone", "pix2pix"):
        torch.manual_seed(arguments.seed)
        network = UNet(8, SHAPE, [16, 32], normalization=nn.BatchNorm2d)
        translator = Deterministic(network, SHAPE, transform=nn.Sigmoid())
        p = models.ConditionalGAN(default_prior(dist.Normal, 8), translator)
        discriminator = PatchGAN([SHAPE, SHAPE], [16, 32], normalization=nn.BatchNorm2d)
        options = ADVERSARIAL | ({"discriminator": {"lr": 0.0}} if name == "L1 alone" else {})
        weight = arguments.l1 if name == "pix2pix" else 1e4
        loss = Adversarial(discriminator, l1=weight)
        rows[name] = trained(
            p,
            None,
            (train, drawing(train)),
            arguments,
            name,
            loss=loss,
            optimizer=Optimizer(**options),
        )
        drawn = drawing(test.x[: arguments.samples])
        found = evaluate.sample(p, len(drawn), given={"y": drawn}, seed=0).cpu()
        rows[name] |= {
            "mean absolute difference": round(
                (found - test.x[: len(found)]).abs().mean().item(), 4
            ),
            "digits recognized": round(
                evaluate.agreement(judge, found, test.y[: len(found)]), 4
            ),
            "steepness": round(steepness(found), 4),
        }
        rows[name] |= compared(judge, found, mnist, arguments)
        rows[f"{drawing.__name__} recognized as they are"] = round(
            evaluate.agreement(judge, drawn, test.y[: len(drawn)]), 4
        )
        stack = torch.stack([drawn[:10], found[:10], test.x[:10]]).reshape(30, 784)
        shown = name if drawing is edges else f"{name}_{drawing.__name__}"
        pictures[shown.replace(" ", "_")] = sheet(stack)
        print(name, rows[name], flush=True)
    return rows


def pix2pix_thumbnails(*arguments):
    rows = pix2pix(*arguments, drawing=thumbnails)
    test = arguments[1].test.x
    return {**rows, "steepness of test images": round(steepness(test), 4)}


USES = {
    "gan": gan,
    "conditional": conditional,
    "dcgan": dcgan,
    "vaegan": vaegan,
    "vaegan-convolutions": vaegan_convolutions,
    "jmvae-gan": jmvae_gan,
    "pix2pix": pix2pix,
    "pix2pix-thumbnails": pix2pix_thumbnails,
}
EPOCHS = {
    "gan": 25,
    "conditional": 40,
    "dcgan": 10,
    "vaegan": 12,
    "vaegan-convolutions": 12,
    "jmvae-gan": 12,
    "pix2pix": 4,
    "pix2pix-thumbnails": 4,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("use", choices=USES)
    parser.add_argument("--full", action="store_true", help="five times the epochs")
    parser.add_argument(
        "--epochs", type=int, help="in place of those of the short or the full form"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        help="of several pairs, such as jmvae and jmvae-gan, those to train",
    )
    parser.add_argument(
        "--samples", type=int, default=10_000, help="how many samples are judged"
    )
    parser.add_argument(
        "--gamma",
        type=float,
        default=0.3,
        help="the weight of the similarity for the generator",
    )
    parser.add_argument(
        "--likelihood",
        type=float,
        default=0.0,
        help="the weight of the pixels' log-density for the generator",
    )
    parser.add_argument(
        "--l1", type=float, default=100.0, help="the weight of pix2pix's L1 loss"
    )
    parser.add_argument(
        "--decay",
        action="store_true",
        help="dcgan's rates fall to 0 over the second half of the steps",
    )
    parser.add_argument(
        "--beta", type=float, default=0.05, help="the weight of the KL in the VAE-GAN's bound"
    )
    parser.add_argument(
        "--images",
        type=int,
        help="so many images of each part only, to try it; nothing is written",
    )
    parser.add_argument("--classifier", help="the run folder in which the judge is kept")
    parser.add_argument(
        "--folder", help="where the runs are kept, whose trainings go on where they stopped"
    )
    parser.add_argument("--judge-epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--out",
        default=str(Path(__file__).parent / "results"),
        help="where the results are kept",
    )
    arguments = parser.parse_args()
    if arguments.epochs is None:
        arguments.epochs = EPOCHS[arguments.use] * (5 if arguments.full else 1)
    mnist = data.mnist()
    start = time.perf_counter()
    pictures = {}
    judge, right = classifier_of(mnist, arguments)
    floor = compared(judge, mnist.validation.x, mnist, arguments)
    if arguments.images is not None:
        parts = (part[: arguments.images] for part in (mnist.train, mnist.test))
        mnist = data.Dataset("mnist", *parts, SHAPE, mnist.validation[: arguments.images])
        arguments.samples = min(arguments.samples, arguments.images)
    result = USES[arguments.use](arguments, mnist, judge, pictures)
    kept = {
        k: v for k, v in vars(arguments).items() if k not in ("out", "classifier", "folder")
    }
    report = {
        **kept,
        "torch": torch.__version__,
        "the judge's accuracy": right,
        "validation images": floor,
        **result,
    }
    report["seconds in all"] = round(time.perf_counter() - start, 1)
    print(json.dumps(report, indent=1))
    if arguments.images is None:
        variant = "".join(
            [
                "_full" if arguments.full else "",
                "_likelihood" if arguments.likelihood else "",
                "_decay" if arguments.decay else "",
                f"_seed{arguments.seed}" if arguments.seed else "",
            ]
        )
        out = Path(arguments.out)
        (out / f"gan_mnist_{arguments.use}{variant}.json").write_text(
            json.dumps(report, indent=1) + "\n"
        )
        for name, figure in pictures.items():
            figure.savefig(out / f"gan_mnist_{name}{variant}.png", dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main()
