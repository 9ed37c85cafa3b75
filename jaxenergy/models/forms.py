"""Other forms of what plain Flax computes, for platforms on which XLA makes slow code of it.

The energy of a slow program is not the energy of the set-up. So where another way of writing the
same mathematics takes at least a tenth off the updates that it is for on a platform, it stands
here, in `FORMS`, and is taken there, by platform and shape; everywhere else, and with
`--forms=plain`, plain Flax is what runs. A form changes no parameter, no shape, and its values and
gradients are the plain ones to rounding (`tests/test_forms.py`). What each gains, and what was
tried and gains nothing, is in `docs/performance.md`.

Layers ask `takes(form)` while a network is traced; `Model.apply` says by `choose` which are open.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

# Each form with the platforms on which it pays its way.
FORMS: dict[str, tuple[str, ...]] = {
    "materialised": ("cpu",),
    "depthwise": ("cpu",),
    "depthwise_blocks": ("cpu",),
    "patches": ("cpu",),
    "strided": ("cpu",),
    "causal_attention": ("cpu",),
    "recurrence": ("cpu",),
    "looked_up_gates": ("cpu",),
    "deferred_products": ("gpu",),
    "depthwise_small": ("gpu",),
    "flash_attention": ("gpu",),
}
# Measured in training alone, on a GPU: predictions stay plain.
TRAINING_FORMS = frozenset({"deferred_products", "depthwise_small", "flash_attention"})
# Whose gradient JAX cannot differentiate again, as estimates of the Hessian do.
ONCE_DIFFERENTIABLE = frozenset({"flash_attention"})
# Whose operations XLA cannot count, a loop's or a library's: in a prediction, and in an update.
UNCOUNTED_PREDICTIONS = frozenset({"causal_attention"})
UNCOUNTED_FORMS = UNCOUNTED_PREDICTIONS | {"depthwise_blocks", "flash_attention"}

_open: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("open", default=frozenset())
_taken: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar("taken", default=None)


def forms_of(platform: str) -> tuple[str, ...]:
    """The forms that pay their way on a platform (`cpu`, `gpu`)."""
    return tuple(name for name, platforms in FORMS.items() if platform in platforms)


@contextlib.contextmanager
def choose(names: Collection[str]) -> Iterator[set[str]]:
    """Opens some forms to the layers that are traced inside; gives the set of those they took."""
    taken: set[str] = set()
    outside = _taken.get()
    tokens = _open.set(frozenset(names)), _taken.set(taken)
    try:
        yield taken
    finally:
        _open.reset(tokens[0])
        _taken.reset(tokens[1])
        if outside is not None:
            outside |= taken


def takes(name: str) -> bool:
    """Whether a layer whose shape suits a form is to take it; notes that it does."""
    is_open = name in _open.get()
    if is_open and (taken := _taken.get()) is not None:
        taken.add(name)
    return is_open


_MATERIALISED = 2**15  # numbers from which on: the call takes some microseconds

_same = jax.jit(lambda x: x)


def _once(x: jax.Array) -> jax.Array:
    # A call that is not inlined, as it stands in what XLA compiles. `lax.optimization_barrier` does
    # not help: on the CPU it is gone before anything is fused.
    return set_xla_metadata(_same(x), inlineable="false")


@jax.custom_vjp
def _materialised(x: jax.Array) -> jax.Array:
    return _once(x)


@jax.custom_vjp
def _gradient_materialised(x: jax.Array) -> jax.Array:
    return x


_materialised.defvjp(lambda x: (_once(x), None), lambda _, gradient: (gradient,))  # type: ignore[attr-defined]
_gradient_materialised.defvjp(lambda x: (x, None), lambda _, gradient: (_once(gradient),))  # type: ignore[attr-defined]


def materialised(x: jax.Array) -> jax.Array:
    """An array as it is, but computed once and written to memory.

    XLA on the CPU fuses what makes an array into each of its users, which compute it again, one
    number at a time where they transpose it, as the gradient to a kernel does. What a convolution
    makes, forwards or backwards, XLA writes to memory by itself.
    """
    return _materialised(x) if x.size >= _MATERIALISED and takes("materialised") else x


def gradient_materialised(x: jax.Array) -> jax.Array:
    """An array as it is; the gradient to it is computed once and written to memory."""
    return _gradient_materialised(x) if x.size >= _MATERIALISED and takes("materialised") else x


def multiply(x: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    """The product of a dense layer, `lax.dot_general`, materialised both ways."""
    return _both_ways(lax.dot_general(x, kernel, *arguments, **options))


def _both_ways(x: jax.Array) -> jax.Array:
    return materialised(gradient_materialised(x))


def convolve(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **plain: Any):
    """A square convolution with zero padding, in the form that suits its shape.

    Args:
        x: [batch, height, width, in].
        kernel: [size, size, in / groups, out].
        strides: the same along both sides.
        padding: `SAME`.
        **plain: further arguments of `lax.conv_general_dilated`; the forms need
            `feature_group_count` alone.

    Returns:
        [batch, height / strides, width / strides, out].
    """
    size, stride, channels = kernel.shape[0], strides[0], x.shape[-1]
    divides = x.shape[1] % stride == x.shape[2] % stride == 0
    if plain["feature_group_count"] > 1:
        by_channel = plain["feature_group_count"] == channels == kernel.shape[-1]
        # On a GPU cuDNN computes the gradient to a kernel that is larger than its images channel by
        # channel, with four kernels for each. Measured in bfloat16 alone.
        small = max(x.shape[1:3]) < size and x.dtype == jnp.bfloat16
        if (
            by_channel
            and size % 2 == 1
            and (takes("depthwise") or (small and takes("depthwise_small")))
        ):
            examples = _examples_of_block(x, size, stride)
            return _both_ways(depthwise(_both_ways(x), kernel, stride, examples))
    elif size in (1, stride) and divides and takes("patches"):
        return _both_ways(patch_product(_both_ways(x), kernel, stride))
    x = materialised(x)
    if (size, stride) == (3, 2) and divides and takes("strided"):
        return gradient_materialised(strided(x, kernel))
    return gradient_materialised(lax.conv_general_dilated(x, kernel, strides, padding, **plain))


_plain = functools.partial(
    lax.conv_general_dilated, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
)


# Products of a block, numbers times taps: an image shifted for each tap, and the products with it,
# then stay in a processor's cache until they are summed.
_PRODUCTS = 2**21


def _examples_of_block(x: jax.Array, size: int, stride: int) -> int:
    """How many examples at a time give the gradient to a depthwise kernel; all where they are few.

    A divisor of the batch, and none under half of what a block takes: less work for each turn of
    the loop does not pay.
    """
    batch, height, width, channels = x.shape
    products = size**2 * -(-height // stride) * -(-width // stride) * channels
    most = max(1, _PRODUCTS // products)
    divisors = [n for n in range(-(-most // 2), min(most, batch - 1) + 1) if batch % n == 0]
    return divisors[-1] if divisors and takes("depthwise_blocks") else batch


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: jax.Array, kernel: jax.Array, stride: int, examples: int) -> jax.Array:
    """Each channel's convolution as a sum of shifted images, one for each tap of an odd kernel.

    XLA's grouped convolution on the CPU takes 4 to 10 times as long, forward and backward.

    Args:
        x: [batch, height, width, channels].
        kernel: [size, size, 1, channels].
        stride: the same along both sides.
        examples: of a block of the gradient to the kernel; a divisor of the batch.

    Returns:
        [batch, height / stride, width / stride, channels].
    """
    return _sum_of_taps(x, kernel, stride)


def _sum_of_taps(x, kernel, stride):
    """In float32 where x is bfloat16: sums are rounded once, as a convolution's are."""
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel.astype(wide)
    size, pads = kernel.shape[0], [(0, 0)]
    for length in x.shape[1:3]:
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads.append((total // 2, total - total // 2))
    x = jnp.pad(x, [*pads, (0, 0)])
    ends = [length - size + 1 for length in x.shape[1:3]]
    total: Any = sum(
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] * kernel[i, j, 0]
        for i, j in np.ndindex(size, size)
    )
    return total.astype(dtype)


def _depthwise_backward(stride, examples, residuals, gradient):
    x, kernel = residuals
    if stride == 1:  # the same with the kernel turned round: no 49 images to be added up
        to_x = _sum_of_taps(gradient, kernel[::-1, ::-1], 1)
    else:
        (to_x,) = jax.vjp(lambda x: _sum_of_taps(x, kernel, stride), x)[1](gradient)

    def to_kernel(x, gradient):
        return jax.vjp(lambda kernel: _sum_of_taps(x, kernel, stride), kernel)[1](gradient)[0]

    if examples == len(x):
        return to_x, to_kernel(x, gradient)
    blocks = [array.reshape(-1, examples, *array.shape[1:]) for array in (x, gradient)]
    return to_x, lax.map(lambda block: to_kernel(*block), blocks).sum(0)


# Forward rules call no function with a gradient of its own: the derivative of a gradient, as in a
# Hessian-vector product, could not go through it.
depthwise.defvjp(  # type: ignore[attr-defined]
    lambda x, kernel, stride, examples: (_sum_of_taps(x, kernel, stride), (x, kernel)),
    _depthwise_backward,
)


def patch_product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A convolution whose windows do not overlap, as a product of matrices."""
    size, _, channels, features = kernel.shape
    if size == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    x = x.swapaxes(2, 3).reshape(batch, height // size, width // size, -1)
    return x @ kernel.reshape(-1, features)


@jax.custom_vjp
def strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 convolution of stride 2 over even sides, whose input gradient is a convolution too.

    An input at an even place meets taps 0 and 2, one at an odd place tap 1. So the gradient of all
    four parities of places is one 2 x 2 convolution of stride 1 over the output's gradient.
    """
    return _plain(x, kernel, (2, 2))


def _strided_backward(residuals, gradient):
    x, kernel = residuals
    batch, height, width, channels = x.shape
    # [window, parity] -> tap, where 3 stands for none.
    tap = np.array([[2, 3], [0, 1]])
    taps = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))[tap][:, :, tap]
    by_parity = taps.transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, -1, 4 * channels)
    padded = jnp.pad(gradient, ((0, 0), (1, 0), (1, 0), (0, 0)))
    parities = _plain(padded, by_parity, (1, 1), padding="VALID")
    parities = parities.reshape(batch, height // 2, width // 2, 2, 2, channels)
    to_x = parities.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
    (to_kernel,) = jax.vjp(lambda kernel: _plain(x, kernel, (2, 2)), kernel)[1](gradient)
    return to_x, to_kernel


strided.defvjp(lambda x, kernel: (_plain(x, kernel, (2, 2)), (x, kernel)), _strided_backward)  # type: ignore[attr-defined]


# Queries of a block, whose scores reach no key after it; and examples at a time, so that the scores
# of a block (float32 [4, heads, 64, length]) stay in a processor's cache.
_QUERIES, _EXAMPLES = 64, 4


def attends_by_blocks(shape: tuple[int, ...]) -> bool:
    """Whether causal attention over [batch, length, heads, features] is to go by blocks."""
    batch, length = shape[:2]
    suits = length > _QUERIES and length % _QUERIES == 0 and batch % _EXAMPLES == 0
    return suits and takes("causal_attention")


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention by blocks, without the scores above the diagonal's blocks.

    The backward pass computes the weights again.

    References:
        Dao et al. 2022, "FlashAttention", arXiv 2205.14135.
    """

    @jax.checkpoint
    def attend(arrays):
        query, key, value = arrays
        outputs = []
        for begin in range(0, query.shape[2], _QUERIES):
            end = begin + _QUERIES
            scores = query[:, :, begin:end] @ key[:, :, :end].swapaxes(2, 3)
            sees = np.arange(end) <= np.arange(begin, end)[:, None]
            weights = jax.nn.softmax(jnp.where(sees, scores, -jnp.inf))
            outputs.append(weights @ value[:, :, :end])
        return jnp.concatenate(outputs, 2)

    def by_heads(x):
        """[batch, length, heads, n] as [chunks, examples, heads, length, n]."""
        x = x.swapaxes(1, 2)
        return x.reshape(-1, _EXAMPLES, *x.shape[1:])

    scaled = query * query.shape[-1] ** -0.5
    outputs = lax.map(attend, tuple(map(by_heads, (scaled, key, value))))
    return outputs.reshape(-1, *outputs.shape[2:]).swapaxes(1, 2)


# Positions from which on cuDNN's attention was measured to gain; of 64 it gained nothing.
_FLASH_LENGTH = 256


def attends_by_cudnn(shape: tuple[int, ...]) -> bool:
    """Whether causal attention over bfloat16 [batch, length, heads, features] is to be cuDNN's.

    JAX refuses odd lengths and other numbers of features. Where gradients are taken by example, a
    layer meets one at a time, and is plain.
    """
    batch, length, _, features = shape
    suits = batch > 1 and length >= _FLASH_LENGTH and length % 2 == 0
    suits = suits and features % 8 == 0 and features <= 128
    is_open = "flash_attention" in _open.get()
    return suits and is_open and _has_hopper() and takes("flash_attention")


def _has_hopper() -> bool:
    """Whether JAX computes on an NVIDIA GPU of compute capability 9, the only measured."""
    try:
        return jax.local_devices(backend="gpu")[0].compute_capability.startswith("9.")
    except (RuntimeError, AttributeError):  # no GPU; one that has no such thing
        return False


def flash_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention by one kernel of cuDNN, which writes no scores to memory.

    References:
        Dao et al. 2022, "FlashAttention", arXiv 2205.14135.
    """
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


# Examples from which on a product at each position repays adding its share to the weights' gradient
# at each position; and from which on a lookup repays its scattered gradient. Where gradients are
# taken by example, a layer meets one at a time (docs/performance.md).
_JOINT_EXAMPLES, _LOOKUP_EXAMPLES = 64, 8


def recurs_jointly(examples: int) -> bool:
    """Whether a batch of so many examples is to multiply inputs and hidden state at once."""
    return examples >= _JOINT_EXAMPLES and takes("recurrence")


# Gives the new carry and the output of a position from the carry and the gates.
Advance = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


def recurrence(
    advance: Advance,
    start: tuple[jax.Array, jax.Array],
    inputs: jax.Array,
    gates: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """A recurrent layer that makes a position's gates when it comes to the position.

    The plain layer multiplies all positions' inputs before the loop, which writes and reads gates
    of hundreds of megabytes; here a position's gates stay in the cache. The products are all that
    is kept for the gradient, which computes the rest again.

    Args:
        advance: gives the new carry and the output from the carry and the gates.
        start: the carry to begin with; its second part is the hidden state [batch, width].
        inputs: [length, batch, ...].
        gates: gives a position's gates from its inputs and the hidden state, as by `joint_gates`
            or `looked_up_gates`.

    Returns:
        The outputs [length, batch, width].
    """

    @functools.partial(
        jax.checkpoint, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable
    )
    def step(carry, at_position):
        return advance(carry, gates(at_position, carry[1]))

    return lax.scan(step, start, inputs)[1]


def joint_gates(kernel: jax.Array, recurrent: jax.Array, bias: jax.Array):
    """Gates by one product, of inputs [batch, in] beside the hidden state [batch, width].

    Args:
        kernel: of the inputs [in, gates].
        recurrent: of the hidden state [width, gates].
        bias: [gates].
    """
    weights = jnp.concatenate([kernel, recurrent])
    return lambda x, hidden: jnp.concatenate([x, hidden], -1) @ weights + bias


def looks_up(vocabulary: int, tokens: jax.Array) -> bool:
    """Whether tokens [batch, length] are to have their gates made once for each of a vocabulary."""
    suits = len(tokens) >= _LOOKUP_EXAMPLES and tokens.size > vocabulary
    return suits and takes("looked_up_gates")


def looked_up_gates(table: jax.Array, recurrent: jax.Array):
    """Gates of tokens [batch], whose products with the inputs' weights are made beforehand.

    A text has far fewer different tokens than positions, so a product for each token and a lookup
    at each position take the place of a product at each position: for as many inputs as units that
    is half of the layer's multiplications.

    Args:
        table: each token's vector times the inputs' weights, bias included [tokens, gates].
        recurrent: of the hidden state [width, gates].
    """
    return lambda token, hidden: table[token] + hidden @ recurrent


def defers_products(examples: int) -> bool:
    """Whether the recurrent weights' gradient is to be one product after the loop.

    Where gradients are taken by example, a layer meets one at a time, and is plain.
    """
    return examples > 1 and takes("deferred_products")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def deferred_products(
    advance: Advance,
    start: tuple[jax.Array, jax.Array],
    from_inputs: jax.Array,
    recurrent: jax.Array,
) -> jax.Array:
    """A recurrent layer whose recurrent weights' gradient is one product after the loop.

    The plain layer's loop adds a position's share to that gradient at each position. On a GPU what
    a position costs is launching its kernels, so here its loop back has one product and the gates'
    derivatives, which it makes of the gates and the cell before, all that is kept.

    Args:
        advance: gives the new carry and the output, which is its second part, from the carry's
            first part (it must not use the second) and the gates.
        start: the carry to begin with: cell and hidden state [batch, width].
        from_inputs: the inputs' share of the gates [length, batch, gates].
        recurrent: weights of the hidden state [width, gates].

    Returns:
        The outputs [length, batch, width].
    """
    return _run_recurrence(advance, start, from_inputs, recurrent)[0]


def _run_recurrence(advance, start, from_inputs, recurrent):
    weights = recurrent.astype(from_inputs.dtype)  # once: no gradient is summed through this

    def step(carry, from_input):
        gates = from_input + carry[1] @ weights
        new, hidden = advance(carry, gates)
        return new, (hidden, gates, carry[0])

    _, (hidden, gates, cells) = lax.scan(step, start, from_inputs)
    return hidden, (start, recurrent, hidden, gates, cells)


def _recurrence_backward(advance, residuals, to_hidden):
    start, recurrent, hidden, gates, cells = residuals
    weights = recurrent.astype(gates.dtype).T

    def step(to_carry, at_position):
        gates, cell, to_output = at_position
        _, backward = jax.vjp(lambda cell, gates: advance((cell, start[1]), gates), cell, gates)
        to_cell, to_gates = backward((to_carry, to_output))
        return (to_cell, to_gates @ weights), to_gates

    nothing = jax.tree.map(jnp.zeros_like, start)
    to_start, to_gates = lax.scan(step, nothing, (gates, cells, to_hidden), reverse=True)
    before = jnp.concatenate([start[1][None], hidden[:-1]])
    to_recurrent = jnp.einsum(
        "tbw,tbg->wg", before, to_gates, preferred_element_type=recurrent.dtype
    )
    return to_start, to_gates, to_recurrent


deferred_products.defvjp(_run_recurrence, _recurrence_backward)  # type: ignore[attr-defined]
