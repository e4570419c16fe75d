"""Products of rows with one matrix per group, and rows on their way to their groups, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.ops.dispatch import by_expert, move, within_capacity
from transformer_jax.ops.grouped import grouped_product

pytestmark = pytest.mark.usefixtures("quick_compile")
K, N = 7, 11
# Empty groups at the start, in the middle and at the end; rows that belong to none; groups larger than the largest tile; a single row.
SIZES = [([0, 5, 0, 13, 1, 0], 19), ([3, 4], 11), ([0, 0, 0], 5), ([1], 1), ([137, 0, 260, 31], 431), ([2] * 31, 67)]


def arrays(sizes, rows, dtype):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in ((rows, K), (len(sizes), K, N), (rows, N)))


def looped(x, kernel, sizes):
    y, start = np.zeros((x.shape[0], kernel.shape[2])), 0
    for group, size in enumerate(sizes):
        y[start : start + size] = np.asarray(x[start : start + size], np.float64) @ np.asarray(kernel[group], np.float64)
        start += size
    return y


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("sizes", "rows"), SIZES)
def test_each_row_is_multiplied_with_the_matrix_of_its_group(close, sizes, rows, dtype, reference):
    x, kernel, _ = arrays(sizes, rows, dtype)
    y = jax.jit(lambda x, kernel, sizes: grouped_product(x, kernel, sizes, reference=reference))(x, kernel, jnp.asarray(sizes, jnp.int32))
    assert y.dtype == dtype
    close(y, looped(x, kernel, sizes))
    assert not np.any(y[sum(sizes) :])


@pytest.mark.parametrize(("sizes", "rows"), SIZES)
def test_gradients_are_those_of_the_products_written_out(close, sizes, rows):
    with jax.enable_x64(True):
        x, kernel, dy = arrays(sizes, rows, "float64")
        y, back = jax.vjp(lambda x, kernel: grouped_product(x, kernel, jnp.asarray(sizes, jnp.int32)), x, kernel)
        close(y, looped(x, kernel, sizes))
        dx, d_kernel = back(dy)
    ends = np.cumsum(sizes)
    close(dx, looped(dy, np.swapaxes(kernel, 1, 2), sizes))
    close(d_kernel, np.stack([np.asarray(x[end - size : end]).T @ np.asarray(dy[end - size : end]) for size, end in zip(sizes, ends)]))


def test_a_matrix_s_gradient_in_bfloat16_accumulates_in_float32(close):
    sizes, rows = [2999, 0], 2999
    x, kernel, dy = arrays(sizes, rows, "bfloat16")
    _, back = jax.vjp(lambda kernel: grouped_product(x, kernel, jnp.asarray(sizes, jnp.int32)), kernel)
    (d_kernel,) = back(jnp.abs(dy))
    expected = np.asarray(x, np.float64).T @ np.abs(np.asarray(dy, np.float64))
    assert np.abs(np.asarray(d_kernel[0], np.float64) - expected).max() < 2**-8 * np.abs(expected).max()  # half a unit in the last place


def test_vmap_over_everything_equals_a_loop(close):
    sizes = jnp.asarray([[3, 0, 8], [0, 11, 0], [1, 2, 3]], jnp.int32)
    rng = np.random.default_rng(1)
    x, kernel = jnp.asarray(rng.normal(size=(3, 13, K)), jnp.float32), jnp.asarray(rng.normal(size=(3, 3, K, N)), jnp.float32)

    def loss(x, kernel, sizes):
        return (grouped_product(x, kernel, sizes) ** 2).sum()

    got = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1))))(x, kernel, sizes)
    each = [jax.value_and_grad(loss, (0, 1))(*args) for args in zip(x, kernel, sizes)]
    close(got, jax.tree.map(lambda *a: jnp.stack(a), *each))


EXPERTS = np.array([2, 0, 3, 2, 2, 0, 4, 2, 3, 0, 2])  # of four, 4 for none


def test_copies_are_in_the_order_of_their_experts_and_within_one_in_that_of_the_rows():
    order = by_expert(jnp.asarray(EXPERTS, jnp.int32), 4)
    np.testing.assert_array_equal(order.copies, [1, 5, 9, 0, 3, 4, 7, 10, 2, 8, 6])
    np.testing.assert_array_equal(np.asarray(order.copies)[np.asarray(order.places)], np.arange(11))
    np.testing.assert_array_equal(order.sizes, [3, 0, 5, 2])


@pytest.mark.parametrize("capacity", [1, 2, 3, 7])
def test_the_first_copies_take_the_room_that_there_is(capacity):
    experts = jnp.asarray(EXPERTS, jnp.int32)
    copies, rooms = within_capacity(experts, by_expert(experts, 4), capacity)
    expected, room_of = np.full((4, capacity), 11), np.full(11, 4 * capacity)
    filled = [0] * 4
    for copy, expert in enumerate(EXPERTS):
        if expert < 4 and filled[expert] < capacity:
            expected[expert, filled[expert]], room_of[copy] = copy, expert * capacity + filled[expert]
            filled[expert] += 1
    np.testing.assert_array_equal(copies.reshape(4, capacity), expected)
    np.testing.assert_array_equal(rooms, room_of)


def test_moving_rows_and_back_zeroes_those_that_got_no_room_and_so_do_the_gradients():
    experts = jnp.asarray(EXPERTS, jnp.int32)
    copies, rooms = within_capacity(experts, by_expert(experts, 4), 2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(11, 3)), jnp.float32)
    y, back = jax.vjp(lambda x: move(move(x, copies, rooms), rooms, copies), x)
    kept = (np.asarray(rooms) < 8)[:, None]
    np.testing.assert_array_equal(y, np.where(kept, x, 0))
    np.testing.assert_array_equal(back(x + 1)[0], np.where(kept, x + 1, 0))
