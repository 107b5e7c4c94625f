"""The stages of ``idm-curate run``, in order: named here alone, so that their names can be had without loading them."""

from __future__ import annotations

from typing import Final

STAGES: Final = ("ingest", "restore", "select", "pack", "retrain", "evaluate", "report")
