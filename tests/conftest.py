"""What all tests share: profiles of hypothesis, arrays, and one table of tolerances.

HYPOTHESIS_PROFILE=large looks at many more examples, and at others each time.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=10, database=None)
hypothesis.settings.register_profile("large", deadline=None, max_examples=200)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    """Short tests compile in two thirds of the time: this jaxlib has an older way to emit fused loops, which changes last bits.

    Long tests, those of bits among them, compile as users do; so does the run in 64 bits. Later jaxlibs do not know the flag, and have an interpreter of GPU
    kernels, which needs a thread for each warpgroup.
    """
    if jax.__version_info__[:2] == (0, 10) and "not slow" in config.option.markexpr and not jax.config.read("jax_enable_x64"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    if jax.__version_info__ >= (0, 11):
        os.environ.setdefault("NPROC", "16")


# The largest error allowed, as a share of the largest number in the array.
TOLERANCES = {"float64": 1e-11, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """`close(actual, expected)`: arrays or trees of them are finite and equal but for rounding in actual's dtype.

    An array of a tree that is nearly zero throughout is measured by a tenth of the tree's largest number. `times` allows for more steps of rounding.
    """

    def check(actual: Any, expected: Any, *, times: float = 1.0) -> None:
        pairs = jax.tree.leaves(jax.tree.map(lambda a, b: _Pair(a, b), actual, expected))
        floor = 0.1 * max(pair.largest for pair in pairs)
        for pair in pairs:
            pair.check(times, floor)

    return check


class _Pair:
    def __init__(self, actual: Any, expected: Any) -> None:
        self.dtype = jnp.result_type(actual).name
        self.actual, self.expected = (np.asarray(a, np.float64) for a in (actual, expected))
        self.largest = np.abs(self.expected).max(initial=0)

    def check(self, times: float, floor: float) -> None:
        assert self.actual.shape == self.expected.shape
        assert np.isfinite(self.expected).all()
        allowed = TOLERANCES[self.dtype] * times * max(self.largest, floor)
        np.testing.assert_allclose(self.actual, self.expected, rtol=0, atol=allowed)


@pytest.fixture(scope="session")
def normal() -> Callable[..., jax.Array]:
    """`normal(*shape, seed=0, dtype="float32")`: numbers from numpy's generator."""

    def draw(*shape: int, seed: int = 0, dtype: Any = "float32") -> jax.Array:
        return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)

    return draw


@pytest.fixture(scope="session")
def filled() -> Callable[..., Any]:
    """`filled(module, *args, seed=0, **kwargs)`: variables for a module, all of them random, so that what starts at 0 or 1 counts too. Compiles nothing."""

    def fill(module: Any, *args: Any, seed: int = 0, **kwargs: Any) -> Any:
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes)

    return fill


@pytest.fixture(scope="session")
def shapes_in() -> Callable[[Any], set[tuple[int, ...]]]:
    """`shapes_in(closed_jaxpr)`: the shapes of all arrays in a program and in the programs inside it."""
    kinds = jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr

    def shapes(program: Any) -> set[tuple[int, ...]]:
        equations = getattr(program, "jaxpr", program).eqns
        found = {v.aval.shape for eqn in equations for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "shape")}
        inside = jax.tree.leaves([eqn.params for eqn in equations], is_leaf=lambda x: isinstance(x, kinds))
        return found.union(*(shapes(x) for x in inside if isinstance(x, kinds)))

    return shapes


GOLDENS = Path(__file__).parent / "zoo" / "goldens"
TEXT = "to be or not the question that is \n"
BEGIN, END = "<s>", "</s>"


@pytest.fixture(scope="session")
def published() -> Callable[..., Path]:
    """`published(folder, "llama", eos_token_id=[2, 14])`: a golden's model in a folder as it is published, with a tokenizer.json of its family's kind.

    There is a generation_config.json where fields of it are given. Texts are of the words of TEXT; of the golden's 61 tokens the tokenizer uses the first.
    """

    def make(folder: Path, case: str, **generation: Any) -> Path:
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(GOLDENS / case / name, folder / name)
        family = case.partition("-")[0]
        (_word_pieces if family == "bert" else _ended_pieces if family in ("t5", "marian") else _begun_bytes)().save(str(folder / "tokenizer.json"))
        if generation:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return make


def _begun_bytes() -> tokenizers.Tokenizer:
    """Byte pairs, with a token before a whole text; bytes that TEXT lacks are left out."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=61, initial_alphabet=[], special_tokens=["<unk>", BEGIN, END], show_progress=False))
    library.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    return library


def _word_pieces() -> tokenizers.Tokenizer:
    """BERT's kind, with a token on either side of a whole text."""
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer, library.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=61, special_tokens=special, show_progress=False))
    library.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return library


def _ended_pieces() -> tokenizers.Tokenizer:
    """T5's kind, with a token behind a whole text."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    library.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=60, special_tokens=["<pad>", END], show_progress=False))
    library.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return library


@pytest.fixture
def quick_compile() -> Iterator[None]:
    """Compiles without XLA's optimisations: for tests of values, not of bits or speed."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
