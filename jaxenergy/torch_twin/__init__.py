"""The same training in PyTorch: network, weights, data order and optimizer of a JAX program.

What it is for: comparing what the two frameworks spend on the same computation. So a program that
has no exact twin is refused (`check_has_twin`), and a twin is held against the original in float64
before any joule is measured (`check_parity`). Importing this package imports torch; nothing else in
the library does.
"""

from jaxenergy.errors import UsageError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise UsageError(
        f"PyTorch cannot be imported ({error}): pip install -c constraints.txt -e '.[torch]'; the"
        " smaller build for the CPU alone: pip install torch --index-url https://download.pytorch.org/whl/cpu"
    ) from error

from jaxenergy.torch_twin.activations import ACTIVATIONS
from jaxenergy.torch_twin.models import FAMILIES
from jaxenergy.torch_twin.optimizers import OPTIMIZERS
from jaxenergy.torch_twin.parity import Check, ParityReport, check_parity
from jaxenergy.torch_twin.support import check_has_twin
from jaxenergy.torch_twin.training import MODES, Training, build_training

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "MODES",
    "OPTIMIZERS",
    "Check",
    "ParityReport",
    "Training",
    "build_training",
    "check_has_twin",
    "check_parity",
]
