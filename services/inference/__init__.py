"""Engines that run the models of a repository: one protocol, chosen by URL."""
