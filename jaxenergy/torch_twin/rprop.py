"""Rprop as Optax defines it, which `torch.optim.Rprop` cannot be made to be."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Rprop(Optimizer):
    """Rprop with the steps of Optax 0.2.8, in foreach operations.

    Both keep a step size for each number, which grows while the gradient's sign stays and shrinks
    when it changes. They differ in which step an update takes. With step size d of update t:

    * `torch.optim.Rprop` moves by -d(t) sign(g(t)) at once, or not at all where the sign changed.
    * Optax moves by the step before, -d(t-1) sign(g(t-1)), where the sign stayed, and drops that
      step where the sign changed. The first update moves nothing.

    So each step is taken one update late, and a step that is followed by a change of sign never.
    No argument of PyTorch's class makes it so. A schedule scales the moves, not the step sizes.

    Args:
        params: groups of parameters, with `lr` (the rate of the schedule, or a tensor with it) and
            `weight_decay` (added to the gradient).
        first_step: the step size at the start; within the bounds.
        etas: what a step size is multiplied by where the sign changed, and where it stayed.
        step_sizes: the least and the largest step size.

    References:
        Riedmiller & Braun 1993, "A direct adaptive method for faster backpropagation learning";
        `optax.scale_by_rprop`.
    """

    def __init__(
        self,
        params: Any,
        *,
        first_step: float,
        etas: tuple[float, float],
        step_sizes: tuple[float, float],
    ):
        super().__init__(params, {"lr": first_step, "weight_decay": 0.0})
        self._first_step = first_step
        self._eta_minus, self._eta_plus = etas
        self._least, self._largest = step_sizes
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter] = {
                "step_size": torch.full_like(parameter, first_step),
                "prev": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Moves the parameters by the steps of the update before, and chooses the next.

        Args:
            closure: not used; PyTorch's optimizers have it.
        """
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        parameters: list[Tensor] = group["params"]
        steps = [self.state[p]["step_size"] for p in parameters]
        previous = [self.state[p]["prev"] for p in parameters]
        grads: Any = [p.grad for p in parameters]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, parameters, alpha=group["weight_decay"])

        signs = torch._foreach_mul(grads, previous)
        torch._foreach_sign_(signs)
        stayed = torch._foreach_clamp_min(signs, 0.0)  # 1 where the sign stayed, else 0
        kept = torch._foreach_clamp_max(signs, 0.0)
        torch._foreach_add_(kept, 1.0)  # 0 where the sign changed, else 1

        factors = torch._foreach_mul(stayed, self._eta_plus - 1.0)
        torch._foreach_add_(factors, kept, alpha=1.0 - self._eta_minus)
        torch._foreach_add_(factors, self._eta_minus)
        torch._foreach_mul_(steps, factors)
        torch._foreach_clamp_min_(steps, self._least)
        torch._foreach_clamp_max_(steps, self._largest)

        moves = torch._foreach_mul(previous, kept)
        torch._foreach_mul_(moves, group["lr"] / self._first_step)
        torch._foreach_sub_(parameters, moves)

        torch._foreach_copy_(previous, torch._foreach_sign(grads))
        torch._foreach_mul_(previous, steps)
        torch._foreach_mul_(previous, kept)
