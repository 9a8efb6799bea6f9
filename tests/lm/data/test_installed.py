from __future__ import annotations

import importlib.metadata
import itertools
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from expertise.lm.data import DataConfig, TokenizerConfig, open_sources, prepare, source_digest
from expertise.lm.data import installed as module
from expertise.lm.data.installed import DISTRIBUTIONS, docstrings, installed_sources
from expertise.lm.data.split import SPLITS

INSTALLED = DataConfig(source="installed", cap_bytes=150_000)


@pytest.fixture(scope="module")
def first() -> dict[str, list[tuple[str, str]]]:
    """The first documents of each domain."""
    return {
        source.domain: [
            (document.id, document.text)
            for document in itertools.islice(source.documents(), 20 if source.domain == "docstrings" else 120)
        ]
        for source in installed_sources()
    }


@pytest.fixture(autouse=True)
def _listed_anew() -> Iterator[None]:
    """What a test makes of the machine is not what the next one finds."""
    yield
    module._listing.cache_clear()


def test_docstrings_are_dedented_prose_in_reading_order() -> None:
    source = """'''Top.'''
class A:
    '''A.

    More.
    '''
    if True:
        def f(self):
            '''F.'''

x = "no"
"""
    assert docstrings(source) == "Top.\n\nA.\n\nMore.\n\nF.\n\n"
    assert docstrings('def f():\n    "One \\d."\n') == "One \\d.\n\n"
    with pytest.raises(SyntaxError):
        docstrings("print 'two'")


def test_ids_are_the_same_on_every_machine(first) -> None:
    for documents in first.values():
        for name, _ in documents:
            assert not name.startswith(("/", "."))
            assert "site-packages" not in name
            assert sys.prefix not in name


def test_a_file_serves_one_domain(first) -> None:
    names = [{name for name, _ in first[domain]} for domain in ("code", "docstrings", "tests")]
    assert sum(map(len, names)) == len(names[0] | names[1] | names[2])


def test_it_is_spread_over_packages(first) -> None:
    packages = {name.split("/")[0] for name, _ in first["code"]}
    assert {"torch", "sympy", "stdlib"} <= packages
    assert len(packages) > 6


def test_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._MINIMUM_BYTES, "data", 10**12)
    prepared = prepare(INSTALLED, TokenizerConfig(vocab_size=1000))
    assert prepared.domains[:3] == ("code", "headers", "docstrings")
    assert "data" not in prepared.domains
    assert any(note.startswith("left out the domain data: ") for note in prepared.notes)
    for domain in prepared.domains:
        total = sum(prepared.bytes[side][domain] for side in SPLITS)
        assert 100_000 < total <= 150_000
        assert all(prepared.bytes[side][domain] for side in SPLITS)
    assert any("def " in text for text in prepared.documents("validation", "code"))
    assert any("#include" in text for text in prepared.documents("train", "headers"))


def test_other_packages_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_digest(INSTALLED)
    other = tmp_path / "site/other-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "RECORD").write_text("other/a.py,,10\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert importlib.metadata.version("other") == "1.0"
    assert source_digest(INSTALLED) == before


def test_another_version_of_a_listed_package_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_digest(INSTALLED)
    monkeypatch.setattr(module, "_version", lambda name: "0.0")
    assert source_digest(INSTALLED) != before


def test_a_python_without_tests_and_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's interpreter has no `test` package, and no headers unless they are asked for."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "one.py").write_text("x = 1\n")
    (tmp_path / "lib" / "bad.py").write_bytes(b"# \xe9\n")
    (tmp_path / "lib" / "link.py").symlink_to(tmp_path / "lib" / "one.py")
    (tmp_path / "lib" / "_sysconfigdata_x.py").write_text("y = 1\n")
    paths = {"stdlib": str(tmp_path / "lib"), "include": str(tmp_path / "none")}
    monkeypatch.setattr(sysconfig, "get_path", paths.__getitem__)
    monkeypatch.setattr(module, "DISTRIBUTIONS", ("not-there",))
    sources = open_sources(INSTALLED)
    found = {source.domain: [document.id for document in source.documents()] for source in sources}
    assert found == {
        "code": ["stdlib/one.py"], "headers": [], "docstrings": [], "tests": [], "web": [], "data": [],
    }  # fmt: skip
    assert "1 installed file that cannot be read" in sources[0].notes()[0]


def test_the_table_is_sorted_and_present_where_the_core_is() -> None:
    assert list(DISTRIBUTIONS) == sorted(DISTRIBUTIONS)
    assert [name for name in DISTRIBUTIONS if module._version(name) == "absent"] == []
