"""How a published model is to write text: its generation_config.json, and where that is missing its config.json."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_jax.checkpoints.json_files import read_json
from transformer_jax.generation import Sampling

# What changes a text and is not done here, with the value that does nothing.
_NOT_DONE: dict[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": None, "penalty_alpha": None,
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_p": None, "length_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "begin_suppress_tokens": None,
}  # fmt: skip


def _token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tokens(value: Any) -> bool:
    return isinstance(value, list) and all(map(_token, value))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# What is read of the files: what it is to be, and whether it is.
_READ: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "do_sample": ("true or false", lambda value: isinstance(value, bool)),
    "temperature": ("a number of at least 0", lambda value: _number(value) and value >= 0),
    "top_k": ("an integer of at least 0", _token),
    "top_p": ("a probability in (0, 1]", lambda value: _number(value) and 0 < value <= 1),
    "max_new_tokens": ("an integer of at least 1", lambda value: _token(value) and value > 0),
    "eos_token_id": ("a token, or a list of tokens", lambda value: _token(value) or (_tokens(value) and bool(value))),
    "bos_token_id": ("a token", _token),
    "decoder_start_token_id": ("a token", _token),
    "suppress_tokens": ("a list of tokens", _tokens),
    "bad_words_ids": ("a list of lists of tokens", lambda value: isinstance(value, list) and all(_tokens(word) and word for word in value)),
}

_OF_MODEL = ("bos_token_id", "eos_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Writing:
    """How text is to be written.

    Attributes:
        sampling: how tokens are drawn.
        stop: tokens that end a text.
        begin: the token that begins what the model writes, if it is an encoder-decoder; None where nothing is said.
        max_new_tokens: None where nothing is said.
        not_done: fields of the file that ask for what is not done here.
    """

    sampling: Sampling
    stop: tuple[int, ...]
    begin: int | None
    max_new_tokens: int | None
    not_done: Mapping[str, Any]


def writing(folder: str | Path) -> Writing:
    """What the folder of a published model says of it. Where nothing is said, the likeliest token is taken each time, as transformers does.

    Beside a generation_config.json nothing counts of what config.json says of writing, but for special tokens that the former does not name.
    What the files say of how to draw stands beside a temperature of 0, for a user who gives another. Of the length only max_new_tokens is read, as max_length
    counts the prompt too.

    Raises:
        ValueError: a file is no JSON object, or a field is not what it is to be.
    """
    model, values = (_fields(Path(folder, name)) for name in ("config.json", "generation_config.json"))
    values = {name: model[name] for name in _OF_MODEL if name in model} | values if Path(folder, "generation_config.json").exists() else model
    end, words = values.get("eos_token_id", []), values.get("bad_words_ids", [])
    stop = tuple(end) if isinstance(end, list) else (end,)
    never = {word[0] for word in words if len(word) == 1} - set(stop)  # what ends a text is no bad word, as in transformers
    drawn = values.get("do_sample", False)
    sampling = Sampling(
        float(values.get("temperature", 1.0)) if drawn else 0.0,
        top_k=values.get("top_k", 50 if drawn else 0) or None,
        top_p=float(values["top_p"]) if "top_p" in values else None,
        never=tuple(sorted(never.union(values.get("suppress_tokens", ())))),
    )
    begin = values.get("decoder_start_token_id", values.get("bos_token_id"))
    not_done = {name: value for name, value in values.items() if name in _NOT_DONE and value != _NOT_DONE[name]}
    if longer := [word for word in words if len(word) > 1]:
        not_done["bad_words_ids"] = longer
    return Writing(sampling, stop, begin, values.get("max_new_tokens"), not_done)


def _fields(file: Path) -> dict[str, Any]:
    """The fields of a file that may be missing, less those that are null; what is read of them is what it is to be."""
    values = read_json(file) if file.exists() else {}
    check_writing(values, str(file))
    return {name: value for name, value in values.items() if value is not None}


def check_writing(values: Mapping[str, Any], where: str) -> None:
    """Refuses what says how to write text and is not what it is to be; `where` it stands is for the message."""
    for name, (expected, fits) in _READ.items():
        if values.get(name) is not None and not fits(values[name]):
            raise ValueError(f"{where}: {name}: expected {expected}, received {values[name]!r}; mend it or take it out")
