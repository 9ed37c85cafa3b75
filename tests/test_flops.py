"""XLA's counts, of programs whose operations are known."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxenergy import data
from jaxenergy.config import RunConfig
from jaxenergy.flops import count_bytes, count_flops, count_flops_as_written
from jaxenergy.training.plan import make_plan
from jaxenergy.training.programs import compile_programs, transfer
from jaxenergy.training.steps import make_init, make_updates

MATRIX = jax.ShapeDtypeStruct((48, 48), jnp.float32)
PRODUCT_FLOPS, PRODUCT_BYTES = 2 * 48**3, 3 * 48 * 48 * 4


def compile_for(fn, *arguments):
    return jax.jit(fn).lower(*arguments).compile()


def test_a_product_of_matrices_is_counted():
    compiled = compile_for(jnp.dot, MATRIX, MATRIX)
    assert count_flops(jnp.dot, (MATRIX, MATRIX), compiled) == PRODUCT_FLOPS
    assert count_flops_as_written(jnp.dot, (MATRIX, MATRIX)) == PRODUCT_FLOPS
    assert count_bytes(compiled) == PRODUCT_BYTES


def test_what_another_library_computes_has_no_bytes_and_its_operations_as_written():
    """LAPACK's solver, as cuBLAS's products on a GPU, is a call of which XLA counts nothing."""

    def solve(x, y):
        return jnp.linalg.cholesky(x @ y)

    compiled = compile_for(solve, MATRIX, MATRIX)
    assert " custom-call(" in compiled.as_text()
    assert count_bytes(compiled) is None
    counted = count_flops(solve, (MATRIX, MATRIX), compiled)
    assert counted == count_flops_as_written(solve, (MATRIX, MATRIX))
    assert counted == pytest.approx(PRODUCT_FLOPS, rel=0.1)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_an_update_as_written_is_counted_as_the_compiled_one(model):
    config = RunConfig(model=model, depth=2, width=64, batch_size=32, forms="plain")
    plan = make_plan(config, data.load(config.dataset), "cpu")
    plan = dataclasses.replace(plan, eval_batch_sizes={})
    splits = transfer(plan)
    compiled = compile_programs(plan, splits, "cpu").facts["flops_per_update"]
    state = jax.eval_shape(make_init(plan.program), jax.random.key(0))
    orders = jax.ShapeDtypeStruct((2, len(plan.dataset.train.labels)), jnp.int32)
    arguments = (state, splits["train"], orders)
    written = count_flops_as_written(make_updates(plan.program, 1), arguments)
    assert written == pytest.approx(compiled, rel=0.03)
