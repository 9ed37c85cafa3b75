"""What happens to examples on the device, inside the step: order, batch, augmentation, scale.

All are pure functions of arrays and keys. The data set stays on the device as `uint8` and no host
thread takes part, so what is measured is the training and nothing else.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def epoch_orders(
    key: jax.Array, first_epoch: jax.Array | int, epochs: int, examples: int
) -> jax.Array:
    """The orders in which consecutive epochs visit the examples.

    Args:
        key: PRNG key of the run's data order.
        first_epoch: the number of the first of them, from 0; may be traced.
        epochs: how many.
        examples: how many examples an epoch visits, each once.

    Returns:
        int32 `[epochs, examples]`; row i is a permutation that depends on `key` and the epoch's
        number `first_epoch + i` alone, however the epochs are grouped into calls.
    """

    def order(epoch: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), examples)

    return lax.map(order, jnp.arange(epochs) + first_epoch).astype(jnp.int32)


def take_batch(
    inputs: jax.Array, labels: jax.Array, orders: jax.Array, position: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Gathers a batch, which may straddle epochs, so every batch has the same shape.

    Args:
        inputs: `[examples, ...]`.
        labels: int32 `[examples, ...]`.
        orders: int32 `[epochs, examples]`, as from `epoch_orders`.
        position: int32 scalar, how many examples of `orders` were drawn before; the caller keeps
            `position + batch_size <= orders.size`.
        batch_size: examples per batch.

    Returns:
        The batch of inputs `[batch_size, ...]` and of labels `[batch_size, ...]`.
    """
    indices = lax.dynamic_slice_in_dim(orders.reshape(-1), position, batch_size)
    return inputs[indices], labels[indices]


def normalise(images: jax.Array, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Scales pixels to mean 0 and standard deviation 1 over the training part.

    Args:
        images: uint8 `[batch, height, width, channels]`.
        mean: float32 `[channels]`, in the units of the stored pixels.
        std: float32 `[channels]`, in the same units.

    Returns:
        float32 `[batch, height, width, channels]`; float64 where JAX's 64 bits are enabled.
    """
    mean, std = jnp.asarray(mean, float), jnp.asarray(std, float)
    return (images.astype(float) - mean) / std


def augment(key: jax.Array, images: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    """Shifts each image by a random crop of its zero-padded self and mirrors half of them.

    Args:
        key: PRNG key of this batch.
        images: uint8 `[batch, height, width, channels]`.
        padding: zeros on each of the four sides before the crop; 0 for none.
        flip: whether to mirror images left to right, each with probability one half.

    Returns:
        uint8 `[batch, height, width, channels]`.

    References:
        K. He, X. Zhang, S. Ren and J. Sun (2016). Deep Residual Learning for Image Recognition.
        CVPR. Section 4.2: 4 pixels of padding, a random 32x32 crop, horizontal flip.
    """
    key_crop, key_flip = jax.random.split(key)
    if padding:
        corners = jax.random.randint(key_crop, (len(images), 2), 0, 2 * padding + 1)
        images = crop(images, corners, padding)
    if flip:
        mirrored = jax.random.bernoulli(key_flip, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def crop(images: jax.Array, corners: jax.Array, padding: int) -> jax.Array:
    """Cuts a window of the image's own size out of each zero-padded image.

    Args:
        images: `[batch, height, width, channels]`.
        corners: int32 `[batch, 2]`, row and column of the window's corner in the padded image, 0 to
            `2 * padding`; `padding` gives the image back.
        padding: zeros on each of the four sides.

    Returns:
        `[batch, height, width, channels]`.
    """
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(window)(padded, corners)
