"""The proof: generators retrained on arms of a run, scored against one reference, and the gain with its interval."""

from __future__ import annotations

from typing import Final

#: Arms, and what each is there for.
ARMS: Final = {
    "original": "the source as it came",
    "cleaned": "restored where the gates agreed; the rest as it came",
    "combined": "restored where the gates agreed, left alone where nothing was wrong; the rest dropped",
    "null": "the original once more, with other seeds: what chance does",
    "placebo": "the original after an image operation that knows nothing of damage",
    "filter": "the original without its most severe samples",
    "weighted": "the original; of the severe samples a diffusion model learns above a noise level alone (Ambient-o)",
    "pristine": "the truth, where it is known: what is to be won",
}
