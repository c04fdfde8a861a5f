"""Paths, sweeps, grids, neighbours, inversion, and the files they go to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import seeded, tiny_config
from PIL import Image, ImageSequence
from torch import Tensor

from biggan_hf import BigGANModel, BigGANPipeline, sample_latents
from biggan_hf.exploring import class_grid, interpolate, nearest_neighbours, truncation_sweep, uint8_images
from biggan_hf.inversion import invert
from biggan_hf.media import save_gif, save_mp4, save_npz


Z_DIM = 20


def tiny_pipe(**overrides: Any) -> BigGANPipeline:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_channels": 1, "num_labels": 4, "z_dim": Z_DIM, "class_embedding_dim": 8}
    return BigGANPipeline(BigGANModel(tiny_config(**{**settings, **overrides})).eval())


@pytest.fixture(scope="module")
def pipe() -> BigGANPipeline:
    return tiny_pipe()


def assert_same_pictures(images: Tensor, expected: Tensor) -> None:
    assert images.dtype == expected.dtype == torch.uint8 and images.shape == expected.shape
    assert (images.int() - expected.int()).abs().max() <= 1  # a last bit may round


# Paths


@pytest.mark.parametrize(("over_latents", "over_classes"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("spherical", [False, True])
def test_what_is_several_moves(pipe: BigGANPipeline, over_latents: bool, over_classes: bool, spherical: bool) -> None:
    latents = sample_latents(3 if over_latents else 1, Z_DIM, generator=seeded(0))
    embeddings = pipe.embed_classes([0, 1, 2] if over_classes else [0])
    images = interpolate(pipe, latents, embeddings, 4, spherical=spherical)
    loop = interpolate(pipe, latents, embeddings, 4, spherical=spherical, closed=True, batch_size=5)
    assert images.shape == (9, 1, 32, 32) and loop.shape == (12, 1, 32, 32)
    points = uint8_images(pipe, class_embeddings=embeddings.expand(3, -1), latents=latents.expand(3, -1))
    assert_same_pictures(images[::4], points)
    assert_same_pictures(loop[::4], points)
    steps = (loop.float() - loop.roll(1, dims=0).float()).flatten(1).norm(dim=1)
    assert steps.min() > 0 and steps.max() < 0.8 * (points[1].float() - points[0].float()).norm()  # no jump, nowhere


def test_the_middle_of_a_straight_path_is_the_mixture(pipe: BigGANPipeline) -> None:
    latents = sample_latents(1, Z_DIM, generator=seeded(0))
    images = interpolate(pipe, latents, pipe.embed_classes([1, 3]), 4)
    assert_same_pictures(images[1:2], uint8_images(pipe, {1: 0.75, 3: 0.25}, latents=latents))
    round_ = interpolate(pipe, latents, pipe.embed_classes([1, 3]), 4, spherical=True)
    assert (round_[2].int() - images[2].int()).abs().max() > 1


def test_a_path_without_classes() -> None:
    pipe = tiny_pipe(num_labels=0)
    latents = sample_latents(2, Z_DIM, generator=seeded(0))
    images = interpolate(pipe, latents, None, 2)
    middle = latents.mean(0, keepdim=True)
    expected = uint8_images(pipe, num_images_per_prompt=3, latents=torch.cat([latents[:1], middle, latents[1:]]))
    assert_same_pictures(images, expected)


@pytest.mark.parametrize(("num_latents", "num_classes"), [(1, 1), (2, 3), (0, 1)])
def test_numbers_of_points_must_agree(pipe: BigGANPipeline, num_latents: int, num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_latents} latents and {num_classes} classes"):
        interpolate(pipe, torch.zeros(num_latents, Z_DIM), pipe.embed_classes([0] * num_classes), 4)


# Grids and sweeps


def test_every_class_has_the_same_latents(pipe: BigGANPipeline) -> None:
    grid = class_grid(pipe, [0, 2, {0: 0.5, 2: 0.5}], 5, seeded(3), truncation=0.7)
    assert grid.shape == (3, 5, 1, 32, 32)
    with pipe.model.class_embedding.register_forward_pre_hook(lambda *_: pytest.fail("embedded only to be counted")):
        with pytest.raises(ValueError, match="truncation"):
            class_grid(pipe, [0, 2], 5, seeded(3), truncation=-1.0)
    one = class_grid(pipe, 2, 5, seeded(3), truncation=0.7)
    assert_same_pictures(grid[1], one[0])
    assert (grid[1, 0].int() - grid[1, 1].int()).abs().max() > 1  # but one is not like another


def test_a_sweep_is_the_same_draw_at_each_truncation(pipe: BigGANPipeline) -> None:
    sweep = truncation_sweep(pipe, [0, 1], [2.0, 0.5, 1e-6], seeded(3), num_images_per_prompt=3)
    assert sweep.shape == (6, 3, 1, 32, 32)
    spreads = [sweep[:3, column].float().var(dim=0).mean() for column in range(3)]
    assert spreads[0] > spreads[1] > spreads[2]
    centre = uint8_images(pipe, [0, 1], num_images_per_prompt=3, latents=torch.zeros(6, Z_DIM))
    assert_same_pictures(sweep[:, 2], centre)
    # A picture moves towards the centre: a little truncation changes it a little.
    nearby = truncation_sweep(pipe, [0, 1], [2.0, 1.9], seeded(3), num_images_per_prompt=3).float()
    distances = (nearby[:, 0, None] - nearby[None, :, 1]).flatten(2).norm(dim=2)
    assert distances.argmin(dim=1).tolist() == list(range(6))
    again = truncation_sweep(pipe, [0, 1], [2.0], seeded(3), num_images_per_prompt=3)
    assert_same_pictures(again[:, 0], sweep[:, 0])


def test_a_sweep_beyond_the_table_is_refused_before_the_first_image() -> None:
    pipe = tiny_pipe(standing_truncations=[0.5, 1.0])
    with pipe.model.register_forward_pre_hook(lambda *_: pytest.fail("an image was made")):
        with pytest.raises(ValueError, match="truncation=2.0 is outside"):
            truncation_sweep(pipe, 0, [1.0, 2.0], seeded(0))


# Neighbours


def pictures(number: int, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randint(256, (number, channels, 4, 4), generator=seeded(seed), dtype=torch.uint8)


def test_neighbours_are_those_of_brute_force() -> None:
    images, data = pictures(5), pictures(50, seed=1)
    data[31], data[44] = images[2], images[2]  # two copies; the first one counts first
    found = nearest_neighbours(images, data.split(7), k=3)
    differences = (images[:, None].double() - data[None].double()).square().mean(dim=(2, 3, 4)).sqrt()
    expected, order = differences.sort(dim=1, stable=True)
    torch.testing.assert_close(found.distances.double(), expected[:, :3], atol=1e-4, rtol=1e-5)
    assert torch.equal(found.indices, order[:, :3])
    assert found.indices[2, :2].tolist() == [31, 44] and found.distances[2, :2].tolist() == [0, 0]


def test_neighbours_in_a_space_of_features() -> None:
    def brightness(images: Tensor) -> Tensor:
        return images.double().mean(dim=(1, 2, 3))[:, None]

    images, data = pictures(4), pictures(30, seed=1)
    found = nearest_neighbours(images, [data], k=2, features=brightness)
    expected = (brightness(images) - brightness(data).T).abs().topk(2, largest=False)
    torch.testing.assert_close(found.distances.double(), expected.values, atol=1e-4, rtol=1e-5)
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize(
    ("images", "data", "k", "message"),
    [
        (pictures(2), [pictures(3)], 4, "k must be from 1 to the 3 pictures of the data set, got 4"),
        (pictures(2), [pictures(3)], 0, "got 0"),
        (pictures(2), [pictures(3, channels=1)], 1, r"must be uint8 \(3, 4, 4\), got torch.uint8 of \(1, 4, 4\)"),
        (pictures(2).float(), [pictures(3)], 1, "images must be uint8"),
        (pictures(2), [pictures(3).float() / 255], 1, r"pictures must be uint8 \(3, 4, 4\), got torch.float32"),
    ],
)
def test_bad_neighbours(images: Tensor, data: list[Tensor], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(images, data, k)


# Inversion


def inverted(pipe: BigGANPipeline, images: Tensor, *args: Any, **options: Any) -> Any:
    options = {"num_steps": 60, "num_candidates": 16, "generator": seeded(1), "progress_bar": False, **options}
    return invert(pipe.model, images, *args, **options)


@pytest.mark.parametrize("settings", [{}, {"num_labels": 0}])
def test_a_generated_picture_is_found_again(settings: dict[str, Any]) -> None:
    pipe = tiny_pipe(**settings)
    images = pipe.model.sample(None, 2, generator=seeded(0))
    before = {name: value.clone() for name, value in pipe.model.state_dict().items()}
    found = inverted(pipe, images, path_weight=0.0)
    start = (found.starts - images).square().mean(dim=(1, 2, 3))
    assert (found.errors < 0.5 * start).all()
    torch.testing.assert_close(found.errors, (found.images - images).square().mean(dim=(1, 2, 3)))
    again = pipe.model(found.latents, class_embeddings=found.class_embeddings).images
    torch.testing.assert_close(again, found.images, atol=1e-5, rtol=0)
    assert (found.class_embeddings is None) == (pipe.model.config.num_labels == 0)
    assert all(torch.equal(value, before[name]) for name, value in pipe.model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in pipe.model.parameters())


def test_each_picture_is_on_its_own(pipe: BigGANPipeline) -> None:
    images = pipe.model.sample([0, 1, 2], generator=seeded(0))
    labels = torch.tensor([3, 1, 1])
    together = inverted(pipe, images, labels, num_steps=5)
    alone = inverted(pipe, images[2:], labels[2:], num_steps=5)
    torch.testing.assert_close(together.latents[2:], alone.latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.class_embeddings[2:], alone.class_embeddings, atol=1e-4, rtol=0)


@pytest.mark.parametrize("labels", [None, torch.tensor([3, 1, 3, 3, 1])])
def test_batches_of_pictures_and_of_candidates(pipe: BigGANPipeline, labels: Tensor | None) -> None:
    images = pipe.model.sample([0, 1, 2, 3, 0], generator=seeded(0))
    expected = inverted(pipe, images, labels, num_steps=3)
    sizes: list[int] = []
    with pipe.model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0]))):
        found = inverted(pipe, images, labels, num_steps=3, batch_size=4)
    # 16 candidates, for all pictures or for each class that is given; 3 steps of 4 pictures and of 1; what comes out.
    candidates = [4] * (4 if labels is None else 8)
    assert sizes == [*candidates, 4, 4, 4, 1, 1, 1, 4, 1, 4, 1]
    for name in ("latents", "class_embeddings", "images", "starts", "errors", "moved"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


def test_the_rate_falls_along_a_cosine(pipe: BigGANPipeline) -> None:
    images = pipe.model.sample([0, 1], generator=seeded(0))
    start, end = (inverted(pipe, images, num_steps=n, learning_rate=0.1).latents for n in (0, 2))
    # An entry whose gradient keeps its sign and size moves by the rate in each step: by 0.1, then by 0.05.
    assert 0.147 < (end - start).abs().max() < 0.1503


def test_the_bar_counts_the_steps(pipe: BigGANPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    inverted(pipe, torch.zeros(3, 1, 32, 32), num_steps=4, batch_size=2)
    assert capsys.readouterr().err == ""
    inverted(pipe, torch.zeros(3, 1, 32, 32), num_steps=4, batch_size=2, progress_bar=True)
    assert "8/8" in capsys.readouterr().err


def test_the_mode_of_the_model_stays() -> None:
    pipe = tiny_pipe()
    pipe.model.train()
    before = pipe.model.output_bn.running_var.clone()
    found = inverted(pipe, torch.zeros(1, 1, 32, 32), num_steps=1)
    assert pipe.model.training and torch.equal(pipe.model.output_bn.running_var, before)
    assert not found.latents.requires_grad
    with pytest.raises(ValueError, match="truncation"):
        inverted(pipe, torch.zeros(1, 1, 32, 32), truncation=-1.0)
    assert pipe.model.training


def test_a_given_class_is_where_it_begins(pipe: BigGANPipeline) -> None:
    images = pipe.model.sample([0], generator=seeded(0))
    found = inverted(pipe, images, torch.tensor([3]), num_steps=0)
    torch.testing.assert_close(found.class_embeddings, pipe.embed_classes(3))
    assert found.moved.tolist() == [0] and torch.equal(found.images, found.starts)
    # The closest of the candidates, which are those of the generator.
    candidates = pipe.model(sample_latents(16, Z_DIM, generator=seeded(1)), torch.full((16,), 3)).images
    errors = (candidates - images).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found.errors, errors.min()[None], atol=1e-5, rtol=0)


def test_the_way_is_kept_short(pipe: BigGANPipeline) -> None:
    images = pipe.model.sample([0], generator=seeded(0))
    ways = [inverted(pipe, images, num_steps=20, path_weight=w).moved.item() for w in (0.0, 0.1, 100.0)]
    assert ways[0] > ways[1] > ways[2]


def test_truncated_candidates_and_their_statistics() -> None:
    pipe = tiny_pipe(standing_truncations=[0.5, 1.0])
    images = torch.zeros(1, 1, 32, 32)
    found = inverted(pipe, images, truncation=0.5, num_steps=0)
    assert found.latents.abs().max() <= 0.5
    expected = pipe.model(found.latents, class_embeddings=found.class_embeddings, truncation=0.5).images
    torch.testing.assert_close(found.images, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="truncation=2.0 is outside"):
        inverted(pipe, images, truncation=2.0)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(1, 1, 28, 28), {}, r"must be \(N, 1, 32, 32\) floats in \[-1, 1\], got \(1, 1, 28, 28\)"),
        (torch.zeros(1, 1, 32, 32).byte(), {}, "got .* of torch.uint8"),
        (torch.zeros(0, 1, 32, 32), {}, r"got \(0, 1, 32, 32\)"),
        (torch.full((1, 1, 32, 32), 255.0), {}, r"lie in \[-1, 1\], got 255 to 255"),
        (torch.full((1, 1, 32, 32), torch.nan), {}, r"lie in \[-1, 1\]"),
        (torch.zeros(1, 1, 32, 32), {"class_labels": torch.tensor([4])}, "4 is outside 0 to 3"),
        (torch.zeros(1, 1, 32, 32), {"num_steps": -1}, "got -1, 16 and 16"),
        (torch.zeros(1, 1, 32, 32), {"num_candidates": 0}, "got 60, 0 and 16"),
        (torch.zeros(1, 1, 32, 32), {"batch_size": 0}, "got 60, 16 and 0"),
        (torch.zeros(1, 1, 32, 32), {"truncation": 0.0}, "truncation"),
    ],
)
def test_bad_inversions(pipe: BigGANPipeline, images: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        inverted(pipe, images, **options)
    assert "\n" not in str(caught.value)
    assert not pipe.model.training


# Files


def frames(number: int = 6, size: int = 31) -> list[Image.Image]:
    """Grey frames that brighten."""
    return [Image.new("RGB", (size, size), (40 * index,) * 3) for index in range(number)]


def test_a_gif_repeats_with_its_frames(tmp_path: Path) -> None:
    save_gif(frames(), tmp_path / "film.gif", 20)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.format == "GIF" and film.info["loop"] == 0
        shown = [
            (frame.info["duration"], frame.convert("L").getpixel((3, 3))) for frame in ImageSequence.Iterator(film)
        ]
    assert shown == [(50, 40 * index) for index in range(6)]


@pytest.mark.parametrize("frames_per_second", [16, 60])
def test_a_gif_keeps_time(frames_per_second: int, tmp_path: Path) -> None:
    save_gif(frames() * 10, tmp_path / "film.gif", frames_per_second)
    with Image.open(tmp_path / "film.gif") as film:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert len(durations) == 60 and min(durations) > 0
    assert abs(sum(durations) - 1000 * 60 / frames_per_second) <= 5


@pytest.mark.parametrize("save", [save_gif, save_mp4])
@pytest.mark.parametrize("frames_per_second", [0, 101])
def test_frames_per_second_have_bounds(save: Any, frames_per_second: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 100 frames a second, got {frames_per_second}"):
        save(frames(), tmp_path / "film", frames_per_second)
    assert list(tmp_path.iterdir()) == []


def test_an_mp4_has_its_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV, of the extra biggan_hf[video], is not installed")
    save_mp4(frames(), tmp_path / "film.mp4", 20)
    with av.open(str(tmp_path / "film.mp4")) as film:
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == 20
    assert [frame.shape for frame in shown] == [(32, 32, 3)] * 6  # even, as its colours need
    assert np.abs([frame[:30, :30].mean() - 40 * i for i, frame in enumerate(shown)]).max() < 4


def test_npz_holds_images_and_labels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(10, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(10)
    save_npz(((images[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)), 10, tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as loaded:
        assert loaded.files == ["x", "y"] and loaded["x"].dtype == np.uint8 and loaded["y"].dtype == np.int64
        assert np.array_equal(loaded["x"], images) and np.array_equal(loaded["y"], labels)
    save_npz([(images, None)], 10, tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as loaded:
        assert loaded.files == ["x"]
