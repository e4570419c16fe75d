"""The objective against a plain loss on the model's logits, values and gradients, in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.layers import Attention, Causal, Dense, Group, LanguageModel, Residual, RMSNorm, Rope, Stack
from transformer_jax.models import DecoderOnly, DecoderOnlyConfig
from transformer_jax.precision import Precision
from transformer_jax.training import NextToken

V, D, T, B = 23, 10, 13, 3


def model(**head: Any) -> DecoderOnly:
    attention = Residual(Attention(5, mask=Causal(), position=Rope()), pre=RMSNorm())
    stack = Stack((Group(1, (attention, Residual(Dense(14)))),), final_norm=RMSNorm())
    config = DecoderOnlyConfig(V, d_model=D, max_length=T, stack=stack, head=LanguageModel(**head))
    return config.make(precision=Precision("float64", compute="float64"))


def batch(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {"tokens": jnp.asarray(rng.integers(V, size=(B, T + 1)), jnp.int32)}


def packed() -> dict[str, jax.Array]:
    """Two or three texts to a row, in places that differ, and padding at the end of the last row."""
    ends = [(5, 14), (3, 9, 14), (4, 10)]
    ids, positions = np.full((2, B, T + 1), [[[9]], [[0]]])
    for row, cuts in enumerate(ends):
        for n, (low, high) in enumerate(zip((0, *cuts), cuts)):
            ids[row, low:high], positions[row, low:high] = n, np.arange(high - low)
    tokens = np.where(ids == 9, -1, batch()["tokens"])
    return {"tokens": jnp.asarray(tokens, jnp.int32), "segment_ids": jnp.asarray(ids, jnp.int32), "positions": jnp.asarray(positions, jnp.int32)}


def plain(module: DecoderOnly, variables: Any, given: dict[str, jax.Array], smoothing: float, z_loss: float) -> jax.Array:
    """The mean loss of logits that are all there at once."""
    tokens = given["tokens"]
    more = {name: given[name][:, :-1] for name in ("segment_ids", "positions") if name in given}
    logits = module.apply(variables, jnp.where(tokens < 0, 0, tokens)[:, :-1], **more)
    counts = tokens[:, 1:] >= 0
    if "segment_ids" in given:
        counts &= given["segment_ids"][:, 1:] == given["segment_ids"][:, :-1]
    wanted = optax.smooth_labels(jax.nn.one_hot(tokens[:, 1:], V, dtype=jnp.float64), smoothing)
    loss = optax.softmax_cross_entropy(logits, wanted) + z_loss * jax.nn.logsumexp(logits, -1) ** 2
    return jnp.where(counts, loss, 0).sum() / counts.sum()


IGNORED = {"tokens": batch()["tokens"].at[0, 4:9].set(-1).at[2, 1:].set(-5)}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("given", "head", "options"),
    [
        (batch(), {}, {}),
        (IGNORED, {"tied": False, "bias": True}, {"label_smoothing": 0.13}),
        (packed(), {"softcap": 2.0}, {"z_loss": 0.017}),
        (packed(), {"bias": True}, {"label_smoothing": 0.3, "z_loss": 0.05}),
    ],
    ids=["plain", "ignored, smoothed", "packed, z-loss", "packed, both"],
)
def test_it_is_the_plain_loss_of_the_logits(
    given: dict[str, jax.Array], head: dict[str, Any], options: dict[str, float], filled: Callable[..., Any], close: Callable[..., None]
) -> None:
    with jax.enable_x64(True):
        module = model(**head)
        variables = filled(module, jnp.zeros((1, T), jnp.int32))
        smoothing, z_loss = options.get("label_smoothing", 0.0), options.get("z_loss", 0.0)
        expected = jax.jit(jax.value_and_grad(lambda v: plain(module, v, given, smoothing, z_loss)))(variables)

        def mean(variables: Any) -> Any:
            sums = NextToken(**options)(module, variables, given)
            return sums.total / sums.weight, sums

        (total, sums), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(variables)
        close((total, grads), expected)
        close(sums.nll / sums.weight, jax.jit(lambda v: plain(module, v, given, 0.0, 0.0))(variables))


@pytest.mark.usefixtures("quick")
def test_packed_texts_lose_as_much_as_each_alone(filled: Callable[..., Any]) -> None:
    with jax.enable_x64(True):
        module, given = model(), packed()
        variables = filled(module, jnp.zeros((1, T), jnp.int32))
        loss = jax.jit(lambda given: NextToken()(module, variables, given))
        together = loss(given)
        nll = weight = 0.0
        for row in range(B):
            for segment in range(3):
                own = given["segment_ids"][row] == segment
                if own.sum() > 1:
                    text = np.asarray(given["tokens"])[row][own]
                    alone = loss({"tokens": np.pad(text, (0, T + 1 - len(text)), constant_values=-1)[None]})
                    nll, weight = nll + float(alone.nll), weight + float(alone.weight)
        assert float(together.weight) == weight == 13 - 1 + 14 - 3 + 10 - 2
        np.testing.assert_allclose(float(together.nll), nll, rtol=1e-12)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_a_rate_out_of_range_is_refused_where_it_is_written(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"NextToken\.label_smoothing: expected a rate in \[0, 1\), received {rate}"):
        NextToken(label_smoothing=rate)
