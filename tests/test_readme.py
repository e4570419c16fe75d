"""Every code block of the README runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCED.findall((ROOT / "README.md").read_text())
OTHERS = FENCED.findall((ROOT / "pallas_kernels" / "README.md").read_text())
PYTHON = [text for kind, text in BLOCKS + OTHERS if kind == "python" and "runs/" not in text]
OF_A_RUN = [text for kind, text in BLOCKS if kind == "python" and "runs/" in text]
COMMANDS = [line[line.rfind("&& ") + 3 if "&& " in line else 0 :] for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


def test_there_are_blocks_of_both_kinds_and_no_others() -> None:
    assert {kind for kind, _ in BLOCKS + OTHERS} == {"python", "sh"}
    assert len(PYTHON) >= 5
    assert sum(command.startswith("python scripts/") for command in COMMANDS) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("text", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(text: str) -> None:
    run([sys.executable, "-c", text], ROOT)


@pytest.mark.slow
def test_commands_run_in_the_order_given(tmp_path: Path) -> None:
    for name in ("configs", "scripts", "README.md"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] in ("python", "pytest"), command
        if words[0] == "python":
            run([sys.executable, *words[1:]], tmp_path)
    assert (tmp_path / "runs/char_lm/sample.txt").read_text()
    assert OF_A_RUN
    for text in OF_A_RUN:
        run([sys.executable, "-c", text], tmp_path)


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
