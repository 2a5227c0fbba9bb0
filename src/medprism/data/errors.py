"""What the data side says to a user: errors about input files, and reports of what was left out."""

from __future__ import annotations

import logging

from lightning.pytorch.utilities import rank_zero_only

logger = logging.getLogger("medprism.data")


class DataError(ValueError):
    """Input data that cannot be used; the message names the file and row, what was expected, and what to do."""


@rank_zero_only
def report(message: str) -> None:
    """Say something that a user should know about the data, once for all processes."""
    logger.warning(message)
