"""Almanac: the small arithmetic of everyday reports. Numbers, text, dates, units and plain-text tables."""

from almanac import dates, numbers, tables, text, units

__all__ = ["dates", "numbers", "tables", "text", "units"]
__version__ = "0.4.0"
