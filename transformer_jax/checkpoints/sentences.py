"""What a folder says of vectors of sentences, as sentence-transformers writes it: modules.json, and the pooling's config.json."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from transformer_jax.checkpoints.json_files import read_json
from transformer_jax.layers import FirstToken, LastToken, Mean, Pool, SentenceEmbedding

POOLS: dict[str, type[Pool]] = {"mean": Mean, "cls": FirstToken, "lasttoken": LastToken}

# The switches that versions before 6 have for each way to pool.
_SWITCHES = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
}  # fmt: skip


def read_sentences(folder: Path) -> SentenceEmbedding | None:
    """The head that modules.json describes; None in a folder without.

    Raises:
        NotImplementedError: modules other than a model, pooling, and a norm of 1; a way to pool that we have not. ValueError, FileNotFoundError: files that are
            not what they are to be.
    """
    if not (folder / "modules.json").exists():
        return None
    modules = read_json(folder / "modules.json", list)
    if not all(isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str) for module in modules):
        raise ValueError(f"{folder}/modules.json: expected a list of modules, each with a type and a path, received {modules}")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        received = ", ".join(kinds) or "none"
        raise NotImplementedError(f"modules.json: expected Transformer, Pooling and perhaps Normalize, received {received}; `head=` passes over the file")
    path = PurePosixPath(modules[1]["path"])
    if path.anchor or ".." in path.parts:
        raise ValueError(f"{folder}/modules.json: expected the name of a folder in this one, received {str(path)!r}; it is not opened")
    said = read_json(folder / path / "config.json")
    mode = said["pooling_mode"] if "pooling_mode" in said else [mode for name, mode in _SWITCHES.items() if said.get(name)]
    modes = mode if isinstance(mode, list) else [mode]
    if len(modes) != 1 or modes[0] not in POOLS:
        received = ", ".join(map(str, modes)) or "none"
        raise NotImplementedError(f"{path}/config.json: pooling_mode: expected one of {', '.join(POOLS)}, received {received}; `head=` passes over it")
    return SentenceEmbedding(POOLS[modes[0]](), normalize=len(kinds) == 3)


def sentence_files(head: SentenceEmbedding, d_model: int) -> dict[str, str]:
    """The same files' texts by their names, as every version reads them.

    Raises:
        NotImplementedError: a way to pool that sentence-transformers has not.
    """
    modes = [mode for mode, pool in POOLS.items() if type(head.pool) is pool]
    if not modes:
        raise NotImplementedError(f"SentenceEmbedding.pool: expected one of {', '.join(p.__name__ for p in POOLS.values())}, received {head.pool!r}")
    paths = {"Transformer": "", "Pooling": "1_Pooling", **({"Normalize": "2_Normalize"} if head.normalize else {})}
    modules = [{"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"} for n, (kind, path) in enumerate(paths.items())]
    pooling = {"word_embedding_dimension": d_model, **{name: mode == modes[0] for name, mode in _SWITCHES.items()}}
    configs = {f"{path}/config.json": pooling if kind == "Pooling" else {} for kind, path in paths.items() if path}
    files: dict[str, Any] = {"modules.json": modules, **configs}
    return {name: json.dumps(values, indent=2) + "\n" for name, values in files.items()}
