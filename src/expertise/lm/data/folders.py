"""The files of a folder: links are followed, hidden files are not read, and what is not read is counted."""

from __future__ import annotations

import fnmatch
import heapq
import os
from pathlib import Path, PurePosixPath

from expertise.errors import DataError
from expertise.lm.data.left_out import PassedOver
from expertise.lm.data.readers import unreadable


def files_under(root: Path, pattern: str) -> tuple[list[Path], PassedOver]:
    """The files of a folder that match a pattern, sorted, and what else would have matched.

    Links to folders are followed. A folder is read once, however many links lead to it, so a link back to a
    folder above ends there; its real place comes first, then the first link by name. A folder that holds the
    root is not read: other things than the source stand there. Hidden files and folders are not read.

    Args:
        root: the folder.
        pattern: as for `Path.glob`; `**` stands for any number of folders.

    Raises:
        DataError: a folder cannot be read.
    """
    wanted = _Pattern(pattern)
    files: list[Path] = []
    passed_over = PassedOver()
    taken: set[tuple[int, int, str]] = set()
    entered: set[tuple[int, int, frozenset[int]]] = set()
    above = {(status.st_dev, status.st_ino) for status in map(os.stat, root.resolve().parents)}
    folders: list[tuple[str, frozenset[int]]] = [(str(root), wanted.start)]
    links: list[tuple[str, frozenset[int]]] = []
    while folders or links:
        folder, places = folders.pop() if folders else heapq.heappop(links)
        entries, device, number = _entries(folder)
        if (device, number) in above or (device, number, places) in entered:
            passed_over.add(PassedOver.ABOVE if (device, number) in above else PassedOver.REPEATED)
            continue
        entered.add((device, number, places))
        for entry in entries:
            after = wanted.after(places, entry.name)
            is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            leads_on = wanted.inside(after)
            if entry.name.startswith("."):
                if is_folder and leads_on:
                    passed_over.add(PassedOver.HIDDEN_FOLDER)
                elif not is_folder and wanted.ends(after):
                    passed_over.add(PassedOver.HIDDEN)
            elif is_folder and leads_on and entry.is_symlink():
                heapq.heappush(links, (entry.path, leads_on))
            elif is_folder and leads_on:
                folders.append((entry.path, leads_on))
            elif not is_folder and wanted.ends(after):
                if not os.path.isfile(entry.path):
                    passed_over.add(PassedOver.BROKEN if entry.is_symlink() else PassedOver.SPECIAL)
                elif (device, number, entry.name) not in taken:
                    taken.add((device, number, entry.name))
                    files.append(Path(entry.path))
    return sorted(files), passed_over


def _entries(folder: str) -> tuple[list[os.DirEntry[str]], int, int]:
    """A folder's entries, and what tells it from every other folder."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            return list(entries), status.st_dev, status.st_ino
    except OSError as error:
        raise unreadable(Path(folder), error) from None


class _Pattern:
    """A pattern of paths, followed name by name: a set of places in it says what may come next."""

    def __init__(self, pattern: str) -> None:
        self._parts = PurePosixPath(pattern).parts
        if not self._parts:
            raise DataError(f"the pattern {pattern!r} cannot be used: it names no file")
        self.start = self.inside(self._with_none_for_stars({0}))

    def after(self, places: frozenset[int], name: str) -> frozenset[int]:
        """The places after one more name."""
        found = {at for at in places if self._parts[at] == "**"}
        found |= {at + 1 for at in places if at not in found and fnmatch.fnmatchcase(name, self._parts[at])}
        return self._with_none_for_stars(found)

    def ends(self, places: frozenset[int]) -> bool:
        """Whether a file there matches."""
        return len(self._parts) in places

    def inside(self, places: frozenset[int]) -> frozenset[int]:
        """The places within a folder there; empty: nothing in it can match."""
        return places - {len(self._parts)}

    def _with_none_for_stars(self, places: set[int]) -> frozenset[int]:
        """`**` may also stand for no folder at all."""
        found = set(places)
        for at, part in enumerate(self._parts):
            if at in found and part == "**":
                found.add(at + 1)
        return frozenset(found)
