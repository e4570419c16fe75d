"""`generate` and `stream` against each other, and against the full forward pass repeated token by token."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import generate, stream, unstacked
from transformer_jax.generation import Sampling
from transformer_jax.layers import (
    Attention,
    Causal,
    Dense,
    Embedding,
    Gated,
    Group,
    LanguageModel,
    Learned,
    NoHead,
    Residual,
    RMSNorm,
    Rope,
    SlidingWindow,
    Stack,
)
from transformer_jax.layers.scores import RelativeBias
from transformer_jax.models import DecoderOnly, DecoderOnlyConfig, EncoderOnlyConfig

pytestmark = pytest.mark.usefixtures("quick")

V, LONGEST = 17, 13
GREEDY = Sampling(0.0)


def rotary() -> DecoderOnly:
    attention = Residual(Attention(4, num_kv_heads=2, mask=Causal(), position=Rope()), pre=RMSNorm())
    stack = Stack((Group(2, (attention, Residual(Dense(13), pre=RMSNorm()))),), final_norm=RMSNorm())
    return DecoderOnlyConfig(V, d_model=16, max_length=LONGEST, stack=stack, head=LanguageModel(tied=False)).make()


def learned() -> DecoderOnly:
    """Positions that count, a window, a table of the stack's, two groups, a shared one."""
    attention = Residual(Attention(2, mask=Causal() & SlidingWindow(5), qkv_bias=True), pre=RMSNorm())
    groups = (Group(1, (attention,)), Group(2, (attention, Residual(Gated(11))), share=True))
    stack = Stack(groups, score=(RelativeBias(8, max_distance=16),))
    head, embedding = LanguageModel(tied=False, bias=True), Embedding(Learned())
    return DecoderOnlyConfig(V, d_model=16, max_length=LONGEST, stack=stack, head=head, embedding=embedding).make()


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Compiles without most optimisations, which is most of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", params=[rotary, pytest.param(learned, marks=pytest.mark.slow)], ids=["rotary", "learned"])
def trained(request: pytest.FixtureRequest, filled: Callable[..., Any]) -> tuple[DecoderOnly, Any]:
    module = request.param()
    return module, filled(module, jnp.zeros((1, LONGEST), jnp.int32))


@pytest.fixture(scope="module")
def one(filled: Callable[..., Any]) -> tuple[DecoderOnly, Any]:
    return unstacked(rotary(), filled(rotary(), jnp.zeros((1, LONGEST), jnp.int32)))


def prompts(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(V, size=(batch, length))


def full_pass(model: DecoderOnly, variables: Any, prompt: np.ndarray, count: int) -> np.ndarray:
    """The likeliest tokens, from a pass over the whole window for each; a full window makes place by keeping its last half."""
    apply = jax.jit(model.apply)
    text, start = prompt, 0
    for _ in range(count):
        window = text[:, start:]
        logits = apply(variables, np.pad(window, ((0, 0), (0, LONGEST - window.shape[1]))))  # what follows a token does not change it
        text = np.append(text, np.asarray(logits)[:, window.shape[1] - 1].argmax(-1)[:, None], 1)
        if window.shape[1] == LONGEST:
            start = text.shape[1] - LONGEST // 2
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize(("length", "count"), [(1, LONGEST), (LONGEST, 25)], ids=["within", "many windows"])
def test_greedy_is_the_full_pass_repeated(trained: tuple[DecoderOnly, Any], length: int, count: int) -> None:
    prompt = prompts(3, length)
    expected = full_pass(*trained, prompt, count)
    np.testing.assert_array_equal(generate(*trained, prompt, count, sampling=GREEDY), expected)
    assert len(np.unique(expected)) > 3  # no test of a constant


def test_a_stream_of_one_layout_gives_the_tokens_that_the_other_generates(trained: tuple[DecoderOnly, Any]) -> None:
    how: dict[str, Any] = {"key": jax.random.key(5), "sampling": Sampling(2.0, top_k=5, top_p=0.9)}
    whole = np.asarray(generate(*trained, prompts(2, LONGEST - 1), 30, **how))
    pieces = list(stream(*unstacked(*trained), prompts(2, LONGEST - 1), 30, **how))
    assert whole.shape == (2, 30) and whole.dtype == np.int32
    assert all(piece.shape == (2,) and piece.dtype == np.int32 for piece in pieces)
    np.testing.assert_array_equal(np.stack(pieces, 1), whole)


def test_a_padded_prompt_is_continued_as_it_is_alone(trained: tuple[DecoderOnly, Any]) -> None:
    """Three prompts of 1, 4 and 6 tokens, with arbitrary tokens for padding, as long as the window holds them."""
    batch, valid = prompts(3, 6), np.arange(6) >= np.array([[5], [2], [0]])
    count = LONGEST - 6 + 1
    together = np.asarray(generate(*trained, batch, count, sampling=GREEDY, valid=valid))
    pieces = list(stream(*trained, batch, count, sampling=GREEDY, valid=valid))
    np.testing.assert_array_equal(np.stack(pieces, 1), together)
    for row, length in enumerate((1, 4, 6)):
        np.testing.assert_array_equal(together[row], full_pass(*trained, batch[row : row + 1, 6 - length :], count)[0])
    assert np.any(together != np.asarray(generate(*trained, batch, count, sampling=GREEDY)))


def test_padding_is_no_part_of_the_text_after_the_window_has_moved(one: tuple[DecoderOnly, Any]) -> None:
    batch, valid = prompts(2, 11), np.arange(11) >= np.array([[10], [3]])
    other = np.where(valid, batch, 0)
    first, second = (generate(*one, tokens, 30, sampling=GREEDY, valid=valid) for tokens in (batch, other))
    np.testing.assert_array_equal(first, second)


def test_after_the_stop_comes_nothing_else_and_the_stream_ends(one: tuple[DecoderOnly, Any]) -> None:
    how: dict[str, Any] = {"key": jax.random.key(1), "sampling": Sampling(3.0)}
    free = np.asarray(generate(*one, prompts(3, 4), 60, **how))
    assert all((row == 2).any() for row in free)
    stopped = np.asarray(generate(*one, prompts(3, 4), 60, stop=2, **how))
    ends = [int((row == 2).argmax()) for row in free]
    for row, (mine, end) in enumerate(zip(stopped, ends)):
        np.testing.assert_array_equal(mine[: end + 1], free[row, : end + 1])
        assert (mine[end:] == 2).all()
    pieces = list(stream(*one, prompts(3, 4), 60, stop=2, **how))
    np.testing.assert_array_equal(np.stack(pieces, 1), stopped[:, : max(ends) + 1])


def test_the_first_of_several_stops_ends_a_text_and_all_after_it_are_the_first_named(one: tuple[DecoderOnly, Any]) -> None:
    how: dict[str, Any] = {"key": jax.random.key(1), "sampling": Sampling(3.0)}
    free = np.asarray(generate(*one, prompts(3, 4), 60, **how))
    ends = [int(np.isin(row, (7, 2, 11)).argmax()) for row in free]
    assert len({int(row[end]) for row, end in zip(free, ends)}) > 1  # not all texts meet the same one
    stopped = np.asarray(generate(*one, prompts(3, 4), 60, stop=(7, 2, 11), **how))
    for row, (mine, end) in enumerate(zip(stopped, ends)):
        np.testing.assert_array_equal(mine[: end + 1], free[row, : end + 1])
        assert (mine[end + 1 :] == 7).all()
    pieces = list(stream(*one, prompts(3, 4), 60, stop=(7, 2, 11), **how))
    np.testing.assert_array_equal(np.stack(pieces, 1), stopped[:, : max(ends) + 1])


def test_a_stop_beyond_the_vocabulary_and_an_empty_tuple_of_stops_end_nothing(one: tuple[DecoderOnly, Any]) -> None:
    free, beyond, none = (np.asarray(generate(*one, prompts(2, 4), 9, sampling=GREEDY, stop=stop)) for stop in (None, (50256,), ()))
    np.testing.assert_array_equal(beyond, free)
    np.testing.assert_array_equal(none, free)


def test_what_is_never_drawn_is_in_no_text(one: tuple[DecoderOnly, Any]) -> None:
    free = np.asarray(generate(*one, prompts(2, 4), 20, sampling=GREEDY))
    never = tuple(sorted({int(token) for token in free.ravel()}))[:3]
    other = np.asarray(generate(*one, prompts(2, 4), 20, sampling=Sampling(0.0, never=never)))
    assert not np.isin(other, never).any()
    np.testing.assert_array_equal(np.stack(list(stream(*one, prompts(2, 4), 20, sampling=Sampling(0.0, never=never))), 1), other)


@pytest.mark.parametrize(("call", "batch"), [(generate, 5), (lambda *args, **how: np.stack(list(stream(*args, **how)), 1), 7)], ids=["generate", "stream"])
def test_a_cache_has_as_many_slots_as_the_text_will_have_tokens_and_holds_the_same_text(
    trained: tuple[DecoderOnly, Any], call: Callable[..., Any], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A length is noted when a program for it is traced, so once; a batch of its own has a test meet no program of another's."""
    made: dict[int, int] = {}
    init_cache = DecoderOnly.init_cache

    def noted(model: DecoderOnly, batch: int, length: int) -> Any:
        made.setdefault(length, count)
        return init_cache(model, batch, length)

    monkeypatch.setattr(DecoderOnly, "init_cache", noted)
    prompt = prompts(batch, 3, seed=4)
    expected = full_pass(*trained, prompt, 24)
    for count in (1, 4, LONGEST - 3, LONGEST - 2, LONGEST - 1, 24):
        np.testing.assert_array_equal(call(*trained, prompt, count, sampling=GREEDY), expected[:, :count])
    assert made == {4: 1, 7: 4, LONGEST: LONGEST - 3}


def test_the_key_alone_decides_and_more_tokens_change_none_before_them(one: tuple[DecoderOnly, Any]) -> None:
    short, again, long, other = (
        np.asarray(generate(*one, prompts(2, 4), count, key=jax.random.key(seed))) for seed, count in ((1, 12), (1, 12), (1, 31), (2, 12))
    )
    np.testing.assert_array_equal(short, again)
    np.testing.assert_array_equal(short, long[:, :12])
    assert np.any(short != other)


def test_a_stream_starts_before_it_is_done(one: tuple[DecoderOnly, Any]) -> None:
    endless = stream(*one, prompts(1, 4), 10**9, key=jax.random.key(1))
    assert next(endless).shape == (1,) and next(endless).shape == (1,)


def test_it_works_inside_jit_and_without_a_key_where_nothing_is_drawn(one: tuple[DecoderOnly, Any]) -> None:
    model, variables = one
    inside = jax.jit(lambda variables, tokens: generate(model, variables, tokens, 5, sampling=GREEDY))(variables, jnp.asarray(prompts(2, 4), jnp.int32))
    np.testing.assert_array_equal(inside, generate(*one, prompts(2, 4), 5, sampling=GREEDY))


def test_a_model_that_gives_no_logits_of_next_tokens_is_refused(one: tuple[DecoderOnly, Any]) -> None:
    model, variables = one
    without = {"params": {name: part for name, part in variables["params"].items() if name != "head"}}
    with pytest.raises(ValueError, match=r"model\.head: expected one that gives logits, such as LanguageModel\(\), .* received NoHead\(\)"):
        generate(model.config.replace(head=NoHead()).make(stacked=model.stacked), without, prompts(1, 3), 2, sampling=GREEDY)
    fields = {field: getattr(model.config, field) for field in ("d_model", "max_length", "stack")}
    with pytest.raises(ValueError, match="model: expected one that writes, a DecoderOnly or EncoderDecoder, received EncoderOnly"):
        generate(EncoderOnlyConfig(V, **fields).make(), variables, prompts(1, 3), 2, sampling=GREEDY)


@pytest.mark.parametrize("call", [generate, stream], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("tokens", "change", "message"),
    [
        (np.zeros((1, 14), int), {}, r"tokens: expected a prompt of 1 to 13 tokens \(max_length\), received 14; give its end: tokens\[:, -13:\]"),
        (np.zeros((1, 0), int), {}, "tokens: expected a prompt of 1 to 13 tokens .*received 0"),
        (np.zeros(3, int), {}, r"tokens: expected integers of shape \[B, T\], received int.. \(3,\)"),
        (np.zeros((1, 3)), {}, r"tokens: expected integers of shape \[B, T\], received float.. \(1, 3\)"),
        (np.array([[0, 17, 3]]), {}, "tokens: expected tokens of the vocabulary, 0 to 16, received 0 to 17"),
        (np.array([[0, -1, 3]]), {}, "tokens: expected tokens of the vocabulary, 0 to 16, received -1 to 3"),
        (np.zeros((1, 3), int), {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, received 0"),
        (np.zeros((1, 3), int), {"key": None}, r"key: expected a jax\.random\.key, received None; give one, or Sampling\(temperature=0\)"),
        (np.zeros((2, 3), int), {"valid": np.ones((1, 3), bool)}, r"valid: expected the shape of tokens, \(2, 3\), received \(1, 3\)"),
        (np.zeros((2, 3), int), {"valid": np.array([[0, 1, 1], [1, 1, 0]])}, "valid: expected padding on the left"),
    ],
    ids=["long", "empty", "flat", "floats", "beyond", "negative", "none", "key", "valid's shape", "padding"],
)
def test_what_cannot_be_continued_is_refused_at_once(
    one: tuple[DecoderOnly, Any], call: Callable[..., Any], tokens: np.ndarray, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(*one, tokens, **{"max_new_tokens": 3, "key": jax.random.key(0), **change})
