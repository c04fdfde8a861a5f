"""Every recipe of docs/recipes parses, and says what its first line says it does."""

from pathlib import Path

import pytest
import torch

from biggan_hf import BigGANDiscriminator, BigGANModel
from biggan_hf.training import parse_arguments


RECIPES = sorted((Path(__file__).parents[1] / "docs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds_its_networks(recipe: Path) -> None:
    model, _, training = parse_arguments([str(recipe), "--dataset_name", "imagenet-1k", "--output_dir", "out"])
    config = model.config(["class"] * (10 if "cifar10" in recipe.stem else 1000))
    with torch.device("meta"):
        parameters = sum(
            p.numel() for network in (BigGANModel, BigGANDiscriminator) for p in network(config).parameters()
        )
    assert parameters > 8e6
    batch = training.global_batch_size or training.per_device_batch_size
    assert training.accumulation_steps(1) * training.per_device_batch_size == batch
    if (digits := recipe.stem.partition("bs")[2]).isdecimal():
        assert batch == int(digits)
    if "x" in recipe.stem.partition("bs")[2]:
        forward, accumulations = map(int, recipe.stem.rpartition("bs")[2].split("x"))
        assert (training.per_device_batch_size, training.accumulation_steps(1)) == (forward, accumulations)


def test_the_full_model_of_the_paper_has_its_size() -> None:
    path = next(recipe for recipe in RECIPES if recipe.stem == "paper-ortho")
    model, _, training = parse_arguments([str(path), "--dataset_name", "imagenet-1k", "--output_dir", "out"])
    config = model.config([str(i) for i in range(1000)])
    with torch.device("meta"):
        parameters = sum(
            p.numel() for network in (BigGANModel, BigGANDiscriminator) for p in network(config).parameters()
        )
    assert parameters == 158_416_358 and training.generator_orthogonality == 1e-4
