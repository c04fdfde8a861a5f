"""From a folder, a file or a data set on the Hub to batches of uint8 pictures and class labels."""

from .labelled_images import (
    ImageBatch,
    LabelledImages,
    ShuffledBatches,
    Unreadable,
    UnreadablePictureError,
)
from .loading import load_labelled_images
from .opening import Contents
from .prepared import PreparedImages
from .preparing import prepare


__all__ = [
    "Contents",
    "ImageBatch",
    "LabelledImages",
    "PreparedImages",
    "ShuffledBatches",
    "Unreadable",
    "UnreadablePictureError",
    "load_labelled_images",
    "prepare",
]
