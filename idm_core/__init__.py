"""The restorer: a diffusion model that leaves good photographs alone and brings damaged ones back."""

from __future__ import annotations

from idm_core.checkpoint import CheckpointError
from idm_core.restorer import Restoration, Restorer, load_restorer

__all__ = ["CheckpointError", "Restoration", "Restorer", "load_restorer"]
