"""Who may import whom: configs, scripts -> transformer_jax -> pallas_kernels -> jax; no cycles; no file over 400 lines."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("pallas_kernels", "transformer_jax", "configs", "scripts")
MOST_LINES = 400

# What each part may import beside itself and the standard library; None for anything that is not ours.
ALLOWED: dict[str, tuple[str, ...]] = {
    "pallas_kernels": (),
    "transformer_jax": ("pallas_kernels",),
    "configs": ("transformer_jax", "pallas_kernels"),
    "scripts": ("transformer_jax", "pallas_kernels"),
}
KERNELS_NEED = {"jax", "jaxlib", "numpy"}
KIT_NEEDS = KERNELS_NEED | {"hypothesis", "chex"}
# Code for a chip, written in a language of its own: these import it at once, and nobody imports them before a function runs but they each other.
ON_CHIP = {f"pallas_kernels.flash.backends.triton.{name}": "triton" for name in ("kernels", "sums", "tile")}


def files(root: Path, part: str) -> list[Path]:
    return sorted(path for path in (root / part).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, name: str, known: set[str]) -> Iterator[tuple[str, bool]]:
    """What a file imports, and whether only when a function of it runs. `from a import b` is a.b where that is a module of ours, otherwise a."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    late = {id(node) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in known else base), id(node) in late


def graph(root: Path) -> dict[str, dict[str, bool]]:
    """Each module's imports, each with whether it happens only when a function runs."""
    paths = {module_name(root, path): path for part in PARTS for path in files(root, part)}
    found: dict[str, dict[str, bool]] = {}
    for name, path in paths.items():
        found[name] = {}
        for imported, late in imports(path, name, set(paths)):
            # Importing a.b.c runs the packages a and a.b first, unless the importer lies in them and they are running already.
            packages = [".".join(imported.split(".")[:n]) for n in range(1, imported.count(".") + 1)]
            for target in (imported, *(package for package in packages if package in paths and not f"{name}.".startswith(f"{package}."))):
                found[name][target] = found[name].get(target, True) and late
    return found


def wrong_arrows(modules: dict[str, dict[str, bool]]) -> list[str]:
    """Imports against the arrows, and those of `pallas_kernels` that it may not need."""
    wrong = []
    for name, targets in modules.items():
        part = name.partition(".")[0]
        for target, late in targets.items():
            top = target.partition(".")[0]
            if target in ON_CHIP and name not in ON_CHIP and not late:
                wrong.append(f"{name} imports {target} at once")
            if top == part or top in sys.stdlib_module_names:
                continue
            if top in (*PARTS, "tests", "benchmarks"):
                bad = top not in ALLOWED[part]
            elif part == "pallas_kernels":
                needs = KIT_NEEDS if name.startswith("pallas_kernels.testing") else KERNELS_NEED
                asked = late and (".backends." in name or (name, top) == ("pallas_kernels.flash.show", "matplotlib"))  # imported when asked for
                bad = top not in needs and not asked and ON_CHIP.get(name) != top
            else:
                bad = False
            if bad:
                wrong.append(f"{name} imports {target}")
    return wrong


def cycles(modules: dict[str, dict[str, bool]]) -> list[str]:
    """One import cycle for each module at which a search comes back to itself. An import that happens late is one too."""
    found, done = set(), set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            loop = path[path.index(name) :]
            first = loop.index(min(loop))
            found.add(" -> ".join((*loop[first:], *loop[:first], min(loop))))
        elif name not in done:
            for target in modules.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in modules:
        visit(name, ())
    return sorted(found)


def test_imports_follow_the_arrows():
    assert wrong_arrows(graph(ROOT)) == []


@pytest.mark.parametrize("part", PARTS)
def test_no_module_imports_itself_through_others(part):
    assert [loop for loop in cycles(graph(ROOT)) if loop.startswith(part)] == []


def test_no_file_is_over_400_lines():
    long = {
        str(path.relative_to(ROOT)): n for part in PARTS for path in files(ROOT, part) if (n := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


def test_every_part_is_there_to_be_looked_at():
    modules = graph(ROOT)
    assert {"pallas_kernels.flash.api", "transformer_jax.config", "transformer_jax.layers.base", "scripts.train", "configs.char_lm"} <= set(modules)
    assert modules["transformer_jax.layers.mixers.shaw"].keys() >= {"pallas_kernels", "transformer_jax.layers.base", "flax.linen", "jax"}


@pytest.fixture
def tree(tmp_path):
    def write(sources: dict[str, str]) -> dict[str, dict[str, bool]]:
        for name, source in sources.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return graph(tmp_path)

    return write


@pytest.mark.parametrize(
    ("where", "source", "wrong"),
    [
        ("pallas_kernels/a", "import flax", True),
        ("pallas_kernels/a", "import jax.numpy as jnp, numpy, math", False),
        ("pallas_kernels/a", "from transformer_jax import x", True),
        ("pallas_kernels/a", "def f():\n    import triton", True),
        ("pallas_kernels/flash/backends/triton", "def f():\n    import jax_triton", False),
        ("pallas_kernels/flash/backends/triton", "import jax_triton", True),
        ("pallas_kernels/flash/backends/triton/kernels", "import triton", False),
        ("pallas_kernels/flash/backends/triton/kernels", "import flax", True),
        ("pallas_kernels/flash/backends/triton/kernels", "import pallas_kernels.flash.backends.triton.tile", False),
        ("pallas_kernels/flash/backends/triton/host", "import pallas_kernels.flash.backends.triton.tile", True),
        ("pallas_kernels/flash/backends/triton/host", "def f():\n    import pallas_kernels.flash.backends.triton.tile", False),
        ("pallas_kernels/flash/backends/triton", "def f():\n    import transformer_jax", True),
        ("pallas_kernels/testing/kit", "import hypothesis, chex", False),
        ("transformer_jax/a", "import optax\nfrom pallas_kernels import attention", False),
        ("transformer_jax/a", "from scripts import train", True),
        ("transformer_jax/a", "def f():\n    import configs.char_lm", True),
        ("configs/a", "from scripts import train", True),
        ("scripts/a", "from configs import char_lm", True),
        ("scripts/a", "from transformer_jax.training import train", False),
        ("configs/a", "import tests", True),
    ],
)
def test_an_import_against_the_arrows_is_found(tree, where, source, wrong):
    assert bool(wrong_arrows(tree({where: source}))) == wrong


def test_cycles_are_found_through_packages_relative_imports_and_functions(tree):
    modules = tree(
        {
            "transformer_jax/a": "from transformer_jax import b",
            "transformer_jax/b": "from .c import x",
            "transformer_jax/c": "def f():\n    import transformer_jax.a",
            "transformer_jax/d": "from transformer_jax.a import y",
            "pallas_kernels/p/__init__": "from pallas_kernels.p.q import z",
            "pallas_kernels/p/q": "from pallas_kernels.p import z",
            "pallas_kernels/r": "import pallas_kernels.p.q",
            "transformer_jax/e/__init__": "from transformer_jax.e.f import x",
            "transformer_jax/e/f": "import transformer_jax.g",
            "transformer_jax/e/h": "import jax",
            "transformer_jax/g": "from transformer_jax.e.h import x",
        }
    )
    assert cycles(modules) == [
        "pallas_kernels.p -> pallas_kernels.p.q -> pallas_kernels.p",
        "transformer_jax.a -> transformer_jax.b -> transformer_jax.c -> transformer_jax.a",
        "transformer_jax.e -> transformer_jax.e.f -> transformer_jax.g -> transformer_jax.e",
    ]
