"""What the same training costs in each framework, and how sure that is.

`comparison` starts the processes, one at a time; `worker` is one of them; `side_jax` and
`side_torch` are what differs between frameworks; `analysis` makes answers of processes, and
`summary` the document that is written. The method is in docs/frameworks.md.
"""

import dataclasses

from jaxenergy.registry import Registry


@dataclasses.dataclass(frozen=True)
class Framework:
    """One way to run a training.

    Attributes:
        package: `jax` or `torch`.
        variant: the forms of JAX's operations, or the mode of PyTorch.
        needs_gpu: whether there is none on the CPU.
    """

    package: str
    variant: str
    needs_gpu: bool = False


FRAMEWORKS: Registry[Framework] = Registry("--frameworks")
FRAMEWORKS.add(
    "jax", Framework("jax", "auto"), "JAX as experiments.run has it: tuned forms, updates in scans"
)
FRAMEWORKS.add(
    "jax_plain",
    Framework("jax", "plain"),
    "JAX as one writes it first: plain forms, one update a call",
)
FRAMEWORKS.add("torch", Framework("torch", "eager"), "PyTorch, eager")
FRAMEWORKS.add("torch_compile", Framework("torch", "compile"), "PyTorch with torch.compile")
FRAMEWORKS.add(
    "torch_cuda_graphs",
    Framework("torch", "cuda_graphs", needs_gpu=True),
    "PyTorch with CUDA graphs; on a GPU",
)
