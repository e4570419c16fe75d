"""`scripts/train.py --init` on a published model, and what the other scripts do with the run: as a user goes from one to the next."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from transformer_jax import from_pretrained, generate
from transformer_jax.checkpoints import published_vocabulary, writing
from transformer_jax.training import load_run

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = Path("runs") / "tiny"
RUN = ["--run.sample-tokens", "3", "--run.batch", "2", "--run.steps-per-call", "2", "--run.checkpoint-every", "2", "--run.evaluate-every", "4"]
BROUGHT = "which the folder brings along, received"
Inside = Callable[..., Any]


@pytest.fixture
def quick() -> Iterator[None]:
    """Compiles without most optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def folders(workplace: Path, published: Callable[..., Path]) -> Path:
    """The current folder, with published models in llama, bert and t5."""
    published(workplace / "llama", "llama", eos_token_id=[2, 60], max_new_tokens=7)
    published(workplace / "bert", "bert")
    published(workplace / "t5", "t5", decoder_start_token_id=0, eos_token_id=1)
    return workplace


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_run_that_goes_on_from_a_published_model_is_resumed_sampled_evaluated_described_and_published(folders: Path, inside: Inside, saved: Any) -> None:
    done = inside("train.py", "tiny_lm.py", "--init", "llama", *RUN, "--steps", "6")
    assert done.code == 0 and "parameters, from llama, runs/tiny" in done.out, done.err
    config = json.loads((TINY / "config.json").read_text())
    assert config["run"]["start"] == "llama" and config["run"]["length"] == 12 and config["model"]["max_length"] == 64
    assert (TINY / "tokenizer.json").read_bytes() == Path("llama/tokenizer.json").read_bytes()

    whole, rows = saved(folders), (TINY / "metrics.jsonl").read_text()
    for step in (4, 6):  # as though it had been killed before
        shutil.rmtree(TINY / "checkpoints" / str(step))
    done = inside("train.py", "tiny_lm.py", "--init", "llama", *RUN, "--steps", "6", "--resume")
    assert done.code == 0 and "step 4/6 " in done.out and "step 2/6 " not in done.out, done.err
    chex.assert_trees_all_equal(saved(folders), whole)
    assert (TINY / "metrics.jsonl").read_text() == rows

    model, variables, vocabulary = load_run(TINY)
    done = inside("sample.py", str(TINY), "--prompt", "to be", "--temperature", "0", "--max-new-tokens", "9")
    new = generate(model, variables, vocabulary.encode_whole("to be")[None], 9, sampling=writing("llama").sampling)
    assert done.out == "to be" + vocabulary.decode(t for t in np.asarray(new[0]) if t < vocabulary.vocab_size) + "\n"

    done = inside("evaluate.py", str(TINY), "--stride", "12")
    last = json.loads(rows.splitlines()[-1])
    assert done.code == 0 and abs(json.loads((TINY / "evaluation.json").read_text())["loss"] - last["held_out_loss"]) < 1e-4
    done = inside("describe.py", str(TINY))
    assert done.code == 0 and "2 sequences of 12 tokens" in done.out and "vocab_size=61" in done.out

    done = inside("convert.py", str(TINY), "out")
    assert (done.code, done.out, done.err) == (0, "out\n", "")
    theirs, after = from_pretrained("out")
    tokens = np.random.default_rng(0).integers(61, size=(2, 11))
    np.testing.assert_array_equal(theirs.apply(after, tokens), from_pretrained("llama")[0].apply({"params": whole[0]["params"]}, tokens))
    values = json.loads(Path("out/config.json").read_text())
    assert (values["bos_token_id"], values["eos_token_id"], values["model_type"]) == (1, 2, "llama")
    assert published_vocabulary("out", 61) == vocabulary and writing("out") == writing("llama")


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_resuming_with_another_start_says_so_alone(folders: Path, inside: Inside) -> None:
    assert inside("train.py", "tiny_lm.py", "--init", "llama", *RUN, "--steps", "2").code == 0
    done = inside("train.py", "tiny_lm.py", *RUN, "--steps", "2", "--resume")
    assert done.code == 1 and done.err == (
        "train.py: error: --resume: expected the config that runs/tiny was started with, received one with run.start: \"llama\" -> \"\"; "
        "give the --init or --run.start of then, or go on by train.py runs/tiny/config.json --resume\n"
    )
    done = inside("train.py", str(TINY / "config.json"), "--resume")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_unbroken(folders: Path, start: Any, run: Any, saved: Any) -> None:
    command = ["train.py", "tiny_lm.py", "--init", "llama", *RUN, "--steps", "80"]
    assert run(folders, *command).code == 0
    whole, rows = saved(folders), (TINY / "metrics.jsonl").read_text()
    shutil.rmtree("runs")
    process = start(folders, *command)
    while process.poll() is None and not (TINY / "checkpoints" / "20").exists():
        pass
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = run(folders, *command, "--resume")
    assert done.code == 0 and "step 80/80 " in done.out and "step 8/80 " not in done.out, done.err
    chex.assert_trees_all_equal(saved(folders), whole)
    assert (TINY / "metrics.jsonl").read_text() == rows


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "classes"])
def test_the_recipe_of_modules_goes_on_from_bert(folders: Path, inside: Inside, masked: bool) -> None:
    lines = [{"text": f"{a} {b}", "label": c} for a in ("to", "be", "or") for b in ("not", "the", "that") for c in "ab"]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    how = ["--masked", "--data", "words.txt"] if masked else ["--data", "lines.jsonl"]
    done = inside("train.py", str(CONFIGS / "modules.py"), *how, "--init", "bert", *RUN, "--run.steps", "4")
    assert done.code == 0 and f"from bert{'' if masked else ' but for head/bias, head/kernel'}, runs/modules" in done.out, done
    name = "modules_masked" if masked else "modules"
    assert inside("evaluate.py", f"runs/{name}").code == 0
    done = inside("convert.py", f"runs/{name}", "out")
    if masked:
        assert done.code == 0 and json.loads(Path("out/config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    else:  # published classifiers look at the first token, the recipe's at the mean
        assert done.code == 1 and "BERT can express, received one that would be read as another: head.activation" in done.err and not Path("out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_recipe_of_dates_goes_on_from_t5_with_pairs_of_ones_own(folders: Path, inside: Inside) -> None:
    done = inside("train.py", str(CONFIGS / "dates.py"), "--init", "t5")
    assert done.err == "train.py: error: --init: expected data that takes a tokenizer, received Dates, which has its own; give files by --data\n"
    Path("pairs.tsv").write_text("".join(f"{a} {b}\t{b} {a}\n" for a in ("to", "be", "or", "not") for b in ("the", "that", "is")))
    done = inside("train.py", str(CONFIGS / "dates.py"), "--init", "t5", "--data", "pairs.tsv", *RUN, "--steps", "4")
    assert done.code == 0, done.err
    objective = json.loads(Path("runs/dates/config.json").read_text())["objective"]
    assert (objective["begin_token"], objective["end_token"]) == (0, 1)
    done = inside("sample.py", "runs/dates", "--prompt", "to be", "--max-new-tokens", "5")
    assert done.code == 0 and not done.out.startswith("to be"), done.err
    assert inside("evaluate.py", "runs/dates").code == 0
    assert inside("convert.py", "runs/dates", "out").code == 0
    assert writing("out") == writing("t5")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--init nowhere", "nowhere: expected a folder with a published model, received one that does not exist"),
        ("--init bert", "--init: expected a model of the recipe's kind, DecoderOnly, received one of another, EncoderOnly; take a recipe for that"),
        ("--init llama --d-model 32", f"--init: expected no flags of the model and its tokenizer, {BROUGHT} --d-model; leave it out"),
        ("--d-model=32 --init=llama", f"{BROUGHT} --d-model=32; leave it out"),
        ("--init llama --model.max-length 8", f"{BROUGHT} --model.max-length; leave it out"),
        ("--init llama --data.tokenizer bytes", f"{BROUGHT} --data.tokenizer; leave it out"),
        ("--init llama --run.start runs/x", "--init: expected a recipe that starts from nothing, received one that starts from runs/x; leave one of them out"),
        ("--init broken", "broken/generation_config.json: eos_token_id: expected a token, or a list of tokens, received 'x'; mend it or take it out"),
        ("--init large", "large/tokenizer.json: expected a tokenizer of at most 61 tokens (the model's vocab_size), received one of 70; take the one"),
        ("--init bare", "bare: expected a tokenizer.json beside config.json, received a folder without; transformers writes it: AutoTokenizer"),
    ],
)
def test_what_cannot_work_is_answered_in_one_line_and_leaves_no_folder(
    folders: Path, published: Callable[..., Path], inside: Inside, flags: str, message: str
) -> None:
    if "broken" in flags:
        published(folders / "broken", "llama", eos_token_id="x")
    if "bare" in flags or "large" in flags:
        folder = published(folders / flags.split()[-1], "llama")
        library = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").unlink()
        if "large" in flags:
            library["added_tokens"].append({**library["added_tokens"][0], "id": 69, "content": "<more>"})
            library["model"]["vocab"]["<more>"] = 69
            (folder / "tokenizer.json").write_text(json.dumps(library))
    done = inside("train.py", "tiny_lm.py", *flags.split())
    assert done.code == 1 and done.out == "" and done.err.startswith("train.py: error: ") and message in done.err and done.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("script", ["evaluate.py", "attention_map.py"])
def test_scripts_that_look_at_runs_say_how_to_make_one_of_a_published_model(folders: Path, inside: Inside, script: str) -> None:
    done = inside(script, "llama", *(["--text", "to"] if script == "attention_map.py" else []))
    expected = "llama: expected the folder of a run, received that of a published model; scripts/train.py --init llama makes a run that goes on from it"
    assert (done.code, done.out, done.err) == (1, "", f"{script}: error: {expected}\n")
