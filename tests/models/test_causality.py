import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

B, T, V = 2, 13, 29


def check(apply, variables):
    @given(seed=st.integers(0, 99), t=st.integers(0, T - 1), by=st.integers(1, V - 1))
    def one(seed, t, by):
        tokens = np.random.default_rng(seed).integers(0, V, (B, T)).astype("int32")
        other = tokens.copy()
        other[0, t] = (tokens[0, t] + by) % V
        before, after = (np.asarray(apply(variables, each)) for each in (tokens, other))
        np.testing.assert_array_equal(before[0, :t], after[0, :t])
        np.testing.assert_array_equal(before[1], after[1])
        assert (before[0, t] != after[0, t]).any()
        if t < T - 1:
            assert (before[0, t + 1] != after[0, t + 1]).any()

    one()


@pytest.mark.usefixtures("quick_compile")
def test_changing_a_token_changes_no_bit_of_the_logits_before_it_and_does_change_those_from_it_on(built, name):
    check(built(name).apply, built(name).variables)


def test_so_it_is_where_xla_optimises(built):
    m = built("gemma")
    check(jax.jit(lambda variables, tokens: m.model.apply(variables, tokens)), m.variables)
