"""`scripts/convert.py` writes folders that `from_pretrained` reads with the same parameters, and answers to what it cannot write."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from transformer_jax import from_pretrained
from transformer_jax.checkpoints import published_vocabulary, writing
from transformer_jax.training import load_run

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = Path("runs") / "tiny"
LLAMA = '''
from transformer_jax.data import Text
from transformer_jax.layers import Attention, Causal, Gated, Group, Residual, RMSNorm, Rope, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.tokenize import BytePairs, Characters
from transformer_jax.training import Experiment, Run


def config(*, pairs: bool = True) -> Experiment:
    sublayers = (Residual(Attention(2, mask=Causal(), position=Rope()), pre=RMSNorm()), Residual(Gated(7), pre=RMSNorm()))
    model = DecoderOnlyConfig(None, d_model=8, max_length=12, stack=Stack((Group(2, sublayers),), final_norm=RMSNorm()))
    tokenizer = BytePairs(260) if pairs else Characters()
    return Experiment(model, data=Text(("words.txt",), tokenizer=tokenizer), run=Run("runs/tiny", steps=1, batch=2, sample_tokens=1))
'''
Published = Callable[..., Path]
Inside = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """Compiles without most optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def trained(inside: Inside, *flags: str) -> Path:
    Path("llama.py").write_text(LLAMA)
    done = inside("train.py", "llama.py", *flags)
    assert done.code == 0, done.err
    return TINY


def equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.usefixtures("workplace")
def test_a_run_becomes_a_folder_with_the_same_parameters_and_tokenizer(inside: Inside) -> None:
    run = trained(inside)
    assert inside("convert.py", str(run), "out") == (0, "out\n", "")
    model, variables, vocabulary = load_run(run)
    theirs, after = from_pretrained("out")
    tokens = np.random.default_rng(0).integers(260, size=(2, 11))
    np.testing.assert_allclose(theirs.apply(after, tokens), model.apply(variables, tokens), rtol=0, atol=1e-6)
    assert published_vocabulary("out", 260) == vocabulary and sorted(path.name for path in Path("out").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert json.loads(Path("out/config.json").read_text())["model_type"] == "llama"

    assert inside("convert.py", str(run), "mistral", "--family", "mistral", "--dtype", "bfloat16").code == 0
    values = json.loads(Path("mistral/config.json").read_text())
    assert (values["model_type"], values["torch_dtype"]) == ("mistral", "bfloat16")
    tree = from_pretrained("mistral")[1]
    equal(tree, jax.tree.map(lambda a: a.astype("bfloat16").astype("float32"), after))


@pytest.mark.usefixtures("workplace")
def test_characters_have_no_counterpart_in_the_format(inside: Inside) -> None:
    run = trained(inside, "--no-pairs")
    note = f"convert.py: note: no tokenizer.json, as the format has no CharacterVocabulary; {run}/tokenizer.json is ours\n"
    assert inside("convert.py", str(run), "out") == (0, "out\n", note)
    assert not Path("out/tokenizer.json").exists() and from_pretrained("out")[0].config.vocab_size == load_run(run)[2].vocab_size


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_a_translator_begins_and_ends_its_text_with_the_tokens_that_it_was_trained_with(inside: Inside) -> None:
    Path("pairs.tsv").write_text("".join(f"{a} {b}\t{b} {a}\n" for a in ("to", "be", "or", "not") for b in ("the", "that", "is")))
    how = "--data pairs.tsv --data.tokenizer byte-pairs --data.tokenizer.vocab-size 259 --d-model 8 --num-layers 1 --context 24 --batch 2 --steps 1"
    done = inside("train.py", str(CONFIGS / "dates.py"), *how.split())
    assert done.code == 0, done.err
    assert inside("convert.py", "runs/dates", "out") == (0, "out\n", "")
    assert (writing("out").begin, writing("out").stop) == (259, (259,))
    ours, theirs = (inside("sample.py", folder, "--prompt", "to be", "--temperature", "0", "--max-new-tokens", "9") for folder in ("runs/dates", "out"))
    assert ours == theirs and ours.code == 0


@pytest.mark.usefixtures("workplace")
def test_the_current_folder_is_not_where_a_run_started_that_started_nowhere(inside: Inside, published: Published, tmp_path: Path) -> None:
    run = trained(inside)
    folder = published(tmp_path / "llama", "llama", eos_token_id=[7])
    for path in folder.iterdir():
        shutil.copyfile(path, path.name)
    assert inside("convert.py", str(run), "out").code == 0
    assert not Path("out/generation_config.json").exists() and "eos_token_id" not in json.loads(Path("out/config.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_special_tokens_come_along_through_runs_in_between_and_are_missed_once_the_folder_is_gone(
    inside: Inside, published: Published, tmp_path: Path
) -> None:
    published(tmp_path / "llama", "llama", eos_token_id=[7, 8], max_new_tokens=5)
    run = ["--run.batch", "2", "--run.sample-tokens", "1", "--steps", "1"]
    assert inside("train.py", "tiny_lm.py", "--init", "llama", *run).code == 0
    done = inside("train.py", str(TINY / "config.json"), "--run.start", str(TINY))
    assert done.code == 0 and Path("runs/tiny-2").exists(), done.err
    assert inside("convert.py", "runs/tiny-2", "out") == (0, "out\n", "")
    assert writing("out") == writing("llama") and json.loads(Path("out/config.json").read_text())["bos_token_id"] == 1
    shutil.move("llama", "elsewhere")
    done = inside("convert.py", str(TINY), "other")
    assert (done.code, done.out) == (0, "other\n")
    assert done.err == f"convert.py: note: llama, from which {TINY} started, is not there: no special tokens or generation_config.json of it\n"


@pytest.mark.parametrize("case", ["llama", "gpt2", "bert", "t5", "marian"])
def test_a_published_folder_is_copied_with_all_that_belongs_to_its_texts(inside: Inside, published: Published, tmp_path: Path, case: str) -> None:
    """Special tokens that are not the family's usual ones among it."""
    folder, out = published(tmp_path / case, case, eos_token_id=[2, 5], decoder_start_token_id=3), tmp_path / "out"
    values = json.loads((folder / "config.json").read_text()) | ({"decoder_start_token_id": 4, "eos_token_id": 6} if case in ("t5", "marian") else {})
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "special_tokens_map.json").write_text("{}")
    assert inside("convert.py", str(folder), str(out)) == (0, f"{out}\n", "")
    theirs, ours = (load_file(path / "model.safetensors") for path in (folder, out))
    assert set(ours) <= set(theirs)
    equal(ours, {name: theirs[name] for name in ours})
    assert all(array.dtype.name == "bfloat16" for array in ours.values())  # as config.json says
    equal(from_pretrained(out)[1], from_pretrained(folder)[1])
    assert from_pretrained(out)[0].config == from_pretrained(folder)[0].config
    for name in ("tokenizer.json", "generation_config.json", "special_tokens_map.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert writing(out) == writing(folder)
    values = [json.loads((path / "config.json").read_text()) for path in (folder, out)]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        assert name not in values[0] or values[1][name] == values[0][name]


def test_another_dtype_is_what_the_parameters_are_rounded_to(inside: Inside, published: Published, tmp_path: Path) -> None:
    folder = published(tmp_path / "llama", "llama")
    assert inside("convert.py", str(folder), str(tmp_path / "wide"), "--dtype", "float32").code == 0
    arrays = load_file(tmp_path / "wide" / "model.safetensors")
    assert all(array.dtype == np.float32 for array in arrays.values())
    equal(arrays, {name: array.astype(np.float32) for name, array in load_file(folder / "model.safetensors").items()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama", "llama"], "target: expected a folder that does not exist, received llama; remove it, or name another"),
        (["nowhere", "out"], "nowhere: there is no such folder"),
        (["llama", "out", "--family", "lama"], "received 'lama' (nearest: llama)"),
        (["llama", "out", "--family", "t5"], "model: expected one that T5, T5 v1.1 and Flan-T5 can express, received one that would be read as another"),
    ],
    ids=["target", "source", "no family", "another family"],
)
def test_what_cannot_be_written_is_answered_in_one_line(
    inside: Inside, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "llama", "llama")
    done = inside("convert.py", *arguments)
    assert done.code == 1 and done.out == "" and done.err.startswith("convert.py: error: ") and message in done.err and done.err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_model_that_no_family_has_is_answered_and_leaves_no_folder(inside: Inside, finished: Path, tmp_path: Path) -> None:
    """The tiny model's feed-forward layers have no norm."""
    done = inside("convert.py", str(finished / TINY), str(tmp_path / "out"))
    assert done.code == 1 and not (tmp_path / "out").exists()
    assert done.err.startswith("convert.py: error: model: expected one that a family of the zoo can express, received another;")
