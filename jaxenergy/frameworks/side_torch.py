"""PyTorch in a process of a comparison: the JAX program's twin, with its weights and batches."""

import importlib
import os
from typing import Any, cast

from jaxenergy import runtime
from jaxenergy.config import RunConfig
from jaxenergy.frameworks.inputs import Inputs, in_a_row
from jaxenergy.frameworks.side import Side, read_host_bytes


class TorchSide(Side):
    """PyTorch, in one of its modes.

    The twin is made of the JAX program's description, so JAX is imported here too; it computes
    nothing, and what importing it takes is in no stage and in no peak of memory.

    Args:
        config: the training.
        variant: `eager`, `compile` or `cuda_graphs`.
        inputs: what all processes are given.
    """

    def __init__(self, config: RunConfig, variant: str, inputs: Inputs):
        self._config = config
        self._variant = variant
        self._inputs = inputs
        self._position = 0

    def before_start(self) -> None:
        """Makes the plan that the twin is built of; JAX is imported for it."""
        before_bytes = read_host_bytes("VmRSS")
        os.environ["JAX_PLATFORMS"] = "cpu"  # JAX would take most of a GPU's memory
        from jaxenergy import data
        from jaxenergy.training.plan import make_plan

        dataset = data.load(self._config.dataset, data_dir=self._config.data_dir)
        data_bytes = sum(
            split.inputs.nbytes + split.labels.nbytes
            for split in (dataset.train, dataset.validation, dataset.test)
        )
        platform = self._inputs.facts["device"]["platform"]
        self._program = make_plan(self._config, dataset, platform).program
        self._add_to_scaffold(before_bytes, data_bytes)

    def start(self) -> None:
        """Imports PyTorch and wakes the device."""
        # By its name: `torch_twin`, which alone imports it, would bring modules of this library.
        torch = importlib.import_module("torch")
        if self._device == "cuda":
            torch.zeros((), device="cuda")
            torch.cuda.synchronize()

    def prepare(self) -> None:
        """Imports the twin, which looks at the program with JAX, and sets threads and precision."""
        before_bytes = read_host_bytes("VmRSS")
        from jaxenergy import torch_twin
        from jaxenergy.torch_twin import process

        # What the check finds out by tracing the program is kept for `load`.
        torch_twin.check_has_twin(self._program)
        self._build_training, self._process = torch_twin.build_training, process
        self._described = process.set_up(
            threads=runtime.count_threads(),
            tf32=self._inputs.facts["tf32"],
            device=self._device,
        )
        self._add_to_scaffold(before_bytes, 0)

    def _add_to_scaffold(self, before_bytes: int | None, data_bytes: int) -> None:
        """Counts what this process has grown by since then, the data aside."""
        after_bytes = read_host_bytes("VmRSS")
        if before_bytes is not None and after_bytes is not None:
            self.scaffold_bytes += max(0, after_bytes - before_bytes - data_bytes)

    @property
    def _device(self) -> str:
        return "cuda" if self._inputs.facts["device"]["platform"] == "gpu" else "cpu"

    def load(self) -> None:
        """Builds the twin, with data, order and weights on the device."""
        self._training = self._build_training(
            self._program,
            self._inputs.variables,
            mode=cast(Any, self._variant),
            device=self._device,
        )
        orders = self._inputs.orders
        self._order = self._training.to_device(in_a_row(orders, self._config.batch_size))
        self._length = orders.size
        self._training.fence()

    def build(self) -> None:
        """Nothing: PyTorch compiles in its first calls."""

    def call(self) -> None:
        """Makes the next update."""
        end = self._position + self._config.batch_size
        self._training.update(self._order[self._position : end])
        self._position = end % self._length

    def fence(self) -> None:
        """Waits for the device."""
        self._training.fence()

    def loss(self) -> float:
        """The last update's loss."""
        return self._training.loss()

    def peak_device_bytes(self) -> int | None:
        """The most that PyTorch's allocator had given out; None on the CPU."""
        return self._process.read_peak_device_bytes(self._device)

    def describe(self) -> dict[str, Any]:
        """Version, threads, precision, mode."""
        return {**self._described, "mode": self._variant}
