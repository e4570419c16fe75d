"""The recipes in configs/: each builds, is described, and trains on one's own data by the same command."""

import json
import runpy
from pathlib import Path
from typing import Any

import jax
import pytest

from transformer_jax.analysis import costs
from transformer_jax.config import from_json, to_json
from transformer_jax.training import Experiment, RunError, load_run, train

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def experiment(path: Path, **given: Any) -> Experiment:
    made: Experiment = runpy.run_path(str(path))["config"](**given)
    return made


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_and_survives_json(path: Path) -> None:
    assert f"python scripts/train.py configs/{path.name}" in path.read_text().partition('"""')[2].partition('"""')[0]
    made = experiment(path)
    assert from_json(to_json(made), Experiment) == made
    assert made.run.folder == f"runs/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_a_recipe_costs_is_known(path: Path) -> None:
    made = experiment(path)
    model = made.model.filled_in(97, 7)
    each = costs(model.make(), batch=2, length=16, objective=made.objective)
    counted = jax.eval_shape(model.make().init, jax.random.key(0), *model.example())
    assert sum(cost.parameters for cost in each.values()) == sum(a.size for a in jax.tree.leaves(counted))
    assert all(cost.training >= 2 * cost.forward for cost in each.values())


def own_data(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """For each recipe a file in the form that it takes, and its flags."""
    text = folder / "words.txt"
    text.write_text("to be or not to be that is the question\n" * 60)
    pairs = folder / "pairs.tsv"
    pairs.write_text("".join(f"{n}\t{n:03}\n" for n in range(60)))
    labels = folder / "labels.jsonl"
    labels.write_text("".join(json.dumps({"text": f"{n} {'even' if n % 2 == 0 else 'odd'}", "label": "ab"[n % 2]}) + "\n" for n in range(60)))
    tokens = folder / "tokens.jsonl"
    tokens.write_text("".join(json.dumps({"text": str(n), "labels": ["odd" if int(c) % 2 else "even" for c in str(n)]}) + "\n" for n in range(60)))
    return {
        "char_lm": (str(text), {}),
        "bpe_lm": (str(text), {"vocab_size": 260, "cache": str(folder / "cache")}),
        "dates": (str(pairs), {}),
        "token_types": (str(tokens), {}),
        "modules": (str(labels), {}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains_on_data_of_ones_own(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, flags = own_data(tmp_path)[path.stem]
    made = experiment(path, data=(file,), d_model=16, num_layers=1, num_heads=2, context=20, **({"num_kv_heads": 1} if path.stem == "bpe_lm" else {}), **flags)
    short = made.run.replace(steps=4, batch=3, steps_per_call=2, evaluate_every=2, checkpoint_every=2, sample_tokens=5)
    folder = train(made.replace(run=short))
    model, variables, vocabulary = load_run(folder)
    assert model.config.vocab_size == vocabulary.vocab_size + made.objective.extra_tokens
    assert (folder / "sample.txt").exists() and json.loads((folder / "run.json").read_text())["held_out_loss"] > 0
    assert jax.tree.leaves(variables)


@pytest.mark.slow
def test_modules_start_from_the_masked_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    files, small = own_data(tmp_path), {"d_model": 16, "num_layers": 1, "num_heads": 2, "context": 20}
    path = next(path for path in CONFIGS if path.stem == "modules")
    few = {"steps": 4, "batch": 3, "steps_per_call": 2, "evaluate_every": 2, "checkpoint_every": 4}
    masked = experiment(path, data=(files["char_lm"][0],), masked=True, **small)
    before = train(masked.replace(run=masked.run.replace(**few)))
    after = experiment(path, data=(files["modules"][0],), start=str(before), **small)
    capsys.readouterr()
    folder = train(after.replace(run=after.run.replace(**{**few, "steps": 1})))
    assert "from runs/modules_masked but for head/bias, head/kernel" in capsys.readouterr().out
    (_, old, words), (_, new, same) = load_run(before), load_run(folder)
    assert words == same
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), old["params"]["stack"], new["params"]["stack"])
    assert 0 < max(jax.tree.leaves(moved)) < 0.01  # one step of AdamW away
    wrong = after.replace(model=after.model.replace(d_model=32))
    with pytest.raises(RunError, match=r"run\.start: expected a run of which most parameters fit, received runs/modules_masked, which lacks \d+ of"):
        train(wrong)
