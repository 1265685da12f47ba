"""Find models that somebody else laid into a cache: an image, a mount, or Hugging Face's own libraries."""

from gen_worker.fetch.config import SelectionOptions
from gen_worker.fetch.layout import Layout, Record
from gen_worker.models.wanted import Wanted


def unrecorded(layout: Layout, wanted: Wanted, options: SelectionOptions) -> Record | None:
    """Return what a folder says that a model consists of; None when there is no such folder, or it is not enough."""
    return None
