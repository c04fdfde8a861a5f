"""The parts of the training run, each on its own: steps, average, batches."""

import copy
import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import tiny

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.data import load_labelled_images, prepare
from biggan_hf.spectral_norm import iterate_in_training
from biggan_hf.training import steps
from biggan_hf.training.arguments import DataArguments, TrainingArguments
from biggan_hf.training.batches import BatchSource, counter_generator, to_pixel_values
from biggan_hf.training.ema import update_ema
from biggan_hf.training.run import Run
from biggan_hf.training.set_up import build_batches, build_quality
from biggan_hf.training.steps import Latents, Objective, Pictures, Players, discriminator_step, generator_step


NUM_LABELS = 3


def players(config: BigGANConfig) -> Players:
    torch.manual_seed(0)
    generator, discriminator = BigGANModel(config).double().train(), BigGANDiscriminator(config).double().train()
    # Plain gradient descent: the update shows the gradient.
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (generator, discriminator)]
    return Players(Accelerator(cpu=True), generator, discriminator, *optimizers)


def latents(config: BigGANConfig, number: int, seed: int = 0) -> Latents:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(number, config.z_dim, generator=generator).double()
    return Latents(z, torch.arange(number) % NUM_LABELS)


def pictures(config: BigGANConfig, number: int) -> Pictures:
    pixels = torch.rand(number, 1, 32, 32, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    return Pictures(pixels, torch.arange(number) % NUM_LABELS)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_step_moves_its_player_alone_and_costs_the_other_no_gradient(player: str) -> None:
    config = tiny()
    game, expected = players(config), {f"{player}_loss", f"{player}_gradient"}
    before = {name: weights(network) for name, network in game.networks.items()}
    if player == "discriminator":
        expected |= {"real_accuracy", "fake_accuracy"}
        metrics = discriminator_step(game, [(latents(config, 4), pictures(config, 4))], Objective())
    else:
        metrics = generator_step(game, [latents(config, 4)], Objective())
    assert set(metrics) == expected
    for name, network in game.networks.items():
        moved = [bool((new != before[name][key]).any()) for key, new in weights(network).items()]
        # The class of nobody in the batch has no gradient; a bias before a batch norm has none in exact arithmetic.
        assert sum(moved) >= 0.9 * len(moved) if name == player else not any(moved)
        assert name == player or all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("every_forward", [False, True])
def test_pictures_and_penalties_share_a_forward_with_one_power_iteration(every_forward: bool) -> None:
    game = players(tiny())
    expected = copy.deepcopy(game.discriminator)
    objective = Objective(r1_gamma=1.0, r2_gamma=1.0, consistency=1.0, iterate_every_forward=every_forward)
    discriminator_step(game, [(latents(tiny(), 4), pictures(tiny(), 4))], objective)
    iterate_in_training(expected)
    torch.testing.assert_close(dict(game.discriminator.named_buffers()), dict(expected.named_buffers()))


def test_losses_are_taken_in_float32() -> None:
    config = tiny(num_labels=0)  # float32's embeddings would make logits precise
    game = players(config)
    z, real = latents(config, 4).z.float(), pictures(config, 4).pixel_values.float()
    for network in (game.generator, game.discriminator):
        network.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert game.discriminator(real).logits.dtype == torch.bfloat16
        metrics = discriminator_step(game, [(Latents(z, None), Pictures(real, None))], Objective())
        metrics |= generator_step(game, [Latents(z, None)], Objective())
    assert metrics["discriminator_loss"].dtype == metrics["generator_loss"].dtype == torch.float32


class Penalised(NamedTuple):
    """A discriminator after a step without penalties and after one with them, from the same weights."""

    before: Any
    plain: torch.nn.Module
    penalised: torch.nn.Module
    shown: list[tuple[torch.Tensor, torch.Tensor | None]]  # real pictures and generated ones, with their classes

    def assert_moved_by(self, penalty: torch.Tensor) -> None:
        """The step with the penalties went its gradient, of the network before, further than the other one."""
        gradients = torch.autograd.grad(penalty, list(self.before.parameters()), allow_unused=True)
        after = weights(self.penalised)
        for (name, weight), gradient in zip(weights(self.plain).items(), gradients, strict=True):
            moved = 0 if gradient is None else 0.1 * gradient
            torch.testing.assert_close(after[name], weight - moved, rtol=0, atol=1e-10, msg=name)


def step_with(objective: Objective) -> Penalised:
    config = tiny(discriminator_spectral_norm=False)  # so that another forward changes nothing
    plain, penalised = players(config), players(config)
    before, (z, real) = copy.deepcopy(plain.discriminator), (latents(config, 4), pictures(config, 4))
    with torch.no_grad():
        images = copy.deepcopy(plain.generator)(z.z, z.class_labels).images
    discriminator_step(plain, [(z, real)], Objective())
    discriminator_step(penalised, [(z, real)], objective)
    shown = [(real.pixel_values, real.class_labels), (images, z.class_labels)]
    return Penalised(before, plain.discriminator, penalised.discriminator, shown)


def test_penalties_add_gamma_times_half_the_mean_squared_gradient() -> None:
    step, penalty = step_with(Objective(r1_gamma=3.0, r2_gamma=5.0)), torch.zeros(())
    for gamma, (shown, labels) in zip((3.0, 5.0), step.shown, strict=True):
        pixels = shown.clone().requires_grad_()
        logits = step.before(pixels, labels).logits
        (slope,) = torch.autograd.grad(logits.sum(), pixels, create_graph=True)
        penalty = penalty + gamma * sum(0.5 * (one**2).sum() for one in slope) / len(slope)
    step.assert_moved_by(penalty)


def test_consistency_compares_each_picture_with_itself_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "shift", lambda images: images.roll(2, dims=3))
    step, penalty = step_with(Objective(consistency=3.0)), torch.zeros(())
    for shown, labels in step.shown:
        logits, of_shifted = (step.before(pixels, labels).logits for pixels in (shown, shown.roll(2, dims=3)))
        penalty = penalty + 3 * (logits - of_shifted).square().mean()
    assert penalty > 0
    step.assert_moved_by(penalty)


def test_penalties_come_every_so_many_steps_and_weigh_as_many_times_more() -> None:
    args = TrainingArguments(r1_gamma=10.0, r2_gamma=5.0, r1_interval=4)
    runs: list[Any] = [SimpleNamespace(args=args, global_step=step) for step in range(6)]
    assert [Run.objective(run).r1_gamma for run in runs] == [40.0, 0, 0, 0, 40.0, 0]
    assert [Run.objective(run).r2_gamma for run in runs] == [20.0, 0, 0, 0, 20.0, 0]


def test_relativistic_loss_compares_pictures_of_one_class() -> None:
    """So what D adds to all logits of a class means nothing: the bias of its last layer stays where it is."""
    config = tiny()
    game, z = players(config), latents(config, 4)
    real = Pictures(pictures(config, 4).pixel_values, torch.tensor([1, 1, 0, 0]))  # others than the latents have
    seen: list[torch.Tensor] = []
    game.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    before = weights(game.discriminator)["linear.bias"]
    discriminator_step(game, [(z, real)], Objective(loss="relativistic"))
    generator_step(game, [z], Objective(loss="relativistic"), [real])
    assert [labels.tolist() for labels in seen] == [[1, 1, 0, 0] * 2] * 2
    torch.testing.assert_close(weights(game.discriminator)["linear.bias"], before)
    with pytest.raises(ValueError, match="shorter"):
        generator_step(game, [z], Objective(loss="relativistic"))


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_networks_without_classes_pass_over_the_labels_of_pictures(loss: str) -> None:
    config = tiny(num_labels=0)
    game, real = players(config), pictures(config, 4)
    z = Latents(latents(config, 4).z, None)
    discriminator_step(game, [(z, real)], Objective(loss=loss))
    generator_step(game, [z], Objective(loss=loss), [real])


def test_ema_follows_the_formula_over_weights_and_statistics() -> None:
    config = tiny()
    torch.manual_seed(0)
    model, ema = BigGANModel(config), BigGANModel(config)
    mean = "stages.0.blocks.0.bn1.running_mean"
    model.get_buffer(mean).fill_(2.0)
    before = copy.deepcopy(ema.state_dict())
    update_ema(ema, model, 0.75)
    for name, value in ema.state_dict().items():
        expected = 0.75 * before[name] + 0.25 * model.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6, msg=name)
    assert ema.get_buffer(mean).eq(0.5).all()
    update_ema(ema, model, 0.0)
    torch.testing.assert_close(ema.state_dict(), model.state_dict(), rtol=0, atol=0)


# Batches


def picture_folder(folder: Path, number: int = 6) -> Path:
    for index in range(number):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((32, 32), index, np.uint8)
        pixels[:, :16] += 100  # so that left and right differ
        Image.fromarray(pixels).save(path)
    return folder


def source(folder: Path, samples_seen: int = 0, rank: int = 0, world_size: int = 1, flip: bool = False) -> BatchSource:
    images = load_labelled_images(str(folder), image_size=32, num_channels=1)
    sizes: dict[str, Any] = {
        "z_dim": 8,
        "num_labels": 2,
        "batch_size": 4 // world_size,
        "seed": 7,
        "samples_seen": samples_seen,
    }
    place: dict[str, Any] = {"rank": rank, "world_size": world_size, "device": torch.device("cpu")}
    return BatchSource(images, horizontal_flip=flip, **sizes, **place)


def test_no_fakes_of_classes_without_pictures(tmp_path: Path) -> None:
    everyone = source(picture_folder(tmp_path))
    labels = everyone.latents(3, 0).class_labels
    few = source(picture_folder(tmp_path))
    images = few.images.with_classes(["none", "a", "nothing", "b"])
    few.images, few.num_labels = images, 4
    drawn = few.latents(3, 0)
    assert labels is not None and drawn.class_labels is not None
    # The same draws as of two classes, which are now called 1 and 3.
    assert torch.equal(drawn.class_labels, 2 * labels + 1)
    assert torch.equal(drawn.z, everyone.latents(3, 0).z)


def test_fakes_of_classes_as_often_as_there_are_pictures(tmp_path: Path) -> None:
    """Also where some can't be read: others of their class come for them. Of class 1 none can be read."""
    everyone = source(picture_folder(tmp_path))
    contents = dataclasses.replace(everyone.images.contents, class_counts=[7, 0, 10])
    labels = torch.tensor([0, 0, 0, 1, 2] * 10)
    images = dataclasses.replace(everyone.images, contents=contents, labels=labels, class_names=["a", "b", "c"])
    sizes: dict[str, Any] = {"num_labels": 3, "batch_size": 4000, "label_sampling": "counts"}
    everyone = dataclasses.replace(everyone, images=images, **sizes)
    drawn, again = (everyone.latents(3, 0).class_labels for _ in range(2))
    assert drawn is not None and again is not None and drawn.dtype == torch.int64
    counts = torch.bincount(drawn, minlength=3).tolist()
    assert counts[1] == 0 and abs(counts[0] - 3000) < 150
    assert torch.equal(drawn, again)


def test_real_pictures_of_all_classes_equally_often(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path)
    for name in ("0.png", "2.png"):
        (folder / "a" / name).unlink()
    uneven = dataclasses.replace(source(folder), class_sampling="balanced")
    labels = torch.cat([uneven.pictures().class_labels for _ in range(5)])  # type: ignore[misc]
    assert torch.bincount(labels).tolist() == [10, 10]  # 20 pictures, of one and of three


def test_unreadable_pictures_leave_classes_equally_often(tmp_path: Path) -> None:
    """Whether they are known at the start, or found on the way, by this process or by others."""
    for label, name in enumerate(("ant", "bee", "cow")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(30):
            path = tmp_path / "set" / name / f"{index}.png"
            broken = name == "cow" or (name == "ant" and 2 < index < 29)
            path.write_bytes(b"") if broken else Image.new("L", (32, 32), 30 * label + index).save(path)
    prepare(str(tmp_path / "set"), tmp_path / "prepared", [32], num_channels=1, say=lambda text: None)

    def drawn(name: str, samples_seen: int = 0, **options: Any) -> list[int]:
        images = load_labelled_images(str(tmp_path / name), image_size=32, num_channels=1, max_cache_bytes=0)
        batches = BatchSource(
            images, 8, 3, 9, 7, 0, 1, torch.device("cpu"), False, samples_seen, class_sampling="balanced", **options
        )
        values = [batches.pictures() for _ in range(samples_seen // 9, 20)]
        pixels = torch.cat([value.pixel_values[:, 0, 0, 0] for value in values])
        found = ((pixels + 1) * 127.5).round().int().tolist()
        assert torch.cat([value.class_labels for value in values]).tolist() == [int(v >= 30) for v in found]  # type: ignore[misc]
        return found

    whole = drawn("set")
    assert [sum(value < 30 for value in epoch) for epoch in (whole[:90], whole[90:])] == [45, 45]
    assert {value for value in whole if value < 30} == {0, 1, 2, 29}
    assert whole == drawn("prepared") == drawn("set", num_workers=2)
    assert whole[90:] == drawn("set", samples_seen=90) == drawn("prepared", samples_seen=90)


def test_random_crops_follow_from_seed_and_position(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (32, 1))  # the first column says where a square begins
    for index in range(12):
        Image.fromarray(ramp).save(tmp_path / f"{index}.png")

    def crops(samples_seen: int, rank: int = 0, world_size: int = 1, number: int = 6) -> list[int]:
        images = load_labelled_images(str(tmp_path), image_size=32, num_channels=1)
        sizes: dict[str, Any] = {"z_dim": 8, "num_labels": 0, "batch_size": 4 // world_size, "seed": 7}
        place: dict[str, Any] = {"rank": rank, "world_size": world_size, "device": torch.device("cpu")}
        cropping = BatchSource(
            images, **sizes, **place, samples_seen=samples_seen, horizontal_flip=False, random_crop=True
        )
        pixels = torch.cat([cropping.pictures().pixel_values for _ in range(number)])
        return ((pixels[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()

    whole = crops(0)
    assert len(set(whole[:12])) > 8 and whole[:12] != whole[12:] and max(whole) > 140 and min(whole) < 30
    assert crops(8, number=4) == whole[8:]
    first, second = (crops(8, rank, 2, number=4) for rank in (0, 1))
    assert [first[i // 4 * 2 + i % 4] if i % 4 < 2 else second[i // 4 * 2 + i % 4 - 2] for i in range(16)] == whole[8:]


def test_an_evaluation_decodes_in_full(tmp_path: Path) -> None:
    images = dataclasses.replace(source(picture_folder(tmp_path)).images, reduced_jpeg=True, cached_rows={0})
    args = TrainingArguments(output_dir="x", evaluation_steps=1, evaluation_extractor="training_runs:features")
    quality = build_quality(images, args, Accelerator(cpu=True))
    assert quality is not None and not quality.images.reduced_jpeg and quality.images.cached_rows == set()


@pytest.mark.parametrize("name, value", [("class_sampling", "balanced"), ("label_sampling", "counts")])
def test_sampling_by_classes_needs_labels(tmp_path: Path, name: str, value: str) -> None:
    args = TrainingArguments(output_dir="x")
    images = source(picture_folder(tmp_path)).images
    data_args, config = DataArguments(dataset_name="x"), BigGANConfig.preset("demo", num_labels=0)
    setattr(data_args, name, value)
    with pytest.raises(ValueError, match=f"{name}='{value}' needs labels, and there are none"):
        build_batches(images, data_args, args, config, Accelerator(cpu=True))


def test_counter_generators_are_reproducible_and_unrelated() -> None:
    cpu = torch.device("cpu")
    draws = [torch.rand(64, generator=counter_generator(cpu, *c)) for c in ((0, 1), (0, 1), (1, 0), (0, 1, 0))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])


def test_a_resumed_source_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path)
    first = source(folder, flip=True)
    batches = [first.pictures() for _ in range(4)]
    second = source(folder, samples_seen=8, flip=True)
    for expected in batches[2:]:
        batch = second.pictures()
        torch.testing.assert_close(vars(batch), vars(expected), rtol=0, atol=0)
    assert first.samples_seen == second.samples_seen == 16
    assert torch.equal(first.latents(3, 1).z, second.latents(3, 1).z)
    draws = [first.latents(*counters).z for counters in ((3, 1), (3, 2), (4, 1))]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


def test_two_processes_share_the_pictures_and_draw_their_own_latents(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path)
    whole, ranks = source(folder), [source(folder, rank=rank, world_size=2) for rank in (0, 1)]
    for _ in range(3):
        assert torch.equal(torch.cat([rank.pictures().pixel_values for rank in ranks]), whole.pictures().pixel_values)
    assert not torch.equal(ranks[0].latents(0, 0).z, ranks[1].latents(0, 0).z)


def test_half_of_the_pictures_are_mirrored_and_on_each_process_others(tmp_path: Path) -> None:
    folder, mirrored = picture_folder(tmp_path), torch.zeros(2, 32, dtype=torch.bool)
    for rank in (0, 1):
        plain, flipped = (source(folder, rank=rank, world_size=2, flip=flip) for flip in (False, True))
        a, b = (torch.cat([both.pictures().pixel_values for _ in range(16)]) for both in (plain, flipped))
        assert a.dtype == torch.float32 and -1 <= a.min() and a.max() <= 1
        mirrored[rank] = (b == a.flip(-1)).flatten(1).all(1)
        assert torch.equal(mirrored[rank], ~(b == a).flatten(1).all(1))
    assert not torch.equal(*mirrored) and 16 < mirrored.sum() < 48


class _Copies(TorchDispatchMode):
    """What travels to another device, by its number format."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and args[0].device != result.device:
            self.formats.append(result.dtype)
        return result


def test_pictures_travel_to_the_device_in_bytes() -> None:
    pictures = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with _Copies() as copies:
        pixels = to_pixel_values(pictures, torch.device("meta"))
    assert pixels.dtype == torch.float32 and copies.formats == [torch.uint8]
