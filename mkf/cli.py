"""`mkf`: the command line of the offline room."""

from __future__ import annotations

import sys

import typer

from mkf.commands.discover import discover
from mkf.commands.export import export
from mkf.commands.fit import fit, kernels, spread
from mkf.commands.graph import idealize, inspect
from mkf.commands.ladder import ladder
from mkf.commands.report import report
from mkf.commands.retrain import retrain
from mkf.errors import MkfError

app = typer.Typer(
    name="mkf",
    help="Fit the 8 master key filters, put them into networks, export both for serving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (fit, spread, kernels, discover, inspect, idealize, ladder, retrain, export, report):
    app.command()(command)


def main() -> None:
    """Run the command line: status 0 done, 1 a failure told in one line, 2 wrong use."""
    try:
        app()
    except (MkfError, OSError) as error:
        print(f"mkf: {error}", file=sys.stderr)
        sys.exit(1)
