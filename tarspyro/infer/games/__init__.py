"""Games: adversarial losses, in which several players minimize losses of their own.

- ``base``: ``Game``, ``Player`` and ``PlayerLoss``, for any game.
- ``adversarial``: the generative adversarial network, ``Adversarial``, and the part that all
  games with a discriminator share.
- ``average``: the moving average of a generator's weights.
- ``vaegan``: ``VAEGAN``, a VAE with a likelihood in the layers of a discriminator.
- ``autoencoders``: ``AdversarialAutoencoder`` and ``WAE``, whose codes follow the prior.
- ``factor_vae``: ``FactorVAE``, whose discriminator measures the total correlation of codes.
- ``losses``: the losses of discriminator and generator, such as ``JensenShannon``.
- ``mmd``: the maximum mean discrepancy and its kernels.
- ``draws``: draws of a model in place of its data, and the conditions among the data.
- ``masks``: the rows that masks leave in.
"""
