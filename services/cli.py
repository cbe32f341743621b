"""`mkf-serve`, `mkf-eval`, `mkf-classify`, `mkf-healthcheck`: where their command lines start."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from services.errors import ServiceError


def serve_main() -> None:
    """Start the services (`mkf-serve`)."""
    from services.runtime.command import serve

    _run(serve)


def classify_main() -> None:
    """Classify image files (`mkf-classify`)."""
    from services.classification.command import classify

    _run(classify)


def eval_main() -> None:
    """Evaluate two models on a dataset (`mkf-eval`)."""
    from services.evaluation.command import evaluate

    _run(evaluate)


def healthcheck_main() -> None:
    """Say whether a service is serving (`mkf-healthcheck`)."""
    from services.runtime.healthcheck import healthcheck

    _run(healthcheck)


def _run(command: Callable[..., None]) -> None:
    """Status 0 done, 1 a failure in one line on standard error, 2 wrong use."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(command)
    try:
        app()
    except (ServiceError, OSError) as error:
        print(f"{sys.argv[0].rpartition('/')[2]}: {error}", file=sys.stderr)
        sys.exit(1)
