"""Tables into a Markdown file, between `<!-- tables NAME -->` and `<!-- end tables -->`."""

import os
import re
from pathlib import Path

from plan_jax.errors import InputError

END = "<!-- end tables -->"


def write_into(path: Path, markdown: str, *, name: str) -> bool:
    """Puts the text between the marks of block `name`; what stood there goes. Returns whether the file changed.

    InputError: no such file, or the block is not there once with both its marks.
    """
    start = f"<!-- tables {name} -->"
    if not path.is_file():
        raise InputError(f"--into must be a file, got {path}; name one with the lines {start} and {END}")
    text = path.read_text(encoding="utf-8")
    block = re.compile(rf"^{re.escape(start)}\n(?:(?!<!-- tables ).*\n)*?{re.escape(END)}$", re.MULTILINE)
    found = block.findall(text)
    if len(found) != 1 or text.count(start) != 1:
        raise InputError(f"--into {path} must have a line {start} once and a line {END} below it; write both lines")
    new = block.sub(lambda _: f"{start}\n{markdown.strip()}\n{END}", text)
    if new == text:
        return False
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(new, encoding="utf-8")
    os.replace(partial, path)
    return True
