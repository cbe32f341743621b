"""Which options of a command were given, whatever their defaults are."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def refuse_given(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Wrong use where an option was given that would play no part.

    Parameters
    ----------
    names
        Of the command's parameters.
    reason
        Why they play none; follows the option's name in the message.

    Raises
    ------
    typer.BadParameter
        One of the options stands on the command line.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise typer.BadParameter(f"--{name.replace('_', '-')} {reason}")
