"""Fine-tuning on other classes: names decide which weights of classes go on, and the others are new."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import SHORT, Capture, write_pictures

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.training import main, parse_arguments, set_up
from biggan_hf.training.fine_tuning import is_of_classes, map_classes


SHARED: dict[str, Any] = {}
PER_LAYER = {"shared_class_embedding": False, "hierarchical_latents": False}


def save_model(folder: Path, names: list[str] | None, **overrides: Any) -> Path:
    torch.manual_seed(1)
    classes = {"num_labels": 3} if names is None else {"id2label": dict(enumerate(names))}
    widths = {"generator_base_channels": 4, "discriminator_base_channels": 4}
    config = BigGANConfig.preset("demo", **classes, **widths, **overrides)
    BigGANModel(config).save_pretrained(folder)
    BigGANDiscriminator(config).save_pretrained(folder / "discriminator")
    return folder


def tuned(model: Path, classes: tuple[str, ...], folder: Path) -> Any:
    pictures = write_pictures(folder / "pictures", classes, 12)
    where = ["--dataset_name", str(pictures), "--output_dir", str(folder / "out"), "--init_from", str(model)]
    return set_up(*parse_arguments(["--preset", "demo", *SHORT, *where, "--dry_run"]))


def test_standing_statistics_of_the_start_are_left_out(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", ["cat", "dog"], standing_truncations=[0.5, 1.0])
    run = tuned(model, ("cat", "dog"), tmp_path)
    assert run.config.standing_truncations == run.ema.config.standing_truncations == []
    assert "The standing statistics of init_from are left out" in " ".join(run.report.text().split())
    argv = ["--init_from", str(model), "--dataset_name", str(tmp_path / "pictures"), "--preset", "demo", *SHORT]
    argv += ["--output_dir", str(tmp_path / "out")]
    for steps in ("1", "2"):
        main([*argv, "--max_train_steps", steps, *(["--resume_from_checkpoint", "latest"] if steps == "2" else [])])
    assert BigGANModel.from_pretrained(tmp_path / "out").config.standing_truncations == []


@pytest.mark.parametrize("overrides", [SHARED, PER_LAYER], ids=["shared", "per layer"])
def test_weights_of_classes_go_by_their_names(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = save_model(tmp_path / "model", ["cat", "dog", "bird"], **overrides)
    run = tuned(model, ("bird", "cat", "wasp"), tmp_path)
    rows = {"bird": 2, "cat": 0}
    names = list(run.config.id2label.values())
    networks = ("", run.players.bare_generator), ("discriminator", run.players.bare_discriminator), ("", run.ema)
    for part, network in networks:
        before, after = load_file(model / part / "model.safetensors"), network.state_dict()
        of_classes = [name for name in after if is_of_classes(network, name)]
        assert len(of_classes) == (12 if overrides and not part else 1)
        for name, weight in after.items():
            if name not in of_classes and not (part and name == "class_embedding.u0"):
                assert torch.equal(weight, before[name]), name
        for name in of_classes:
            for label, known in enumerate(names):
                same = [torch.equal(after[name][label], row) for row in before[name]]
                assert same == [rows.get(known) == row for row in range(3)], (name, known)
            spread = after[name][names.index("wasp")].std() / before[name].std()
            assert 0.2 < spread < 5, name  # drawn as a new network's
    said = [row.text for row in run.report.rows if row.title == "weights"]
    assert said == [f"2 of 3 classes are taken by name from {model}; 1 is new: wasp"]
    assert not any(optimizer.state_dict()["state"] for optimizer in run.players.optimizers.values())


@pytest.mark.parametrize("overrides", [SHARED, PER_LAYER], ids=["shared", "per layer"])
def test_a_class_generates_what_it_did_in_another_order(tmp_path: Path, overrides: dict[str, Any]) -> None:
    names = ["ant", "bee", "cat"]
    model = save_model(tmp_path / "model", ["cat", "ant", "bee"], **overrides)
    run = tuned(model, tuple(names), tmp_path)
    pairs: Any = ((BigGANModel, run.ema, torch.randn(3, 64), {}),
             (BigGANDiscriminator, run.players.bare_discriminator.eval(), torch.randn(3, 1, 32, 32),
              {"subfolder": "discriminator"}))  # fmt: skip
    for cls, network, inputs, where in pairs:
        before = cls.from_pretrained(model, **where).eval()(inputs, torch.tensor([1, 2, 0]))[0]
        torch.testing.assert_close(network(inputs, torch.tensor([0, 1, 2]))[0], before, rtol=1e-4, atol=1e-5)


def test_fewer_classes_and_a_checkpoint_to_start_from(tmp_path: Path, capsys: Capture) -> None:
    model = save_model(tmp_path / "model", ["cat", "dog", "bird"])
    argv = ["--preset", "demo", *SHORT, "--max_train_steps", "2", "--config_overrides", "num_channels=1"]
    pictures = write_pictures(tmp_path / "two", ("dog", "eel"), 12)
    first = [*argv, "--dataset_name", str(pictures), "--output_dir", str(tmp_path / "first")]
    main([*first, "--init_from", str(model)])
    assert "1 of 2 classes is taken by name from" in capsys.readouterr().out
    # A training checkpoint gives its weights, and not its step, its optimisers or its learning rates.
    run = tuned(tmp_path / "first" / "checkpoint-2", ("dog", "eel"), tmp_path / "second")
    assert run.global_step == 0 and run.batches.samples_seen == 0
    assert not any(optimizer.state_dict()["state"] for optimizer in run.players.optimizers.values())


IMAGENET = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane", "missile", "projectile, missile"]


@pytest.mark.parametrize(
    ("there", "here", "rows", "sentence"),
    [
        (["a", "b"], ["a", "b"], [0, 1], "all 2 classes are taken by name from m"),
        (["a", "b"], ["b", "a"], [1, 0], "all 2 classes are taken by name from m"),
        (["a", "b"], ["A", "b "], [None, 1],
         "1 of 2 classes is taken by name from m; 1 is new: A (upper and lower case differ: 'A' is not 'a')"),
        (["a", "b"], ["x", "y", "z"], [None] * 3, "0 of 3 classes are taken by name from m; 3 are new: x, y, z"),
        (list("abcdefghij"), [*"abcdefg", "ant", "bee", "wasp"], [*range(7), None, None, None],
         "7 of 10 classes are taken by name from m; 3 are new: ant, bee, wasp"),
        (IMAGENET, ["goldfish", "tench"], [1, 0], "all 2 classes are taken by name from m"),
        (["tench", "hen"], IMAGENET[:2], [0, None], "1 of 2 classes is taken by name from m; 1 is new: goldfish, Ca"),
        (IMAGENET, IMAGENET, [0, 1, 2, 3, 4, 5], "all 6 classes are taken by name from m"),
        (IMAGENET, ["crane"], [None], "0 of 1 class are"),  # which of the two?
        (IMAGENET, ["missile"], [4], "the one class is taken by name"),  # the whole name counts more than a synonym
        (IMAGENET, ["Tinca"], [None], "0 of 1 class are"),
        (["a", "b", "c"], ["0", "1", "2"], [0, 1, 2], "all 3 classes are taken by position from m: the data has"),
        (["LABEL_0", "LABEL_1"], ["a", "b"], [0, 1], "all 2 classes are taken by position from m: m has no names"),
        (["a", "b", "c"], ["0", "1"], [None] * 2,
         "0 of 2 classes are taken by position from m: the data has no names of classes, and m has 3 classes; 2 are"),
        (["0", "1", "2"], ["0", "1"], [0, 1], "all 2 classes are taken by name (a number) from m"),
        ([str(digit) for digit in range(10)], ["3", "7"], [3, 7], "all 2 classes are taken by name (a number)"),
        ([], ["a"], [None], ""),
        (["a"], [], [], ""),
    ],
)  # fmt: skip
def test_map_of_classes(there: list[str], here: list[str], rows: list[int | None], sentence: str) -> None:
    mapped = map_classes("m", there, here)
    assert mapped.rows == rows and mapped.sentence.startswith(sentence) and bool(mapped.sentence) == bool(sentence)


def test_many_new_classes_are_cut_in_one_line() -> None:
    said = map_classes("m", ["a"], [f"class {number}" for number in range(500)]).sentence
    assert len(said) < 150 and said.endswith(" more")
