"""What a folder says of vectors of sentences, as sentence-transformers writes it: modules.json, and the pooling's config.json."""

import json
from pathlib import Path, PurePosixPath

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
        NotImplementedError: modules other than a model, pooling, and a norm of 1; a way to pool that we have not.
    """
    if not (folder / "modules.json").exists():
        return None
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [module["type"].rpartition(".")[2] for module in modules]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}/modules.json: expected a list of modules, each with a type, received something else ({error})") from None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        received = ", ".join(kinds)
        raise NotImplementedError(f"modules.json: expected Transformer, Pooling and perhaps Normalize, received {received}; `head=` passes over the file")
    path = PurePosixPath(modules[1]["path"])
    if path.anchor or ".." in path.parts:
        raise ValueError(f"{folder}/modules.json: expected the name of a folder in this one, received {str(path)!r}; it is not opened")
    said = json.loads((folder / path / "config.json").read_text(encoding="utf-8"))
    modes = said["pooling_mode"] if "pooling_mode" in said else [mode for name, mode in _SWITCHES.items() if said.get(name)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLS:
        raise NotImplementedError(f"{modules[1]['path']}/config.json: expected one of {', '.join(POOLS)}, received {', '.join(modes)}; `head=` passes over it")
    return SentenceEmbedding(POOLS[modes[0]](), normalize=len(kinds) == 3)


def write_sentences(folder: Path, head: SentenceEmbedding, d_model: int) -> None:
    """The same files, as every version reads them.

    Raises:
        NotImplementedError: a way to pool that sentence-transformers has not.
    """
    modes = [mode for mode, pool in POOLS.items() if type(head.pool) is pool]
    if not modes:
        raise NotImplementedError(f"SentenceEmbedding.pool: expected one of {', '.join(p.__name__ for p in POOLS.values())}, received {head.pool!r}")
    paths = {"Transformer": "", "Pooling": "1_Pooling", **({"Normalize": "2_Normalize"} if head.normalize else {})}
    modules = [{"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"} for n, (kind, path) in enumerate(paths.items())]
    pooling = {"word_embedding_dimension": d_model, **{name: mode == modes[0] for name, mode in _SWITCHES.items()}}
    _write(folder / "modules.json", modules)
    for kind, path in paths.items():
        if path:
            (folder / path).mkdir(exist_ok=True)
            _write(folder / path / "config.json", pooling if kind == "Pooling" else {})


def _write(file: Path, values: object) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
