"""Which local model answers: a table the user can edit, and a pure choice that says why.

A row matches when each thing it names matches; among the rows whose model is there, the most particular wins, then the earlier.
The provider calls `choose`; assembly builds the table from the user's file with `table_from`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from claudecluster.model.errors import Refused

Complexity = Literal["low", "medium", "high"]
LEVELS: tuple[Complexity, ...] = get_args(Complexity)
SUFFIXES = {
    ".py": "python", ".pyi": "python", ".ts": "typescript", ".tsx": "typescript", ".js": "javascript", ".jsx": "javascript",
    ".go": "go", ".rs": "rust", ".java": "java", ".kt": "kotlin", ".c": "c", ".h": "c", ".cpp": "cpp", ".cc": "cpp", ".hpp": "cpp",
    ".cs": "csharp", ".rb": "ruby", ".php": "php", ".swift": "swift", ".sh": "shell", ".sql": "sql", ".md": "markdown",
}  # fmt: skip
HARD_WORDS = (
    "refactor",
    "architect",
    "concurren",
    "deadlock",
    "race condition",
    "migrat",
    "redesign",
    "security",
    "performance",
    "algorithm",
)
REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)
EASY_WORDS = ("typo", "rename", "comment", "docstring", "format", "bump", "readme", "changelog")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about the work. "" where unknown; `wanted` is the model the client asked for, by any name."""

    wanted: str = ""
    category: str = ""
    complexity: str = ""
    language: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; an empty field matches everything. `wanted` matches a part of the asked-for name (`haiku`)."""

    model: str
    categories: tuple[str, ...] = ()
    complexities: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    wanted: str = ""

    def matches(self, facts: Facts) -> bool:
        """Return whether everything this row names is so."""
        pairs = ((self.categories, facts.category), (self.complexities, facts.complexity), (self.languages, facts.language))
        return all(not names or fact in names for names, fact in pairs) and self.wanted.lower() in facts.wanted.lower()

    def weight(self) -> int:
        """Return how particular this row is: language before complexity before category before the name asked for."""
        return 8 * bool(self.languages) + 4 * bool(self.complexities) + 2 * bool(self.categories) + bool(self.wanted)

    def reason(self, facts: Facts) -> str:
        """Return what in the facts made this row match."""
        named = ((self.languages, facts.language), (self.complexities, f"{facts.complexity} complexity"), (self.categories, facts.category))
        said = [fact for names, fact in named if names] + ([f"asked for {facts.wanted}"] if self.wanted else [])
        return ", ".join(said) or "the default row"


@dataclass(frozen=True, slots=True)
class Choice:
    """The model and one sentence on why. `degraded` says that it is not what was asked for."""

    model: str
    why: str
    degraded: bool = True


DEFAULT = (
    Row("qwen3-coder:30b"),
    Row("qwen3:8b", wanted="haiku"),
    Row("qwen3:8b", complexities=("low",), categories=("document",)),
    Row("gpt-oss:20b", categories=("analyze",)),
)


def choose(facts: Facts, table: Sequence[Row], available: Sequence[str], configured: str = "") -> Choice:
    """Return the model to ask: the one asked for by its own name, else the configured one, else the table's. Raises Refused if there is none."""
    exact, own = named(facts.wanted, available), named(configured, available)
    if exact:
        return Choice(exact, f"{exact}: asked for by name", degraded=False)
    if own:
        return Choice(own, f"{own}: set in the configuration")
    ranked = sorted((row for row in table if row.matches(facts)), key=lambda row: -row.weight())
    missing: list[str] = [configured] if configured else []
    for row in ranked:
        model = named(row.model, available)
        if model:
            absent = f" ({', '.join(dict.fromkeys(missing))} not installed)" if missing else ""
            return Choice(model, f"{model}: {row.reason(facts)}{absent}")
        missing.append(row.model)
    if not available:
        wanted = missing[0] if missing else "a model"
        raise Refused("no local model is installed", hint=f"run `ollama pull {wanted}`, or name one that is there in the model table")
    return Choice(available[0], f"{available[0]}: the first one installed; nothing in the table is")


def named(wanted: str, available: Iterable[str]) -> str:
    """Return the available model of that name, "" if none: a name without a tag means `:latest`, or the only tag there is."""
    models = list(available)
    if not wanted:
        return ""
    if wanted in models:
        return wanted
    if ":" in wanted:
        return ""
    tagged = [model for model in models if model.partition(":")[0] == wanted]
    latest = f"{wanted}:latest"
    return latest if latest in tagged else tagged[0] if len(tagged) == 1 else ""


def facts_of(prompt: str, files: Iterable[str] = (), *, category: str = "", wanted: str = "") -> Facts:
    """Return what a task's text and files say about it. Complexity is a rule of thumb over words, length and number of files."""
    paths = list(files)
    text = prompt.lower()
    score = len(paths) + len(prompt) / 800 + 3 * sum(word in text for word in HARD_WORDS) - 2 * sum(word in text for word in EASY_WORDS)
    score += 2 * (category == "refactor") - (category == "document")
    complexity = LEVELS[0] if score < 2 else LEVELS[1] if score < 6 else LEVELS[2]
    found = [language for path in paths for suffix, language in SUFFIXES.items() if path.endswith(suffix)]
    language = (
        max(sorted(set(found)), key=found.count)
        if found
        else next((name for name in sorted(set(SUFFIXES.values())) if _says(text, name)), "")
    )
    return Facts(wanted, category, complexity, language)


def facts_from(payload: Mapping[str, Any], files: Iterable[str] = (), *, category: str = "", wanted: str = "") -> Facts:
    """Return what a request says about its work: its first prompt without the client's own notes, so that a session keeps its model."""
    messages = payload.get("messages")
    users = (
        (each for each in messages if isinstance(each, Mapping) and each.get("role") == "user") if isinstance(messages, list) else iter(())
    )
    content = next(users, {}).get("content")
    blocks = content if isinstance(content, list) else [{"text": content}]
    text = "\n".join(str(block.get("text") or "") for block in blocks if isinstance(block, Mapping))
    return facts_of(REMINDER.sub("", text), files, category=category, wanted=wanted)


def _says(text: str, language: str) -> bool:
    return len(language) > 3 and language in text.split()


def table_from(rows: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Return the table written as plain data: `{model, category?, complexity?, language?, wanted?}`, lists or single words.

    Raises Refused with the row's number where one cannot be read.
    """
    table = []
    for number, row in enumerate(rows, start=1):
        unknown = set(row) - {"model", "category", "complexity", "language", "wanted"}
        levels = _names(row.get("complexity"))
        if unknown or not isinstance(row.get("model"), str) or set(levels) - set(LEVELS):
            what = f"unknown key {min(unknown)!r}" if unknown else "`model` must be a name, `complexity` one of low, medium, high"
            raise Refused(f"model table, row {number}: {what}", hint="keys are model, category, complexity, language, wanted")
        table.append(Row(row["model"], _names(row.get("category")), levels, _names(row.get("language")), str(row.get("wanted") or "")))
    return tuple(table)


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        return tuple(str(item).lower() for item in value)
    return (str(value).lower(),) if value else ()
