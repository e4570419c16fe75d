"""Continues a text with a trained model, or answers it: `python scripts/sample.py runs/char_lm --prompt "The import statement"`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal


def main(
    folder: str,
    /,
    prompt: str = "\n",
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Continues a text with a trained model, writing it as it comes; an encoder-decoder reads the text and writes its target.

    Args:
        folder: a run's, such as runs/char_lm, or a published model's, with config.json, safetensors files and tokenizer.json.
        prompt: what to continue, or to read.
        max_new_tokens: how many tokens to add; what a published model's generation_config.json says, or 300, unless given.
        temperature: logits are divided by it; 0 takes the likeliest token each time. What generation_config.json says, for a run 0.8, unless given.
        top_k: draw among so many of the likeliest tokens; likewise.
        top_p: draw among the likeliest tokens that together have this probability; likewise.
        seed: of the random choices.
        dtype: of a published model's parameters and of what is computed with them. A run has its own.
    """
    import jax
    import jax.numpy as jnp

    from transformer_jax import stream
    from transformer_jax.checkpoints import is_published
    from transformer_jax.tokenize import pieces

    model, variables, vocabulary, how = _published(Path(folder), dtype) if is_published(folder) else _run(Path(folder))
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = how.sampling.replace(**{name: value for name, value in asked.items() if value is not None})
    tokens = vocabulary.encode_whole(prompt)[None]
    longest = model.config.max_length
    if not 1 <= tokens.shape[1] <= longest:
        way_out = "give the end of it" if tokens.size else "give a text"
        raise ValueError(f"--prompt: expected 1 to {longest} tokens (the model's max_length), received {tokens.shape[1]}; {way_out}")
    count = max_new_tokens if max_new_tokens is not None else how.max_new_tokens or 300
    options = {"key": jax.random.key(seed), "sampling": sampling, "stop": how.stop or None}
    if hasattr(model, "encode"):
        new = stream(model, variables, jnp.full((1, 1), how.begin), count, source=jnp.asarray(tokens), **options)
    else:
        new = stream(model, variables, jnp.asarray(tokens), count, **options)
        print(prompt, end="", flush=True)
    for piece in pieces(vocabulary, _text(new, how.stop, vocabulary.vocab_size)):
        print(piece, end="", flush=True)
    print()


def _text(new: Any, stop: tuple[int, ...], vocab_size: int) -> Iterator[int]:
    for (token,) in new:
        if token in stop:
            return
        if token < vocab_size:
            yield int(token)


def _run(folder: Path) -> tuple[Any, ...]:
    from transformer_jax.checkpoints import Writing
    from transformer_jax.generation import Sampling
    from transformer_jax.training import load_run
    from transformer_jax.training.loop import read_experiment

    model, variables, vocabulary = load_run(folder)
    objective = read_experiment(folder / "config.json").objective
    end, begin = objective.end(model.config), objective.begin(model.config)
    _check_writes(folder, model, begin, "scripts/evaluate.py says what it is worth", f"an objective with a `begin`, received {type(objective).__name__}")
    return model, variables, vocabulary, Writing(Sampling(0.8), () if end is None else (end,), begin, None, {})


def _published(folder: Path, dtype: Any) -> tuple[Any, ...]:
    import sys

    from transformer_jax import from_pretrained
    from transformer_jax.checkpoints import published_config, published_vocabulary, writing
    from transformer_jax.precision import Precision

    config, how = published_config(folder), writing(folder)
    missing = "decoder_start_token_id in generation_config.json or config.json, received none that the model has; add it there"
    _check_writes(folder, config.make(), how.begin, "take a decoder or an encoder-decoder", missing)
    vocabulary = published_vocabulary(folder, config.vocab_size)
    for name, value in how.not_done.items():
        print(f"sample.py: note: {folder}: {name} = {value!r} is not done here", file=sys.stderr)
    return *from_pretrained(folder, precision=Precision(dtype, compute=dtype), stacked=False), vocabulary, how


def _check_writes(folder: Path, model: Any, begin: int | None, way_out: str, missing: str) -> None:
    """Refuses a model that writes no text, or cannot begin one."""
    if not hasattr(model, "step"):
        raise ValueError(f"{folder}: expected a model that writes text, received an {type(model).__name__}; {way_out}")
    if hasattr(model, "encode") and (begin is None or begin >= model.config.vocab_size):
        raise ValueError(f"{folder}: expected a token that begins what the model writes, {missing}")


if __name__ == "__main__":
    from transformer_jax.training.script import run_script

    run_script(main, prog="sample.py")
