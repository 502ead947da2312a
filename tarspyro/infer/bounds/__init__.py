"""Bounds on log p(x) whose negative a pair minimizes.

=======================  =======================================================================
module                   holds
=======================  =======================================================================
``antithetic``           pairs of mirrored discrete draws, and their gradient, DisARM
``base``                 ``Bound``: the interface of ``pyro.infer.ELBO``, by one loss
``elbo``                 ``ELBO``: closed-form KLs, beta, free bits, sticking the landing
``enumeration``          exact expectations over the sites that a guide enumerates
``importance``           ``WeightedBound``, and ``IWAE``, ``Renyi``, ``CIWAE``, ``PIWAE``
``reductions``           the Renyi bound of log weights, its derivative, its baselines
``gradient_estimators``  pathwise, chunked and doubly reparameterized gradients of such bounds
``fixed_draws``          ``ReweightedWakeSleep``, ``FDivergence``, ``TVO``: draws without gradients
``fivo``                 ``FIVO``, the bound of a particle filter
``filtering``            ``ParticleFilter``: proposal, weights and resampling of each step
``composed``             ``Composed``: a bound plus another term of the loss
``modalities``           ``ModalityKL`` and ``ModalitySubsets``, for multimodal pairs
``semi_supervised``      ``SemiSupervised``, for pairs that learn from few labels
``total_correlation``    ``BetaTCVAE``, an ELBO with a weight for each part of its KL
=======================  =======================================================================

The log weights of all weighted bounds come from ``tarspyro.infer.weights``.
"""
