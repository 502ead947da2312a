"""Autoregressive distributions: a causal network with a family."""

__all__ = ["Autoregressive"]

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform, constraints
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import as_numbers, check_module
from tarspyro.conditional import Interface
from tarspyro.distributions.autoregressive import AutoregressiveDistribution
from tarspyro.distributions.family import FamilyModule
from tarspyro.modules import copy_modules
from tarspyro.nn.causal import CausalTrunk, HeadWalk, dense_ranks
from tarspyro.nn.folding import Event, fold, unfold
from tarspyro.nn.heads import LazyHead, out_features, zero_weights
from tarspyro.nn.initialization import initialize
from tarspyro.scopes import evaluating, preserved_rng

# The parameters of the positions of one step, from the positions so far and the step's number.
_Steps: TypeAlias = Callable[[Tensor, int], dict[str, Tensor]]

# How many steps of a user's trunk are tried one by one; of a longer order so many are chosen.
_ALL_STEPS = 128
_SOME_STEPS = 64


class Autoregressive(FamilyModule, Interface):
    r"""An autoregressive distribution: a causal network computes each element's parameters.

    .. math:: p(x \mid c) = \prod_i \mathrm{family}(x_i; \theta_i), \qquad
              \theta_i = f_i(x_{<i}, c)

    Called with context values, or with none, it returns a Pyro distribution. Its ``log_prob``
    is one pass of the network; draws run through the order of the elements, one step after
    another, and the trunks of ``tarspyro.nn`` compute at each step only what is new. It takes
    the place of a ``Conditional``: as a likelihood p(x | z), where a strong decoder may leave
    little to the code; as a prior p(z), without a context; as a posterior q(z | x).

    The mean has no closed form. With a trunk of several masks the density is the mixture over
    the masks in evaluation mode, and in training that of one mask, drawn for each call.

    Arguments:
        family: The class of a Pyro distribution, such as ``pyro.distributions.Bernoulli``.
        trunk: A causal network: ``tarspyro.nn.MADE``, ``PixelCNN``, ``CausalConv1d``,
            ``CausalRNN``; or any ``torch.nn.Module`` from x and the context values to features
            of shape ``(N, *positions, F)``, where those of a position see the positions before
            it alone. This is tried with random weights, for up to 128 positions exhaustively.
            Its context values are vectors, unless it has an attribute ``in_shapes``, with the
            shapes of x and of all context values.
        event_shape: The shape of one draw. Its last dimensions belong to the family, and the
            others are the positions.
        order: For a trunk of one's own, the ranks of the positions in their order, of their
            shape; from the first to the last if not given. Positions of equal rank are drawn
            together. A trunk of ``tarspyro.nn`` has its own.
        transforms: See ``Conditional``.
        param_shapes: See ``Conditional``.
        fixed: See ``Conditional``.

    Raises:
        TypeError: If ``family`` is not a class of Pyro distributions, or ``trunk`` is not a
            module.
        ValueError: If the family has no parameter of a name, the trunk's shape is another, or
            a position sees itself or a later one.

    References:
        Larochelle and Murray (2011), The Neural Autoregressive Distribution Estimator; Gulrajani
        et al. (2016), PixelVAE: A Latent Variable Model for Natural Images, arXiv:1611.05013.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro.nn import ConvDecoder, PixelCNN
        >>> p = Autoregressive(dist.Bernoulli, PixelCNN((1, 8, 8), 16, 3), (1, 8, 8))
        >>> p().log_prob(torch.zeros(10, 1, 8, 8)).shape
        torch.Size([10])
        >>> decoder = ConvDecoder(2, (1, 8, 8), [8])
        >>> trunk = PixelCNN((1, 8, 8), 16, 3, context=decoder)
        >>> likelihood = Autoregressive(dist.Bernoulli, trunk, (1, 8, 8))
        >>> likelihood(torch.zeros(5, 10, 2)).sample().shape
        torch.Size([5, 10, 1, 8, 8])
    """

    ranks: Tensor
    ranking: Tensor

    def __init__(
        self,
        family: type[Distribution],
        trunk: nn.Module,
        event_shape: int | tuple[int, ...],
        *,
        order: Tensor | None = None,
        transforms: Mapping[str, Transform] | None = None,
        param_shapes: Mapping[str, tuple[int, ...]] | None = None,
        **fixed: Any,
    ) -> None:
        super().__init__(family, event_shape, fixed, transforms, param_shapes)
        check_module("trunk", trunk)
        self.trunk = trunk
        self.positions = Size(self.event_shape[: len(self.event_shape) - self._native])
        self.num_masks = trunk.num_masks if isinstance(trunk, CausalTrunk) else 1
        ranks = self._ranks(order)
        self.register_buffer("ranks", ranks, persistent=False)
        self.register_buffer("ranking", ranks.argsort(dim=1, stable=True), persistent=False)
        self._counts = [torch.bincount(row).tolist() for row in ranks]
        self.in_steps = self._are_in_steps(ranks)
        self.heads = nn.ModuleDict(
            {name: self._head(name, shape) for name, (_, shape) in self.free.items()}
        )
        if "scale" in self.heads:
            zero_weights(self.heads["scale"])

        # The trunks of the library are causal by their masks; others are tried, now or as soon
        # as the shapes of their contexts are known.
        self._trusted = type(trunk).__module__.startswith("tarspyro.nn.")
        shapes = getattr(trunk, "in_shapes", None)
        whole = shapes or [0]
        if not self._trusted and not any(isinstance(shape, int) for shape in whole):
            self._check_trunk([torch.zeros(1, *shape) for shape in whole[1:]])

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution given the context values."""
        lead = Size()
        if context:
            folded, lead = fold(context, self._shapes(len(context))[1:])
            context = tuple(unfold(part, lead) for part in folded)
        if not self._trusted:
            self._check_trunk([value.detach() for value in context])
        validate_args: Any = self._options.get("validate_args")
        return AutoregressiveDistribution(self, context, lead, validate_args)

    def template(self) -> Distribution:
        """Returns the distribution of all elements if they were independent."""
        like = self._like()
        zeros = {name: like.new_zeros(shape) for name, (_, shape) in self.free.items()}
        distribution: Distribution = self.distribution(zeros)
        return distribution

    def log_density(
        self, value: Tensor, context: tuple[Tensor, ...], chosen: Tensor | None = None
    ) -> Tensor:
        """Returns log p(value | context) in nats, by one pass of the trunk for each mask.

        Arguments:
            value: Values, with the event shape.
            context: The context values.
            chosen: True where an element counts, all if not given.
        """
        if self.num_masks == 1:
            return self._sum(self._log_probs(value, context, 0), chosen)
        if self.training:
            mask = torch.randint(self.num_masks, (), device=value.device)
            return self._sum(self._log_probs(value, context, mask), chosen)
        masks = range(self.num_masks)
        each = [self._sum(self._log_probs(value, context, mask), chosen) for mask in masks]
        return torch.stack(each).logsumexp(0) - math.log(self.num_masks)

    def draw(
        self,
        shape: Size,
        context: tuple[Tensor, ...],
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Returns draws of a batch shape, one step of the order after another.

        Arguments:
            shape: The shape of the batch.
            context: The context values.
            known: Values, and a mask that is true where they are known; the other elements are
                drawn, each given those before it.
        """
        count = shape.numel()
        rows = self._rows(shape, context)
        given: tuple[Tensor, ...] = ()
        if known is not None:
            full = shape + self.event_shape
            given = tuple(
                part.expand(full).reshape(count, *self.event_shape) for part in known
            )
        if self.num_masks == 1:
            drawn = self._draw_rows(count, rows, 0, given)
            return drawn.reshape(shape + self.event_shape)

        log_w = self._log_masks(count, rows, given)
        chosen = torch.distributions.Categorical(logits=log_w).sample()
        parts = []
        places = []
        for mask in range(self.num_masks):
            place = (chosen == mask).nonzero().flatten()
            if len(place):
                inputs = [part[place] for part in rows]
                seen = tuple(part[place] for part in given)
                parts.append(self._draw_rows(len(place), inputs, mask, seen))
                places.append(place)
        drawn = torch.cat(parts)[torch.cat(places).argsort()]
        return drawn.reshape(shape + self.event_shape)

    def __repr__(self) -> str:
        return f"{self.headline} from {self.trunk!r}"

    # --- the order and the heads

    def _ranks(self, order: Tensor | None) -> Tensor:
        """Returns the ranks of the positions for each mask, of shape (masks, positions).

        Raises:
            ValueError: If the trunk is of another shape, or draws parts of a vector apart.
        """
        count = self.positions.numel()
        own = getattr(self.trunk, "order", None)
        if isinstance(self.trunk, CausalTrunk):
            if order is not None:
                raise ValueError(
                    f"order is for a trunk of one's own, and {type(self.trunk).__name__} has one:"
                    " leave it out, or give it to the trunk."
                )
            order = self.trunk.order
        elif order is None:
            order = own if isinstance(own, Tensor) else torch.arange(count)
        ranks = as_numbers("order", order).reshape(self.num_masks, -1)
        size = ranks.shape[1]
        if size not in (count, self.event_shape.numel()):
            raise ValueError(
                f"trunk must be for draws of shape {tuple(self.event_shape)}, and its order has"
                f" {size} elements: give both the same shape."
            )
        by_position = ranks.unflatten(1, (count, -1))
        if bool((by_position != by_position[..., :1]).any()):
            raise ValueError(
                f"trunk must draw the vectors of {self.family.__name__} as a whole, and it draws"
                " their elements one by one: give it an order with equal ranks for the elements"
                " of a vector."
            )
        return torch.stack([dense_ranks(row) for row in by_position[..., 0]])

    def _are_in_steps(self, ranks: Tensor) -> bool:
        """Whether the positions come one after another along the first dimension."""
        if not self.positions:
            return False
        steps = ranks.reshape(len(ranks), self.positions[0], -1)
        return bool((steps[:, :-1].amax(-1) < steps[:, 1:].amin(-1)).all())

    def _head(self, name: str, shape: Size) -> nn.Module:
        """Returns the layer from the trunk's features to one parameter of each position."""
        ndims = len(self.positions)
        if shape[:ndims] != self.positions:
            raise ValueError(
                f"{name} must have the shape of the positions {tuple(self.positions)} first, got"
                f" {tuple(shape)}: fix it, {name}=..., or leave param_shapes out."
            )
        trailing = Size(shape[ndims:])
        if isinstance(self.trunk, CausalTrunk):
            return self.trunk.causal_head(self.positions, trailing)
        return _PositionHead(self.trunk, self.positions, trailing)

    def _shapes(self, contexts: int) -> tuple[Event, ...]:
        """Returns the shapes of x and of the context values."""
        shapes: tuple[Event, ...] | None = getattr(self.trunk, "in_shapes", None)
        return tuple(self.event_shape), *(shapes[1:] if shapes else [1] * contexts)

    def _like(self) -> Tensor:
        """Returns a tensor of the type and on the device of the weights."""
        return next(self.parameters(), torch.empty(0))

    # --- densities

    def _outputs_of(
        self, x: Tensor, context: list[Tensor], mask: int | Tensor
    ) -> dict[str, Tensor]:
        """Returns the free parameters of all positions, before their transforms.

        Arguments:
            x: Rows of values, with the event shape.
            context: The context values, with as many rows.
            mask: The number of the mask.
        """
        shapes = getattr(self.trunk, "in_shapes", (self.event_shape,))
        x = x.reshape(len(x), *shapes[0])
        masked = self.num_masks > 1
        features = self.trunk(x, *context, mask=mask) if masked else self.trunk(x, *context)
        if not isinstance(features, Tensor):
            raise TypeError(
                f"trunk must return its features, one tensor, and {type(self.trunk).__name__}"
                f" returns a {type(features).__name__}: wrap it in a module that does."
            )
        return {
            name: _full(head(features, mask) if masked else head(features))
            for name, head in self.heads.items()
        }

    def _log_probs(
        self, value: Tensor, context: tuple[Tensor, ...], mask: int | Tensor
    ) -> Tensor:
        """Returns the log-probability of each position."""
        inputs = value.to(self._like().dtype)
        folded, lead = fold([inputs, *context], self._shapes(len(context)))
        outputs = self._outputs_of(folded[0], folded[1:], mask)
        free = {name: unfold(output, lead) for name, output in outputs.items()}
        parameters = {
            name: transform(free[name]) for name, (transform, _) in self.free.items()
        }
        family = self.family(**parameters, **self.constants(), **self._options)
        log_probs: Tensor = family.log_prob(value)
        return log_probs.expand(lead + self.positions)

    def _sum(self, log_probs: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Returns the sum over the positions, or over the chosen ones."""
        ndims = len(self.positions)
        if chosen is not None:
            vector = len(self.event_shape) - ndims
            whole = chosen.flatten(chosen.dim() - vector).all(-1) if vector else chosen
            log_probs = log_probs.where(whole, 0.0)
        return log_probs.sum(list(range(-ndims, 0))) if ndims else log_probs

    # --- draws

    def _rows(self, shape: Size, context: tuple[Tensor, ...]) -> list[Tensor]:
        """Returns the context values with a row for each draw."""
        rows = []
        for value, event in zip(context, self._shapes(len(context))[1:], strict=True):
            ndims = event if isinstance(event, int) else len(event)
            own = value.shape[value.dim() - ndims :]
            rows.append(value.expand(shape + own).reshape(shape.numel(), *own))
        return rows

    def _log_masks(
        self, count: int, context: list[Tensor], known: tuple[Tensor, ...]
    ) -> Tensor:
        """Returns the log weights of the masks for each row, given the known elements."""
        if not known:
            return self._like().new_zeros(count, self.num_masks)
        value, seen = known
        value = torch.where(seen, value, self.template().sample().to(value.dtype))
        weights = []
        for index in range(self.num_masks):
            log_probs = self._log_probs(value, tuple(context), index)
            weights.append(self._sum(log_probs, seen))
        return torch.stack(weights, -1)

    def _draw_rows(
        self, count: int, context: list[Tensor], mask: int, known: tuple[Tensor, ...]
    ) -> Tensor:
        """Returns rows of draws with one mask."""
        native = self.event_shape[len(self.positions) :]
        x = self._like().new_zeros(count, self.positions.numel(), *native)
        given = [part.reshape(x.shape) for part in known]
        steps = self._steps(context, mask)(count)
        dtype = x.dtype
        for step, places in enumerate(self._places(mask)):
            conditional = self._at(steps(x, step), places)
            reparameterized = conditional.has_rsample
            drawn = conditional.rsample() if reparameterized else conditional.sample()
            dtype = drawn.dtype
            if given:
                value, seen = (part[:, places] for part in given)
                drawn = torch.where(seen, value.to(dtype), drawn)
            x = x.index_copy(1, places, drawn.to(x.dtype))
        return x.reshape(count, *self.event_shape).to(dtype)

    def _places(self, mask: int) -> tuple[Tensor, ...]:
        """Returns the positions of each step."""
        places: tuple[Tensor, ...] = self.ranking[mask].split(self._counts[mask])
        return places

    def _steps(self, context: list[Tensor], mask: int) -> Callable[[int], _Steps]:
        """Returns a function of the number of rows that starts the draws."""
        if torch.is_grad_enabled() or not isinstance(self.trunk, CausalTrunk):
            return lambda count: self._whole_passes(context, mask)
        trunk = self.trunk
        heads: dict[str, HeadWalk] = {
            name: cast(Any, head).start(mask) for name, head in self.heads.items()
        }

        def start(count: int) -> _Steps:
            walk = trunk.start(count, context, mask)

            def step_of(x: Tensor, step: int) -> dict[str, Tensor]:
                features = walk(x.reshape(count, *trunk.in_shape), step)
                return {name: _full(head(features, step)) for name, head in heads.items()}

            return step_of

        return start

    def _whole_passes(self, context: list[Tensor], mask: int) -> _Steps:
        """Returns the parameters of each step by a pass of the whole trunk."""
        places = self._places(mask)
        ndims = len(self.positions)

        def step_of(x: Tensor, step: int) -> dict[str, Tensor]:
            outputs = self._outputs_of(x.reshape(len(x), *self.event_shape), context, mask)
            chosen = {}
            for name, output in outputs.items():
                flat = output.reshape(len(x), -1, *output.shape[1 + ndims :])
                chosen[name] = flat[:, places[step]]
            return chosen

        return step_of

    def _at(self, free: Mapping[str, Tensor], places: Tensor) -> Any:
        """Returns the distribution of some positions, (N, positions)."""
        parameters = {
            name: transform(free[name]) for name, (transform, _) in self.free.items()
        }
        for name, value in self.constants().items():
            constraint = self.family.arg_constraints.get(name, constraints.real)
            ndims = 0 if constraints.is_dependent(constraint) else constraint.event_dim
            lead = value.shape[: value.dim() - ndims]
            own = value.shape[value.dim() - ndims :]
            if lead.numel() == 1:
                parameters[name] = value.reshape(own)
            else:
                whole = value.expand(self.positions + own)
                parameters[name] = whole.reshape(-1, *own)[places]
        return self.family(**parameters, **self._options)

    # --- the check of a trunk of one's own

    @torch.no_grad()
    def _check_trunk(self, context: list[Tensor]) -> None:
        """Raises a ``ValueError`` if a position sees itself or a later one.

        All weights of a copy are random, so that it does not matter where they start.
        """
        count = self.positions.numel()
        rows = [part[:1].double().cpu() for part in self._rows(Size([1]), tuple(context))]
        with preserved_rng(0), evaluating(self):
            if any(isinstance(weight, UninitializedParameter) for weight in self.parameters()):
                inputs = [part.to(torch.get_default_dtype()) for part in rows]
                self._outputs_of(torch.zeros(1, *self.event_shape), inputs, 0)
            module = copy_modules(self).double().cpu()
            for weight in module.parameters():
                fan = max(1, weight[0].numel()) if weight.dim() > 1 else 1
                weight.normal_(0.0, fan**-0.5)
            ranks = module.ranks[0]
            last = int(ranks.max())
            cuts = torch.arange(last + 1)
            if last >= _ALL_STEPS:
                chosen = torch.randperm(last + 1)[:_SOME_STEPS]
                cuts = torch.cat([chosen, torch.tensor([0, last])]).unique()
            x, others = module._two_values(count)
            later = ranks.unsqueeze(0) >= cuts.unsqueeze(1)
            event = later.reshape(*later.shape, *[1] * (x.dim() - 1))
            mixed = torch.cat([x.unsqueeze(0), torch.where(event, others, x)])
            shown = [part.expand(len(mixed), *part.shape[1:]) for part in rows]
            outputs = module._outputs_of(mixed.reshape(-1, *self.event_shape), shown, 0)
        for output in outputs.values():
            found = output.reshape(len(mixed), count, -1)
            size = 1.0 + found[0].abs().amax()
            differs = ((found[1:] - found[0]).abs() > 1e-9 * size).any(-1)
            peeks = differs & (ranks.unsqueeze(0) <= cuts.unsqueeze(1))
            if bool(peeks.any()):
                self._refuse(peeks, ranks, cuts)
        self._trusted = True

    def _two_values(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns two values that differ everywhere, (positions, *native)."""
        native = self.event_shape[len(self.positions) :]
        shape = (count, *native)
        if self.template().sample().is_floating_point():
            return torch.randn(shape).double(), torch.randn(shape).double()
        (name,) = self.free
        classes = self.free[name][1][-1]
        first = torch.randint(classes, shape)
        other = (first + torch.randint(1, classes, shape)) % classes
        return first.double(), other.double()

    def _refuse(self, peeks: Tensor, ranks: Tensor, cuts: Tensor) -> None:
        """Raises the error of a trunk that peeks."""
        cut, place = peeks.nonzero()[0].tolist()
        index = torch.unravel_index(torch.tensor(place), self.positions)
        where = tuple(int(part) for part in index)
        raise ValueError(
            f"trunk must see at each position the positions before it alone, and"
            f" {type(self.trunk).__name__} sees at {where}, number {int(ranks[place])} in the"
            f" order, something of number {int(cuts[cut])} or a later one: shift its input by"
            " one position, or give order=, the ranks of the positions."
        )


class _PositionHead(nn.Module):
    """A linear layer from the features (N, *positions, F) to a parameter of each position."""

    def __init__(self, trunk: nn.Module, positions: Size, trailing: Size) -> None:
        super().__init__()
        size = math.prod(trailing)
        features = out_features(trunk)
        self.linear: nn.Module
        if features is None:
            self.linear = LazyHead(size)
        else:
            self.linear = initialize(nn.Linear(features, size))
        self.positions = tuple(positions)
        self.trailing = tuple(trailing)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the parameter of each position."""
        if features.shape[1:-1] != self.positions:
            raise ValueError(
                "trunk must return features with the positions' shape"
                f" {('N', *self.positions, 'F')}, got {tuple(features.shape)}: move the"
                " dimension of the features to the end."
            )
        output: Tensor = self.linear(features)
        return output.reshape(len(features), *self.positions, *self.trailing)


def _full(output: Tensor) -> Tensor:
    """Returns a network's output in full precision: densities may not be computed in half."""
    half = torch.is_autocast_enabled(output.device.type)
    return output.float() if half else output
