"""Writes a trained or published model in the Hugging Face format: `python scripts/convert.py runs/bpe_lm exported`."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transformer_jax import from_pretrained, save_pretrained, zoo
from transformer_jax.checkpoints import is_published, read_about
from transformer_jax.checkpoints.json_files import read_json
from transformer_jax.checkpoints.names import canonical
from transformer_jax.checkpoints.weights import INDEX, Weights
from transformer_jax.precision import Precision
from transformer_jax.tokenize import BytePairVocabulary, PublishedVocabulary
from transformer_jax.training import load_run
from transformer_jax.training.loop import read_experiment


def main(source: str, target: str, /, dtype: Literal["float32", "bfloat16", "float16", "same"] = "same", family: str = "") -> None:
    """Writes a trained or published model in the Hugging Face format: config.json, safetensors files, and what belongs to its texts.

    Args:
        source: a run's folder, such as runs/bpe_lm, or a published model's.
        target: a folder that does not exist yet.
        dtype: of the parameters; those of a run as they are, those of a published model as config.json says, unless given.
        family: the model_type to write; that of the published model, or of the one from which the run started, or the first that can say what the model is.
    """
    folder, out = Path(source), Path(target)
    if out.exists():
        raise ValueError(f"target: expected a folder that does not exist, received {target}; remove it, or name another")
    if is_published(folder):
        values = read_json(folder / "config.json")
        given = values.get("torch_dtype") or values.get("dtype") or "float32" if dtype == "same" else dtype
        model, variables = from_pretrained(folder, precision=Precision(given))
        save_pretrained(out, model, variables, family=family or None, about=folder)
        if left := sorted(set(_tensors(folder)) - set(_tensors(out))):
            print(f"convert.py: note: left out, as our model has none: {', '.join(left)}", file=sys.stderr)
        _copy(folder, out)
    else:
        model, variables, vocabulary = load_run(folder)
        if dtype != "same":
            model, variables = model.clone(precision=Precision(dtype)), jax.tree.map(lambda a: a.astype(jnp.dtype(dtype)), variables)
        origin, objective = _origin(folder), read_experiment(folder / "config.json").objective
        trained = {"decoder_start_token_id": objective.begin(model.config), "eos_token_id": objective.end(model.config)}
        about = read_about(origin, model.config.head) if origin else {}
        about |= {name: token for name, token in trained.items() if token is not None} | _classes(folder)
        if origin:
            model = model.clone(family=read_json(origin / "config.json")["model_type"])
        save_pretrained(out, model, variables, family=family or None, about=about)
        if isinstance(vocabulary, (BytePairVocabulary, PublishedVocabulary)):
            vocabulary.save(out / "tokenizer.json")
        else:
            print(f"convert.py: note: no tokenizer.json, as the format has no {type(vocabulary).__name__}; {folder}/tokenizer.json is ours", file=sys.stderr)
        if origin:
            _copy(origin, out)
    print(out)


def _origin(run: Path) -> Path | None:
    """The published model from which a run started, or the run from which it did; None where there is none."""
    seen = [run]
    while start := read_experiment(seen[-1] / "config.json").run.start:
        if is_published(start):
            return Path(start)
        if Path(start) in seen or not Path(start, "config.json").exists():
            print(f"convert.py: note: {start}, from which {seen[-1]} started, is not there: no special tokens or generation_config.json of it", file=sys.stderr)
            return None
        seen.append(Path(start))
    return None


def _classes(run: Path) -> dict[str, Any]:
    """The names of a run's classes."""
    file = run / "labels.json"
    names = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return {"id2label": {str(n): name for n, name in enumerate(names)}, "label2id": {name: n for n, name in enumerate(names)}} if names else {}


def _tensors(published: Path) -> dict[str, str]:
    """By the family's names, which are not always those of the files."""
    family = next(family for family in zoo.FAMILIES if family.model_type == read_json(published / "config.json")["model_type"])
    return canonical(Weights(published).stored, family)


def _copy(folder: Path, out: Path) -> None:
    """What belongs to a model's texts, but for what is there already."""
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt", ".model", ".spm", ".jinja") and file.name not in (INDEX, "modules.json") and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)


if __name__ == "__main__":
    from transformer_jax.training.script import run_script

    run_script(main, prog="convert.py")
