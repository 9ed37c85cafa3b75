"""L-BFGS and its zoom line search as Optax defines them, which `torch.optim.LBFGS` are not.

Parameters, gradients and what is remembered lie in flat vectors, as in PyTorch's own. Without a
line search nothing is asked of the device; with one, loss and slope are read once a trial, since
they say where to try next. PyTorch's own reads loss, curvature and two bounds each update.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer


class LBFGS(Optimizer):
    """L-BFGS with the rules of Optax 0.2.8.

    The direction is that of Nocedal's two loops in both. What differs, as Optax has it and as
    `torch.optim.LBFGS` has it:

    * the first step: g min(1, 1 / |g|) in the 2-norm (g itself without `scale_first`), against the
      1-norm;
    * what is remembered: each pair of differences, whatever its curvature, with weight 0 where that
      is 0, against those with a curvature above 1e-10;
    * the scale of the rest: the last pair's, against the last remembered pair's; or 1;
    * an end: none, against bounds on the gradient, the slope and the step, within which nothing
      moves.

    Where no bound is met and every curvature is above 1e-10, `torch.optim.LBFGS(max_iter=1)` with
    its first rate multiplied by |g|_1 / |g|_2 makes the same updates. In training on batches, whose
    gradients' differences are noisy, curvatures are below 0 now and then.

    Args:
        params: one group of parameters, with `lr`.
        memory_size: pairs of differences that are remembered.
        scale_first: whether what no pair tells of is scaled, by the last pair's curvature or, at
            first, by the gradient's norm.
        search_steps: the most trials of a line search; None for none.

    References:
        Nocedal & Wright 2006, "Numerical Optimization", algorithms 7.4 and 7.5;
        `optax.scale_by_lbfgs`.
    """

    def __init__(
        self, params: Any, *, memory_size: int, scale_first: bool, search_steps: int | None
    ):
        super().__init__(params, {"lr": 1.0, "weight_decay": 0.0})
        (group,) = self.param_groups
        self._group = group
        self._parameters: list[Tensor] = group["params"]
        self._scale_first = scale_first
        self._search_steps = search_steps
        self._updates = 0
        self._sizes = [p.numel() for p in self._parameters]
        like = self._parameters[0].detach()
        self._point = like.new_zeros(sum(self._sizes))
        self._grad = torch.zeros_like(self._point)
        self._moves = like.new_zeros(memory_size, sum(self._sizes))
        self._turns = torch.zeros_like(self._moves)  # of the gradient
        self._weights = like.new_zeros(memory_size)
        for parameter, grad, moves, turns in zip(
            self._parameters, *map(self._apart, (self._grad, self._moves, self._turns)), strict=True
        ):
            self.state[parameter] = {"grad": grad, "moves": moves, "turns": turns}

    @torch.no_grad()
    def step(self, closure: Any = None, loss: Tensor | None = None) -> None:
        """Moves the parameters along the direction of their gradients, once.

        Args:
            closure: computes the loss and the gradients at the parameters as they then are; for the
                line search.
            loss: the loss at the parameters as they are; for the line search.
        """
        point = self._flat(self._parameters)
        grad = self._flat([p.grad for p in self._parameters])  # type: ignore[misc]
        self._remember(point, grad)
        direction = self._direction(grad).mul_(-self._group["lr"])
        self._updates += 1
        if self._search_steps is None:
            torch._foreach_add_(self._parameters, self._apart(direction))
            return
        assert closure is not None
        assert loss is not None
        evaluate_with_gradients = torch.enable_grad()(closure)

        def move_to(step: float) -> None:
            there = torch.add(point, direction, alpha=step)
            torch._foreach_copy_(self._parameters, self._apart(there))

        def evaluate(step: float) -> tuple[float, float]:
            move_to(step)
            value = evaluate_with_gradients()
            slope = self._flat([p.grad for p in self._parameters]).dot(direction)  # type: ignore[misc]
            value, slope = torch.stack([value.to(slope.dtype), slope]).tolist()
            return value, slope

        slope = grad.dot(direction)
        value, slope = torch.stack([loss.to(slope.dtype), slope]).tolist()
        # Moved there once more, since the last trial need not be the chosen one.
        move_to(zoom(evaluate, value, slope, self._search_steps))

    def _remember(self, point: Tensor, grad: Tensor) -> None:
        """Keeps the differences from the update before, in the place of the oldest."""
        if self._updates:
            place = (self._updates - 1) % len(self._weights)
            move = torch.sub(point, self._point, out=self._moves[place])
            turn = torch.sub(grad, self._grad, out=self._turns[place])
            curvature = turn.dot(move)
            self._weights[place] = torch.where(curvature == 0, 0.0, 1 / curvature)
        self._point.copy_(point)
        self._grad.copy_(grad)

    def _direction(self, grad: Tensor) -> Tensor:
        """The gradient times the inverse of the Hessian, as far as it is known."""
        remembered = min(self._updates, len(self._weights))
        places = [
            update % len(self._weights)
            for update in range(self._updates - remembered, self._updates)
        ]
        direction = grad.clone()
        shares = {}
        for place in reversed(places):
            shares[place] = self._weights[place] * self._moves[place].dot(direction)
            direction.addcmul_(self._turns[place], shares[place], value=-1)
        direction.mul_(self._scale(grad, places[-1] if places else None))
        for place in places:
            share = shares[place] - self._weights[place] * self._turns[place].dot(direction)
            direction.addcmul_(self._moves[place], share)
        return direction

    def _scale(self, grad: Tensor, last: int | None) -> Tensor | float:
        if not self._scale_first:
            return 1.0
        if last is None:
            return (1 / torch.linalg.vector_norm(grad)).clamp(max=1.0)
        turn = self._turns[last]
        square = turn.dot(turn)
        return torch.where(square > 0, turn.dot(self._moves[last]) / square, 1.0)

    def _flat(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def _apart(self, flat: Tensor) -> list[Tensor]:
        """Views of vectors [..., all numbers] as parameters have them."""
        parts = flat.split(self._sizes, dim=-1)
        return [
            part.view(*flat.shape[:-1], *p.shape)
            for part, p in zip(parts, self._parameters, strict=True)
        ]


class _Trial(NamedTuple):
    """A point on the line: its step, the loss there, and the loss's slope along the line."""

    step: float
    value: float
    slope: float


# The defaults of `optax.scale_by_zoom_linesearch`.
_DECREASE = 1e-4  # the share of the slope by which the loss has to fall
_CURVATURE = 0.9  # the share of the slope that may be left
_NEARLY_EQUAL = 1e-6  # relative to the loss: then the slope alone decides on the decrease
_SHORTEST = 1e-5  # interval
_GROWTH = 2.0


def zoom(
    evaluate: Callable[[float], tuple[float, float]], value: float, slope: float, max_steps: int
) -> float:
    """Finds a step at which the loss has fallen enough and its slope is small enough.

    Args:
        evaluate: from a step to the loss there and its slope along the line.
        value: the loss at step 0.
        slope: its slope there; below 0 for a direction that goes down.
        max_steps: the most evaluations.

    Returns:
        The step: one that meets both conditions, or else the best one that meets the first, or else
        the last one tried (0 where that gave no number).

    References:
        Nocedal & Wright 2006, algorithms 3.5 and 3.6; Hager & Zhang 2006, "Algorithm 851";
        `optax.scale_by_zoom_linesearch`.
    """
    start = safe = last = low = high = reference = _Trial(0.0, value, slope)
    found = False  # an interval that holds what is sought
    for number in range(1, max_steps + 1):
        width = abs(high.step - low.step)
        if found:
            step = _between(low, high, reference)
        else:
            step = 1.0 if number == 1 else _GROWTH * last.step
        trial = _Trial(step, *evaluate(step))
        excess = _excess_value(trial, start)
        if max(excess, _excess_slope(trial, start)) <= 0:
            return trial.step
        if found:
            if excess <= 0 and trial.value < safe.value:
                safe = trial
            rises = excess > 0 or trial.value >= low.value
            if rises:
                high, reference = trial, high
            elif trial.slope * (high.step - low.step) >= 0:
                low, high, reference = trial, low, high
            else:
                low, reference = trial, low
            is_over = width <= _SHORTEST and safe.step > 0
        else:
            if excess <= 0:
                safe = trial
            rises = excess > 0 or (number > 1 and trial.value >= last.value)
            turns = trial.slope >= 0 and not rises
            low, high = (trial, last) if turns else (last, trial)
            reference, found, is_over = low, rises or turns, False
        last = trial
        if is_over or number == max_steps:
            return safe.step if safe.step > 0 or math.isinf(excess) else trial.step
    raise ValueError(f"max_steps={max_steps}, and a line search needs at least one")


def _excess_value(trial: _Trial, start: _Trial) -> float:
    """By how much the loss is too high: 0 where it has fallen enough, inf where it is no number."""
    with np.errstate(all="ignore"):
        exact = trial.value - start.value - _DECREASE * trial.step * start.slope
        by_slope = trial.slope - (2 * _DECREASE - 1) * start.slope
        nearly = trial.value - start.value - _NEARLY_EQUAL * abs(start.value)
        excess = float(np.maximum(np.minimum(np.maximum(by_slope, nearly), exact), 0.0))
    return math.inf if math.isnan(excess) else excess


def _excess_slope(trial: _Trial, start: _Trial) -> float:
    """By how much the slope is too steep: 0 where it is not, inf where it is no number."""
    excess = abs(trial.slope) - _CURVATURE * abs(start.slope)
    return math.inf if math.isnan(excess) else max(excess, 0.0)


def _between(low: _Trial, high: _Trial, reference: _Trial) -> float:
    """The lowest point of a cubic, or of a parabola, or the middle: the first well inside."""
    left, right = sorted((low.step, high.step))
    width = right - left
    with np.errstate(all="ignore"):
        for step, margin in (
            (_lowest_of_cubic(low, high, reference), 0.2 * width),
            (_lowest_of_parabola(low, high), 0.1 * width),
        ):
            if left + margin < step < right - margin:
                return float(step)
    return (low.step + high.step) / 2


def _lowest_of_cubic(a: _Trial, b: _Trial, c: _Trial) -> float:
    """Of the cubic through three points with the slope of the first; NaN where it has none."""
    to_b, to_c = np.float64(b.step - a.step), np.float64(c.step - a.step)
    over_b, over_c = b.value - a.value - a.slope * to_b, c.value - a.value - a.slope * to_c
    divisor = (to_b * to_c) ** 2 * (to_b - to_c)
    cubic = (to_c**2 * over_b - to_b**2 * over_c) / divisor
    square = (-(to_c**3) * over_b + to_b**3 * over_c) / divisor
    return a.step + (-square + np.sqrt(square**2 - 3 * cubic * a.slope)) / (3 * cubic)


def _lowest_of_parabola(a: _Trial, b: _Trial) -> float:
    """Of the parabola through two points with the slope of the first."""
    to_b = np.float64(b.step - a.step)
    square = (b.value - a.value - a.slope * to_b) / to_b**2
    return a.step - a.slope / (2 * square)
