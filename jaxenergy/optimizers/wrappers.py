"""Optimizers that wrap another, and those whose Optax form a line of text cannot reach.

Each function takes the learning rate first and, where it wraps another, that one as
`base_optimizer`, already with its own learning rate.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

PyTree = Any


def sam(
    learning_rate: Any,
    base_optimizer: optax.GradientTransformation,
    rho: float = 0.05,
    sync_period: int = 2,
) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimisation: the gradient is taken where the loss nearby is highest.

    Optax's `opaque_mode`, where one update makes `sync_period` gradients of the same batch, so that
    an update is an update for the record, and batch statistics come from the parameters that are
    kept.

    References:
        Foret et al. 2021, "Sharpness-Aware Minimization", arXiv 2010.01412 (rho 0.05 for CIFAR).
    """
    del learning_rate
    uphill = optax.chain(contrib.normalize(), optax.sgd(rho))
    return contrib.sam(base_optimizer, uphill, sync_period, opaque_mode=True)


class LookaheadState(NamedTuple):
    """The slow parameters beside Optax's state, so that a train state has one set of parameters."""

    slow: PyTree
    inner: PyTree


def lookahead(
    learning_rate: Any,
    base_optimizer: optax.GradientTransformation,
    sync_period: int = 5,
    slow_step_size: float = 0.5,
    reset_state: bool = False,
) -> optax.GradientTransformation:
    """Lookahead: slow parameters follow the fast ones every few updates, and are evaluated.

    References:
        Zhang et al. 2019, "Lookahead Optimizer: k steps forward, 1 step back", arXiv 1907.08610
        (k = 5 and a slow step of 0.5 for CIFAR).
    """
    del learning_rate
    inner = optax.lookahead(base_optimizer, sync_period, slow_step_size, reset_state)

    def init(params: PyTree) -> LookaheadState:
        slow = jax.tree.map(jnp.copy, params)  # its own buffers, since both are donated
        return LookaheadState(slow, inner.init(optax.LookaheadParams(params, slow)))

    def update(updates: PyTree, state: LookaheadState, params: PyTree = None):
        pair = optax.LookaheadParams(params, state.slow)
        moves, inner_state = inner.update(updates, state.inner, pair)
        return moves.fast, LookaheadState(optax.apply_updates(state.slow, moves.slow), inner_state)

    return optax.GradientTransformation(init, update)


def schedule_free(
    learning_rate: Any,
    base_optimizer: optax.GradientTransformation,
    b1: float = 0.9,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free learning around another optimizer, whose own momentum should be off.

    References:
        Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682.
    """
    return contrib.schedule_free(base_optimizer, learning_rate, b1, weight_lr_power, state_dtype)


def mechanize(
    learning_rate: Any,
    base_optimizer: optax.GradientTransformation,
    weight_decay: float = 0.01,
    eps: float = 1e-8,
    s_init: float = 1e-6,
    num_betas: int = 6,
) -> optax.GradientTransformation:
    """Mechanic: finds the factor on another optimizer's updates by itself.

    References:
        Cutkosky et al. 2023, "Mechanic: A Learning Rate Tuner", arXiv 2306.00144.
    """
    del learning_rate
    return contrib.mechanize(base_optimizer, weight_decay, eps, s_init, num_betas)


def reduce_on_plateau(
    learning_rate: Any,
    base_optimizer: optax.GradientTransformation,
    factor: float = 0.5,
    patience: int = 5,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 20,
    min_scale: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Another optimizer whose updates shrink when the training loss stops falling.

    The loss looked at is the mean over `accumulation_size` batches, since one batch's is noise.
    """
    del learning_rate
    plateau = contrib.reduce_on_plateau(
        factor=factor,
        patience=patience,
        rtol=rtol,
        atol=atol,
        cooldown=cooldown,
        accumulation_size=accumulation_size,
        min_scale=min_scale,
    )
    return optax.chain(base_optimizer, plateau)


def dpsgd(
    learning_rate: Any,
    l2_norm_clip: float = 1.0,
    noise_multiplier: float = 1.0,
    key: int = 0,
    momentum: float | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """DP-SGD as Optax chains it, without the argument `seed`, which Optax deprecates.

    References:
        Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv 1607.00133.
    """
    private = contrib.differentially_private_aggregate(l2_norm_clip, noise_multiplier, key)
    return optax.chain(private, optax.sgd(learning_rate, momentum, nesterov))


def muon(
    learning_rate: Any,
    ns_coeffs: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    adam_weight_decay: float = 0.0,
    adam_learning_rate: Any = None,
    consistent_rms: float | None = None,
) -> optax.GradientTransformation:
    """Optax's Muon, which moves matrices, for the kernels of convolutions too.

    A kernel is a matrix of its window's inputs by its outputs. Embeddings and the last layer are
    matrices to Optax, where the author has Adam move them.

    References:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def dimensions(parameter: Any) -> contrib.MuonDimensionNumbers | None:
        if parameter.ndim not in (2, 4):
            return None
        *inputs, outputs = range(parameter.ndim)
        return contrib.MuonDimensionNumbers(tuple(inputs), outputs)

    return contrib.muon(
        learning_rate,
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        weight_decay,
        weight_decay_mask,
        mu_dtype,
        nesterov=nesterov,
        adaptive=adaptive,
        preconditioning=preconditioning,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps_root=adam_eps_root,
        adam_weight_decay=adam_weight_decay,
        adam_learning_rate=adam_learning_rate,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(dimensions, params),
        consistent_rms=consistent_rms,
    )


def sophia(
    learning_rate: Any,
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    weight_decay_mask: Any = None,
    gamma: float = 0.01,
    clip_threshold: float | None = 1.0,
    update_interval: int = 10,
    key: int = 0,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Optax's Sophia, whose estimate of the Hessian draws its signs from a key that can be given.

    References:
        Liu et al. 2023, "Sophia: A Scalable Stochastic Second-order Optimizer", arXiv 2305.14342.
    """
    estimate = contrib.hutchinson_estimator_diag_hessian()

    def init(params: PyTree) -> PyTree:
        return estimate.init(params)._replace(key=jax.random.PRNGKey(key))

    return contrib.sophia(
        learning_rate,
        b1,
        b2,
        eps,
        weight_decay,
        weight_decay_mask,
        gamma,
        clip_threshold,
        update_interval,
        optax.GradientTransformationExtraArgs(init, estimate.update),
        mu_dtype,
    )


def lbfgs(
    learning_rate: float | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: str = "zoom",
    max_linesearch_steps: int = 20,
) -> optax.GradientTransformationExtraArgs:
    """L-BFGS with a line search on the batch's loss, or by the learning rate alone.

    Without one (`none`) an update evaluates its batch once, and takes the direction times the rate.

    References:
        Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization".
    """
    if linesearch == "zoom":
        search = optax.scale_by_zoom_linesearch(
            max_linesearch_steps=max_linesearch_steps, initial_guess_strategy="one"
        )
    elif linesearch == "backtracking":
        search = optax.scale_by_backtracking_linesearch(max_linesearch_steps)
    else:
        search = None
    return optax.lbfgs(learning_rate, memory_size, scale_init_precond, search)


def part_of(state: PyTree, kind: type) -> Any:
    """The first part of an optimizer's state that is of a kind, e.g. within a chain.

    Args:
        state: the state.
        kind: the named tuple's class.

    Returns:
        That part.
    """
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kind))
    return next(part for part in parts if isinstance(part, kind))
