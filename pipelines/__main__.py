"""``python -m pipelines`` is ``idm-curate``."""

from pipelines.cli import main

main()
