"""Measures what the paper reports, on the machine at hand."""
