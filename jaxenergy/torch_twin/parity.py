"""Whether two programs are one: logits, gradients, updates and states of both, held side by side.

Float64 decides. There, what is left between two right programs is rounding, of 1e-16 an operation,
and any difference of definition (an epsilon inside a root or outside it) stands out. Float32 is
looked at too, since it is what runs: the programs may differ by no more than ten times what each of
them differs from float64 by itself (gradients at one of five places).
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from jaxenergy.errors import RunError
from jaxenergy.torch_twin import transplant
from jaxenergy.torch_twin.layers import FeedForward
from jaxenergy.torch_twin.optimizers import OPTIMIZERS, without_bfloat16
from jaxenergy.torch_twin.support import check_has_twin
from jaxenergy.torch_twin.training import Mode, build_training
from jaxenergy.training import steps
from jaxenergy.training.steps import Program

PyTree = Any
Leaves = dict[str, np.ndarray]

# Of relative differences in the 2-norm; that of updates is in each optimizer's row.
TOLERANCE = 1e-10
UPDATES = 20

_OWN_DISTANCES = 10  # the difference in the program's own precision, in distances from float64
_FEW_ULPS = 4
_EXAMPLES = 16
_LEAST_MICRO_BATCH = 4
_DRAWS = 5  # of noise, at one of which gradients of own precision have to agree
_NOISE = 0.05


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared.
        difference: the relative difference in the 2-norm.
        tolerance: the most it may be.
        differs_at: the first layer or leaf that differs; None where none does.
    """

    name: str
    difference: float
    tolerance: float
    differs_at: str | None

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "same" if self.passed else f"DIFFERENT, first at {self.differs_at}"
        return f"{self.name}: {self.difference:.1e} (at most {self.tolerance:.1e}): {verdict}"


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What was compared of a pair of programs, and whether they are the same.

    Attributes:
        checks: the comparisons.
        examples: the batch size at which they were made.
        updates: the updates that were compared.
    """

    checks: tuple[Check, ...]
    examples: int
    updates: int

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(check.passed for check in self.checks)

    @property
    def first_difference(self) -> str | None:
        """The first comparison that failed and the first layer or leaf in it; None for none."""
        failed = next((check for check in self.checks if not check.passed), None)
        return None if failed is None else f"{failed.name}: {failed.differs_at}"

    def require(self) -> None:
        """Raises a RunError that names the first difference, unless the programs are the same."""
        if not self.passed:
            raise RunError(f"The PyTorch program is not the JAX program.\n{self}")

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        checks = [{**dataclasses.asdict(check), "passed": check.passed} for check in self.checks]
        return {
            "passed": self.passed,
            "first_difference": self.first_difference,
            "examples": self.examples,
            "updates": self.updates,
            "checks": checks,
        }

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


def check_parity(
    program: Program,
    variables: Mapping[str, PyTree],
    *,
    modes: Sequence[Mode] = ("eager",),
    device: str = "cpu",
    updates: int = UPDATES,
) -> ParityReport:
    """Holds a program and its twin in PyTorch against each other.

    Logits, gradients and batch statistics are compared at the variables given plus noise, since
    fresh ones hide whole branches (a residual branch begins as zero); updates from the variables
    themselves. JAX's float64 is computed on the CPU where there is one. A few examples make the
    batch: parity does not depend on their number, and float64 is slow.

    Args:
        program: what is trained.
        variables: the model's variables in Flax.
        modes: of `torch_twin.MODES`, those whose updates are compared.
        device: where PyTorch computes, `cpu` or `cuda`.
        updates: how many updates are compared; at least 2.

    Returns:
        The report; what fails is in it, and `require` raises it.

    Raises:
        UsageError: the program has no twin, or a mode or the device cannot be had here.
    """
    checks = compare_passes(program, variables, device=device)
    checks += compare_updates(program, variables, modes=modes, device=device, updates=updates)
    examples = _with_few_examples(program).batch_size
    return ParityReport(tuple(checks), examples, updates)


def compare_passes(
    program: Program, variables: Mapping[str, PyTree], *, device: str = "cpu"
) -> list[Check]:
    """Compares a forward and a backward pass, in float64 and in the program's own precision.

    In the latter, logits have to agree at every draw of noise that is looked at, and gradients
    at one.
    Arguments as for `check_parity`.
    """
    check_has_twin(program)
    program = _with_few_examples(program)
    exact = _in_float64(program)
    indices = _draw_batches(program, 1)[0]

    def look(draw: int) -> tuple[list[Check], list[Check]]:
        """What float64 and the program's own precision say at one draw of noise."""
        noisy = _add_noise(_as_float32(variables), draw)
        with _float64():
            exact_looks = (
                _look_in_jax(exact, noisy, indices),
                _look_in_torch(exact, noisy, indices, device, torch.float64),
            )
            checks = _compare_exact_looks(*exact_looks)
        with _unrounded_products(device):
            looks = (
                _look_in_jax(program, noisy, indices),
                _look_in_torch(program, noisy, indices, device, None),
            )
        return checks, _compare_own_precision(program.model.precision, looks, exact_looks)

    # Rounding may push a number over a kink (0 of relu) in one program and not in the other, which
    # moves a few gradients by far more than rounding: in a third of the draws for a network of
    # millions of numbers. A difference of the programs shows at every draw, that does not; and
    # values have no kinks, so that logits have to agree wherever they are looked at.
    checks: list[Check] = []
    own: list[Check] = []
    for draw in range(_DRAWS):
        more, own = look(draw)
        checks += more
        logits, gradients = own
        if not all(check.passed for check in (*more, logits)) or gradients.passed:
            break
    return checks + own


def compare_updates(
    program: Program,
    variables: Mapping[str, PyTree],
    *,
    modes: Sequence[Mode] = ("eager",),
    device: str = "cpu",
    updates: int = UPDATES,
) -> list[Check]:
    """Compares updates in float64: parameters, batch statistics and the optimizer's state.

    Arguments as for `check_parity`.
    """
    check_has_twin(program)
    program = _in_float64(_with_few_examples(program))
    given = _as_float32(variables)
    batches = _draw_batches(program, updates)
    checks: list[Check] = []
    with _float64():
        ours = _update_in_jax(program, given, batches)
        for mode in modes:
            theirs = _update_in_torch(program, given, batches, mode, device)
            checks += _compare_snapshots(program, given, ours, theirs, f"float64 {mode}")
    return checks


def _as_float32(variables: Mapping[str, PyTree]) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(variables))


def _with_few_examples(program: Program) -> Program:
    """The program on smaller batches, of as many micro-batches."""
    count = program.accumulate
    micro_batch = min(program.batch_size // count, max(_EXAMPLES // count, _LEAST_MICRO_BATCH))
    return dataclasses.replace(program, batch_size=count * micro_batch)


def _in_float64(program: Program) -> Program:
    """The program with a network that computes in float64, from parameters in float64."""
    model = program.model
    module = model.module.clone(dtype=jnp.dtype("float64"))
    model = dataclasses.replace(model, precision="float64", module=module)
    return dataclasses.replace(program, model=model)


def _add_noise(variables: PyTree, draw: int) -> PyTree:
    """The variables with noise on every parameter, so that none is zero and no two are equal."""
    generator = np.random.default_rng(draw)

    def add(leaf: np.ndarray) -> np.ndarray:
        return leaf + _NOISE * generator.standard_normal(leaf.shape, np.float32)

    return {**variables, "params": jax.tree.map(add, variables["params"])}


def _draw_batches(program: Program, updates: int) -> np.ndarray:
    """Indices of examples, int64 [updates, batch]; each example once, as long as there are any."""
    examples = program.dataset.train.examples
    order = np.random.default_rng(0).permutation(examples)
    return np.resize(order, (updates, program.batch_size)).astype(np.int64)


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """Lets JAX compute in float64, on the CPU if it may, and PyTorch's new tensors be of it."""
    before = torch.get_default_dtype()
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to leave the CPU alone
        device = jax.local_devices()[0]
    torch.set_default_dtype(torch.float64)
    try:
        with jax.enable_x64(True), jax.default_device(device), without_bfloat16():
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _unrounded_products(device: str) -> Iterator[None]:
    """Lets a GPU round no factor of a float32 product to TF32, in either framework.

    Frameworks differ in where they do so unasked, by far more than by rounding to float32.
    """
    if device == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@dataclasses.dataclass(frozen=True)
class _Look:
    """What one framework makes of one batch, all in Flax's layout and by Flax's names.

    Attributes:
        logits: [batch, ..., classes].
        grads: the gradients of the mean loss, in the order in which they are computed.
        stats: the running statistics after the batch.
        layers: the output of each layer, in the order in which they are computed.
    """

    logits: np.ndarray
    grads: Leaves
    stats: Leaves
    layers: Leaves


def _look_in_jax(
    program: Program,
    variables: PyTree,
    indices: np.ndarray,
) -> _Look:
    prepare, gradients = steps.make_prepare(program), steps.make_gradients(program)

    def look(variables: PyTree, batch: steps.Batch) -> Any:
        logits, seen = program.model.module.apply(
            variables,
            prepare(batch.inputs, batch.key),
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
        (_, stats), grads = gradients(variables["params"], variables.get("batch_stats", {}), batch)
        return logits, grads, stats, seen["intermediates"]

    logits, grads, stats, layers = jax.jit(look)(
        _cast(variables, program), _take_batch(program, indices)
    )
    outputs = {
        "/".join(path[:-1]): outputs[-1]  # of a layer and of Flax's inside it, the layer's
        for path, outputs in _flatten(layers).items()
        if path[-1] == "__call__" and len(path) > 1
    }
    return _Look(np.asarray(logits), _leaves(grads), _leaves(stats), outputs)


def _look_in_torch(
    program: Program,
    variables: PyTree,
    indices: np.ndarray,
    device: str,
    dtype: torch.dtype | None,
) -> _Look:
    training = build_training(program, variables, device=device, dtype=dtype)
    grads = _leaves(training.gradients(indices))
    stats = _leaves(training.variables().get("batch_stats", {}))
    outputs: Leaves = {}
    hooks = [
        module.register_forward_hook(_make_note(outputs, name))
        for name, module in transplant.named_layers(training.network)
    ]
    logits = training.logits(indices)
    for hook in hooks:
        hook.remove()
    return _Look(logits, dict(reversed(grads.items())), stats, outputs)


def _make_note(outputs: Leaves, name: str) -> Any:
    """A hook that notes a layer's output, as Flax has it."""

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        is_image = output.ndim == 4 and not isinstance(module, nn.Linear | FeedForward)
        if isinstance(output, Tensor):
            outputs[name] = transplant.to_numpy(output.permute(0, 2, 3, 1) if is_image else output)

    return note


def _compare_exact_looks(ours: _Look, theirs: _Look) -> list[Check]:
    layer = _first_different(ours.layers, theirs.layers, theirs.layers, TOLERANCE)
    difference = _distance(ours.logits, theirs.logits) / _norm(ours.logits.ravel())
    passed = difference <= TOLERANCE
    checks = [Check("float64 logits", difference, TOLERANCE, None if passed else layer or "logits")]
    checks.append(_compare("float64 gradients", ours.grads, theirs.grads, TOLERANCE))
    if ours.stats or theirs.stats:
        checks.append(_compare("float64 batch statistics", ours.stats, theirs.stats, TOLERANCE))
    return checks


def _compare_own_precision(
    precision: str, looks: tuple[_Look, _Look], exact: tuple[_Look, _Look]
) -> list[Check]:
    """Whether the difference is no more than rounding: ten of each one's distances from float64."""
    checks = []
    for what, read in (
        ("logits", lambda look: {"logits": look.logits}),
        ("gradients", lambda look: look.grads),
    ):
        ours, theirs, true = (read(look) for look in (*looks, exact[0]))
        order = list(true)
        scale = _norm(_ravel(true, order))
        ours_off, theirs_off, difference = (
            _distance(_ravel(a, order), _ravel(b, order)) / scale
            for a, b in ((ours, true), (theirs, true), (ours, theirs))
        )
        few_ulps = _FEW_ULPS * float(jnp.finfo(precision).eps)
        tolerance = max(_OWN_DISTANCES * min(ours_off, theirs_off), few_ulps)
        first = None
        if not difference <= tolerance:
            first = _first_different(ours, theirs, theirs, tolerance) or what
        checks.append(Check(f"{precision} {what}", difference, tolerance, first))
    return checks


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """A training after some updates: parameters, batch statistics, and the optimizer's states."""

    params: Leaves
    stats: Leaves
    states: dict[str, Leaves]


def _update_in_jax(program: Program, variables: PyTree, batches: np.ndarray) -> list[_Snapshot]:
    """The snapshots after the first and after the last update."""
    gradients, optimize = steps.make_gradients(program), steps.make_optimize(program)

    def update(state: steps.TrainState, batch: steps.Batch) -> steps.TrainState:
        (loss, stats), grads = gradients(state.params, state.batch_stats, batch)
        params, opt_state = optimize(state, batch, loss, grads)
        return state._replace(params=params, batch_stats=stats, opt_state=opt_state)

    variables = _cast(variables, program)
    state = steps.TrainState(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=program.optimizer.tx.init(variables["params"]),
        key=jax.random.key(0),
        update=jnp.int32(0),
        position=jnp.int32(0),
    )
    jitted = jax.jit(update)
    snapshots, kept = [], (0, len(batches) - 1)
    for index, indices in enumerate(batches):
        state = jitted(state, _take_batch(program, indices))
        if index in kept:
            states = _read_optax_state(state.opt_state, OPTIMIZERS[program.optimizer.name].state)
            snapshots.append(_Snapshot(_leaves(state.params), _leaves(state.batch_stats), states))
    return snapshots


def _update_in_torch(
    program: Program, variables: PyTree, batches: np.ndarray, mode: Mode, device: str
) -> list[_Snapshot]:
    training = build_training(program, variables, mode=mode, device=device, dtype=torch.float64)
    snapshots, kept = [], (0, len(batches) - 1)
    for index, indices in enumerate(batches):
        training.update(indices)
        if index in kept:
            read = training.variables()
            states = {key: _leaves(tree) for key, tree in training.optimizer_state().items()}
            stats = _leaves(read.get("batch_stats", {}))
            snapshots.append(_Snapshot(_leaves(read["params"]), stats, states))
    return snapshots


def _compare_snapshots(
    program: Program,
    variables: PyTree,
    ours: list[_Snapshot],
    theirs: list[_Snapshot],
    what: str,
) -> list[Check]:
    """Compares snapshots: parameters relative to the way they went, the rest to its own size."""
    start = _leaves(variables["params"])
    checks = []
    tolerances = OPTIMIZERS[program.optimizer.name].tolerances
    for when, tolerance, a, b in zip(
        ("first update", "last update"), tolerances, ours, theirs, strict=True
    ):
        way = _distance(_ravel(a.params, start), _ravel(start, start))
        name = f"{what}, {when}"
        checks.append(_compare(f"{name}: params", a.params, b.params, tolerance, way))
        for key in sorted(a.states.keys() | b.states.keys()):
            state = a.states.get(key, {})
            checks.append(_compare(f"{name}: {key}", state, b.states.get(key, {}), tolerance))
        if a.stats or b.stats:
            checks.append(_compare(f"{name}: batch statistics", a.stats, b.stats, tolerance))
    return checks


def _read_optax_state(opt_state: PyTree, keys: Iterable[str]) -> dict[str, Leaves]:
    """The parts of an Optax state that have a field's name, wherever in it they are."""
    found: dict[str, Leaves] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(opt_state)[0]:
        fields = [getattr(step, "name", None) for step in path]
        for key in keys:
            if key in fields:
                names = [str(step.key) for step in path[fields.index(key) + 1 :]]
                found.setdefault(key, {})["/".join(names)] = np.asarray(leaf)
    return found


def _compare(
    name: str, ours: Leaves, theirs: Leaves, tolerance: float, scale: float | None = None
) -> Check:
    """Compares two sets of leaves as one vector each."""
    missing = sorted(ours.keys() ^ theirs.keys())
    if missing:
        return Check(name, float("nan"), tolerance, f"{missing[0]}, which only one of them has")
    if scale is None:
        scale = _norm(_ravel(ours, ours))
    difference = _distance(_ravel(ours, ours), _ravel(theirs, ours)) / (scale or 1.0)
    first = None
    if not difference <= tolerance:
        first = _first_different(ours, theirs, theirs, tolerance / len(ours) ** 0.5, scale)
    return Check(name, difference, tolerance, first)


def _first_different(
    ours: Leaves,
    theirs: Leaves,
    order: Iterable[str],
    tolerance: float,
    scale: float | None = None,
) -> str | None:
    """The first leaf whose difference is above a tolerance, relative to a scale or to itself."""
    for name in order:
        if name not in ours:
            continue
        size = scale or _norm(ours[name].ravel()) or 1.0
        if not _distance(ours[name], theirs[name]) <= tolerance * size:
            return name
    return None


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return _norm(a.astype(np.float64).ravel() - b.astype(np.float64).ravel())


def _ravel(leaves: Leaves, order: Iterable[str]) -> np.ndarray:
    parts = [leaves[name].astype(np.float64).ravel() for name in order]
    return np.concatenate(parts) if parts else np.zeros(0)


def _flatten(tree: Mapping[str, PyTree]) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            flat.update({(name, *path): leaf for path, leaf in _flatten(node).items()})
        else:
            flat[(name,)] = node
    return flat


def _leaves(tree: PyTree) -> Leaves:
    return {"/".join(path): leaf for path, leaf in transplant.flatten(tree).items()}


def _cast(variables: PyTree, program: Program) -> PyTree:
    """The variables in the dtype in which the program keeps them."""
    dtype = jnp.promote_types(program.model.precision, jnp.float32)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)


def _take_batch(program: Program, indices: np.ndarray) -> steps.Batch:
    train = program.dataset.train
    return steps.Batch(
        jnp.asarray(train.inputs[indices]), jnp.asarray(train.labels[indices]), jax.random.key(0)
    )
