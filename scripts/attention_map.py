"""Draws where a trained model's attention looks: `python scripts/attention_map.py runs/char_lm --text "The import statement"`."""

from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.evaluation import attention_probabilities
from transformer_jax.evaluation.attention_maps import place_of
from transformer_jax.evaluation.pictures import Map, draw_attention
from transformer_jax.layers import CrossAttention
from transformer_jax.tokenize import Vocabulary
from transformer_jax.training import RunError, load_run
from transformer_jax.training.loop import read_experiment
from transformer_jax.training.samples import text_of, translated
from transformer_jax.training.script import run_script

VISIBLE = str.maketrans({" ": "␣", "\n": "\\n", "\t": "\\t", "\r": "\\r"})


def main(run: str, /, text: str, target: str | None = None, layers: str = "", out: str = "") -> None:
    """Draws the probabilities of every attention: a row of pictures for each, in order of depth, with one for each head, whose rows are queries, columns keys.

    Args:
        run: a run's folder, such as runs/char_lm.
        text: what the model reads.
        target: what an encoder-decoder writes; what it finds likeliest unless given.
        layers: which, counted from 0 in each stack, with commas between; all unless given.
        out: the PNG; attention.png in the run's folder unless given.
    """
    model, variables, vocabulary = load_run(Path(run))
    longest = model.config.max_length
    sides = [_tokens(vocabulary, "--text", text, 1, longest)]
    if hasattr(model, "encode"):
        objective = read_experiment(Path(run, "config.json")).objective
        if (begin := objective.begin(model.config)) is None:
            raise RunError(f"{run}: expected an objective with a token that begins a target, received {type(objective).__name__}, which has no `begin`")
        if target is None:
            made = translated(model, variables, sides[0][None], begin=begin, end=objective.end(model.config), length=longest)[0]
            written = made[made >= 0][: longest - 1]
        else:
            written = _tokens(vocabulary, "--target", target, 0, longest - 1)
        sides.append(np.append(begin, written).astype(np.int32))
    elif target is not None:
        raise ValueError(f"--target: expected none for a {type(model).__name__}, received {target!r}; leave it out")
    found = attention_probabilities(model, variables, *(side[None] for side in sides))
    if not found:
        raise RunError(f"{run}: expected a model with attention, received one whose layers have none")
    path = Path(out) if out else Path(run) / "attention.png"
    draw_attention(_maps(model.config, found, [[_name(vocabulary, int(t)) for t in side] for side in sides], layers), path)
    print(path)


def _tokens(vocabulary: Vocabulary, flag: str, text: str, least: int, most: int) -> np.ndarray:
    tokens = vocabulary.encode(text)
    if not least <= len(tokens) <= most:
        way_out = "give a part of it" if len(tokens) else "give a text"
        raise ValueError(f"{flag}: expected {least} to {most} tokens (the model's max_length is {most + 1 - least}), received {len(tokens)}; {way_out}")
    return tokens


def _name(vocabulary: Vocabulary, token: int) -> str:
    return text_of(vocabulary, [token]).translate(VISIBLE) or f"<{token}>"


def _maps(config: Any, found: dict[str, Any], names: list[list[str]], layers: str) -> list[Map]:
    """`names` are those of the tokens of each stack; keys of attention across are the first one's."""
    places = {path: place_of(config, path) for path in found}
    there = sorted({place.layer for place in places.values()})
    wanted = layers.split(",") if layers else map(str, there)
    if unknown := set(wanted := list(wanted)) - set(map(str, there)):
        raise ValueError(f"--layers: expected some of {','.join(map(str, there))}, received {unknown.pop()!r}")
    stacks, maps = list(config.stacks()), []
    for path, (stack, layer, kind) in places.items():
        if str(layer) in wanted:
            own = names[stacks.index(stack)]
            title = f"{stack} {layer}" if len(stacks) > 1 else f"layer {layer}"
            maps.append(Map(f"{title}: {kind.__name__}", np.asarray(found[path][0]), own, names[0] if issubclass(kind, CrossAttention) else own))
    return maps


if __name__ == "__main__":
    run_script(main, prog="attention_map.py")
