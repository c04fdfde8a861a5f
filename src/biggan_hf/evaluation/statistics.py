"""One pass over a set of images: sums that add up over processes and go on after an interruption."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm.auto import tqdm

from .extractors import FeatureExtractor
from .sources import ImageSource, load_npz


SAVE_SECONDS = 60.0  # between saves of an unfinished pass


@dataclass(frozen=True, eq=False)
class Measurements:
    """
    What the measures need to know of a set of images.

    Args:
        description: What the images are.
        mean: (d,) float64.
        covariance: (d, d) float64, with N - 1 in the denominator.
        num_images: N; `None` where a file of moments does not say.
        image_shape: (C, H, W); `None` for a file of moments.
        class_scores: Inception Score of each split, float64; `None` without logits.
        kept: Features of some of the images, float32 (K, d); `None` for a file of moments.
    """

    description: dict[str, Any]
    mean: Tensor
    covariance: Tensor
    num_images: int | None = None
    image_shape: tuple[int, int, int] | None = None
    class_scores: Tensor | None = None
    kept: Tensor | None = None


class RunningStatistics:
    """
    Sums over images. Those of two disjoint sets of images add up to those of their union.

    Args:
        num_images: N, of the whole set.
        num_kept: Images whose features are kept, chosen at random with a fixed seed.
        num_splits: Parts of the set for each of which there is an Inception Score; image i is in part i mod
            `num_splits`, which mixes the classes of a sorted set.
        extractor: Gives the widths and the device.
    """

    def __init__(self, num_images: int, num_kept: int, num_splits: int, extractor: FeatureExtractor):
        d, classes, device = extractor.num_features, extractor.num_classes, extractor.device
        kept = torch.randperm(num_images, generator=torch.Generator().manual_seed(0))[:num_kept].sort().values
        self.slots = torch.full((num_images,), -1)
        self.slots[kept] = torch.arange(len(kept))
        sums = {
            "total": (d,),
            "outer": (d, d),
            "split_total": (num_splits, classes),
            "split_negentropy": (num_splits,),
        }
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in sums.items()}
        self.sums["split_count"] = torch.zeros(num_splits, dtype=torch.int64, device=device)
        self.sums["kept"] = torch.zeros(len(kept), d, device=device)

    def update(self, features: Tensor, logits: Tensor | None, indices: Sequence[int]) -> None:
        """
        Args:
            features: (n, d).
            logits: (n, classes).
            indices: Which images of the set these are.

        Raises:
            ValueError: A feature is NaN or infinite.
        """
        if not features.isfinite().all():
            raise ValueError(f"the extractor's features of images {indices[0]} to {indices[-1]} are NaN or infinite")
        rows = torch.as_tensor(indices)
        precise = features.double()
        self.sums["total"] += precise.sum(0)
        self.sums["outer"].addmm_(precise.T, precise)
        slots = self.slots[rows]
        self.sums["kept"][slots[slots >= 0].to(features.device)] = features[(slots >= 0).to(features.device)]
        splits = (rows % len(self.sums["split_count"])).to(features.device)
        self.sums["split_count"].index_add_(0, splits, torch.ones_like(splits))
        if logits is not None:
            log_p = logits.double().log_softmax(1)
            p = log_p.exp()
            self.sums["split_total"].index_add_(0, splits, p)
            self.sums["split_negentropy"].index_add_(0, splits, (p * log_p).sum(1))

    @property
    def count(self) -> int:
        return int(self.sums["split_count"].sum())

    def class_scores(self) -> Tensor | None:
        """
        exp E KL(p(y|x) ‖ p(y)) of each split (Salimans et al. 2016, arXiv:1606.03498). The mean divergence is
        E Σ p log p - Σ p̄ log p̄, hence two sums are all it needs.
        """
        if not self.sums["split_total"].shape[1]:
            return None
        used = self.sums["split_count"] > 0
        count = self.sums["split_count"][used].double()
        marginal = self.sums["split_total"][used] / count[:, None]
        return (self.sums["split_negentropy"][used] / count - torch.xlogy(marginal, marginal).sum(1)).exp()

    def finish(self, source: ImageSource) -> Measurements:
        n, total = self.count, self.sums["total"]
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {n}")
        covariance = (self.sums["outer"] - total[:, None] * total[None] / n) / (n - 1)
        return Measurements(
            description=source.description,
            mean=total / n,
            covariance=covariance,
            num_images=n,
            image_shape=source.image_shape,
            class_scores=self.class_scores(),
            kept=self.sums["kept"],
        )


def measure(
    source: ImageSource,
    extractor: FeatureExtractor,
    *,
    num_kept: int = 10_000,
    num_splits: int = 10,
    batch_size: int = 64,
    cache_dir: Path | None = None,
    keep_cached: bool = True,
    title: str = "images",
) -> Measurements:
    """
    Extracts the features of all images once. With `torch.distributed` initialised (as `accelerate` does), every
    process calls this, takes every so many-th batch, and gets the whole result.

    Args:
        source: The images.
        extractor: What measures them.
        num_kept: Images whose features are kept, for the measures that moments do not suffice for.
        num_splits: Splits of the Inception Score.
        batch_size: Images at a time.
        cache_dir: Where a finished pass is looked up and an unfinished one goes on; `None` for neither.
        keep_cached: Whether a finished pass is stored.
        title: For the progress bar.

    Raises:
        ValueError: NaN, or a broken cache.
    """
    statistics = RunningStatistics(len(source), num_kept, num_splits, extractor)
    file = None if cache_dir is None else cache_dir / f"{_key(source, extractor, num_kept, num_splits)}.pt"
    stored = _main_decides(file is not None and file.is_file(), extractor.device)
    if stored:
        if process_rank() == 0:
            _load(statistics, file)
    else:
        _extract(statistics, source, extractor, batch_size, file, title)
    _add_up(statistics)
    if statistics.count != len(source):
        raise ValueError(f"{len(source)} images were to be measured, {statistics.count} were: delete {file}")
    if file is not None and not stored and process_rank() == 0:
        if keep_cached:
            _save(statistics.sums, file)
        for unfinished in file.parent.glob(f"{file.stem}-*.pt"):
            unfinished.unlink()
    return statistics.finish(source)


def _extract(
    statistics: RunningStatistics,
    source: ImageSource,
    extractor: FeatureExtractor,
    batch_size: int,
    file: Path | None,
    title: str,
) -> None:
    """This process's share of the pass: the batches, the same for any number of processes, are dealt out in turn."""
    rank, world = process_rank(), num_processes()
    unfinished = None if file is None else file.with_name(f"{file.stem}-{batch_size}-{rank}of{world}.pt")
    if unfinished is not None and unfinished.is_file():
        _load(statistics, unfinished)
    batches = [
        range(start, min(start + batch_size, len(source)))
        for start in range(rank * batch_size, len(source), world * batch_size)
    ]
    done = statistics.count
    remaining = batches[-(-done // batch_size) :]
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        source,  # type: ignore[arg-type]  # a DataLoader needs no more than __getitems__ and __len__
        batch_sampler=remaining,  # type: ignore[arg-type]
        collate_fn=_as_it_is,
        num_workers=source.num_workers,
        pin_memory=source.num_workers > 0 and extractor.device.type == "cuda",
        generator=torch.Generator(),  # leaves the global state alone, with which somebody may be training
    )
    saved = time.monotonic()
    total = sum(map(len, batches))
    with tqdm(total=total, initial=done, desc=title, unit="img", disable=rank > 0, dynamic_ncols=True) as progress:
        for indices, batch in zip(remaining, loader, strict=True):
            statistics.update(*extractor(batch["pixel_values"]), indices)
            progress.update(len(indices))
            if unfinished is not None and time.monotonic() - saved > SAVE_SECONDS:
                _save(statistics.sums, unfinished)
                saved = time.monotonic()


def _as_it_is(batch: Any) -> Any:
    return batch


def _key(source: ImageSource, extractor: FeatureExtractor, num_kept: int, num_splits: int) -> str:
    parts = [source.fingerprint, extractor.fingerprint, len(source), num_kept, num_splits]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _save(sums: dict[str, Tensor], file: Path) -> None:
    """Writes beside the file and renames: what is there is always whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".writing")
    torch.save({name: tensor.cpu() for name, tensor in sums.items()}, temporary)
    temporary.replace(file)


def _load(statistics: RunningStatistics, file: Path | None) -> None:
    assert file is not None
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        for name, tensor in statistics.sums.items():
            tensor.copy_(stored[name])
    except Exception as error:  # a truncated file raises nearly any type
        raise ValueError(f"cannot read the stored statistics {str(file)!r}: delete the file ({error})") from error


# Processes


def process_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _add_up(statistics: RunningStatistics) -> None:
    if num_processes() > 1:
        for tensor in statistics.sums.values():
            dist.all_reduce(tensor)


def _main_decides(answer: bool, device: torch.device) -> bool:
    flag = torch.tensor(float(answer), device=device)
    if num_processes() > 1:
        dist.broadcast(flag, 0)
    return bool(flag)


# Files of moments, as BigGAN-PyTorch and pytorch-fid keep them


def read_moments(path: str | Path) -> Measurements:
    """
    Args:
        path: `inception_moments.npz`: arrays `mu` (d,) and `sigma` (d, d).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else.
    """
    arrays = load_npz(path)
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(f"{str(path)!r} has the arrays {', '.join(arrays) or 'none'}, expected mu and sigma")
    mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise ValueError(f"{str(path)!r}: mu and sigma must be (d,) and (d, d), got {shapes}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{str(path)!r} holds NaN or infinite moments")
    return Measurements({"source": str(path), "num_images": None}, mean, covariance)


def write_moments(measurements: Measurements, path: str | Path) -> None:
    """Writes what `read_moments` reads; the file appears when it is whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.writing")
    with open(temporary, "wb") as file:
        np.savez(file, mu=measurements.mean.cpu().numpy(), sigma=measurements.covariance.cpu().numpy())
    temporary.replace(path)
