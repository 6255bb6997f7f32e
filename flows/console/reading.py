"""Commands of the reading service that are not built yet: each refuses with the code `not-built`, whatever it is given."""

from typing import Annotated, Any, NoReturn

import cyclopts
from cyclopts import Parameter

from rapha.console.app import AsJson
from rapha.errors import Refusal

Anything = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
COMMANDS = {
    "notify": "Acknowledge a critical finding. Example: `rapha notify ack 17`",
}


def register(app: cyclopts.App) -> None:
    """Adds the commands; their help says that they refuse."""
    for name, text in COMMANDS.items():
        app.command(not_built, name=name, help=f"{text}\n\nNot built yet: it refuses with `not-built`.")


def not_built(*arguments: Anything, as_json: AsJson = False, **options: Annotated[Any, Parameter(show=False)]) -> NoReturn:
    """Refuses: this part of the reading service is not there yet."""
    raise Refusal(["not-built"], "this part of the reading service is not built yet")
