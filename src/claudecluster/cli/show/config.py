"""`config`: the settings and where each came from; the schemas of what users write."""

from typing import Annotated, Any

import typer

from claudecluster.assembly.nearest import suggestion
from claudecluster.assembly.paths import place
from claudecluster.assembly.schema import json_schema
from claudecluster.assembly.settings import Settings, load, shown
from claudecluster.cli import exits, voice
from claudecluster.cli.text import table
from claudecluster.model.errors import Refused

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Show the settings; print schemas.")


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False) -> int:
    """Show every setting, its value (secrets redacted) and where it came from."""
    rows = shown(load(place("").folder))
    if as_json:
        voice.as_json({"settings": rows})
        return exits.LANDED
    lines = [
        (str(row["name"]), _plain(row["value"]), " ".join(filter(None, (str(row["source"]), str(row["where"])))), str(row["variable"]))
        for row in rows
    ]
    voice.data("\n".join(table(("setting", "value", "from", "variable"), lines)))
    return exits.LANDED


@app.command()
def schema(name: Annotated[str, typer.Argument(help="tasks | settings")] = "tasks") -> int:
    """Print the JSON schema of the task file (`tasks`) or of config.toml (`settings`)."""
    schemas: dict[str, Any] = {"tasks": json_schema, "settings": Settings.model_json_schema}
    if name not in schemas:
        raise Refused(f"there is no schema named {name!r}", hint=suggestion(name, schemas))
    voice.as_json(schemas[name]())
    return exits.LANDED


def _plain(value: object) -> str:
    if value is None or value in ("", []):
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
