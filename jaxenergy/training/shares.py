"""Shares inside an update: what the batch, forward, backward and the optimizer each cost.

An update is one compiled program, and no counter sees inside it. So its parts are compiled as
programs of their own, which are measured alternately (`energy.rounds`), and differences are taken
within rounds:

    program      what it does, besides taking a donated train state and giving one back
    call         nothing
    batch        draws a batch and scales it
    augmented    draws, augments and scales a batch; only where the run augments
    forward      all of that, and the loss
    gradients    all of that, and the gradients
    optimizer    applies gradients that it is given to the parameters
    update       the whole update, as a run compiles it

    part         of
    call         call: dispatch, and the state passed through
    batch        batch - call
    augmentation augmented - batch
    forward      forward - augmented, or - batch
    backward     gradients - forward
    optimizer    optimizer - call
    remainder    update - all of the above = update - gradients - optimizer + call

The parts add up to the update, exactly. A difference may be negative and is given as it is. The
remainder is what the compiler makes of the whole that it cannot make of the parts: fusion of the
backward pass with the optimizer (negative), gradients that stay in a cache (negative), host work
that the device no longer hides (positive). Gradients and batches are what their programs return,
whole: of a sum over them XLA would compute something cheaper. They are therefore written to memory
once, as they are in an update unless it fuses them away; that shows in the remainder too.

Each call takes the next batch of real data, except that the optimizer's gets the same gradients, of
a real batch, again and again. Parameters stay as they were initialised in all programs but `update`
and `optimizer`. There is one update a call; a run that puts several small updates into one call
spends less on `call` than is said here. Augmentation and scaling are done on the batch as a whole,
also where forward and backward go by micro-batches.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxenergy import data
from jaxenergy.config import RunConfig
from jaxenergy.energy.rounds import Rounds, line_duration_s, measure_rounds, too_few
from jaxenergy.meters import Device, Meters, open_meters
from jaxenergy.stats import Estimate, long_run_mean
from jaxenergy.training.plan import Plan, make_plan
from jaxenergy.training.session import one_device
from jaxenergy.training.steps import (
    Batch,
    DeviceSplit,
    Program,
    TrainState,
    make_forward,
    make_gradients,
    make_init,
    make_optimize,
    make_orders,
    make_prepare,
    make_take_batch,
    make_updates,
)

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Shares:
    """What the parts of an update take, and the whole.

    Attributes:
        energy_j: joules by part, `remainder` last, and `update`; None where they are not known.
        duration_s: seconds likewise; None where there were too few rounds.
        rounds: rounds that count in the joules (in the seconds, where there are no joules).
        domains: what was metered and counted.
        provenance: `measured`, `simulated`, `estimated` or `none`.
        notes: what the meters have to say.
        target_relative_ci: the half-width of every part's interval that was asked for, over the
            whole update's mean.
        reached_target: whether all are that narrow; if not, the time was up.
        why: reasons, by the attribute that is None.
    """

    energy_j: Mapping[str, Estimate] | None
    duration_s: Mapping[str, Estimate] | None
    rounds: int
    domains: tuple[str, ...]
    provenance: str
    notes: tuple[str, ...]
    target_relative_ci: float
    reached_target: bool
    why: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for a JSON file."""
        return {
            "schema": SCHEMA,
            **dataclasses.asdict(self),
            "energy_j": _estimates_to_json(self.energy_j),
            "duration_s": _estimates_to_json(self.duration_s),
        }


def _estimates_to_json(estimates: Mapping[str, Estimate] | None) -> dict[str, Any] | None:
    if estimates is None:
        return None
    return {
        name: {"mean": estimate.value, "ci95": list(estimate.interval())}
        for name, estimate in estimates.items()
    }


def run(
    config: RunConfig, target_relative_ci: float = 0.02, max_seconds: float = 120.0
) -> tuple[Plan, Shares]:
    """Measures the shares inside an update of the run that a config describes.

    Args:
        config: the settings.
        target_relative_ci: the half-width of every part's 95 % interval, over the whole update's
            mean, at which the measurement may end.
        max_seconds: when it ends at the latest, compilation and idle included.

    Returns:
        What was planned, and the shares.

    Raises:
        UsageError: a setting cannot be satisfied.
    """
    device = one_device()
    described = Device(platform=device.platform, index=device.id, name=device.device_kind)
    with open_meters(config.meters, [described], powercap_root=config.powercap_root) as meters:
        dataset = data.load(config.dataset, data_dir=config.data_dir)
        plan = make_plan(config, dataset, device.platform)
        return plan, measure_shares(plan, meters, target_relative_ci, max_seconds)


def measure_shares(
    plan: Plan,
    meters: Meters,
    target_relative_ci: float = 0.02,
    max_seconds: float = 120.0,
    fence: Callable[[Any], Any] = jax.block_until_ready,
) -> Shares:
    """Measures the shares inside an update.

    Args:
        plan: the run whose update it is.
        meters: the open meters.
        target_relative_ci: as for `run`.
        max_seconds: as for `run`.
        fence: waits until the device has computed what it is given.

    Returns:
        The shares.
    """
    deadline_s = time.monotonic() + max_seconds

    def enough(measured: Rounds) -> bool:
        if not meters.counted_domains:
            return True
        energy_j = share(measured.by_round(measured.line_energy_j))
        return not isinstance(energy_j, str) and _are_narrow(energy_j, target_relative_ci)

    measured = measure_rounds(
        make_cases(plan), meters, fence, enough, deadline_s, seed=plan.config.seed
    )
    joules, seconds = (
        measured.by_round(value_of) for value_of in (measured.line_energy_j, line_duration_s)
    )
    energy_j, duration_s = share(joules), share(seconds)
    why = {}
    if isinstance(energy_j, str):
        why["energy_j"] = measured.why_unknown() or energy_j
        energy_j = None
    if isinstance(duration_s, str):
        why["duration_s"] = duration_s
        duration_s = None
    return Shares(
        energy_j=energy_j,
        duration_s=duration_s,
        rounds=len(joules or seconds),
        domains=meters.counted_domains,
        provenance=meters.provenance,
        notes=meters.notes,
        target_relative_ci=target_relative_ci,
        reached_target=energy_j is not None and _are_narrow(energy_j, target_relative_ci),
        why=why,
    )


def share(rounds: list[dict[str, float]]) -> dict[str, Estimate] | str:
    """What the parts take, by what the programs took.

    Args:
        rounds: by program, joules or seconds per call in each round.

    Returns:
        By part, the mean of the differences within rounds; `remainder` and `update` come last, and
        all but `update` add up to it. Or why it is not known.
    """
    why = too_few(len(rounds))
    if why:
        return why
    of = {program: np.array([one[program] for one in rounds]) for program in rounds[0]}
    parts = {"call": of["call"], "batch": of["batch"] - of["call"]}
    if "augmented" in of:
        parts["augmentation"] = of["augmented"] - of["batch"]
    parts["forward"] = of["forward"] - of.get("augmented", of["batch"])
    parts["backward"] = of["gradients"] - of["forward"]
    parts["optimizer"] = of["optimizer"] - of["call"]
    parts["remainder"] = of["update"] - sum(parts.values())
    return {name: long_run_mean(list(v)) for name, v in {**parts, "update": of["update"]}.items()}


def _are_narrow(parts: Mapping[str, Estimate], target_relative_ci: float) -> bool:
    bound = target_relative_ci * abs(parts["update"].value)
    return all(part.half_width() <= bound for part in parts.values())


def make_programs(program: Program) -> dict[str, Callable]:
    """Makes the programs whose differences are the parts, as in this module's docstring.

    Args:
        program: what is trained. Without augmentation there is no `augmented`, and `forward` is
            held against `batch`.

    Returns:
        By name, functions of a train state, a split and the orders of epochs (`optimizer`: of a
        train state, a batch, its loss and its gradients) that give a state, ready for the next
        batch, and what was computed.
    """
    take_batch, forward = make_take_batch(program), make_forward(program)
    gradients, optimize = make_gradients(program), make_optimize(program)

    def with_next_batch(state: TrainState, split_size: int) -> TrainState:
        return state._replace(
            update=state.update + 1, position=(state.position + program.batch_size) % split_size
        )

    def make(compute: Callable[[TrainState, Batch], tuple[TrainState, Any]]) -> Callable:
        def call(state: TrainState, split: DeviceSplit, orders: jax.Array):
            state, computed = compute(state, take_batch(state, split, orders))
            return with_next_batch(state, split.labels.shape[0]), computed

        return call

    def make_prepared(program: Program) -> Callable:
        prepare = make_prepare(program)
        return make(lambda state, batch: (state, (prepare(batch.inputs, batch.key), batch.labels)))

    def call_alone(state, split, orders):
        return with_next_batch(state, split.labels.shape[0]), ()

    def compute_loss(state, batch):
        loss, batch_stats = forward(state.params, state.batch_stats, batch)
        return state._replace(batch_stats=batch_stats), loss

    def compute_gradients(state, batch):
        (loss, batch_stats), grads = gradients(state.params, state.batch_stats, batch)
        return state._replace(batch_stats=batch_stats), (loss, grads)

    def optimize_alone(state, batch, loss, grads):
        params, opt_state = optimize(state, batch, loss, grads)
        return state._replace(params=params, opt_state=opt_state, update=state.update + 1), ()

    return {
        "call": call_alone,
        "batch": make_prepared(dataclasses.replace(program, augment=False)),
        **({"augmented": make_prepared(program)} if program.augment else {}),
        "forward": make(compute_loss),
        "gradients": make(compute_gradients),
        "optimizer": optimize_alone,
        "update": make_updates(program, 1),
    }


def make_cases(plan: Plan) -> dict[str, "Case"]:
    """Makes what `measure_rounds` calls: each program with a state of its own, on real data."""
    program = plan.program
    train = plan.dataset.train
    split = DeviceSplit(jnp.asarray(train.inputs), jnp.asarray(train.labels))
    state_key, order_key = jax.random.split(jax.random.key(plan.config.seed))
    make_order = make_orders(len(train.labels), program.multitask)
    orders = jax.jit(make_order)(order_key, np.int32(0))
    new_state = jax.jit(make_init(program))
    programs = {
        name: jax.jit(function, donate_argnums=0)
        for name, function in make_programs(program).items()
    }
    batch = jax.jit(make_take_batch(program))(new_state(state_key), split, orders)
    _, (loss, grads) = programs["gradients"](new_state(state_key), split, orders)
    jax.block_until_ready((split, orders, batch, loss, grads))
    return {
        name: Case(
            compiled,
            new_state(state_key),
            (batch, loss, grads) if name == "optimizer" else (split, orders),
        )
        for name, compiled in programs.items()
    }


@dataclasses.dataclass
class Case:
    """A compiled program that is called again and again.

    Attributes:
        program: the program, which is given its state donated.
        state: what it hands on from call to call.
        rest: what else it takes, each time the same.
    """

    program: Callable
    state: TrainState
    rest: tuple

    def __call__(self, calls: int) -> Any:
        """Calls the program so often; what is returned must be fenced to know that all are done."""
        computed = None
        for _ in range(calls):
            self.state, computed = self.program(self.state, *self.rest)
        return self.state, computed
