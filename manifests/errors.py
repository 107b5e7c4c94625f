"""Every error this project raises on purpose, on one page.

CurateError               a message for the user: what was found, where, what to do
+-- ConfigError           an option or configuration file is wrong; nothing was started
+-- SourceError           the raw dataset is missing, or not in the layout it should have
+-- SampleError           one sample cannot be used; it becomes a row with this reason
+-- ShardError            one shard cannot be written or does not hold what it should
+-- RunError              a run directory is locked, foreign, or in contradiction with itself
"""

from __future__ import annotations


class CurateError(Exception):
    """Base of all errors that are messages to the user; the command line prints them without a traceback."""


class ConfigError(CurateError):
    """An option or a configuration file is wrong; nothing was started."""


class SourceError(CurateError):
    """The raw dataset is missing, unreadable, or not in the layout that was announced."""


class SampleError(CurateError):
    """One sample cannot be used. ``reason`` is a short, stable token that ends up in its manifest row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class ShardError(CurateError):
    """One shard cannot be written, or does not hold what its manifest says."""


class RunError(CurateError):
    """A run directory is locked, belongs to another configuration, or contradicts itself."""
