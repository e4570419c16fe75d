import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import lookup
from transformer_jax.layers import Attention, Build, Causal, Context, LearnedScore, NoMask, Parameter, RelativeBias, Score
from transformer_jax.layers.scores.alibi import alibi_slopes
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, D, N = 2, 23, 19, 3
DISTANCE = np.arange(T)[None] - np.arange(T)[:, None]  # k - q


def test_alibi_slopes_are_the_published_ones_for_8_heads():
    np.testing.assert_array_equal(alibi_slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256])


def test_alibi_slopes_for_12_heads_are_those_of_8_and_every_second_one_of_16():
    published = [
        0.5,
        0.25,
        0.125,
        0.0625,
        0.03125,
        0.015625,
        0.0078125,
        0.00390625,
        0.7071067811865476,
        0.35355339059327384,
        0.17677669529663692,
        0.08838834764831849,
    ]
    np.testing.assert_allclose(alibi_slopes(12), published, rtol=1e-7)


@pytest.mark.parametrize("heads", [1, 2, 3, 7, 16, 40])
def test_there_is_one_positive_slope_a_head_and_no_two_are_alike(heads):
    slopes = alibi_slopes(heads)
    assert slopes.shape == (heads,)
    assert slopes.min() > 0
    assert len(set(slopes.tolist())) == heads


def t5_bucket(relative: int, *, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """T5's bucket of k - q, one pair at a time."""
    start = 0
    if bidirectional:
        buckets //= 2
        start = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    grown = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact))
    return start + min(grown, buckets - 1)


def attention_with(bias, params, x, allowed):
    """Attention whose scores have `bias [N, T, S]` added, by einsum; differentiable."""
    q, k, v = (jnp.einsum("btd,dnh->btnh", x, params[name]["kernel"], precision="highest") for name in ("query", "key", "value"))
    s = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") * q.shape[-1] ** -0.5 + bias
    o = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(allowed, s, -jnp.inf)), v, precision="highest")
    return jnp.einsum("btnh,nhd->btd", o, params["out"]["kernel"], precision="highest")


def value_and_gradients(f, weight):
    def run(params, x):
        y, pull = jax.vjp(f, params, x)
        return y, pull(weight)

    return jax.jit(run)


def compare(close, normal, filled, score, bias_of, mask, allowed):
    """The layer with a score and attention with the bias that it stands for: values, and gradients down to the score's parameters."""
    module = Attention(N, mask=mask, head_dim=5, score=(score,)).make(Build(D))
    x, weight = normal(B, T, D), normal(B, T, D, seed=1)
    params = filled(module, x, Context())["params"]
    ours = value_and_gradients(lambda params, x: module.apply({"params": params}, x, Context()), weight)(params, x)
    theirs = value_and_gradients(lambda params, x: attention_with(bias_of(params["scores_0"]), params, x, allowed), weight)(params, x)
    assert np.abs(jax.tree.leaves(ours[1][0]["scores_0"])[0]).max() > 1e-3
    close(ours, theirs, times=3)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_relative_bias_adds_the_table_at_t5_s_buckets_and_its_gradient_reaches_the_table(close, normal, filled, bidirectional):
    how = {"buckets": 8, "max_distance": 17, "bidirectional": bidirectional}
    which = np.vectorize(lambda r: t5_bucket(int(r), **how))(DISTANCE)
    assert len(set(which.ravel().tolist())) >= 7
    mask, allowed = (NoMask(), np.ones((T, T), bool)) if bidirectional else (Causal(), DISTANCE <= 0)
    compare(close, normal, filled, RelativeBias(8, max_distance=17, bidirectional=bidirectional), lambda p: p["table"][:, which], mask, allowed)


def wave(s, i, slope, table):
    return s + slope * (i.k - i.q) + lookup(table, (i.q - i.k) % 4)


@dataclass(frozen=True)
class Wave(LearnedScore):
    """A user's own score: a slope for each head, and a table of each head by distance modulo 4."""

    start: float = 0.5
    function = wave

    def parameters(self, num_heads):
        constant = lambda key, shape, dtype: jnp.full(shape, self.start, dtype)  # noqa: E731
        return {"slope": Parameter((num_heads,), "N", constant), "table": Parameter((num_heads, 4), "N")}


def test_a_user_s_function_of_learned_arrays_works_and_its_gradient_reaches_them(close, normal, filled):
    compare(
        close, normal, filled, Wave(),
        lambda p: p["slope"][:, None, None] * DISTANCE + p["table"][:, -DISTANCE % 4],
        Causal(), DISTANCE <= 0,
    )  # fmt: skip


def test_a_learned_score_s_arrays_start_as_it_says_in_the_dtype_of_parameters():
    module = Wave(0.25).make(Build(D, precision=Precision("bfloat16")), N)
    params = module.init(jax.random.key(0))["params"]
    assert {name: (a.shape, a.dtype.name) for name, a in params.items()} == {"slope": ((N,), "bfloat16"), "table": ((N, 4), "bfloat16")}
    assert (params["slope"] == 0.25).all() and (params["table"] == 0).all()


def test_a_base_class_says_what_its_subclass_must_define():
    @dataclass(frozen=True)
    class Nothing(Score):
        pass

    @dataclass(frozen=True)
    class Half(LearnedScore):
        function = wave

    with pytest.raises(NotImplementedError, match=r"Nothing must define make\(build, num_heads\)"):
        Nothing().make(Build(D), N)
    with pytest.raises(NotImplementedError, match=r"Half must define parameters\(num_heads\)"):
        Half().make(Build(D), N).init(jax.random.key(0))


@pytest.mark.parametrize("wrong", [{"buckets": 1}, {"buckets": 2, "bidirectional": True}, {"buckets": 8, "max_distance": 4}])
def test_buckets_that_leave_no_room_are_refused(wrong):
    with pytest.raises(ValueError, match="relative_bias: expected at least 2 buckets"):
        RelativeBias(wrong.pop("buckets"), **wrong)
