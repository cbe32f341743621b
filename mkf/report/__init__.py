"""Figures of the keys, the fits and the filters, and the page that shows them."""
