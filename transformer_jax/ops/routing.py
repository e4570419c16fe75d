"""Which experts work on a row, and how evenly they are used.

    M rows      E experts      k experts to a row
"""

import jax
import jax.numpy as jnp


def select_experts(
    choice: jax.Array, scores: jax.Array, top_k: int, *, groups: int = 1, top_groups: int = 1, group_best: int = 1, renormalise: bool = False,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The k experts of each row whose `choice` is largest, and their weights, which are made of `scores`.

        weight[m, j] = scale * scores[m, expert j] (/ (sum over the row's k experts + 1e-20), where renormalise)

    The experts may be in groups of E / groups that follow one another. Then only those of a row's `top_groups` best groups are chosen from; a group is as good
    as the sum of its `group_best` largest choices: 1 in DeepSeek-V2 (arXiv:2405.04434, section 2.1.3), 2 in DeepSeek-V3 (arXiv:2412.19437, section 2.1.2 and
    released code). Softmax over a row's k logits alone (Mixtral, arXiv:2401.04088, section 2.1) is softmax over all of them, renormalised.

    Args:
        choice: `[M, E]`, what is compared; derivatives do not go through it. Of equal ones the first counts as the larger.
        scores: `[M, E]`, float32 or float64.
        top_k: at most E * top_groups / groups.
        groups: a divisor of E.
        top_groups, group_best: see above.
        renormalise: whether the weights of a row sum to `scale`.
        scale: of the weights.

    Returns:
        weights `[M, k]` in the scores' dtype, and experts `[M, k]`, int32, best first.
    """
    M, E = choice.shape
    choice = jax.lax.stop_gradient(choice)
    if groups > 1:
        by_group = choice.reshape(M, groups, E // groups)
        best = jax.lax.top_k(by_group, min(group_best, E // groups))[0].sum(-1)
        allowed = jax.nn.one_hot(jax.lax.top_k(best, top_groups)[1], groups, dtype=bool).any(1)
        choice = jnp.where(allowed[:, :, None], by_group, -jnp.inf).reshape(M, E)
    experts = jax.lax.top_k(choice, top_k)[1]
    # A product with ones and zeros: on CPU the derivative of indexing is a loop over rows.
    weights = (jax.nn.one_hot(experts, E, dtype=scores.dtype) * scores[:, None]).sum(-1)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return scale * weights, experts


def load_balance_loss(probabilities: jax.Array, load: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """E * sum over experts of load[e] * (mean over rows of probabilities[m, e]): 1 where both are even, E where one expert does all.

    Switch's (Fedus et al., arXiv:2101.03961, equation 4), for any k: the load is a share of all rows' k choices, so that even use is 1 whatever k. The loss of
    Mixtral's released code, which adds up k shares that each sum to 1, is k times this one.

    Args:
        probabilities: `[M, E]`, rows sum to 1.
        load: `[E]`, see `expert_load`.
        valid: `[M]`, False at rows that do not count.
    """
    return load.shape[0] * (jax.lax.stop_gradient(load) * _mean(probabilities, valid)).sum()


def router_z_loss(logits: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """The mean over rows of (log sum over experts of exp(logits[m, e]))^2 (Zoph et al., arXiv:2202.08906, equation 5).

    Args:
        logits: `[M, E]`, float32 or float64.
        valid: `[M]`, False at rows that do not count.
    """
    return _mean(jax.nn.logsumexp(logits, -1) ** 2, valid)


def expert_load(sizes: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Each expert's share of all choices, `[E]`, given how many it has; 0 where there are none at all."""
    return sizes.astype(dtype) / jnp.maximum(sizes.sum(), 1).astype(dtype)


def _mean(a: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Over the rows that count; 0 where none does."""
    if valid is None:
        return a.mean(0)
    counts = valid.reshape(-1, *[1] * (a.ndim - 1))
    return jnp.where(counts, a, 0).sum(0) / jnp.maximum(valid.sum(), 1).astype(a.dtype)
