"""One pass over a set of images: sums that are added up over processes, and that an interrupted pass resumes."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bars import open_bar
from ..devices import exact_device, in_float64
from ..files import try_to_write, write_file
from ..pictures import first_line
from ..processes import add_up, from_main, is_main_process, num_processes, process_rank
from .extractors import FeatureExtractor
from .metrics import saturated_shares
from .resampling import DRAWS, chosen
from .sources import GeneratedImages, ImageSource, digest_of, load_npz
from .wavelets import log_packets, packets_shape


logger = logging.getLogger(__name__)

CACHE_FORMAT = 4  # to be raised where the sums of the same images change
CHECKSUM = "sha256"  # beside the sums in a stored file
SAVE_SECONDS = 60.0  # between saves of an unfinished pass
IMAGES_PER_SPLIT = 500  # of the Inception Score, at least
BLOCKS = 20  # parts of the set whose sums stay apart, at least: halves of them tell how far the Inception Score moves
MOST_PICTURES = 1_000  # whose pixels are kept, for the interval of the wavelet distance
PICTURE_BYTES = 2**26  # of these at most


@dataclass(frozen=True, eq=False)
class Measurements:
    """
    What the measures need of a set of images. `None` stands for what was not measured, and for what another program's
    file of moments does not say.
    """

    description: dict[str, Any]  # what the images are
    mean: Tensor  # of the features, (d,) float64
    covariance: Tensor | None  # of the features, (d, d) float64, with N - 1 in the denominator
    num_images: int | None = None
    image_shape: tuple[int, int, int] | None = None
    class_scores: Tensor | None = None  # Inception Score of each split, float64
    halves_scores: Tensor | None = None  # Inception Score of random halves of the images, float64
    kept: Tensor | None = None  # features of some of the images, float32 (K, d)
    ends: Tensor | None = None  # of each image the shares of black and of white pixel values, float32 (N, 2)
    packet_means: Tensor | None = None  # of the wavelet packets, (P, w) float64
    packet_covariances: Tensor | None = None  # (P, w, w) float64
    pictures: Tensor | None = None  # uint8 (K, C, H, W), some of the images
    extractor: dict[str, Any] | None = None  # the identity of what measured them
    file: Path | None = None  # where the finished pass is stored

    @property
    def kept_rows(self) -> Tensor:
        """Which images those are whose features are kept."""
        assert self.kept is not None and self.num_images is not None
        return chosen(self.num_images, len(self.kept))

    @property
    def picture_rows(self) -> Tensor:
        assert self.pictures is not None and self.num_images is not None
        return chosen(self.num_images, len(self.pictures))


class RunningStatistics:
    """
    Sums over images. The sums of two disjoint sets add up to the sums of their union.

    Args:
        num_images: N, of the whole set.
        num_kept: Images whose features are kept, chosen at random with a fixed seed.
        num_splits: Parts of the set; each has an Inception Score. Images are dealt to them at random with a fixed
            seed, so that no order of the set, sorted or classes in turn, keeps a class out of a part. Fewer than
            `IMAGES_PER_SPLIT` images a part are one part.
        covariance: Whether products of features are summed too.
        packets_of: The shape (C, H, W) of the images, if their wavelet packets are wanted.
    """

    def __init__(
        self,
        num_images: int,
        num_kept: int,
        num_splits: int,
        extractor: FeatureExtractor,
        covariance: bool = True,
        packets_of: tuple[int, int, int] | None = None,
    ):
        d, classes = extractor.num_features, extractor.num_classes
        self.num_splits = splits_of(num_images, num_splits)
        # Each split is some of the blocks.
        num_blocks = self.num_splits * -(-BLOCKS // self.num_splits)
        self.blocks = torch.randperm(num_images, generator=torch.Generator().manual_seed(1)) % num_blocks
        sums: dict[str, tuple[int, ...]] = {"total": (d,)}
        sums |= {"block_total": (num_blocks, classes), "block_negentropy": (num_blocks,)}
        sums |= {"outer": (d, d)} if covariance else {}
        if packets_of is not None:
            number, width = packets_shape(packets_of)
            sums |= {"packet_total": (number, width), "packet_outer": (number, width, width)}
        self.device = device = exact_device(extractor.device)
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in sums.items()}
        self.sums["block_count"] = torch.zeros(num_blocks, dtype=torch.int64, device=device)
        self.sums["ends"] = torch.zeros(num_images, 2, device=device)
        # For each thing that is kept of some images, in which row the image stands; -1 for those of which it is not.
        self.slots: dict[str, Tensor] = {}
        if num_kept:
            self._keep("kept", num_images, num_kept, (d,), torch.float32)
        if packets_of is not None:
            number = min(MOST_PICTURES, max(PICTURE_BYTES // math.prod(packets_of), 1))
            self._keep("pictures", num_images, number, packets_of, torch.uint8)

    def _keep(self, name: str, num_images: int, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        rows = chosen(num_images, number)
        self.slots[name] = torch.full((num_images,), -1)
        self.slots[name][rows] = torch.arange(len(rows))
        self.sums[name] = torch.zeros(len(rows), *shape, dtype=dtype, device=self.device)

    def update(self, features: Tensor, logits: Tensor | None, indices: Sequence[int], images: Tensor) -> None:
        """Adds the images of these indices, uint8 (n, C, H, W), with features (n, d) and logits (n, classes)."""
        if not features.isfinite().all():
            raise ValueError(f"the extractor's features of images {indices[0]} to {indices[-1]} are NaN or infinite")
        rows, features, images = torch.as_tensor(indices), features.to(self.device), images.to(self.device)
        precise = features.double()
        self.sums["total"] += precise.sum(0)
        self.sums["ends"][rows.to(self.device)] = saturated_shares(images)
        if "outer" in self.sums:
            self.sums["outer"].addmm_(precise.T, precise)
        if "packet_outer" in self.sums:
            packets = log_packets(images).double().transpose(0, 1)  # (P, n, w)
            self.sums["packet_total"] += packets.sum(1)
            self.sums["packet_outer"].baddbmm_(packets.transpose(1, 2), packets)
        for name, values in {"kept": features, "pictures": images}.items():
            if name in self.slots:
                slots = self.slots[name][rows]
                self.sums[name][slots[slots >= 0].to(self.device)] = values[slots >= 0]
        blocks = self.blocks[rows].to(self.device)
        self.sums["block_count"].index_add_(0, blocks, torch.ones_like(blocks))
        if logits is not None:
            log_p = in_float64(logits).log_softmax(1)
            p = log_p.exp()
            self.sums["block_total"].index_add_(0, blocks, p)
            self.sums["block_negentropy"].index_add_(0, blocks, (p * log_p).sum(1))

    @property
    def count(self) -> int:
        return int(self.sums["block_count"].sum())

    def class_scores(self, parts: Tensor | None = None) -> Tensor | None:
        """
        exp E KL(p(y|x) ‖ p(y)) of each part (Salimans et al. 2016, arXiv:1606.03498), where float64 (parts, blocks) is
        1 for the blocks of a part; default of each split. The mean divergence is E Σ p log p - Σ p̄ log p̄, hence two
        sums are all it needs.
        """
        if not self.sums["block_total"].shape[1]:
            return None
        parts = (self.splits if parts is None else parts).to(self.device)
        count = parts @ self.sums["block_count"].double()
        marginal = parts @ self.sums["block_total"] / count[:, None]
        negentropy = parts @ self.sums["block_negentropy"] / count
        return (negentropy - torch.xlogy(marginal, marginal).sum(1)).exp()

    @property
    def splits(self) -> Tensor:
        """Which blocks make each split, (splits, blocks)."""
        num_blocks = len(self.sums["block_count"])
        return torch.eye(self.num_splits, dtype=torch.float64).repeat(1, num_blocks // self.num_splits)

    @property
    def halves(self) -> Tensor:
        """Random halves of the blocks that hold images, (draws, blocks)."""
        filled = self.sums["block_count"].cpu().nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(0)
        halves = torch.zeros(DRAWS, len(self.sums["block_count"]), dtype=torch.float64)
        for half in halves:
            half[filled[torch.randperm(len(filled), generator=generator)[: (len(filled) + 1) // 2]]] = 1
        return halves

    def covariance(self, outer: str = "outer", total: str = "total") -> Tensor | None:
        """Of the features, (d, d), or with the names of the packets' sums of each packet, (P, w, w)."""
        if outer not in self.sums:
            return None
        n, sums = self.count, self.sums[total]
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {n}")
        return (self.sums[outer] - sums[..., :, None] * sums[..., None, :] / n) / (n - 1)

    def finish(self, source: ImageSource, extractor: FeatureExtractor, file: Path | None = None) -> Measurements:
        packet_total = self.sums.get("packet_total")
        return Measurements(
            description=source.description,
            mean=self.sums["total"] / self.count,
            covariance=self.covariance(),
            num_images=self.count,
            image_shape=source.image_shape,
            class_scores=self.class_scores(),
            halves_scores=self.class_scores(self.halves),
            kept=self.sums.get("kept"),
            ends=self.sums["ends"],
            packet_means=None if packet_total is None else packet_total / self.count,
            packet_covariances=self.covariance("packet_outer", "packet_total"),
            pictures=self.sums.get("pictures"),
            extractor=extractor.identity,
            file=file,
        )


def splits_of(num_images: int, wanted: int) -> int:
    """Into how many splits the Inception Score takes a set."""
    return wanted if num_images >= wanted * IMAGES_PER_SPLIT else 1


def measure(
    source: ImageSource,
    extractor: FeatureExtractor,
    *,
    num_kept: int = 10_000,
    num_splits: int = 10,
    covariance: bool = True,
    packets: bool = False,
    batch_size: int = 64,
    cache_dir: Path | None = None,
    title: str = "images",
) -> Measurements:
    """
    Extracts the features of all images once. Under `torch.distributed` (which `accelerate` initialises) every process
    calls this and takes its share of the batches; all processes get the whole result.

    Args:
        num_kept: Images whose features are kept, for the measures that need more than moments.
        num_splits: Splits of the Inception Score; 1 for a small set.
        covariance: Whether the Fréchet distance is wanted.
        packets: Whether the wavelet distance is wanted.
        cache_dir: Stores finished passes, and unfinished ones from which a later call goes on. `None` for neither.
        title: For the progress bar.
    """
    packets_of = source.image_shape if packets else None
    statistics = RunningStatistics(len(source), num_kept, num_splits, extractor, covariance, packets_of)
    wanted = [num_kept, num_splits, covariance, packets]
    # The first process finds what is stored: not all of them may see the same disk.
    file = None if cache_dir is None else from_main(_file(cache_dir, source, extractor, wanted))
    stored = from_main(file is not None and is_main_process() and _load(statistics, file))
    if not stored:
        if cache_dir is not None:
            _try_to_write(cache_dir, sum(tensor.nbytes for tensor in statistics.sums.values()))
        _extract(statistics, source, extractor, batch_size, file, title)
    add_up(statistics.sums.values())
    if statistics.count != len(source):
        raise ValueError(f"{len(source)} images were to be measured, {statistics.count} were: delete {file}")
    if file is not None and not stored and is_main_process():
        _save(statistics.sums, file)
        forget(file.parent.glob(f"{file.stem}-*.pt"))
    return statistics.finish(source, extractor, file)


def forget(files: Iterable[Path]) -> None:
    """Removes stored passes, unless another evaluation has removed them."""
    if is_main_process():
        for file in files:
            file.unlink(missing_ok=True)


def _extract(
    statistics: RunningStatistics,
    source: ImageSource,
    extractor: FeatureExtractor,
    batch_size: int,
    file: Path | None,
    title: str,
) -> None:
    """This process's share of the pass. Processes take the batches in turn; the batches do not depend on them."""
    rank, world, indices = process_rank(), num_processes(), range(len(source))
    unfinished = None if file is None else file.with_name(f"{file.stem}-{batch_size}-{rank}of{world}.pt")
    if unfinished is not None:
        _load(statistics, unfinished)
    batches = [indices[start : start + batch_size] for start in indices[rank * batch_size :: world * batch_size]]
    done = statistics.count
    remaining = batches[-(-done // batch_size) :]
    saved = time.monotonic()
    total = sum(map(len, batches))
    progress = open_bar(total=total, initial=done, desc=title, unit="img", disable=rank > 0, dynamic_ncols=True)
    with progress, source.generating() if isinstance(source, GeneratedImages) else nullcontext(source) as images:
        loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            images,  # type: ignore[arg-type]  # a DataLoader needs no more than __getitems__ and __len__
            batch_sampler=remaining,  # type: ignore[arg-type]
            collate_fn=_unchanged,
            num_workers=source.num_workers,
            pin_memory=source.num_workers > 0 and extractor.device.type == "cuda",
            generator=torch.Generator(),  # leaves the global generator to whoever is training with it
        )
        for rows, batch in zip(remaining, loader, strict=True):
            statistics.update(*extractor(batch["pixel_values"]), rows, batch["pixel_values"])
            progress.update(len(rows))
            if unfinished is not None and time.monotonic() - saved > SAVE_SECONDS:
                _save(statistics.sums, unfinished)
                saved = time.monotonic()


def _unchanged(batch: Any) -> Any:  # not a lambda, which a worker process could not be sent
    return batch


# The cache


def _file(folder: Path, source: ImageSource, extractor: FeatureExtractor, wanted: list[int]) -> Path | None:
    if not is_main_process():
        return None
    parts = [CACHE_FORMAT, source.fingerprint, extractor.fingerprint, len(source), *wanted]
    return folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.pt"


def _try_to_write(folder: Path, num_bytes: int) -> None:
    """Raises `ValueError` on all processes if the folder cannot hold so much: better now than after the pass."""
    problem = None
    if is_main_process():
        try:
            try_to_write(folder, num_bytes)
        except OSError as error:
            problem = f"cannot write {num_bytes:,} bytes to the cache {str(folder)!r}: {error.strerror or error}"
    problem = from_main(problem)
    if problem is not None:
        raise ValueError(f"{problem}; free space, or choose another with --cache_dir")


def _save(sums: dict[str, Tensor], file: Path) -> None:
    """A disk that has become full costs what is stored, not what is measured."""
    stored: dict[str, Any] = {name: tensor.cpu() for name, tensor in sums.items()}
    try:
        with write_file(file) as unfinished:
            torch.save({**stored, CHECKSUM: _checksum(stored)}, unfinished)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        logger.warning("cannot store the statistics %r: %s", str(file), first_line(error))


def _load(statistics: RunningStatistics, file: Path) -> bool:
    """Whether the file is there and whole. A damaged one is told, and what it held is measured anew."""
    if not file.is_file():
        return False
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        checksum = stored.pop(CHECKSUM)
        if {name: (x.shape, x.dtype) for name, x in statistics.sums.items()} != {
            name: (x.shape, x.dtype) for name, x in stored.items()
        }:
            raise ValueError("it holds other sums")
        if checksum != _checksum(stored):
            raise ValueError("its checksum is not that of its content")
    except Exception as error:  # a damaged file raises errors of many types
        logger.warning("the stored statistics %r are damaged and are measured anew: %s", str(file), first_line(error))
        return False
    for name, tensor in statistics.sums.items():
        tensor.copy_(stored[name])
    return True


def _checksum(sums: dict[str, Tensor]) -> str:
    return digest_of(*(part for name, tensor in sorted(sums.items()) for part in (name, tensor)))


# Files of moments, as BigGAN-PyTorch and pytorch-fid keep them


def read_moments(path: str | Path) -> Measurements:
    """
    Reads `inception_moments.npz`: arrays `mu` (d,) and `sigma` (d, d), and what `write_moments` adds. Without that the
    extractor is unknown, and no distance to these moments is called FID.
    """
    arrays = load_npz(path)
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(f"{str(path)!r} has the arrays {', '.join(arrays) or 'none'}, expected mu and sigma")
    moments = arrays["mu"], arrays["sigma"]
    if not all(np.issubdtype(array.dtype, np.floating) for array in moments):
        dtypes = " and ".join(str(array.dtype) for array in moments)
        raise ValueError(f"{str(path)!r}: mu and sigma must be floating-point numbers, got {dtypes}")
    mean, covariance = (torch.from_numpy(array.astype(np.float64)) for array in moments)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise ValueError(f"{str(path)!r}: mu and sigma must be (d,) and (d, d), got {shapes}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{str(path)!r} holds NaN or infinite moments")
    if "protocol" not in arrays:
        description = {"source": str(path), "num_images": None, "extractor": "unknown"}
        return Measurements(description, mean, covariance)
    try:
        protocol = json.loads(str(arrays["protocol"]))
        description = {**protocol["reference"], "moments": str(path)}
        shape, extractor = protocol["image_shape"] and tuple(protocol["image_shape"]), protocol["extractor"]
        if not isinstance(extractor, dict):
            raise TypeError(f"its extractor is {extractor!r}")
        return Measurements(description, mean, covariance, protocol["num_images"], shape, extractor=extractor)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} has a protocol that can't be read: {error}") from error


def write_moments(measurements: Measurements, path: str | Path) -> None:
    """
    Writes what `read_moments` reads: `mu` and `sigma`, which other programs read too, and as JSON `protocol`: the
    images, their number and the extractor.
    """
    if measurements.covariance is None:
        raise ValueError("these measurements have no covariance: measure 'fid' too")
    protocol = {
        "reference": measurements.description,
        "num_images": measurements.num_images,
        "image_shape": measurements.image_shape,
        "extractor": measurements.extractor,
    }
    mean, covariance = measurements.mean.cpu().numpy(), measurements.covariance.cpu().numpy()
    with write_file(path) as unfinished, unfinished.open("wb") as file:  # to a path, savez may add a suffix
        np.savez(file, mu=mean, sigma=covariance, protocol=np.array(json.dumps(protocol)))
