"""The optimizers: one row each, by Optax's name, with a default learning rate and where it is from.

The learning rate is the one its paper recommends for training networks like these, or, where the
paper gives none, the value that is customary (PyTorch's or the authors' code). Where that leaves a
small network far from trained after 300 updates on the embedded digits (adagrad, lamb, lion, radam,
signum), it is the value of a 1-3-10 grid that trains it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxenergy.optimizers import wrappers
from jaxenergy.optimizers.wrappers import part_of
from jaxenergy.registry import Registry

PyTree = Any


def _one_iteration(state: PyTree, hyper_parameters: Mapping[str, Any]) -> int:
    del state, hyper_parameters
    return 1


def _params_themselves(params: PyTree, state: PyTree) -> PyTree:
    del state
    return params


@dataclass(frozen=True)
class Row:
    """How an optimizer is made, and what it asks of the training step.

    Attributes:
        make: the function, learning rate first; its signature names the hyper-parameters.
        learning_rate: the default; None for one that has none unless it is given.
        defaults: hyper-parameters for which Optax has no default, or none that trains.
        rate_name: what `make` calls the learning rate.
        schedule: the default schedule.
        schedule_goes: where a schedule acts: `inside`, as the learning rate; `after`, on the
            finished updates, where the rate must be a number; `nowhere`, where one is refused.
        base: the optimizer it wraps unless told otherwise; None for one that wraps none.
        extra_arguments: what it needs beyond gradients and parameters, by the names Optax has for
            it: `value` (the batch's loss), `grad` (its gradient), `value_fn` and `obj_fn` (the loss
            as a function of the parameters), `grad_fn` (the gradient as one).
        per_example_gradients: whether it needs the gradient of each example.
        takes_changed_gradients: whether gradients may be clipped or have decay added before.
        iterations: forward and backward passes that the update made which led to a state, the one
            for the gradient included, by state and hyper-parameters.
        mean_iterations: their mean, by hyper-parameters; None where it cannot be told beforehand.
        evaluation_params: the parameters to evaluate, by parameters and state.
        uncounted: why XLA's count of an update's operations is not all of them; None where it is.
    """

    make: Callable[..., optax.GradientTransformation]
    learning_rate: float | None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rate_name: str = "learning_rate"
    schedule: str = "cosine"
    schedule_goes: Literal["inside", "after", "nowhere"] = "inside"
    base: str | None = None
    extra_arguments: tuple[str, ...] = ()
    per_example_gradients: bool = False
    takes_changed_gradients: bool = True
    iterations: Callable[[PyTree, Mapping[str, Any]], Any] = _one_iteration
    mean_iterations: Callable[[Mapping[str, Any]], float | None] = lambda hyper_parameters: 1.0
    evaluation_params: Callable[[PyTree, PyTree], PyTree] = _params_themselves
    uncounted: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether an update needs gradients and parameters only, so that another may wrap it."""
        return not (
            self.base
            or self.extra_arguments
            or self.per_example_gradients
            or self.evaluation_params is not _params_themselves
        )


def _schedule_free_average(params: PyTree, state: PyTree) -> PyTree:
    inner = part_of(state, contrib.ScheduleFreeState)
    return contrib.schedule_free_eval_params(inner, params)


def _lookahead_slow(params: PyTree, state: PyTree) -> PyTree:
    del params
    return part_of(state, wrappers.LookaheadState).slow


def _sophia_iterations(state: PyTree, hyper_parameters: Mapping[str, Any]) -> jax.Array:
    """A product with the Hessian is the derivative of a pass, and costs two more."""
    count = part_of(state, contrib.SophiaState).count
    return jnp.where((count - 1) % hyper_parameters["update_interval"] == 0, 3, 1)


_SEARCHES = (optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState)


def searches(state: PyTree) -> list[Any]:
    """The states of Optax's line searches within an optimizer's state."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, _SEARCHES))
    return [part for part in parts if isinstance(part, _SEARCHES)]


def line_search_iterations(state: PyTree, hyper_parameters: Mapping[str, Any]) -> Any:
    """Each trial of a line search evaluates the loss."""
    del hyper_parameters
    return 1 + sum(search.info.num_linesearch_steps for search in searches(state))


OPTIMIZERS: Registry[Row] = Registry(
    "--optimizer", "Your own: my_module:function, of a file my_module.py where you are."
)

for _name, _row, _description in (
    (
        "adabelief",
        Row(optax.adabelief, 1e-3),
        "AdaBelief: steps by belief in the gradient (Zhuang 2020)",
    ),
    (
        "adadelta",
        Row(optax.adadelta, 1.0),
        "Adadelta: adaptive rate without a global one (Zeiler 2012)",
    ),
    ("adafactor", Row(optax.adafactor, 1e-2), "Adafactor: factored second moments (Shazeer 2018)"),
    ("adagrad", Row(optax.adagrad, 1e-1), "Adagrad: rates by accumulated squares (Duchi 2011)"),
    ("adam", Row(optax.adam, 1e-3), "Adam (Kingma & Ba 2015)"),
    ("adamax", Row(optax.adamax, 2e-3), "AdaMax: Adam by the infinity norm (Kingma & Ba 2015)"),
    ("adamaxw", Row(optax.adamaxw, 2e-3), "AdaMax with decoupled weight decay"),
    (
        "adamw",
        Row(optax.adamw, 1e-3),
        "Adam with decoupled weight decay (Loshchilov & Hutter 2019)",
    ),
    ("adan", Row(optax.adan, 1e-3), "Adan: adaptive Nesterov momentum (Xie 2022)"),
    (
        "amsgrad",
        Row(optax.amsgrad, 1e-3),
        "AMSGrad: Adam by the maximum of second moments (Reddi 2018)",
    ),
    ("fromage", Row(optax.fromage, 1e-2), "Fromage: relative steps per layer (Bernstein 2020)"),
    ("lamb", Row(optax.lamb, 1e-2), "LAMB: layerwise adaptive Adam for large batches (You 2020)"),
    ("lars", Row(optax.lars, 1.0), "LARS: layerwise adaptive SGD for large batches (You 2017)"),
    ("lion", Row(optax.lion, 3e-4), "Lion: signs of interpolated momentum (Chen 2023)"),
    ("nadam", Row(optax.nadam, 1e-3), "Adam with Nesterov momentum (Dozat 2016)"),
    ("nadamw", Row(optax.nadamw, 1e-3), "NAdam with decoupled weight decay"),
    (
        "noisy_sgd",
        Row(optax.noisy_sgd, 1e-1),
        "SGD with annealed gradient noise (Neelakantan 2015)",
    ),
    ("novograd", Row(optax.novograd, 1e-2), "NovoGrad: layerwise second moments (Ginsburg 2019)"),
    (
        "optimistic_adam",
        Row(optax.optimistic_adam, 1e-3, schedule_goes="after"),
        "optimistic Adam, deprecated by Optax for optimistic_adam_v2 (Daskalakis 2018)",
    ),
    (
        "optimistic_adam_v2",
        Row(optax.optimistic_adam_v2, 1e-3),
        "optimistic Adam (Daskalakis 2018)",
    ),
    (
        "optimistic_gradient_descent",
        Row(optax.optimistic_gradient_descent, 1e-1),
        "gradient descent with the last gradient's difference (Mokhtari 2020)",
    ),
    ("radam", Row(optax.radam, 3e-3), "Rectified Adam (Liu 2020)"),
    ("rmsprop", Row(optax.rmsprop, 1e-3), "RMSProp (Hinton 2012)"),
    (
        "rprop",
        Row(optax.rprop, 1e-3, schedule_goes="after"),
        "Rprop: steps by signs of successive gradients, for full batches (Riedmiller 1993)",
    ),
    ("sgd", Row(optax.sgd, 1e-1), "stochastic gradient descent, with momentum where given"),
    ("sign_sgd", Row(optax.sign_sgd, 1e-3), "SGD on the signs of the gradient (Bernstein 2018)"),
    ("signum", Row(optax.signum, 3e-4), "signSGD with momentum (Bernstein 2018)"),
    (
        "sm3",
        Row(optax.sm3, 1e-1, schedule_goes="after"),
        "SM3: Adagrad with memory of rows and columns (Anil 2019)",
    ),
    ("yogi", Row(optax.yogi, 1e-2), "Yogi: Adam with additive second moments (Zaheer 2018)"),
    (
        "acprop",
        Row(contrib.acprop, 1e-3, {"eps": 1e-4}),
        "ACProp: asynchronous centred second moments (Zhuang 2021)",
    ),
    (
        "ademamix",
        Row(contrib.ademamix, 1e-3),
        "AdEMAMix: Adam with a slow second momentum (Pagliardini 2024)",
    ),
    ("adopt", Row(contrib.adopt, 1e-3), "ADOPT: Adam that converges for any b2 (Taniguchi 2024)"),
    (
        "cocob",
        Row(contrib.cocob, 1.0),
        "COCOB: coin betting, no learning rate to tune (Orabona 2017)",
    ),
    (
        "dadapt_adamw",
        Row(contrib.dadapt_adamw, 1.0),
        "D-Adaptation AdamW, rate found by itself (Defazio 2023)",
    ),
    (
        "dog",
        Row(contrib.dog, 1.0),
        "DoG: distance over gradients, rate found by itself (Ivgi 2023)",
    ),
    ("dowg", Row(contrib.dowg, 1.0), "DoWG: weighted DoG (Khaled 2023)"),
    ("madgrad", Row(contrib.madgrad, 1e-2), "MADGRAD: momentumised dual averaging (Defazio 2021)"),
    ("prodigy", Row(contrib.prodigy, 1.0), "Prodigy: Adam, rate found by itself (Mishchenko 2023)"),
    (
        "simplified_ademamix",
        Row(contrib.simplified_ademamix, 1e-3),
        "simplified AdEMAMix: one momentum (Morwani 2025)",
    ),
    (
        "polyak_sgd",
        Row(
            optax.polyak_sgd,
            1.0,
            rate_name="max_learning_rate",
            schedule_goes="after",
            extra_arguments=("value",),
        ),
        "SGD with Polyak's step, from the loss and its least value (Loizou 2021)",
    ),
    (
        "lbfgs",
        Row(
            wrappers.lbfgs,
            None,
            schedule="constant",
            schedule_goes="nowhere",
            extra_arguments=("value", "grad", "value_fn"),
            takes_changed_gradients=False,
            iterations=line_search_iterations,
            mean_iterations=lambda hyper: 1.0 if hyper["linesearch"] == "none" else None,
            uncounted="it loops over the gradients it remembers, and XLA counts a loop's body once",
        ),
        "L-BFGS with a line search, for large batches (Liu & Nocedal 1989)",
    ),
    (
        "lookahead",
        Row(wrappers.lookahead, None, base="sgd", evaluation_params=_lookahead_slow),
        "slow parameters that follow another optimizer's (Zhang 2019)",
    ),
    (
        "dpsgd",
        Row(wrappers.dpsgd, 0.25, per_example_gradients=True, takes_changed_gradients=False),
        "SGD with differential privacy: clipped, noisy gradients of each example (Abadi 2016)",
    ),
    (
        "galore",
        Row(
            contrib.galore,
            1e-2,
            {"scale": 0.25},
            uncounted="it calls a library for singular vectors, and XLA does not count its work",
        ),
        "GaLore: Adam on low-rank projections of matrices' gradients (Zhao 2024)",
    ),
    (
        "mechanize",
        Row(wrappers.mechanize, 1e-2, base="sgd"),
        "Mechanic around another optimizer, rate found by itself (Cutkosky 2023)",
    ),
    (
        "momo",
        Row(contrib.momo, 1.0, extra_arguments=("value",)),
        "MoMo: SGD with momentum and a model of the loss (Schaipp 2023)",
    ),
    (
        "momo_adam",
        Row(contrib.momo_adam, 1e-2, extra_arguments=("value",)),
        "MoMo on Adam's direction (Schaipp 2023)",
    ),
    (
        "muon",
        Row(wrappers.muon, 0.02, {"adam_learning_rate": 1e-3}),
        "Muon: orthogonalised momentum of matrices and kernels, Adam for the rest (Jordan 2024)",
    ),
    (
        "reduce_on_plateau",
        Row(
            wrappers.reduce_on_plateau,
            None,
            schedule="constant",
            base="sgd",
            extra_arguments=("value",),
        ),
        "another optimizer, slowed when the loss stops falling",
    ),
    (
        "sam",
        Row(
            wrappers.sam,
            None,
            base="sgd",
            extra_arguments=("grad_fn",),
            iterations=lambda state, hyper_parameters: hyper_parameters["sync_period"],
            mean_iterations=lambda hyper_parameters: hyper_parameters["sync_period"],
        ),
        "sharpness-aware minimisation around another optimizer (Foret 2021)",
    ),
    (
        "schedule_free",
        Row(
            wrappers.schedule_free,
            None,
            schedule="constant",
            schedule_goes="nowhere",
            base="sgd",
            evaluation_params=_schedule_free_average,
        ),
        "averages in place of a schedule, around another optimizer (Defazio 2024)",
    ),
    (
        "schedule_free_adamw",
        Row(
            contrib.schedule_free_adamw,
            2.5e-3,
            schedule="constant",
            schedule_goes="nowhere",
            evaluation_params=_schedule_free_average,
        ),
        "schedule-free AdamW (Defazio 2024)",
    ),
    (
        "schedule_free_sgd",
        Row(
            contrib.schedule_free_sgd,
            1.0,
            schedule="constant",
            schedule_goes="nowhere",
            evaluation_params=_schedule_free_average,
        ),
        "schedule-free SGD (Defazio 2024)",
    ),
    (
        "sophia",
        Row(
            wrappers.sophia,
            1e-3,
            extra_arguments=("obj_fn",),
            iterations=_sophia_iterations,
            mean_iterations=lambda hyper_parameters: 1 + 2 / hyper_parameters["update_interval"],
        ),
        "Sophia-H: momentum over a Hessian diagonal by Hutchinson's estimate (Liu 2023)",
    ),
):
    OPTIMIZERS.add(_name, _row, _description)
