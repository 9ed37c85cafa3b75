"""What happens to images on the device: order, batches, crop, flip, scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxenergy import data
from jaxenergy.data import pipeline

orders_jit = jax.jit(pipeline.epoch_orders, static_argnums=(2, 3))
take_jit = jax.jit(pipeline.take_batch, static_argnums=4)
augment_jit = jax.jit(pipeline.augment, static_argnames=("padding", "flip"))


@pytest.mark.parametrize("examples", [1, 2, 37])
def test_every_example_is_drawn_once_an_epoch(examples):
    orders = orders_jit(jax.random.key(0), 3, 4, examples)
    assert orders.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(orders, axis=1), [list(range(examples))] * 4)


def test_an_epochs_order_depends_on_key_and_number_alone():
    key = jax.random.key(0)
    together = orders_jit(key, 0, 6, 50)
    for first in range(5):
        np.testing.assert_array_equal(orders_jit(key, first, 2, 50), together[first : first + 2])
    assert len({bytes(np.asarray(order)) for order in together}) == 6
    assert not np.array_equal(orders_jit(jax.random.key(1), 0, 6, 50), together)


@pytest.mark.parametrize(
    ("examples", "batch_size", "updates"),
    [(12, 5, 4), (12, 12, 2), (7, 20, 1), (1, 3, 2)],
    ids=["straddling", "whole epochs", "larger than an epoch", "one example"],
)
@settings(max_examples=20, deadline=None)
@given(call=st.integers(0, 10_000), seed=st.integers(0, 2**31 - 1))
def test_any_call_draws_its_stretch_of_the_epochs_laid_end_to_end(
    examples, batch_size, updates, call, seed
):
    key = jax.random.key(seed)
    inputs = jnp.arange(examples, dtype=jnp.uint8).reshape(-1, 1, 1, 1)
    labels = jnp.arange(examples, dtype=jnp.int32) * 3
    first, position = divmod(call * updates * batch_size, examples)
    epochs = -(-(position + updates * batch_size) // examples)
    orders = orders_jit(key, first, epochs, examples)
    np.testing.assert_array_equal(np.sort(orders, axis=1), [list(range(examples))] * epochs)
    drawn = []
    for update in range(updates):
        batch, classes = take_jit(
            inputs, labels, orders, position + update * batch_size, batch_size
        )
        np.testing.assert_array_equal(classes, np.asarray(batch, np.int32).ravel() * 3)
        drawn.extend(np.asarray(batch).ravel())
    stretch = np.asarray(orders).ravel()[position : position + updates * batch_size]
    np.testing.assert_array_equal(drawn, stretch)


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (5, 7, 2)])
@pytest.mark.parametrize("padding", [1, 4])
def test_crop_is_the_window_of_the_padded_image(shape, padding):
    random = np.random.default_rng(0)
    places = 2 * padding + 1
    images = random.integers(1, 256, (places**2, *shape), np.uint8)
    corners = np.stack(np.divmod(np.arange(places**2), places), axis=1).astype(np.int32)
    cut = jax.jit(pipeline.crop, static_argnums=2)(images, corners, padding)
    assert cut.dtype == jnp.uint8
    margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(images, margins)
    for image, whole, (row, column) in zip(np.asarray(cut), padded, corners, strict=True):
        np.testing.assert_array_equal(
            image, whole[row : row + shape[0], column : column + shape[1]]
        )


def _place_of(image, of, padding, flips):
    """All (row, column, mirrored) by which one image can have come from another."""
    height, width, _ = of.shape
    whole = np.pad(of, ((padding, padding), (padding, padding), (0, 0)))
    return [
        (row, column, mirrored)
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
        for mirrored in ((False, True) if flips else (False,))
        if np.array_equal(
            image[:, ::-1] if mirrored else image,
            whole[row : row + height, column : column + width],
        )
    ]


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_draws_every_place_evenly(flip):
    padding, count = 1, 1800
    original = np.random.default_rng(0).integers(1, 256, (4, 4, 3), np.uint8)
    images = np.repeat(original[None], count, axis=0)
    augmented = np.asarray(augment_jit(jax.random.key(0), images, padding=padding, flip=flip))
    assert augmented.dtype == np.uint8
    counts = {}
    for image in augmented:
        (place,) = _place_of(image, original, padding, flips=True)  # exactly one explanation
        counts[place] = counts.get(place, 0) + 1
    places = 18 if flip else 9
    assert len(counts) == places
    assert flip or not any(mirrored for _, _, mirrored in counts)
    chi_squared = sum((n - count / places) ** 2 / (count / places) for n in counts.values())
    assert chi_squared < (40.8 if flip else 26.1)  # 99.9 % quantiles for 17 and 8; fixed key


def test_augmentation_without_padding_and_flip_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    same = augment_jit(jax.random.key(0), images, padding=0, flip=False)
    np.testing.assert_array_equal(same, images)


def test_augmentation_is_a_function_of_its_key():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    results = [
        np.asarray(augment_jit(jax.random.key(seed), images, padding=2, flip=True))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_normalised_training_pixels_have_mean_0_and_deviation_1():
    digits = data.load("digits")
    scaled = np.asarray(
        jax.jit(pipeline.normalise)(
            digits.train.inputs, jnp.array(digits.mean), jnp.array(digits.std)
        )
    )
    assert scaled.dtype == np.float32
    assert abs(scaled.mean(dtype=np.float64)) < 1e-6
    assert abs(scaled.std(dtype=np.float64) - 1) < 1e-6


def test_normalise_works_channel_by_channel():
    images = np.array([[[[10, 20, 30]]]], np.uint8)
    scaled = pipeline.normalise(images, (10, 10, 10), (1, 5, 10))
    np.testing.assert_array_equal(scaled, np.array([[[[0, 2, 2]]]], np.float32))
