"""Measures each family against its goldens and writes the README's table of them: `python scripts/zoo_table.py`."""

from pathlib import Path
from runpy import run_path

import jax
import numpy as np
from safetensors.numpy import load_file

from transformer_jax import EncoderDecoder, EncoderOnly, from_pretrained, zoo
from transformer_jax.models.base import Model

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- families, written by scripts/zoo_table.py -->", "<!-- end of families -->"


def main() -> None:
    """Measures each family against its goldens and writes the README's table of them."""
    cases = run_path(str(ROOT / "tests" / "zoo" / "conftest.py"))["CASES"]
    errors: dict[str, float] = {}
    shapes: dict[str, str] = {}
    for file in cases.values():
        for name, case in file.items():
            model, error = measured(ROOT / "tests" / "zoo" / "goldens" / name)
            kind = case["model_type"]
            errors[kind] = max(error, errors.get(kind, 0.0))
            shapes.setdefault(kind, shape(model))
            print(f"{name}: {error:.1e}", flush=True)
    rows = ["| family | `model_type` | shape | paper | what is unusual | presets | error |", "|---|---|---|---|---|---|---|"]
    for family in zoo.FAMILIES:
        presets = ", ".join(f"`{name}`" for name in family.presets)
        kind = family.model_type
        rows.append(f"| {family.name} | `{kind}` | {shapes[kind]} | {family.paper} | {family.unusual} | {presets} | {errors[kind]:.0e} |")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
    readme.write_text(before + MARKS[0] + "\n" + "\n".join(rows) + "\n" + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")


def measured(golden: Path) -> tuple[Model, float]:
    """The model, and the largest difference of its outputs from the published implementation's, of the largest of these, in float32."""
    parity = run_path(str(ROOT / "tests" / "zoo" / "test_parity.py"))
    everything = load_file(golden / "expected.safetensors")
    model, variables = from_pretrained(golden)
    worst = 0.0
    run = jax.jit(lambda given: parity["outputs"](model, variables, given))
    for padding in sorted({name.split(".")[0] for name in everything}):
        given = {name.split(".")[1]: value for name, value in everything.items() if name.startswith(f"{padding}.")}
        expected = {name: given.pop(name) for name in parity["OUTPUTS"] if name in given}
        valid = given["valid"].astype(bool)
        made = run({**given, **{name: given[name].astype(bool) for name in ("valid", "target_valid") if name in given}})
        for name, theirs in expected.items():
            ours = np.asarray(made[name])
            difference = np.abs(ours - theirs)
            worst = max(worst, float((difference[valid] if ours.shape[:2] == valid.shape else difference).max() / np.abs(theirs).max()))
    return model, worst


def shape(model: Model) -> str:
    """What kind of model it is, in words."""
    return "encoder-decoder" if isinstance(model, EncoderDecoder) else "encoder" if isinstance(model, EncoderOnly) else "decoder"


if __name__ == "__main__":
    main()
