"""Continues a text with a trained model, or answers it: `python scripts/sample.py runs/char_lm --prompt "The import statement"`."""

from pathlib import Path


def main(
    run: str,
    /,
    prompt: str = "\n",
    max_new_tokens: int = 300,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> None:
    """Continues a text with a trained model, writing it as it comes; an encoder-decoder reads the text and writes its target.

    Args:
        run: a run's folder, such as runs/char_lm.
        prompt: what to continue, or to read.
        max_new_tokens: how many tokens to add.
        temperature: logits are divided by it; 0 takes the likeliest token each time.
        top_k: draw among so many of the likeliest tokens.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of the random choices.
    """
    import jax
    import jax.numpy as jnp

    from transformer_jax import stream
    from transformer_jax.generation import Sampling
    from transformer_jax.tokenize import pieces
    from transformer_jax.training import RunError, load_run
    from transformer_jax.training.loop import read_experiment

    sampling = Sampling(temperature, top_k=top_k, top_p=top_p)
    model, variables, vocabulary = load_run(Path(run))
    if not hasattr(model, "step"):
        raise RunError(f"{run}: expected a model that writes text, received an {type(model).__name__}; scripts/evaluate.py says what it is worth")
    tokens = vocabulary.encode(prompt)[None]
    longest = model.config.max_length
    if not 1 <= tokens.shape[1] <= longest:
        way_out = "give the end of it" if tokens.size else "give a text"
        raise ValueError(f"--prompt: expected 1 to {longest} tokens (the model's max_length), received {tokens.shape[1]}; {way_out}")
    begin, how = read_experiment(Path(run, "config.json")).objective.begin(model.config), {"key": jax.random.key(seed), "sampling": sampling}
    if begin is None:
        new = stream(model, variables, jnp.asarray(tokens), max_new_tokens, **how)
        print(prompt, end="", flush=True)
    else:
        new = stream(model, variables, jnp.full((1, 1), begin), max_new_tokens, stop=begin, source=jnp.asarray(tokens), **how)
    for piece in pieces(vocabulary, (int(token[0]) for token in new if token[0] < vocabulary.vocab_size)):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    from transformer_jax.training.script import run_script

    run_script(main, prog="sample.py")
