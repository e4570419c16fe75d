"""UTF-8 files, whole or in blocks."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 18  # bytes; the trainer of byte pairs asks for 256 blocks ahead

_WORDS = re.compile(r".*\S(?=[ \t\r\n])", re.DOTALL)


def read(file: str, *, field: str) -> str:
    """A file's text.

    Args:
        file: its path.
        field: where the path was written, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, or not UTF-8; the message names the byte.
    """
    return "".join(read_blocks(file, field=field))


def read_blocks(file: str, *, field: str) -> Iterator[str]:
    """A file's text in blocks of about `BLOCK` bytes; raises as `read` does.

    A block ends before the last white space that follows a word: no pre-token of byte-level BPE goes across, so that the tokens of the blocks are those of
    the whole. A block without white space ends where it must.
    """
    path = Path(file)
    if not path.exists():
        raise FileNotFoundError(f"{field}: expected UTF-8 text files, received {file!r}, which does not exist (the current folder is {Path.cwd()})")
    if path.is_dir():
        raise ValueError(f"{field}: expected UTF-8 text files, received the folder {file!r}; name the files in it")
    decoder, rest = codecs.getincrementaldecoder("utf-8")(), ""
    with path.open("rb") as stream:
        while data := stream.read(BLOCK):
            rest += _decoded(decoder, data, stream.tell(), file, field)
            words = _WORDS.match(rest)
            end = words.end() if words else len(rest)
            yield rest[:end]
            rest = rest[end:]
        yield rest + _decoded(decoder, b"", stream.tell(), file, field)


def _decoded(decoder: codecs.IncrementalDecoder, data: bytes, end: int, file: str, field: str) -> str:
    """The text of the next bytes, which end at byte `end` of the file; none are the last."""
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        place = end - len(error.object) + error.start  # the object begins with what the decoder kept of the bytes before
        raise ValueError(
            f"{field}: expected UTF-8 text files, received {file!r}, whose byte {place} (0x{error.object[error.start]:02x}) is not UTF-8; "
            "convert it: iconv -f ENCODING -t UTF-8"
        ) from None
