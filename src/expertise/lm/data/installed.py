"""`installed`: text that is on every machine with this package's environment.

It reads Python's standard library, its C headers, and the distributions of one fixed table, which are
dependencies of this package; other installed packages change nothing. Six domains:

- `docstrings`: docstrings of modules, classes and functions, dedented, from Python files of which
  at least a quarter is docstrings; one document per file
- `code`: the other Python files (a file belongs to one of the two, so the split by file holds across them)
- `headers`: C, C++ and CUDA headers
- `tests`, `web`, `data`: tests in Python; JavaScript, style sheets and HTML; JSON, CSV, YAML and the like:
  each only where at least 1 MB remains after deduplication
"""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from expertise.errors import counted
from expertise.lm.data.documents import Document, Source

DISTRIBUTIONS = (
    "annotated-types", "click", "contourpy", "cycler", "filelock", "fonttools", "fsspec", "huggingface-hub",
    "jinja2", "kiwisolver", "markdown-it-py", "markupsafe", "matplotlib", "mdurl", "mpmath", "networkx",
    "numpy", "packaging", "pillow", "pydantic", "pydantic-core", "pygments", "pyparsing", "python-dateutil",
    "pyyaml", "rich", "safetensors", "shellingham", "sympy", "tokenizers", "tomlkit", "torch", "tqdm",
    "typer", "typing-extensions", "typing-inspection",
)  # fmt: skip
"""The distributions that are read: the core's dependencies and their own."""

LARGEST_FILE = 1_000_000
"""Files of more bytes are left out: they are mostly tables."""

_MINIMUM_BYTES = {
    "code": 1, "headers": 1, "docstrings": 1, "tests": 1_000_000, "web": 1_000_000, "data": 1_000_000,
}  # fmt: skip
_ENDINGS = {
    "python": (".py",),
    "headers": (".h", ".hh", ".hpp", ".hxx", ".cuh", ".inc", ".inl"),
    "web": (".js", ".mjs", ".css", ".html"),
    "data": (".json", ".csv", ".tsv", ".txt", ".toml", ".yaml", ".yml", ".xml", ".dectest"),
}
_KIND_OF_ENDING = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings}
_TEST_FOLDERS = {"test", "tests"}
# Not readable text (compiled, other packages), or different on every machine (build settings).
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "lib-dynload"}
_SKIPPED_PREFIXES = ("_sysconfigdata", "pyconfig", "sitecustomize", "usercustomize", "license", "licence")
_QUOTED = re.compile(r'("""|\'\'\')(.*?)\1', re.DOTALL)
_QUOTED_SHARE = 0.25


@dataclass(frozen=True)
class _File:
    id: str
    size: int
    record_hash: str
    path: Path


@dataclass(frozen=True)
class _Listing:
    files: dict[str, list[_File]]
    digest: str


class InstalledSource(Source):
    """One domain of the installed text; files come in the order of the SHA-256 of their id.

    Args:
        domain: `code`, `headers`, `docstrings`, `tests`, `web` or `data`.
    """

    def __init__(self, domain: str) -> None:
        super().__init__(domain, _MINIMUM_BYTES[domain])
        self.num_skipped = 0

    def documents(self) -> Iterator[Document]:
        """Yield one document per file; files that are gone, not UTF-8 or invalid Python are skipped."""
        self.num_skipped = 0
        kind = "python" if self.domain in ("code", "docstrings") else self.domain
        for file in _listing().files.get(kind, []):
            try:
                text = file.path.read_bytes().decode()
                if kind == "python" and _is_documentation(text) != (self.domain == "docstrings"):
                    continue
                if self.domain == "docstrings":
                    text = docstrings(text)
            except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
                self.num_skipped += 1
                continue
            yield Document(file.id, self.domain, text)

    def digest(self) -> str:
        """Return the SHA-256 of the versions and the sorted candidates (id, size, hash if recorded)."""
        return _listing().digest

    def notes(self) -> list[str]:
        """Return a note with the number of files that were skipped."""
        if not self.num_skipped:
            return []
        return [
            f"left out of {self.domain}: {counted(self.num_skipped, 'installed file')} that cannot be read"
        ]


def installed_sources() -> list[InstalledSource]:
    """Return the sources of all six domains; the caller leaves out those that are too small."""
    _listing.cache_clear()  # a long-lived process must notice that packages were upgraded
    return [InstalledSource(domain) for domain in _MINIMUM_BYTES]


def docstrings(source: str) -> str:
    """Return the docstrings of a module, its classes and its functions, dedented, with blank lines between.

    Args:
        source: a Python file's text.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: the text is not valid Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other packages are no concern of the user
        tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: list[str] = []
    todo: list[ast.AST] = [tree]
    while todo:  # only statements can hold definitions: walking expressions would be most of the work
        node = todo.pop()
        if isinstance(node, documented):
            found.append(ast.get_docstring(node) or "")
        children = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
        todo.extend(reversed(children))
    return "".join(text.strip() + "\n\n" for text in found if text.strip())


def _is_documentation(source: str) -> bool:
    quoted = sum(len(match[2]) for match in _QUOTED.finditer(source))
    return quoted >= _QUOTED_SHARE * max(len(source), 1)


def _kind(name: str, size: int) -> str | None:
    """Return the kind of text of a file; None for a file that is left out."""
    path = PurePosixPath(name)
    folders = set(path.parts[:-1])
    base = path.name.lower()
    kind = _KIND_OF_ENDING.get(path.suffix.lower())
    if kind is None or not 0 < size <= LARGEST_FILE or base.startswith(_SKIPPED_PREFIXES):
        return None
    if folders & _SKIPPED_FOLDERS or any(part.endswith(".dist-info") or part == ".." for part in folders):
        return None
    is_test = bool(folders & _TEST_FOLDERS) or base.startswith(("test_", "conftest"))
    return "tests" if kind == "python" and is_test else kind


@functools.cache
def _listing() -> _Listing:
    """Return every candidate file by kind, listed once per process and source: about 0.2 s."""
    versions = {name: _version(name) for name in DISTRIBUTIONS}
    candidates: dict[str, _File] = {}
    for file in _candidates():
        candidates.setdefault(file.id, file)
    files: dict[str, list[_File]] = {}
    for file in candidates.values():
        kind = _kind(file.id, file.size)
        if kind is not None:
            files.setdefault(kind, []).append(file)
    for group in files.values():
        group.sort(key=lambda file: hashlib.sha256(file.id.encode("utf-8", "surrogateescape")).digest())
    listed = sorted((f.id, f.size, f.record_hash) for group in files.values() for f in group)
    digest = hashlib.sha256(json.dumps([platform.python_version(), versions, listed]).encode()).hexdigest()
    return _Listing(files, digest)


def _candidates() -> Iterator[_File]:
    yield from _walk(Path(sysconfig.get_path("stdlib")), "stdlib")
    yield from _walk(Path(sysconfig.get_path("include")), "include")
    for name in DISTRIBUTIONS:
        try:
            yield from _recorded(importlib.metadata.distribution(name))
        except importlib.metadata.PackageNotFoundError:
            continue


def _walk(folder: Path, prefix: str) -> Iterator[_File]:
    """Yield the regular files below a folder, without links: those lead out of the standard library."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_FOLDERS and not entry.name.startswith("config-"):
                yield from _walk(Path(entry.path), f"{prefix}/{entry.name}")
        elif entry.is_file(follow_symlinks=False) and Path(entry.name).suffix.lower() in _KIND_OF_ENDING:
            yield _File(f"{prefix}/{entry.name}", entry.stat().st_size, "", Path(entry.path))


def _recorded(distribution: importlib.metadata.Distribution) -> Iterator[_File]:
    """Yield the files in a distribution's RECORD or, without one, those that its installer names."""
    record = distribution.read_text("RECORD")
    root = Path(str(distribution.locate_file("")))
    if record is not None:
        for row in csv.reader(record.splitlines()):
            if len(row) == 3 and row[2].isdecimal():
                yield _File(row[0], int(row[2]), row[1], root / row[0])
        return
    for name in distribution.files or []:
        path = root / name
        if path.is_file():
            yield _File(name.as_posix(), path.stat().st_size, "", path)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
