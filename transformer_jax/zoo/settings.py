"""What stands in a published config.json, read so that nothing is passed over in silence."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformer_jax.layers import Head

_MISSING: Any = object()


class Settings:
    """The fields of a config.json.

    Args:
        values: of the file.
        family: that reads them, for messages.
        head: what kind of head the file's model has.
    """

    def __init__(self, values: Mapping[str, Any], family: str, head: type[Head]) -> None:
        self.head, self.model_type = head, str(values.get("model_type"))
        self._values, self._family, self._read = dict(values), family, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __call__(self, name: str, default: Any = _MISSING) -> Any:
        """A field, or its default where it is not there. One without a default must be there.

        Raises:
            ValueError: it is not.
        """
        self._read.add(name)
        if name in self._values:
            return self._values[name]
        if default is _MISSING:
            raise ValueError(f"config.json: {self._family} needs a field {name!r}, which is not there")
        return default

    def one_of(self, name: str, *names: str, default: Any = _MISSING) -> Any:
        """The same field under several names, where it is not null.

        Raises:
            ValueError: they differ.
        """
        found = {other: value for other in (name, *names) if (value := self(other, None)) is not None}
        if len({repr(value) for value in found.values()}) > 1:
            raise ValueError(f"config.json: expected one value for {' and '.join(found)}, which are the same, received {found}")
        return next(iter(found.values())) if found else self(name, default)

    def only(self, name: str, *allowed: Any, default: Any = _MISSING) -> Any:
        """A field that must have one of some values, the only ones that the model can express.

        Raises:
            NotImplementedError: it has another.
        """
        value = self(name, allowed[0] if default is _MISSING else default)
        if value not in allowed:
            raise NotImplementedError(f"config.json: {name}: expected {' or '.join(map(repr, allowed))} for {self._family}, received {value!r}")
        return value

    @property
    def known(self) -> set[str]:
        """Fields that were asked for."""
        return set(self._read)

    def unread(self, ignored: Iterable[str]) -> list[str]:
        """Fields that nobody has asked for and that may not be ignored either."""
        return sorted(set(self._values) - self._read - set(ignored))
