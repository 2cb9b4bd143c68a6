r"""Which source files a model was made by: the fingerprint under which the claims keep it.

Read next: runner.py.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

ABOVE = ("lab/claims", "lab/commands")  # folders that no cached model depends on
TABLES = ".json"  # tables that stand beside the code


def source_fingerprint(module: str) -> str:
    """Sixteen hex digits of the source files, and of the tables beside them, that a module reaches by its imports,
    those of ABOVE left out.

    Args:
        module: full name, as that of a claim.
    """
    package, digest = Path(__file__).parents[2], hashlib.sha256()
    below = [path for path in reached(module) if not path.relative_to(package).as_posix().startswith(ABOVE)]
    tables = {file for folder in {path.parent for path in below} for file in folder.iterdir() if file.suffix == TABLES}
    for path in sorted({*below, *tables}):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def reached(module: str) -> set[Path]:
    """The files of minialign that are imported, on whatever way, when a module is."""
    files, waiting = set(), [module]
    while waiting:
        path = Path(__file__).parents[3] / Path(*waiting.pop().split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path.exists() and path not in files:
            files.add(path)
            waiting += imported(path)
    return files


@functools.cache
def imported(path: Path) -> list[str]:
    """Full names of minialign's modules, and of the packages around them, that a file's import statements could mean,
    wherever they stand in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = path.relative_to(Path(__file__).parents[3]).parts[: -node.level] if node.level else ()
            module = ".".join((*around, *([node.module] if node.module else [])))
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "minialign"]
