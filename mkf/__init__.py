"""Master key filters: fit them, put them into a network, export both for serving.

The package is the offline room of the project: it never serves. Import what you need from its
modules (`mkf.fitting`, `mkf.assignment`, ...); nothing heavy is imported here, because the services
load the generated API `mkf.v1` through this package.
"""

from importlib.metadata import version

__version__ = version("mkf")
