"""`scripts/sample.py` writes what `stream` gives, as it comes, and answers to what cannot be sampled from."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax import from_pretrained, generate
from transformer_jax.checkpoints import published_vocabulary
from transformer_jax.generation import Sampling
from transformer_jax.training import load_run

TINY = Path("runs") / "tiny"


def test_it_writes_the_text_that_generate_gives_the_same_for_the_same_seed(finished: Path, inside: Callable[..., Any]) -> None:
    flags = ["--max-new-tokens", "40", "--temperature", "0.8", "--top-k", "5", "--seed", "1"]
    done = inside("sample.py", str(finished / TINY), "--prompt", "to be ", *flags)
    model, variables, vocabulary = load_run(finished / TINY)
    new = generate(model, variables, vocabulary.encode("to be ")[None], 40, key=jax.random.key(1), sampling=Sampling(0.8, top_k=5))
    assert (done.code, done.err) == (0, "")
    assert done.out == "to be " + vocabulary.decode(np.asarray(new[0])) + "\n"
    assert inside("sample.py", str(finished / TINY), "--prompt", "to be ", *flags) == done
    assert inside("sample.py", str(finished / TINY), "--prompt", "to be ", *flags[:-1], "2").out != done.out


def test_the_text_comes_in_pieces_while_it_is_written(finished: Path, start: Callable[..., Any]) -> None:
    """It would take hours to write all that is asked for; the first pieces are there at once."""
    process = start(finished, "sample.py", str(TINY), "--prompt", "to be ", "--max-new-tokens", "100000000")
    try:
        pieces: list[bytes] = []
        while len(b"".join(pieces)) < 50:
            pieces.append(os.read(process.stdout.fileno(), 4096))
            assert pieces[-1], process.stderr.read()
        assert b"".join(pieces).startswith(b"to be ") and len(pieces) > 2
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_temperature_zero_needs_no_luck(finished: Path, inside: Callable[..., Any]) -> None:
    first, second = (inside("sample.py", str(finished / TINY), "--temperature", "0", "--max-new-tokens", "20", "--seed", seed) for seed in "12")
    assert first == second and first.code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "to be or not "], "sample.py: error: --prompt: expected 1 to 12 tokens (the model's max_length), received 13; give the end of it"),
        (["--prompt", ""], "sample.py: error: --prompt: expected 1 to 12 tokens (the model's max_length), received 0"),
        (["--max-new-tokens", "0"], "sample.py: error: max_new_tokens: expected at least 1, received 0"),
        (["--temperature", "-1"], "sample.py: error: temperature: expected a number of at least 0, received -1.0"),
        (["--top-p", "2"], "sample.py: error: top_p: expected a probability in (0, 1], received 2.0"),
        (["--import", "nowhere.py"], "sample.py: error: no such file: nowhere.py"),
        (["--tempature", "1"], "--temperature"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_flags_that_cannot_work_are_answered(finished: Path, inside: Callable[..., Any], flags: list[str], message: str) -> None:
    done = inside("sample.py", str(finished / TINY), *flags)
    assert done.code in (1, 2) and done.out == "" and message in done.err and "Traceback" not in done.err


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "run: there is no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "run: expected the folder of a run, received one without config.json"),
        (write("config.json", '{"type": '), "config.json: not JSON"),
        (write("config.json", '{"type": "transformer_jax.data.text:Text"}'), "config.json: expected a Experiment, received Text"),
        (write("tokenizer.json", "{"), "tokenizer.json: expected a vocabulary, as Vocabulary.save writes it, received a file that is none"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "run: there is no checkpoint yet; go on training with --resume"),
    ],
    ids=["no folder", "no config", "half a config", "another config", "half a vocabulary", "no vocabulary", "no checkpoint"],
)
def test_a_folder_that_is_no_run_is_answered(
    finished: Path, tmp_path: Path, inside: Callable[..., Any], damage: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(finished / TINY, tmp_path / "run")
    damage(tmp_path / "run")
    done = inside("sample.py", str(tmp_path / "run"), "--max-new-tokens", "1")
    assert done.code == 1 and done.out == "" and done.err.startswith("sample.py: error: ") and message in done.err and done.err.count("\n") == 1


def test_without_a_folder_the_usage_is_shown(inside: Callable[..., Any]) -> None:
    done = inside("sample.py")
    assert done.code == 2 and "such as runs/char_lm" in done.err


@pytest.fixture
def quick() -> Iterator[None]:
    """Compiles without most optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def likeliest(folder: Path, prompt: str, count: int, **how: Any) -> str:
    """The text of a decoder, token by token."""
    model, variables = from_pretrained(folder)
    vocabulary = published_vocabulary(folder, model.config.vocab_size)
    tokens = np.asarray(generate(model, variables, vocabulary.encode_whole(prompt)[None], count, sampling=Sampling(0.0, **how)))[0]
    return vocabulary.decode(token for token in tokens if token < vocabulary.vocab_size)


@pytest.mark.usefixtures("quick")
def test_a_published_decoder_goes_on_with_the_likeliest_tokens_behind_the_one_that_begins_a_text(
    tmp_path: Path, published: Callable[..., Path], inside: Callable[..., Any]
) -> None:
    folder = published(tmp_path / "llama", "llama")
    done = inside("sample.py", str(folder), "--prompt", "to be", "--max-new-tokens", "12")
    assert (done.code, done.err) == (0, "") and done.out == f"to be{likeliest(folder, 'to be', 12)}\n"
    assert done == inside("sample.py", str(folder), "--prompt", "to be", "--max-new-tokens", "12", "--seed", "1")
    drawn = {inside("sample.py", str(folder), "--prompt", "to be", "--max-new-tokens", "12", "--temperature", "3", "--seed", seed).out for seed in "123"}
    assert len(drawn) == 3


@pytest.mark.usefixtures("quick")
def test_generation_config_says_how_long_with_what_end_and_without_which_tokens(
    tmp_path: Path, published: Callable[..., Path], inside: Callable[..., Any]
) -> None:
    free = published(tmp_path / "free", "llama")
    model, variables = from_pretrained(free)
    vocabulary = published_vocabulary(free, 61)
    prompt = vocabulary.encode_whole("to be")[None]
    plain = np.asarray(generate(model, variables, prompt, 20, sampling=Sampling(0.0)))[0].tolist()
    bad = int(plain[0])
    other = np.asarray(generate(model, variables, prompt, 20, sampling=Sampling(0.0, never=(bad,))))[0].tolist()
    end = next(token for n, token in enumerate(other) if n > 1 and token not in other[:n])
    assert bad not in other

    folder = published(tmp_path / "said", "llama", eos_token_id=[60, end], bad_words_ids=[[bad], [6, 7]], max_new_tokens=20, num_beams=4, min_length=0)
    done = inside("sample.py", str(folder), "--prompt", "to be")
    until = other[: min(other.index(token) for token in (60, end) if token in other)]
    assert done.code == 0 and done.out == "to be" + vocabulary.decode(t for t in until if t < vocabulary.vocab_size) + "\n"
    assert done.err == (
        f"sample.py: note: {folder}: num_beams = 4 is not done here\nsample.py: note: {folder}: bad_words_ids = [[6, 7]] is not done here\n"
    )
    short = published(tmp_path / "short", "llama", max_new_tokens=3)
    assert inside("sample.py", str(short), "--prompt", "to be").out == f"to be{likeliest(short, 'to be', 3)}\n"


@pytest.mark.usefixtures("quick")
def test_a_published_encoder_decoder_reads_the_prompt_and_writes_its_own_text(
    tmp_path: Path, published: Callable[..., Path], inside: Callable[..., Any]
) -> None:
    folder = published(tmp_path / "marian", "marian")
    model, variables = from_pretrained(folder)
    vocabulary = published_vocabulary(folder, 61)
    source = vocabulary.encode_whole("to be")
    assert source[-1] == 1
    new = np.asarray(generate(model, variables, np.full((1, 1), 60), 6, sampling=Sampling(0.0), source=source[None]))[0]
    assert not (new == 0).any() and (new < vocabulary.vocab_size).any()
    done = inside("sample.py", str(folder), "--prompt", "to be", "--max-new-tokens", "6")
    assert done.code == 0 and done.out == vocabulary.decode(t for t in new if t < vocabulary.vocab_size) + "\n"
    assert done.err == f"sample.py: note: {folder}: forced_eos_token_id = 0 is not done here\n"


@pytest.mark.parametrize(
    ("case", "damage", "message"),
    [
        ("bert", lambda folder: None, "expected a model that writes text, received an EncoderOnly; take a decoder or an encoder-decoder"),
        ("t5", lambda folder: None, "expected a token that begins what the model writes, decoder_start_token_id in generation_config.json or config.json"),
        ("llama", write("generation_config.json", "{"), "generation_config.json: expected JSON, received a file that is none: "),
        ("llama", write("generation_config.json", "[1]"), "generation_config.json: expected an object, received list"),
        ("llama", write("generation_config.json", '{"max_new_tokens": 0}'), "max_new_tokens: expected an integer of at least 1, received 0; mend it or take"),
        ("llama", write("generation_config.json", '{"bad_words_ids": [5]}'), "bad_words_ids: expected a list of lists of tokens, received [5]; mend it or"),
        ("llama", write("tokenizer.json", "{"), "tokenizer.json: expected a vocabulary, as Vocabulary.save writes it, received a file that is none"),
        ("llama", lambda folder: (folder / "tokenizer.json").unlink(), "expected a tokenizer.json beside config.json, received a folder without"),
        ("llama", lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        ("llama", write("config.json", '{"model_type": "clip"}'), "config.json: model_type: expected one of bart, "),
    ],
    ids=["encoder", "no begin", "half", "list", "no length", "bad words", "half a vocabulary", "no vocabulary", "no weights", "another family"],
)
def test_a_published_folder_that_cannot_be_sampled_from_is_answered_in_one_line(
    tmp_path: Path, published: Callable[..., Path], inside: Callable[..., Any], case: str, damage: Callable[[Path], Any], message: str
) -> None:
    folder = published(tmp_path / case, case)
    damage(folder)
    done = inside("sample.py", str(folder), "--prompt", "to be", "--max-new-tokens", "1")
    assert done.code == 1 and done.out == "" and done.err.startswith("sample.py: error: ") and message in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-new-tokens", "0"], "sample.py: error: max_new_tokens: expected at least 1, received 0\n"),
        (["--prompt", 40 * "to be "], "sample.py: error: --prompt: expected 1 to 64 tokens (the model's max_length), received "),
        (["--temperature", "-1"], "sample.py: error: temperature: expected a number of at least 0, received -1.0\n"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_flags_that_cannot_work_with_a_published_folder_are_answered(
    tmp_path: Path, published: Callable[..., Path], inside: Callable[..., Any], flags: list[str], message: str
) -> None:
    done = inside("sample.py", str(published(tmp_path / "llama", "llama")), *flags)
    assert done.code == 1 and done.out == "" and done.err.startswith(message) and done.err.count("\n") == 1
