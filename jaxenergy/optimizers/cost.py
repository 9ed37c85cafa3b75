"""What an optimizer itself costs: the memory of its state, the work of one update without the loss.

Optimizers differ in this alone, as long as they take one gradient an update: forward and backward
pass are the same for all of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxenergy.flops import count_bytes, count_flops
from jaxenergy.optimizers import Optimizer

PyTree = Any


@dataclasses.dataclass(frozen=True)
class UpdateCost:
    """The cost of one update, from the gradients' being there to the new parameters.

    Attributes:
        state_bytes: size of the optimizer's state.
        flops: floating-point operations, as XLA counts them in the compiled program; None where
            there is no such number.
        bytes_accessed: bytes the program reads and writes, as XLA counts them; None likewise.
        why: why they are None.
    """

    state_bytes: int
    flops: float | None
    bytes_accessed: float | None
    why: str | None = None


def update_cost(optimizer: Optimizer, params: PyTree) -> UpdateCost:
    """Compiles an optimizer's update alone and reads its costs.

    Args:
        optimizer: the optimizer.
        params: the parameters, or their shapes as `jax.eval_shape` gives them.

    Returns:
        The costs.
    """
    params = jax.eval_shape(lambda params: params, params)
    state = jax.eval_shape(optimizer.tx.init, params)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    if optimizer.evaluates_loss:
        return UpdateCost(state_bytes, None, None, "an update evaluates the loss again")
    if optimizer.per_example_gradients:
        return UpdateCost(state_bytes, None, None, "it hangs on the batch size")
    if optimizer.row.uncounted:
        return UpdateCost(state_bytes, None, None, optimizer.row.uncounted)

    def update(grads: PyTree, state: PyTree, params: PyTree, value: jax.Array) -> PyTree:
        return optimizer.update(grads, state, params, value=value, value_fn=lambda params: value)

    value = jax.ShapeDtypeStruct((), jnp.float32)
    arguments = (params, state, params, value)
    compiled = jax.jit(update, donate_argnums=(1, 2)).lower(*arguments).compile()
    flops, read = count_flops(update, arguments, compiled), count_bytes(compiled)
    why = None if flops is not None and read is not None else "this platform's XLA does not count"
    return UpdateCost(state_bytes, flops, read, why)
