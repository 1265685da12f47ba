"""What libraries log while they are imported although it asks nothing of anybody."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

_FALLBACK = "requires torchvision (not installed); falling back to"


def leave_out_fallbacks() -> None:
    """Keep from the log that transformers reads images with Pillow where torchvision is not installed.

    It says so at each import, in every process. Whoever sets `TRANSFORMERS_VERBOSITY` sees it.
    """
    if "TRANSFORMERS_VERBOSITY" in os.environ:
        return
    import logging

    logging.getLogger("transformers.utils.import_utils").addFilter(_is_news)


def _is_news(record: "logging.LogRecord") -> bool:
    return _FALLBACK not in record.getMessage()
