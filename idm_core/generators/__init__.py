"""The two generators that a data set is judged by: what they make of it when they are trained on it.

===  =======================================================================================================
ddm  A diffusion model: EDM (arXiv 2206.00364) on the project's own denoiser. With classes or without; Ambient-o's
     use of bad images at high noise alone (arXiv 2506.10038) is an option.
gan  R3GAN's loss (arXiv 2501.05441) on a small ResNet without normalisation. With classes or without.
===  =======================================================================================================

Both are reference trainers: small, and the same for every arm of a comparison.
"""

from __future__ import annotations

from idm_core.generators.batches import Images
from idm_core.generators.presets import DdmPreset, GanPreset, generator_preset
from idm_core.generators.snapshot import load_snapshot, sample
from idm_core.generators.training import TrainConfig, train

__all__ = ["DdmPreset", "GanPreset", "Images", "TrainConfig", "generator_preset", "load_snapshot", "sample", "train"]
