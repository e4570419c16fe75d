"""JSON files of a published folder."""

import json
from pathlib import Path
from typing import Any


def read_json(file: Path, expected: type = dict) -> Any:
    """What is in a file.

    Args:
        file: its path.
        expected: dict or list.

    Raises:
        FileNotFoundError: it is not there. ValueError: it is no JSON, or of another type.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file}: expected a file, received none; copy or download it again") from None
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, received a file that is none: {error}") from None
    if not isinstance(values, expected):
        raise ValueError(f"{file}: expected {'an object' if expected is dict else 'a list'}, received {type(values).__name__}")
    return values
