"""Published models from their folders, and into them."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from transformer_jax import zoo
from transformer_jax.checkpoints.json_files import read_json
from transformer_jax.checkpoints.load import load
from transformer_jax.checkpoints.names import array_at, canonical, check, check_variables, meant, shown, without_copies
from transformer_jax.checkpoints.quantized import plain
from transformer_jax.checkpoints.save import write_weights
from transformer_jax.checkpoints.sentences import read_sentences, sentence_files
from transformer_jax.checkpoints.weights import Tensors, Weights
from transformer_jax.checkpoints.writing import check_writing
from transformer_jax.config import nearest
from transformer_jax.layers import Head, NoHead, SentenceEmbedding
from transformer_jax.models.base import Model, ModelConfig, variable_shapes
from transformer_jax.precision import Precision
from transformer_jax.zoo.family import Family

# What a config.json says beside the model.
ABOUT = "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "id2label", "label2id"

Shardings = Sharding | Callable[[tuple[str, ...], tuple[int, ...]], Sharding] | None


def from_pretrained(
    folder: str | Path,
    *,
    head: Head | None = None,
    max_length: int | None = None,
    precision: Precision = Precision(),
    sharding: Shardings = None,
    family: Family | None = None,
    **fields: Any,
) -> tuple[Model, dict[str, Any]]:
    """A published model, from a folder with config.json and safetensors files as Hugging Face's transformers (4 or 5) writes them.

    Tensors quantised to FP8 in blocks, or to MXFP4, are dequantised while they are read. Loading takes the memory of those parameters that this
    host's devices have, and little more.

    Args:
        folder: its path.
        head: in place of the folder's own, with no parameters but those that the folder has: `NoHead()`, `SentenceEmbedding()`. The folder's own is the one
            that config.json names, or that modules.json describes as sentence-transformers writes it.
        max_length: in place of the folder's, where no table of positions has that length: texts may be longer than those of training, and LongRoPE (Phi-3) has
            other factors for texts up to its original length.
        precision: dtypes; parameters are converted while they are read.
        sharding: of all parameters, or a function that gives it for a parameter's path and shape; the default device unless given.
        family: one of your own, for a model_type that the zoo has not.
        fields: others of the model's module, such as `backend`; with `stacked=False` each layer has arrays of its own, as decoding wants.

    Returns:
        The model and its variables, `{"params": ...}`.

    Raises:
        ValueError: a field of config.json that nobody knows, a tensor that is missing, left over or of another shape. NotImplementedError: a family, a head,
            an option or a way to quantise that there is not. OSError: files that are not there, or damaged. TypeError: an argument of another type, or one
            that there is not.
    """
    folder = Path(folder)
    with _naming(folder):
        return _read(folder, head, max_length, precision, sharding, family, fields)


def _read(
    folder: Path, head: Head | None, max_length: int | None, precision: Precision, sharding: Shardings, family: Family | None, fields: dict[str, Any]
) -> tuple[Model, dict[str, Any]]:  # fmt: skip
    _check_fields(precision, family, fields)
    family, values, weights, names = _opened(folder, family)
    own = family.read(values)
    head = head or read_sentences(folder)
    config = own if head is None else family.read(values, head=head)
    config = config if max_length is None else config.replace(max_length=max_length)
    spare = set() if type(config.head) is type(own.head) else {tensor.name for tensor in family.tensors(own)}
    model = config.make(precision=precision, family=family.model_type, **fields)
    wanted = variable_shapes(model)["params"]
    tensors = meant(family.tensors(config), wanted, stacked=model.stacked)
    asked = "".join(f", {name}={value!r}" for name, value in (("head", head), ("max_length", max_length)) if value is not None)
    check(tensors, wanted, {ours: weights.stored[theirs] for ours, theirs in names.items()}, family, f"config.json{asked}", spare)
    return model, {"params": load(tensors, wanted, lambda name: weights.read(names[name]), sharding)}


def _check_fields(precision: Any, family: Any, fields: Mapping[str, Any]) -> None:
    if not isinstance(family, Family | None):
        raise TypeError(f"family: expected a zoo.Family, or None for the one that config.json names, received {family!r}")
    if not isinstance(precision, Precision):
        raise TypeError(f"precision: expected a Precision, such as Precision('bfloat16'), received {precision!r}")
    known = {field.name for field in dataclasses.fields(Model)} - {"config", "family", "parent", "name", "precision"}
    for name, value in fields.items():
        if name in known and not isinstance(value, Model.__annotations__[name]):
            raise TypeError(f"{name}: expected a {Model.__annotations__[name].__name__}, received {value!r}")
    if unknown := [name for name in fields if name not in known]:
        way_out = "; dtypes are those of precision=Precision(...)" if "dtype" in unknown[0] else nearest(unknown[0], known)
        raise TypeError(f"from_pretrained: expected fields out of {', '.join(sorted(known))}, received {unknown[0]!r}{way_out}")


def published_config(folder: str | Path, *, head: Head | None = None, family: Family | None = None) -> ModelConfig:
    """What `from_pretrained` makes a model of, without reading its parameters. The head may have parameters that the folder has not; else it raises as that."""
    folder = Path(folder)
    with _naming(folder):
        family, values, _, _ = _opened(folder, family)
        return family.read(values, head=head or read_sentences(folder))


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Has errors name the folder."""
    try:
        yield
    except (NotImplementedError, ValueError) as error:
        kind = NotImplementedError if isinstance(error, NotImplementedError) else ValueError
        raise kind(f"{folder}: {str(error).removeprefix(f'{folder}/').removeprefix(f'{folder}: ')}") from error


def is_published(folder: str | Path) -> bool:
    """Whether a folder holds a published model: one whose config.json has a model_type."""
    try:
        return "model_type" in read_json(Path(folder, "config.json"))
    except (OSError, ValueError):
        return False


def _opened(folder: Path, family: Family | None) -> tuple[Family, dict[str, Any], Tensors, dict[str, str]]:
    """The family, what config.json and the tensors' names say, the tensors, and the family's names of them."""
    try:
        values = read_json(folder / "config.json")
    except FileNotFoundError:
        missing = "one that does not exist; nothing is downloaded here, so give the path of a folder that is"
        what = "one without config.json" if folder.is_dir() else "a file; give the folder that it is in" if folder.exists() else missing
        raise FileNotFoundError(f"{folder}: expected a folder with a published model, received {what}") from None
    if family and (kind := values.get("model_type")) != family.model_type:
        raise NotImplementedError(f"config.json: model_type: expected {family.model_type!r}, as family={family.name} has it, received {kind!r}")
    family = family or _family(values)
    weights = plain(Weights(folder), values.pop("quantization_config", None))
    names = without_copies(canonical(weights.stored, family), family, values, weights)
    return family, {**values, **shown(names, family)}, weights, names


def save_pretrained(
    folder: str | Path, model: Model, variables: Mapping[str, Any], *, family: str | Family | None = None, about: Mapping[str, Any] | str | Path | None = None
) -> None:  # fmt: skip
    """Writes config.json and model.safetensors as Hugging Face's transformers reads them; parameters keep their dtype. Past 5 GB there are shards and an index.

    A checkpoint that is there is whole until the new one is, and replaced at once.

    Args:
        folder: to write to; made where it is not there.
        model: of a config that a family can express, in either layout.
        variables: its variables.
        family: the model_type to write, or a family of your own; the one that was read, or the first that can say what the model is, unless given.
        about: further fields of config.json, such as eos_token_id, or the folder of a published model, whose special tokens and names of classes are taken. For
            those not given transformers takes its class's defaults (for Llama, tokens 1 and 2), which may not be this model's.

    Raises:
        ValueError: no family can express the model, its variables are another's, or a field of `about` changes it. NotImplementedError: a sentence's vector is
            made in a way that no file can say. OSError: a file could not be written, or that of `about` is not there.
    """
    about = _checked(read_about(about, model.config.head) if isinstance(about, str | Path) else about or {})
    chosen, values = _written(model.config, family, model.family)
    params = variables.get("params", {})
    check_variables(params, variable_shapes(model)["params"])
    tensors = meant(chosen.tensors(model.config), params, stacked=model.stacked)
    values = {**values, **about, "torch_dtype": str(jax.tree.leaves(params)[0].dtype)}
    if wrong := chosen.misread(values, model.config):
        raise ValueError(f"about: expected fields that say nothing of the model, such as eos_token_id, received others: {'; '.join(wrong[:4])}")
    files: dict[str, str | None] = {"config.json": json.dumps({name: value for name, value in values.items() if name not in chosen.shown}, indent=2) + "\n"}
    head = model.config.head
    files |= sentence_files(head, model.config.d_model) if isinstance(head, SentenceEmbedding) else {"modules.json": None}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FileExistsError(f"folder: expected a folder, or the name of one to be made, received {folder}, where a file is in the way") from None
    bare = chosen.architectures[values["architectures"][0]] is NoHead

    def arrays() -> Iterable[tuple[str, np.ndarray]]:
        for tensor in tensors:
            name = tensor.name.removeprefix(chosen.prefix) if bare else tensor.name
            yield name, tensor.join([np.asarray(array_at(params, part.path)[part.index]) for part in tensor.parts])

    write_weights(folder, arrays(), files=files)


def read_about(folder: str | Path, head: Head) -> dict[str, Any]:
    """What the config.json of a published model says beside the model: its special tokens, and the names of its classes where a head has as many.

    Raises:
        FileNotFoundError: there is none. ValueError: it is none.
    """
    file = Path(folder, "config.json")
    values = read_json(file)
    if "model_type" not in values:
        raise ValueError(f"{file}: expected that of a published model, with a model_type, received one without")
    names = values.get("id2label") or {}
    left_out = () if len(names) == getattr(head, "num_labels", None) else ("id2label", "label2id")
    return {name: value for name, value in values.items() if name in ABOUT and name not in left_out}


def _checked(about: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("architectures", "dtype", "model_type", "torch_dtype"):
        if name in about:
            raise ValueError(f"about: expected fields that say nothing of the model, such as eos_token_id, received {name}, which the model decides")
    check_writing(about, "about")
    return dict(about)


def _family(values: Mapping[str, Any]) -> Family:
    kind = values.get("model_type")
    found = [family for family in zoo.FAMILIES if family.model_type == kind]
    if not found:
        known = sorted(family.model_type for family in zoo.FAMILIES)
        raise NotImplementedError(f"config.json: model_type: expected one of {', '.join(known)}, received {kind!r}{nearest(str(kind), known)}")
    return found[0]


def _written(config: ModelConfig, wanted: str | Family | None, origin: str) -> tuple[Family, dict[str, Any]]:
    """The family that can say what a model is, and how it says it."""
    families = [wanted] if isinstance(wanted, Family) else [family for family in zoo.FAMILIES if wanted in (None, family.model_type)]
    if wanted is None and origin and origin not in {family.model_type for family in families}:
        raise ValueError(f"family: expected the one as which the model was read, a Family of {origin!r}, received None")
    if not families:
        known = sorted(family.model_type for family in zoo.FAMILIES)
        raise ValueError(f"family: expected one of {', '.join(known)}, received {wanted!r}{nearest(str(wanted), known)}")
    for family in sorted(families, key=lambda family: family.model_type != origin):
        if (values := family.write(config)) is not None:
            return family, values
    chosen = families if wanted else [family for family in families if family.model_type == origin]
    if not chosen:
        raise ValueError("model: expected one that a family of the zoo can express, received another; family='llama', say, tells why that one cannot")
    wrong = "; ".join(chosen[0].misfit(config)[:4])
    raise ValueError(f"model: expected one that {chosen[0].name} can express, received one that would be read as another: {wrong}")
