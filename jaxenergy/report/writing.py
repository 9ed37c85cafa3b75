"""Files that are replaced, never half written, by whoever makes a report or a part of it."""

import contextlib
import os
from pathlib import Path


def write_text(path: Path, content: str | bytes) -> None:
    """Replaces a file so that a reader sees the old one or the new one.

    It is not made durable: a report can be made again.
    """
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
