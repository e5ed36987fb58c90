from pathlib import Path

from claudecluster.cli.main import COMMANDS
from claudecluster.cli.reference import page

PAGE = Path(__file__).parents[2] / "docs/reference/cli.md"


def test_the_page_in_the_docs_is_what_the_commands_say() -> None:
    assert PAGE.read_text() == page(), "python -m claudecluster.cli.reference > docs/reference/cli.md"


def test_every_command_has_its_section() -> None:
    sections = {line.removeprefix("## ").split()[0] for line in page().splitlines() if line.startswith("## ")}
    assert sections == set(COMMANDS)


def test_the_page_says_nothing_of_this_machine() -> None:
    assert str(Path.home()) not in page()
