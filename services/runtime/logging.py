"""Plain logging to standard error, one line an event."""

from __future__ import annotations

import logging
import sys


class OneLineFormatter(logging.Formatter):
    r"""Writes line ends as `\n`: a traceback stays one event, and no input can forge another."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        return super().format(record).replace("\r", "\\r").replace("\n", "\\n")


def configure_logging(level: str) -> None:
    """Send all events of at least this level to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
