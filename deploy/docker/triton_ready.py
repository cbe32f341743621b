#!/usr/bin/env python3
"""Exit 0 if Triton in this container is ready to serve these models, 1 if not.

triton-ready MODEL ...: the stock image has curl for this, ours only Python. Standard library only.
"""

from __future__ import annotations

import sys
import urllib.request

URL = "http://127.0.0.1:8000/v2/models/{}/ready"


def main() -> None:
    """Ask for each model; a server that is up may still load one."""
    if len(sys.argv) < 2:
        sys.exit("usage: triton-ready MODEL ...")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for model in sys.argv[1:]:
        try:
            opener.open(URL.format(model), timeout=3).close()
        except OSError as error:
            sys.exit(f"{model} is not ready: {error}")


if __name__ == "__main__":
    main()
