import math

import jax
import numpy as np
import pytest

from transformer_jax.layers import (
    Attention,
    Causal,
    Dense,
    Embedding,
    Gated,
    GPT2Init,
    Group,
    Initialization,
    LanguageModel,
    LayerNorm,
    Learned,
    NormalInit,
    Parallel,
    Residual,
    RMSNorm,
    Stack,
    T5Init,
    XavierInit,
)
from transformer_jax.models import DecoderOnlyConfig

pytestmark = pytest.mark.usefixtures("quick_compile")
V, D, F, L = 101, 61, 89, 53
QUERY, KEY, DEPTH = 6 * 10, 2 * 10, 8  # features of all heads together; 3 * 2 + 2 * 1 sublayers

ATTENTION = Attention(6, mask=Causal(), num_kv_heads=2, head_dim=10, qkv_bias=True)
STACK = Stack(
    (
        Group(3, (Residual(ATTENTION, pre=LayerNorm()), Residual(Gated(F), pre=RMSNorm(offset=1.0)))),
        Group(2, (Residual(Parallel((ATTENTION, Dense(F))), pre=RMSNorm()),)),
    )
)
FANS = {
    "embedding": (V, D), "position": (L, D), "query": (D, QUERY), "key": (D, KEY), "value": (D, KEY), "attention_out": (QUERY, D), "gate": (D, F), "up": (D, F),
    "down": (F, D), "head": (D, V),
}  # fmt: skip


def same(stddev):
    return dict.fromkeys(FANS, stddev)


RECIPES = {
    "normal": (NormalInit(0.03), same(0.03)),
    "gpt2": (GPT2Init(0.03), {**same(0.03), "attention_out": 0.03 / math.sqrt(DEPTH), "down": 0.03 / math.sqrt(DEPTH)}),
    "xavier": (XavierInit(), {**{role: math.sqrt(2 / sum(fans)) for role, fans in FANS.items()}, "embedding": D**-0.5, "position": D**-0.5}),
    "t5": (T5Init(10), {**{role: fans[0] ** -0.5 for role, fans in FANS.items()}, "embedding": 1.0, "position": 1.0, "query": (D * 10) ** -0.5}),
}


def role_of(path: tuple[str, ...]) -> str:
    if path[0] == "head":
        return "head"
    if path[0] == "embedding":
        return "position" if "position" in path else "embedding"
    return {"out": "attention_out"}.get(path[-2], path[-2])


def arrays(recipe: Initialization):
    """Every parameter of a fresh model with its path; the layers of a group one by one."""
    config = DecoderOnlyConfig(V, d_model=D, max_length=L, stack=STACK, embedding=Embedding(Learned()), head=LanguageModel(tied=False), initialization=recipe)
    params = jax.jit(config.make().init)(jax.random.key(0, impl="rbg"), np.zeros((1, 2), np.int32))["params"]
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(key.key for key in path)
        for n, layer in enumerate(np.asarray(array, np.float64)) if "layers" in names else [(0, np.asarray(array, np.float64))]:
            yield (*names, n), layer


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_parameter_of_every_layer_has_the_spread_that_the_recipe_gives_its_role(recipe):
    init, stddevs = RECIPES[recipe]
    kernels, roles = [], set()
    for path, array in arrays(init):
        name = path[-2]
        if name == "bias":
            assert (array == 0).all(), path
        elif name == "scale":
            # LayerNorm and RMSNorm multiply by 1 at the start; with an offset of 1 what is stored is 0.
            offset = "groups_0" in path and "sublayers_1" in path
            assert (array == (0 if offset else 1)).all(), path
        else:
            role = role_of(path[:-1])
            roles.add(role)
            n = array.size
            assert abs(array.mean()) < 5 * stddevs[role] / math.sqrt(n), path
            np.testing.assert_allclose(array.std() / stddevs[role], 1, atol=5 / math.sqrt(2 * n), err_msg=str(path))
            if recipe == "xavier" and role not in ("embedding", "position"):
                limit = math.sqrt(3) * stddevs[role]
                assert 0.97 * limit < np.abs(array).max() <= limit, path
            kernels.append(array.ravel()[:20])
    assert roles == set(FANS)
    assert len({tuple(kernel) for kernel in kernels}) == len(kernels)  # no two arrays, and no two layers, start alike


@pytest.mark.parametrize("recipe", [init for init, _ in RECIPES.values()], ids=RECIPES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_recipe_draws_in_the_dtype_asked_for(recipe, dtype):
    for role in ("embedding", "query", "down"):
        assert jax.eval_shape(lambda role=role: recipe.kernel(role, 7, 5, 3)(jax.random.key(0), (7, 5), dtype)).dtype == dtype
