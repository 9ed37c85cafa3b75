"""JAX in a process of a comparison: the same compiled update that a run makes."""

import dataclasses
import os
from typing import Any

from jaxenergy import runtime
from jaxenergy.config import RunConfig
from jaxenergy.frameworks.inputs import Inputs
from jaxenergy.frameworks.side import Side


class JaxSide(Side):
    """JAX, with one of the forms that its operations can have.

    Args:
        config: the training.
        variant: `auto` for the forms and the calls of a run, `plain` for Flax's own and one update
            a call.
        inputs: what all processes are given.
    """

    def __init__(self, config: RunConfig, variant: str, inputs: Inputs):
        self._config = dataclasses.replace(config, forms=variant)
        self._inputs = inputs
        self.updates_per_call = inputs.facts["updates_per_call"] if variant == "auto" else 1
        self._update = 0

    def before_start(self) -> None:
        """Nothing: a plan is made with JAX itself."""

    def start(self) -> None:
        """Imports JAX, Flax and Optax, and asks for the device."""
        if self._inputs.facts["tf32"] is not None:
            chosen = "tensorfloat32" if self._inputs.facts["tf32"] else "highest"
            os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = chosen
        import flax.linen
        import jax
        import optax

        del flax, optax  # what the library is built on, and so imports again
        self._jax = jax
        self._device = jax.devices()[0]

    def prepare(self) -> None:
        """Makes the plan; nothing is compiled for it."""
        from jaxenergy import data
        from jaxenergy.training import plan, steps

        self._steps = steps
        dataset = data.load(self._config.dataset, data_dir=self._config.data_dir)
        self._program = plan.make_plan(self._config, dataset, self._device.platform).program

    def load(self) -> None:
        """Puts the training split, the orders of epochs and the weights on the device.

        The state of the optimizer is made by one compiled call, to which the weights are donated,
        so that none of its buffers is one of theirs.
        """
        numpy = self._jax.numpy
        train = self._program.dataset.train
        self._split = self._steps.DeviceSplit(
            numpy.asarray(train.inputs), numpy.asarray(train.labels)
        )
        orders = self._inputs.orders
        self._orders = [
            numpy.asarray(orders[[epoch, (epoch + 1) % len(orders)]])
            for epoch in range(len(orders))
        ]
        # Copies: what is donated may not be the host's own memory.
        variables = self._jax.tree.map(numpy.array, dict(self._inputs.variables))
        make_state = self._steps.make_state_of(self._program, self._config.seed)
        self._state = self._jax.jit(make_state, donate_argnums=0)(variables)
        self._jax.block_until_ready((self._split, self._orders, self._state))

    def build(self) -> None:
        """Compiles the call."""
        updates = self._steps.make_updates(self._program, self.updates_per_call)
        jitted = self._jax.jit(updates, donate_argnums=0)
        self._compiled = jitted.lower(self._state, self._split, self._orders[0]).compile()

    def call(self) -> None:
        """Calls it, on the epoch in which its first example lies."""
        examples = self._inputs.orders.shape[1]
        epoch = self._steps.epoch_of(self._update, self._config.batch_size, examples)
        self._state, self._metrics = self._compiled(
            self._state, self._split, self._orders[epoch % len(self._orders)]
        )
        self._update += self.updates_per_call

    def fence(self) -> None:
        """Waits for the new state and its loss."""
        self._jax.block_until_ready((self._state, self._metrics))

    def loss(self) -> float:
        """The mean loss of the last call's updates."""
        return float(self._metrics.loss)

    def peak_device_bytes(self) -> int | None:
        """The most that XLA's allocator had given out; None on the CPU."""
        return (self._device.memory_stats() or {}).get("peak_bytes_in_use")

    def describe(self) -> dict[str, Any]:
        """Version, threads, forms, precision, flags."""
        return {
            "version": self._jax.__version__,
            "device": self._device.device_kind,
            "threads": runtime.count_threads(),
            "forms": self._config.forms,
            "matmul_precision": self._jax.config.jax_default_matmul_precision or "default",
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }
