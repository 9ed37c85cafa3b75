"""A training in PyTorch: the same program, data and weights as JAX's, written as PyTorch wants it.

The data set lies on the device as uint8 and is scaled in the step; the loop never asks the device
for a number; gradients are dropped, not zeroed; optimizers are fused where PyTorch has them fused.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.torch_twin import transplant
from jaxenergy.torch_twin.models import build_network
from jaxenergy.torch_twin.optimizers import OPTIMIZERS, Rule
from jaxenergy.torch_twin.support import batch_norm_values, check_has_twin
from jaxenergy.training.steps import Program

PyTree = Any
Mode = Literal["eager", "compile", "cuda_graphs"]

MODES: Mapping[str, str] = {
    "eager": "operation by operation",
    "compile": "forward and backward pass compiled by torch.compile",
    "cuda_graphs": "compiled, and each update replayed as one CUDA graph",
}

# Updates made without a graph before one is captured: what is allocated or chosen at first use
# (cuBLAS, autotuning, the optimizer's state) must be there then.
_UPDATES_BEFORE_CAPTURE = 3


def build_training(
    program: Program,
    variables: Mapping[str, PyTree],
    *,
    mode: Mode = "eager",
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> "Training":
    """Builds the twin of a program, at weights of the JAX side.

    Args:
        program: what is trained.
        variables: the model's variables in Flax: `params` and, where there is batch normalisation,
            `batch_stats`.
        mode: one of `MODES`.
        device: `cpu` or `cuda`.
        dtype: dtype of everything, for checks in float64; None for the program's own precision.

    Returns:
        The training.

    Raises:
        UsageError: the program has no twin, or the mode or device cannot be had here.
    """
    check_has_twin(program)
    if mode not in MODES:
        raise unknown_value("mode", mode, MODES)
    if device not in ("cpu", "cuda"):
        raise unknown_value("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device=cuda: torch {torch.__version__} finds no CUDA device here.")
    if mode == "cuda_graphs" and device != "cuda":
        raise UsageError("mode=cuda_graphs needs device=cuda. Allowed on the CPU: eager, compile.")
    optimizer = program.optimizer
    if mode == "cuda_graphs" and OPTIMIZERS[optimizer.name].searches(optimizer.hyper_parameters):
        raise UsageError(
            f"mode=cuda_graphs is not possible with the line search of {optimizer.name}, which"
            " decides anew each time how often it evaluates.\n"
            "Allowed: eager, compile; or --optimizer_args=linesearch=none."
        )
    return Training(program, variables, mode, torch.device(device), dtype)


class Training:
    """A network, its optimizer and its data on a device; made by `build_training`."""

    def __init__(
        self,
        program: Program,
        variables: Mapping[str, PyTree],
        mode: Mode,
        device: torch.device,
        dtype: torch.dtype | None,
    ):
        self.program = program
        self.device = device
        self.mode = mode
        self._dtype = dtype or torch.float32
        # bfloat16 is Flax's way of mixed precision: parameters stay in float32.
        self._autocast = dtype is None and program.model.precision == "bfloat16"
        train, dataset = program.dataset.train, program.dataset
        self._inputs = torch.tensor(train.inputs, device=device)
        self._labels = torch.tensor(train.labels, dtype=torch.int64, device=device)
        self._mean, self._std = (
            torch.tensor(constants, dtype=self._dtype, device=device)
            for constants in (dataset.mean, dataset.std)
        )
        self._indices = torch.zeros(program.batch_size, dtype=torch.int64, device=device)

        self.network = build_network(program.model).to(device, self._dtype)
        self._set_variance_factors()
        self._bindings = transplant.bind(self.network)
        transplant.load(self._bindings, variables)
        self._parameters = {b.name: b for b in self._bindings if b.collection == "params"}
        self.rule = Rule(
            program.optimizer,
            {name: binding.tensor for name, binding in self._parameters.items()},
            capturable=mode == "cuda_graphs",
        )
        self._loss = torch.zeros((), device=device)
        self._compute_loss: Callable[..., Tensor] = self._loss_of_micro_batch
        if mode != "eager":
            # As one graph, so that what cannot be compiled is an error and not quietly eager;
            # PyTorch leaves its own LSTM out of graphs, on purpose.
            has_lstm = any(isinstance(module, nn.LSTM) for module in self.network.modules())
            # A training has one batch size, so that nothing is gained from compiling for any.
            self._compute_loss = torch.compile(
                _with_own_code(self._loss_of_micro_batch), fullgraph=not has_lstm, dynamic=False
            )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None
        self._updates = 0

    def to_device(self, indices: ArrayLike) -> Tensor:
        """Places indices of examples on the device, e.g. an epoch's, of which slices are updates.

        Args:
            indices: whole numbers of any shape.

        Returns:
            An int64 tensor of the same shape.
        """
        return torch.from_numpy(np.array(indices, np.int64)).to(self.device)

    def update(self, indices: ArrayLike | Tensor) -> None:
        """Makes one update; on a GPU it returns before the device has done it.

        Args:
            indices: examples of the training split, int64 [batch]; a tensor of the device is used
                as it is.
        """
        if not isinstance(indices, Tensor):
            indices = self.to_device(indices)
        self.rule.set_rates()
        if self.mode == "cuda_graphs":
            self._indices.copy_(indices)
            self._update_by_graph()
        elif self.rule.searches:
            self._update_by_search(indices)
        else:
            self._loss = self._backward(indices)
            self.rule.step()
        self._updates += 1

    def fence(self) -> None:
        """Waits until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def loss(self) -> float:
        """The mean loss of the last update's batch, before the update; waits for the device."""
        return float(self._loss)

    def gradients(self, indices: ArrayLike | Tensor) -> PyTree:
        """The gradients of a batch's mean loss, like Flax's parameters; nothing is moved by them.

        Running statistics of batch normalisation are those after the batch.
        """
        if not isinstance(indices, Tensor):
            indices = self.to_device(indices)
        self._loss = self._backward(indices)
        tree = _nest(
            {
                binding.path: binding.to_flax(transplant.to_numpy(binding.tensor.grad))
                for binding in self._parameters.values()
            }
        )
        self.rule.zero_grad()
        return tree

    def logits(self, indices: ArrayLike | Tensor) -> np.ndarray:
        """The network's output for some examples, as in training; waits for the device."""
        if not isinstance(indices, Tensor):
            indices = self.to_device(indices)
        with torch.no_grad():
            logits = self._compute_logits(indices)
        return transplant.to_numpy(logits)

    def layer_dtypes(self, indices: ArrayLike | Tensor) -> dict[str, str]:
        """The dtype that each kind of layer gives in a forward pass over some examples.

        Under autocast PyTorch decides: cuDNN's LSTM is given float16, whatever was asked for.

        Returns:
            Names of dtypes by names of layers' classes; several are joined by `+`.
        """
        found: dict[str, set[str]] = {}

        def note(layer: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            name = str(first.dtype).removeprefix("torch.")
            found.setdefault(type(layer).__name__, set()).add(name)

        handles = [
            layer.register_forward_hook(note)
            for layer in self.network.modules()
            if not list(layer.children())
        ]
        try:
            self.logits(indices)
        finally:
            for handle in handles:
                handle.remove()
        return {kind: "+".join(sorted(dtypes)) for kind, dtypes in sorted(found.items())}

    def variables(self) -> dict[str, PyTree]:
        """The variables as Flax has them, in numpy; waits for the device."""
        return transplant.read(self._bindings)

    def optimizer_state(self) -> dict[str, PyTree]:
        """The optimizer's state by Optax's names (`mu`, `trace`), each like Flax's parameters."""
        return {
            key: _nest(
                {
                    self._parameters[name].path: self._parameters[name].to_flax_all(
                        transplant.to_numpy(tensor)
                    )
                    for name, tensor in tensors.items()
                }
            )
            for key, tensors in self.rule.state().items()
        }

    def _set_variance_factors(self) -> None:
        """Tells each batch norm how many values of a channel a micro-batch gives it."""
        examples = self.program.batch_size // self.program.accumulate
        values = batch_norm_values(self.program.model, examples)
        for name, layer in transplant.named_layers(self.network):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.variance_factor = values[name] / (values[name] - 1)  # type: ignore[assignment]

    def _prepare(self, inputs: Tensor) -> Tensor:
        """Stored inputs as the network takes them: images scaled, tokens as they are."""
        if len(self.program.model.input_shape) == 1:
            return inputs.long()
        return (inputs.to(self._dtype) - self._mean) / self._std

    def _loss_of_micro_batch(self, indices: Tensor) -> Tensor:
        """The mean loss of some examples."""
        labels = self._labels.index_select(0, indices)
        logits = self._compute_logits(indices)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())

    def _compute_logits(self, indices: Tensor) -> Tensor:
        inputs = self._prepare(self._inputs.index_select(0, indices))
        if not self._autocast:
            return self.network(inputs)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(inputs)
        return logits.float()

    def _backward(self, indices: Tensor) -> Tensor:
        """Leaves the gradients of the batch's mean loss in the parameters, and gives that loss."""
        self.rule.zero_grad()
        count = self.program.accumulate
        total: Tensor | None = None
        for micro_batch in indices.chunk(count) if count > 1 else (indices,):
            loss = self._compute_loss(micro_batch)
            (loss / count if count > 1 else loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None  # there is at least one micro-batch
        return total / count if count > 1 else total

    def _update_by_search(self, indices: Tensor) -> None:
        """One update that evaluates its batch's loss at other parameters too.

        Running statistics see the batch once, as in JAX.
        """
        self._loss = self._backward(indices)
        buffers = list(self.network.buffers())
        kept = [buffer.clone() for buffer in buffers]
        self.rule.step(lambda: self._backward(indices), self._loss)
        for buffer, before in zip(buffers, kept, strict=True):
            buffer.copy_(before)

    def _update_by_graph(self) -> None:
        """One update by a captured graph; the first few by the operations that will be captured."""
        if self._graph is not None:
            self._graph.replay()
        elif self._updates < _UPDATES_BEFORE_CAPTURE:
            # On the stream that it will be captured on: libraries keep what they need by stream.
            stream = self._stream = self._stream or torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                self._loss = self._backward(self._indices)
                self.rule.step()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            return
        else:
            self.rule.zero_grad()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):  # records, and computes nothing yet
                self._loss = self._backward(self._indices)
                if self.rule.captured:
                    self.rule.step()
            self._graph = graph
            graph.replay()
        if not self.rule.captured:
            self.rule.step()


def _with_own_code(method: Any) -> Any:
    """The same bound method, with a copy of its code.

    PyTorch compiles a code object for at most eight networks, and then gives up; so each training
    has its own. Equal ones are still compiled once: PyTorch has a cache for that.
    """
    function = method.__func__
    copied = types.FunctionType(function.__code__.replace(), function.__globals__)
    return types.MethodType(copied, method.__self__)


def _nest(leaves: Mapping[tuple[str, ...], np.ndarray]) -> PyTree:
    """Leaves by path as nested mappings."""
    tree: dict[str, PyTree] = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree
