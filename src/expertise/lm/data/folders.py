"""List the files of a folder: links are followed, hidden files are skipped, and skipped files are counted."""

from __future__ import annotations

import fnmatch
import heapq
import os
from pathlib import Path, PurePosixPath

from expertise.errors import DataError
from expertise.lm.data.left_out import PassedOver
from expertise.lm.data.readers import unreadable


def files_under(root: Path, pattern: str) -> tuple[list[Path], PassedOver]:
    """Return the files of a folder that match a pattern, sorted, and counts of those that were skipped.

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
    """Return a folder's entries, and the device and inode numbers that identify it."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            return list(entries), status.st_dev, status.st_ino
    except OSError as error:
        raise unreadable(Path(folder), error) from None


class _Pattern:
    """A pattern of paths, matched name by name; the state of a match is a set of positions in the pattern."""

    def __init__(self, pattern: str) -> None:
        self._parts = PurePosixPath(pattern).parts
        if not self._parts:
            raise DataError(f"the pattern {pattern!r} cannot be used: it names no file")
        self.start = self.inside(self._with_none_for_stars({0}))

    def after(self, places: frozenset[int], name: str) -> frozenset[int]:
        """Return the positions after one more name."""
        found = {at for at in places if self._parts[at] == "**"}
        found |= {at + 1 for at in places if at not in found and fnmatch.fnmatchcase(name, self._parts[at])}
        return self._with_none_for_stars(found)

    def ends(self, places: frozenset[int]) -> bool:
        """Return True if a file at these positions matches."""
        return len(self._parts) in places

    def inside(self, places: frozenset[int]) -> frozenset[int]:
        """Return the positions inside a folder at these positions; empty: nothing in it can match."""
        return places - {len(self._parts)}

    def _with_none_for_stars(self, places: set[int]) -> frozenset[int]:
        """Add the positions after each `**`, which may also match no folder at all."""
        found = set(places)
        for at, part in enumerate(self._parts):
            if at in found and part == "**":
                found.add(at + 1)
        return frozenset(found)
