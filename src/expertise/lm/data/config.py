"""Recipe tables for the text and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from expertise.errors import RecipeError, nearest
from expertise.registry import Registry
from expertise.runs.files import expand_paths

INSTALLED = "installed"
"""Name of the source that reads the text installed with this package's environment."""

SMALLEST_VOCABULARY = 260
"""Smallest vocabulary of a trained tokenizer: 256 bytes, the end of text, and room for a few merges."""

KINDS = Registry(
    "kind of data",
    {
        "text": "expertise.lm.data.kinds:Text",
        "prompt": "expertise.lm.data.kinds:Prompt",
        "messages": "expertise.lm.data.kinds:Messages",
    },
)
"""The kinds of data. To add one write a class in `kinds.py` and add a line here."""


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """One source of text.

    Raises:
        RecipeError: neither or both of `path` and `hub` are given, or the domain's name cannot be used.
    """

    path: str = ""
    """A file or a folder of text, JSON Lines or Parquet."""

    hub: str = ""
    """A data set on the Hugging Face hub, as `owner/name` or `owner/name:configuration` (extra `data`)."""

    domain: str
    """The label for the counts and the evaluation of this text."""

    field: str = "text"
    """The field that holds the text, in JSON Lines, Parquet and hub data sets."""

    prompt_field: str = "prompt"
    """The field that holds the prompt, for data of the kind `prompt`."""

    completion_field: str = "completion"
    """The field that holds the completion, for data of the kind `prompt`."""

    messages_field: str = "messages"
    """The field that holds the list of messages, for data of the kind `messages`."""

    tools_field: str = "tools"
    """The field that holds the tools that the assistant may call, if a row of `messages` has some."""

    split: str = "train"
    """The split of the hub data set to read; it is divided into train, validation and test again."""

    pattern: str = "**/*"
    """Glob pattern of the files to read in a folder."""

    def __post_init__(self) -> None:
        expand_paths(self, "path")
        if bool(self.path) == bool(self.hub):
            raise RecipeError(f"the source of domain {self.domain!r} needs a path or a hub, one of the two")
        check_domain(self.domain)
        if not self.pattern or self.pattern.startswith("/") or ".." in self.pattern.split("/"):
            raise RecipeError(f"the pattern {self.pattern!r} must stay within the folder, such as '**/*'")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text a model is trained and evaluated on."""

    source: str | list[SourceTable] = ""
    """`"installed"`, a path to a file or folder, or tables with `path` or `hub`, and `domain`."""

    validation: str | list[SourceTable] = ""
    """Separate validation text, in the forms of `source` and of the same kind; then all of `source` is
    trained on, and there is no test text. Empty: 5 % of `source` become validation text and 5 % test text."""

    kind: str = "text"
    """`"text"`; or records of which only answers are learnt: `"prompt"` (prompt and completion) or
    `"messages"` (conversations)."""

    pack: Literal["auto", "stream", "documents"] = "auto"
    """Content of a window: a piece of one `"stream"`, with attention across documents, or whole
    `"documents"`, with attention inside each; `"auto"`: the stream for text, documents for records."""

    template: str = ""
    """The jinja2 chat template that renders messages; empty: the one beside a given tokenizer, else
    ChatML."""

    template_file: str = ""
    """A file that holds the chat template, or a `tokenizer_config.json` that does; a run's recipe keeps its
    text in `template`."""

    domains: list[str] = field(default_factory=list)
    """Read only these domains of source and validation; empty: all. The split of each stays the same."""

    cap_bytes: Annotated[int, Ge(0)] = 0
    """Maximum bytes to keep of each domain of the source; 0: all."""

    deduplicate: bool = True
    """Keep a paragraph of 60 bytes or more, or a whole record, only the first time that it occurs in any
    domain; text of `validation` is then not trained on either."""

    on_bad: Literal["stop", "skip"] = "stop"
    """Treatment of a row or a file that cannot be used: `"stop"` refuses all of the data and names its line,
    `"skip"` leaves it out and counts it."""

    bad_share: Annotated[float, Ge(0), Le(1)] = 0.1
    """Largest share of a source's rows that `on_bad = "skip"` may leave out; more is refused."""

    def __post_init__(self) -> None:
        expand_paths(self, "source", "validation", "template_file")
        if not 0 <= self.bad_share <= 1:
            raise RecipeError(f"data.bad_share is {self.bad_share}, but must be from 0 to 1")
        if self.cap_bytes < 0:
            raise RecipeError(f"data.cap_bytes is {self.cap_bytes}, but must be 0 (no cap) or more")
        if self.kind not in KINDS:
            raise RecipeError(f"data.kind: unknown {self.kind!r}", nearest(self.kind, KINDS))
        for key in ("template", "template_file"):
            if getattr(self, key) and self.kind != "messages":
                raise RecipeError(f"data.{key} is for data.kind = 'messages', not {self.kind!r}")
        if self.template and self.template_file:
            raise RecipeError("data.template and data.template_file are both given", "leave one of them out")
        if INSTALLED in (self.source, self.validation) and self.kind != "text":
            raise RecipeError(f"the installed text has no records of the kind {self.kind!r}", "name a file")
        if self.validation and self.validation == self.source:
            raise RecipeError(
                "data.validation is the same as data.source: nothing is left to train on",
                "leave data.validation out: 5 % of the source are held out then",
            )

    def places(self) -> str:
        """Return the paths and hub ids of the sources, in words."""
        if isinstance(self.source, str):
            return self.source
        return ", ".join(table.path or table.hub for table in self.source)

    @property
    def packed(self) -> bool:
        """True if a window holds whole documents, each attended to by itself."""
        return self.pack == "documents" or (self.pack == "auto" and self.kind != "text")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer: trained on the text, or given."""

    vocab_size: Annotated[int, Ge(SMALLEST_VOCABULARY)] = 4096
    """Largest vocabulary of the trained tokenizer; a short text gives a smaller one."""

    path: str = ""
    """A `tokenizer.json` to use instead of training one."""

    train_bytes: Annotated[int, Ge(1)] = 6_000_000
    """Maximum bytes of training text for training the tokenizer, an equal share of each domain."""

    def __post_init__(self) -> None:
        expand_paths(self, "path")
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise RecipeError(
                f"tokenizer.vocab_size is {self.vocab_size}, but must be at least {SMALLEST_VOCABULARY}",
                "256 of the tokens are the single bytes",
            )
        if self.train_bytes < 1:
            raise RecipeError(f"tokenizer.train_bytes is {self.train_bytes}, but must be at least 1")


def require_source(data: DataConfig) -> None:
    """Refuse a recipe that names no data.

    Raises:
        RecipeError: `data.source` is empty.
    """
    if not data.source:
        raise RecipeError(
            "the recipe names no data: set data.source",
            "for example --set data.source=installed, or a path to a file or a folder of text",
        )


def check_domain(domain: str) -> None:
    """Refuse a domain's name that a report could not show.

    Raises:
        RecipeError: the name is empty, or `mean`, which is the name of the mean over all domains.
    """
    if not domain.strip():
        raise RecipeError("a source has an empty domain: give it a short name")
    if domain == "mean":
        raise RecipeError("a domain cannot be called 'mean', which stands for the mean over all domains")
