"""PyTorch's own optimizers with Optax's meaning, and what keeps the others from having a twin.

Each row of `OPTIMIZERS` says how Optax's hyper-parameters become those of the class in
`torch.optim`, and which values no argument of that class can express: those are refused, since a
comparison of two programs that differ says nothing. Two of PyTorch's are defined so otherwise that
no argument helps; Rprop and L-BFGS are classes of this package. docs/frameworks.md has the
definitions side by side. The rate of an update comes from the schedule's own function, so both
sides have the same.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from jaxenergy.optimizers import Optimizer
from jaxenergy.optimizers.schedules import build_schedule
from jaxenergy.torch_twin.lbfgs import LBFGS
from jaxenergy.torch_twin.rprop import Rprop

Groups = list[dict[str, Any]]
Hyper = Mapping[str, Any]
Kernels = dict[str, bool]  # which of PyTorch's implementations: fused, foreach, capturable

_NADAM_MOMENTUM_DECAY = 1e9  # 0.96 to this power is 0, which leaves beta1 alone: Optax's constant


@dataclasses.dataclass(frozen=True)
class Twin:
    """An optimizer's twin.

    Attributes:
        make: from parameter groups (with `lr` and `weight_decay`), hyper-parameters and kernels to
            the PyTorch optimizer.
        needs: the values that Optax's hyper-parameters must have, where the class has no argument.
        refusal: what else keeps a set-up from having a twin, as a clause; None where nothing does.
        state: Optax's names of the state, with the tensor that it is in a parameter's state in
            PyTorch, by hyper-parameters (`learning_rate` among them) and that state.
        before_update: changes a group before an update, by hyper-parameters and the update's
            number from 1.
        fused: whether there is a fused implementation, also on the CPU.
        capturable: whether a CUDA graph can hold the update.
        own_decay: whether weight decay is a hyper-parameter of Optax's own function.
        tolerances: the relative differences that the first and the twentieth update in float64 may
            have; updates are a feedback, where what is rounded in one is carried on.
        make_for_others: makes the optimizer of all parameters but the matrices, with
            `adam_learning_rate`, where `make` takes matrices alone.
        searches: whether an update evaluates the loss at other parameters too, by hyper-parameters.
    """

    make: Callable[[Groups, Hyper, Kernels], TorchOptimizer]
    needs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refusal: Callable[[Optimizer], str | None] = lambda optimizer: None
    state: Mapping[str, Callable[[Hyper, Mapping[str, Any]], Tensor]] = dataclasses.field(
        default_factory=dict
    )
    before_update: Callable[[dict[str, Any], Hyper, int], None] | None = None
    fused: bool = False
    capturable: bool = True
    own_decay: bool = False
    tolerances: tuple[float, float] = (1e-10, 1e-7)
    make_for_others: Callable[[Groups, Hyper, Kernels], TorchOptimizer] | None = None
    searches: Callable[[Hyper], bool] = lambda hyper: False


def _sgd(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    momentum = hyper["momentum"] or 0.0
    nesterov = bool(hyper["nesterov"] and momentum)
    return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **kernels)


def _adam(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    betas = (hyper["b1"], hyper["b2"])
    return torch.optim.Adam(groups, betas=betas, eps=hyper["eps"], **kernels)


def _adamw(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    betas = (hyper["b1"], hyper["b2"])
    return torch.optim.AdamW(groups, betas=betas, eps=hyper["eps"], **kernels)


def _nadam(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    return torch.optim.NAdam(
        groups,
        betas=(hyper["b1"], hyper["b2"]),
        eps=hyper["eps"],
        momentum_decay=_NADAM_MOMENTUM_DECAY,
        **kernels,
    )


def _nadamw(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    return torch.optim.NAdam(
        groups,
        betas=(hyper["b1"], hyper["b2"]),
        eps=hyper["eps"],
        momentum_decay=_NADAM_MOMENTUM_DECAY,
        decoupled_weight_decay=True,
        **kernels,
    )


def _adagrad(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    # Optax divides by sqrt(sum + eps), PyTorch by sqrt(sum) + eps: a sum that begins eps larger.
    start = hyper["initial_accumulator_value"] + hyper["eps"]
    return torch.optim.Adagrad(groups, initial_accumulator_value=start, eps=0.0, **kernels)


def _adadelta(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    return torch.optim.Adadelta(groups, rho=hyper["rho"], eps=hyper["eps"], **kernels)


def _adamax(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    betas = (hyper["b1"], hyper["b2"])
    return torch.optim.Adamax(groups, betas=betas, eps=hyper["eps"], **kernels)


def _radam(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    return torch.optim.RAdam(groups, betas=(hyper["b1"], hyper["b2"]), eps=hyper["eps"], **kernels)


def _radam_eps(group: dict[str, Any], hyper: Hyper, count: int) -> None:
    # Optax adds eps to the root of the corrected second moment, PyTorch to that of the plain one.
    group["eps"] = hyper["eps"] * math.sqrt(1 - hyper["b2"] ** count)


def _rmsprop(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    return torch.optim.RMSprop(
        groups,
        alpha=hyper["decay"],
        eps=hyper["eps"],
        momentum=hyper["momentum"] or 0.0,
        centered=hyper["centered"],
        **kernels,
    )


def _rmsprop_refusal(optimizer: Optimizer) -> str | None:
    if optimizer.hyper_parameters["momentum"] and not _is_constant(optimizer):
        return (
            "with momentum only with --schedule=constant: Optax gathers momentum of steps that are"
            " scaled by the rate, PyTorch of unscaled ones"
        )
    return None


def _muon(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    return torch.optim.Muon(
        groups,
        momentum=hyper["beta"],
        nesterov=False,
        ns_coefficients=hyper["ns_coeffs"],
        ns_steps=hyper["ns_steps"],
        eps=hyper["eps"],
    )


def _muon_adam(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    betas = (hyper["adam_b1"], hyper["adam_b2"])
    return torch.optim.AdamW(groups, betas=betas, eps=hyper["eps"], fused=True)


def _muon_refusal(optimizer: Optimizer) -> str | None:
    if hasattr(torch.optim, "Muon"):
        return None
    return f"from torch 2.9 on; this is {torch.__version__}"


def _rprop(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    del kernels  # it has one form, of foreach operations, that a graph can hold
    return Rprop(
        groups,
        first_step=hyper["learning_rate"],
        etas=(hyper["eta_minus"], hyper["eta_plus"]),
        step_sizes=(hyper["min_step_size"], hyper["max_step_size"]),
    )


def _rprop_refusal(optimizer: Optimizer) -> str | None:
    hyper = optimizer.hyper_parameters
    rate = optimizer.learning_rate or 0.0
    if hyper["min_step_size"] <= rate <= hyper["max_step_size"]:
        return None
    return "only where --learning_rate, the first step, lies within min_step_size and max_step_size"


def _lbfgs(groups: Groups, hyper: Hyper, kernels: Kernels) -> TorchOptimizer:
    del kernels
    return LBFGS(
        groups,
        memory_size=hyper["memory_size"],
        scale_first=hyper["scale_init_precond"],
        search_steps=hyper["max_linesearch_steps"] if _lbfgs_searches(hyper) else None,
    )


def _lbfgs_searches(hyper: Hyper) -> bool:
    return hyper["linesearch"] != "none"


def _lbfgs_refusal(optimizer: Optimizer) -> str | None:
    if optimizer.hyper_parameters["linesearch"] == "backtracking":
        return (
            "with the zoom line search and with none: PyTorch has no search that only goes back.\n"
            "Give --optimizer_args=linesearch=zoom or --optimizer_args=linesearch=none"
        )
    return None


def _adagrad_refusal(optimizer: Optimizer) -> str | None:
    hyper = optimizer.hyper_parameters
    if hyper["initial_accumulator_value"] + hyper["eps"] > 0:
        return None
    return "only where initial_accumulator_value or eps is above 0"


def _is_constant(optimizer: Optimizer) -> bool:
    return (optimizer.settings.schedule or "").partition(":")[0] == "constant"


_MOMENTS = {
    "mu": lambda hyper, state: state["exp_avg"],
    "nu": lambda hyper, state: state["exp_avg_sq"],
}
_PLAIN_ADAM = {"eps_root": 0.0, "mu_dtype": None}

OPTIMIZERS: Mapping[str, Twin] = {
    "sgd": Twin(
        _sgd,
        needs={"accumulator_dtype": None},
        state={"trace": lambda hyper, state: state["momentum_buffer"]},
        fused=True,
    ),
    "adam": Twin(_adam, needs={**_PLAIN_ADAM, "nesterov": False}, state=_MOMENTS, fused=True),
    "adamw": Twin(
        _adamw,
        needs={**_PLAIN_ADAM, "nesterov": False},
        state=_MOMENTS,
        fused=True,
        own_decay=True,
    ),
    "nadam": Twin(_nadam, needs={**_PLAIN_ADAM, "nesterov": True}, state=_MOMENTS),
    "nadamw": Twin(
        _nadamw, needs={**_PLAIN_ADAM, "nesterov": True}, state=_MOMENTS, own_decay=True
    ),
    "adagrad": Twin(
        _adagrad,
        state={"sum_of_squares": lambda hyper, state: state["sum"] - hyper["eps"]},
        refusal=_adagrad_refusal,
        fused=True,
        capturable=False,
    ),
    "adadelta": Twin(
        _adadelta,
        state={
            "e_g": lambda hyper, state: state["square_avg"],
            "e_x": lambda hyper, state: state["acc_delta"],
        },
        own_decay=True,
    ),
    "adamax": Twin(
        _adamax,
        state={
            "mu": lambda hyper, state: state["exp_avg"],
            "nu": lambda hyper, state: state["exp_inf"],
        },
    ),
    "radam": Twin(
        _radam,
        needs={"eps_root": 0.0, "threshold": 5.0, "nesterov": False},
        state=_MOMENTS,
        before_update=_radam_eps,
        capturable=False,
    ),
    "rmsprop": Twin(
        _rmsprop,
        needs={
            "eps_in_sqrt": False,
            "initial_scale": 0.0,
            "nesterov": False,
            "bias_correction": False,
        },
        refusal=_rmsprop_refusal,
        state={
            "nu": lambda hyper, state: state["square_avg"],
            "mu": lambda hyper, state: state["grad_avg"],
            "trace": lambda hyper, state: state["momentum_buffer"] * -hyper["learning_rate"],
        },
    ),
    "muon": Twin(
        _muon,
        needs={
            "nesterov": False,
            "mu_dtype": None,
            "adaptive": False,
            "preconditioning": "frobenius",
            "adam_eps_root": 0.0,
            "consistent_rms": None,
        },
        refusal=_muon_refusal,
        state={
            "mu": lambda hyper, state: state.get("momentum_buffer", state.get("exp_avg")),
            "nu": lambda hyper, state: state["exp_avg_sq"],
        },
        capturable=False,
        own_decay=True,
        # Optax divides by the norm plus eps, PyTorch by the larger of the two.
        tolerances=(1e-6, 1e-5),
        make_for_others=_muon_adam,
    ),
    "rprop": Twin(
        _rprop,
        refusal=_rprop_refusal,
        state={
            "step_sizes": lambda hyper, state: state["step_size"],
            "prev_updates": lambda hyper, state: state["prev"],
        },
    ),
    "lbfgs": Twin(
        _lbfgs,
        refusal=_lbfgs_refusal,
        state={
            "updates": lambda hyper, state: state["grad"],
            "diff_params_memory": lambda hyper, state: state["moves"],
            "diff_updates_memory": lambda hyper, state: state["turns"],
        },
        capturable=False,
        searches=_lbfgs_searches,
    ),
}

# Of `torch.optim`, and yet without a twin.
WITHOUT: Mapping[str, str] = {
    "amsgrad": "Optax's takes the maximum of corrected second moments, PyTorch's of plain ones",
    "adafactor": "Optax's and PyTorch's scale, clip and decay by other rules",
}


class Rule:
    """What moves a network's parameters: clipping, weight decay, PyTorch's optimizer, its rates.

    Args:
        optimizer: the optimizer as Optax has it; it has a twin.
        parameters: the parameters by their names in Flax.
        capturable: whether updates are to be held by a CUDA graph.
    """

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, Tensor], *, capturable: bool):
        settings = optimizer.settings
        self.twin = twin = OPTIMIZERS[optimizer.name]
        self.parameters = parameters
        self.hyper = {**optimizer.hyper_parameters, "learning_rate": optimizer.learning_rate}
        self._updates = 0
        self._clip_norm = settings.clip_norm
        decay = self.hyper["weight_decay"] if twin.own_decay else settings.weight_decay or 0.0
        tensors = list(parameters.values())
        self._device = tensors[0].device
        self.captured = capturable and twin.capturable
        self.searches = twin.searches(self.hyper)
        self._parts: list[_Part] = []
        # L-BFGS without a rate takes its steps as they are.
        rate = 1.0 if optimizer.learning_rate is None else optimizer.learning_rate
        if twin.make_for_others is None:
            matrices = [p for p in tensors if p.ndim >= 2]
            vectors = [p for p in tensors if p.ndim < 2]
            decays = [(matrices, decay), (vectors, 0.0)] if decay else [(tensors, 0.0)]
            self._add_part(twin.make, optimizer, rate, decays)
        else:
            matrices = [p for p in tensors if p.ndim == 2]
            others = [p for p in tensors if p.ndim != 2]
            self._add_part(twin.make, optimizer, rate, [(matrices, decay)])
            others_rate = self.hyper["adam_learning_rate"] or rate
            others_decay = self.hyper["adam_weight_decay"]
            self._add_part(twin.make_for_others, optimizer, others_rate, [(others, others_decay)])

    def _add_part(
        self,
        make: Callable[[Groups, Hyper, Kernels], TorchOptimizer],
        optimizer: Optimizer,
        peak: float,
        decays: list[tuple[list[Tensor], float]],
    ) -> None:
        """Adds an optimizer of some parameters, each group with its weight decay."""
        rates = _Rates(optimizer, peak)
        # In a graph the rate is a number in the device's memory, which changes without the graph.
        tensor = torch.tensor(rates[0], device=self._device) if self.captured else None
        rate = rates[0] if tensor is None else tensor
        groups: Groups = [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for parameters, decay in decays
            if parameters
        ]
        if groups:
            self._parts.append(_Part(make(groups, self.hyper, self._kernels()), rates, tensor))

    def _kernels(self) -> Kernels:
        kernels: Kernels = {}
        if self.twin.fused:
            kernels["fused"] = True
        elif self._device.type == "cuda":
            kernels["foreach"] = True  # on the CPU it is a loop like any other
        if self.captured and self.twin.make is not _sgd:  # which has nothing that a graph minds
            kernels["capturable"] = True
        return kernels

    def set_rates(self) -> None:
        """Sets what changes from update to update; before each, outside any graph."""
        update = self._updates
        self._updates += 1
        for part in self._parts:
            rate = part.rates[update]
            if part.rate is not None:
                part.rate.fill_(rate)
            for group in part.optimizer.param_groups:
                if part.rate is None:
                    group["lr"] = rate
                if self.twin.before_update is not None:
                    self.twin.before_update(group, self.hyper, self._updates)

    def step(self, closure: Callable[[], Tensor] | None = None, loss: Tensor | None = None) -> None:
        """Moves the parameters by their gradients, once.

        Args:
            closure: leaves the gradients at the parameters as they then are, and gives the loss;
                used where `searches`.
            loss: the loss at the parameters as they are; used where `searches`.
        """
        if self._clip_norm is not None:
            tensors = list(self.parameters.values())
            norm = torch.nn.utils.get_total_norm([p.grad for p in tensors if p.grad is not None])
            # PyTorch divides by the norm plus 1e-6, Optax by the norm.
            torch.nn.utils.clip_grads_with_norm_(tensors, self._clip_norm, norm - 1e-6)
        for part in self._parts:
            if isinstance(part.optimizer, LBFGS):
                part.optimizer.step(closure, loss)
            else:
                part.optimizer.step()

    def zero_grad(self) -> None:
        """Drops the gradients, so that the next ones are written and not added."""
        for part in self._parts:
            part.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's state by Optax's names, and in each by the parameters' names."""
        states: dict[str, dict[str, Tensor]] = {}
        kept = {
            tensor: state for part in self._parts for tensor, state in part.optimizer.state.items()
        }
        for name, parameter in self.parameters.items():
            for key, convert in self.twin.state.items():
                try:
                    states.setdefault(key, {})[name] = convert(self.hyper, kept[parameter])
                except KeyError:  # what a hyper-parameter switches off
                    continue
        return {key: tensors for key, tensors in states.items() if tensors}


@dataclasses.dataclass(frozen=True)
class _Part:
    """An optimizer of some of the parameters, its rates, and the rate on the device, if there."""

    optimizer: TorchOptimizer
    rates: "_Rates"
    rate: Tensor | None


@contextlib.contextmanager
def without_bfloat16() -> Iterator[None]:
    """Lets PyTorch's own code compute in the dtype it is given where it says bfloat16 by itself.

    `torch.optim.Muon` rounds to bfloat16 in its iteration, whatever the dtype of the parameters.
    Float64 looks at the definition: the same code, without that rounding.
    """
    torch.Tensor.bfloat16 = torch.Tensor.clone  # type: ignore[method-assign]
    try:
        yield
    finally:
        del torch.Tensor.bfloat16  # the inherited method is seen again


class _Rates:
    """The learning rate of each update, from the schedule that Optax follows too."""

    _CHUNK = 1024

    def __init__(self, optimizer: Optimizer, peak: float):
        settings = optimizer.settings
        self._peak = peak
        self._factor, _ = build_schedule(settings.schedule or "constant", settings.total_updates)
        self._first = 0
        self._rates = np.empty(0)

    def __getitem__(self, update: int) -> float:
        factor = self._factor
        if factor is None:
            return self._peak
        if not self._first <= update < self._first + len(self._rates):
            self._first = update // self._CHUNK * self._CHUNK
            with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
                counts = np.arange(self._first, self._first + self._CHUNK, dtype=np.int32)
                rates = jax.lax.map(lambda count: self._peak * factor(count), counts)
                self._rates = np.asarray(rates, np.float64)
        return float(self._rates[update - self._first])
