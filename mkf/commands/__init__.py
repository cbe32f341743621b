"""The commands of `mkf`, one module a group; `mkf.cli` puts them together."""
