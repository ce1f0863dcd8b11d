"""Interfaces to the operating system, and substitutes on systems that lack some."""
