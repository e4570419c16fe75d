from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers import Attention, Build, Causal, Context, Dense, Group, LayerNorm, RelativeBias, Residual, RMSNorm, Rope, Stack

B, T, D = 2, 7, 19
ATTENTION = Residual(Attention(2, mask=Causal(), head_dim=6, position=Rope()), pre=RMSNorm())
MLP = Residual(Dense(11), pre=LayerNorm())
KEY = jax.random.key(7, impl="rbg")  # compiles in a tenth of the time of the default


def scalar(module, x, weight):
    """The loss and gradients of a stack, by parameters and input."""

    def loss(params, x, key):
        y, cache = module.apply({"params": params}, x, Context(), rngs={"dropout": key})
        assert cache is None
        return (y * weight).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def run(config, params, x, weight, **build):
    return scalar(config.make(Build(D, **build)), x, weight)(params, x, KEY)


@pytest.mark.usefixtures("quick_compile")
def test_groups_run_in_order_each_as_often_as_it_repeats(close, normal, filled):
    config = Stack((Group(2, (ATTENTION,)), Group(3, (ATTENTION, MLP)), Group(1, (MLP, MLP))), final_norm=LayerNorm())
    assert config.depth == 2 + 6 + 2
    module, x = config.make(Build(D)), normal(B, T, D)
    params = filled(module, x, Context())["params"]
    compiled = {sublayer: jax.jit(sublayer.make(Build(D)).apply) for sublayer in (ATTENTION, MLP)}
    expected = x
    for n, group in enumerate(config.groups):
        for repetition in range(group.repeat):
            for m, sublayer in enumerate(group.sublayers):
                own = jax.tree.map(lambda a, r=repetition: a[r], params[f"groups_{n}"]["layers"][f"sublayers_{m}"])
                expected, _ = compiled[sublayer]({"params": own}, expected, Context())
    expected = LayerNorm().make(Build(D)).apply({"params": params["final_norm"]}, expected)
    y, cache = jax.jit(module.apply)({"params": params}, x, Context())
    close(y, expected, times=3)
    assert cache is None


@pytest.mark.usefixtures("quick_compile")
def test_a_score_on_the_stack_is_one_table_that_equals_a_copy_in_every_attention(close, normal, filled):
    x, weight = normal(B, T, D), normal(B, T, D, seed=1)
    score = RelativeBias(5, max_distance=6)
    own = Residual(Attention(2, mask=Causal(), head_dim=6, position=Rope(), score=(score,)), pre=RMSNorm())
    shared, copied = Stack((Group(3, (ATTENTION,)), Group(1, (ATTENTION,))), score=(score,)), Stack((Group(3, (own,)), Group(1, (own,))))
    params = filled(shared.make(Build(D)), x, Context())["params"]
    tables = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "table"]
    assert len(tables) == 1
    table = params["scores_0"]["table"]
    assert table.shape == (2, 5)

    def with_copies(params):
        groups = {}
        for n, repeat in ((0, 3), (1, 1)):
            group = params[f"groups_{n}"]["layers"]
            first = group["sublayers_0"]
            copies = {"table": jnp.tile(params["scores_0"]["table"], (repeat, 1, 1))}
            groups[f"groups_{n}"] = {"layers": {**group, "sublayers_0": {**first, "layer": {**first["layer"], "scores_0": copies}}}}
        return groups

    value, (gradients, by_x) = run(shared, params, x, weight)
    other, (other_gradients, other_by_x) = run(copied, with_copies(params), x, weight)
    summed = sum(other_gradients[f"groups_{n}"]["layers"]["sublayers_0"]["layer"]["scores_0"]["table"].sum(0) for n in (0, 1))
    close(value, other)
    close(by_x, other_by_x, times=3)
    close(gradients["scores_0"]["table"], summed, times=3)
    assert np.abs(summed).max() > 1e-3


@pytest.mark.usefixtures("quick_compile")
def test_a_group_that_shares_has_one_set_of_parameters_and_equals_copies_of_it(close, normal, filled):
    x, weight = normal(B, T, D), normal(B, T, D, seed=1)
    shared, copied = (Stack((Group(3, (ATTENTION, MLP), share=share),)) for share in (True, False))
    params = filled(shared.make(Build(D)), x, Context())["params"]
    assert params["groups_0"]["layers"]["sublayers_1"]["layer"]["up"]["kernel"].shape == (D, 11)
    value, (gradients, by_x) = run(shared, params, x, weight)
    other, (other_gradients, other_by_x) = run(copied, jax.tree.map(lambda a: jnp.tile(a, (3, *[1] * a.ndim)), params), x, weight)
    close((value, by_x), (other, other_by_x), times=3)
    close(gradients, jax.tree.map(lambda a: a.sum(0), other_gradients), times=3)


def count_products(jaxpr) -> int:
    return sum(_count(eqn) for eqn in jaxpr.eqns)


def _count(eqn) -> int:
    inner = [getattr(p, "jaxpr", p) for value in eqn.params.values() for p in (value if isinstance(value, (tuple, list)) else (value,))]
    return (eqn.primitive.name == "dot_general") + sum(count_products(p) for p in inner if hasattr(p, "eqns"))


DROPPED = (
    Residual(Attention(2, mask=Causal(), head_dim=6, dropout=0.3), pre=RMSNorm(), dropout=0.2),
    Residual(Dense(11, dropout=0.4), pre=LayerNorm()),
)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("stacked", [True, False])
def test_remat_changes_what_is_kept_and_nothing_in_value_and_gradient_dropout_included(close, normal, filled, stacked):
    x, weight = normal(B, T, D), normal(B, T, D, seed=1)
    products, results = {}, {}
    for remat in ("nothing", "products", "everything") if stacked else ("nothing", "everything"):
        config = Stack((Group(2, DROPPED, remat=remat),))
        build = {"training": True, "backend": "reference", "stacked": stacked}
        params = filled(config.make(Build(D, stacked=stacked)), x, Context())["params"]
        step = scalar(config.make(Build(D, **build)), x, weight)
        results[remat] = step(params, x, KEY)
        products[remat] = count_products(jax.make_jaxpr(step)(params, x, KEY).jaxpr)
        close(results[remat], results["nothing"])
    assert products["nothing"] < products.get("products", np.inf) != products["everything"] > products["nothing"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_unroll_changes_no_bit_of_value_and_gradient_dropout_included(normal, filled):
    # Where XLA optimises, gradients may differ in their last bit: it fuses a body that is not in a loop otherwise.
    x, weight = normal(B, T, D), normal(B, T, D, seed=1)
    config = Stack((Group(3, DROPPED[1:]), Group(2, DROPPED[:1], share=True)))
    params = filled(config.make(Build(D)), x, Context())["params"]
    once, at_once = (run(config, params, x, weight, unroll=unroll, training=True) for unroll in (1, 0))
    jax.tree.map(np.testing.assert_array_equal, once, at_once)


def test_unroll_changes_no_bit_of_the_value_where_xla_optimises(normal, filled):
    x, config = normal(B, T, D), Stack((Group(3, (ATTENTION, MLP)),))
    params = filled(config.make(Build(D)), x, Context())["params"]
    once, at_once = (jax.jit(config.make(Build(D, unroll=unroll)).apply)({"params": params}, x, Context())[0] for unroll in (1, 0))
    np.testing.assert_array_equal(once, at_once)


@pytest.mark.usefixtures("quick_compile")
def test_layers_of_a_scanned_group_draw_dropout_of_their_own(normal, filled):
    config = Stack((Group(2, (Residual(Dense(11, dropout=0.5)),)),))
    module, x = config.make(Build(D, training=True)), normal(1, 1, D)
    params = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), filled(config.make(Build(D)), x, Context())["params"])  # both layers alike
    apply = jax.jit(partial(module.apply, mutable=["intermediates"]))
    ((y, _), state) = apply({"params": params}, x, Context(), rngs={"dropout": jax.random.key(0)})
    (stream,) = state["intermediates"]["groups_0"]["layers"]["residual"]
    again = apply({"params": params}, stream[0], Context(), rngs={"dropout": jax.random.key(0)})[1]["intermediates"]["groups_0"]["layers"]["residual"][0]
    np.testing.assert_array_equal(stream[1], y)
    assert not np.allclose(again[0], stream[1])  # the second layer did not draw what the first one draws


def test_num_heads_of_a_stack_is_that_of_its_mixers():
    assert Stack((Group(2, (ATTENTION, MLP)),)).num_heads == 2
