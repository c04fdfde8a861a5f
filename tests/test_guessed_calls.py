"""Calls as people of other libraries guess them: they work, or the right one is named."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from common import seeded, tiny_discriminator, tiny_generator, tiny_images, tiny_latents
from fake_hub import FakeHub
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from biggan_hf import (
    BigGANConfig,
    BigGANDiscriminator,
    BigGANModel,
    BigGANPipeline,
    collect_standing_statistics,
    sample_latents,
)
from biggan_hf.bars import bars_are_on, own_bars_alone
from biggan_hf.devices import device_or_best
from biggan_hf.inversion import invert
from biggan_hf.keywords import did_you_mean


DIGITS = {label: str(label) for label in range(10)}
MODEL = tiny_generator(id2label=DIGITS)
DISCRIMINATOR = tiny_discriminator(id2label=DIGITS)
PIPE = BigGANPipeline(MODEL)
LATENTS, IMAGES = tiny_latents(2, MODEL.config), tiny_images(2, MODEL.config)

CALLS: dict[str, Callable[..., Any]] = {
    "pipeline": PIPE,
    "sample": MODEL.sample,
    "forward": lambda **guess: MODEL(LATENTS, **guess),
    "discriminator": lambda **guess: DISCRIMINATOR(IMAGES, **guess),
    "latents": lambda **guess: sample_latents(2, 3, **guess),
    "statistics": lambda **guess: collect_standing_statistics(MODEL, **guess),
    "constructor": lambda **guess: BigGANPipeline(MODEL, **guess),
    "bars": PIPE.set_progress_bar_config,
    "save": lambda **guess: PIPE.save_pretrained("/no/where", **guess),
    "push": lambda **guess: PIPE.push_to_hub("user/x", **guess),
}


@pytest.mark.parametrize(
    ("call", "guess", "answer"),
    [
        ("pipeline", "prompt", "did you mean class_labels="),
        ("pipeline", "seed", r"write generator=torch.Generator\(\).manual_seed"),
        ("pipeline", "num_images", "did you mean num_images_per_prompt="),
        ("pipeline", "guidance_scale", "no guidance; truncation="),
        ("pipeline", "num_inference_steps", "generates in one step"),
        ("pipeline", "truncation_psi", "did you mean truncation="),
        ("pipeline", "z", "did you mean latents="),
        ("pipeline", "trunctaion", "did you mean truncation="),
        ("pipeline", "foo", "its keywords are class_labels, num_images_per_prompt, batch_size"),
        ("sample", "labels", "did you mean class_labels="),
        ("sample", "seed", "write generator="),
        ("sample", "num_samples", "did you mean num_images_per_prompt="),
        ("sample", "batch_size", r"BigGANPipeline\(…\) takes batch_size="),
        ("sample", "output_type", r"BigGANPipeline\(…\) takes output_type="),
        ("forward", "y", "did you mean class_labels="),
        ("forward", "psi", "did you mean truncation="),
        ("forward", "num_images", "model.sample take num_images_per_prompt="),
        ("discriminator", "class_label", "did you mean class_labels="),
        ("discriminator", "images", "did you mean pixel_values="),
        ("latents", "psi", "did you mean truncation="),
        ("latents", "seed", "write generator="),
        ("statistics", "num_samples", "did you mean num_batches="),
        ("pipeline", "return_tensors", "did you mean output_type="),
        ("constructor", "scheduler", "its keywords are model"),
        ("bars", "disabled", "did you mean disable="),
        ("save", "foo", "its keywords are save_directory"),
        ("save", "branch", "did you mean revision="),
        ("save", "safe_serialization", "always written as safetensors"),
        ("push", "branch", "did you mean revision="),
        ("push", "safe_serialization", "always written as safetensors"),
    ],
)
def test_a_wrong_keyword_is_answered_with_the_right_one(call: str, guess: str, answer: str) -> None:
    with pytest.raises(TypeError, match=f"takes no keyword '{guess}': .*{answer}"):
        CALLS[call](**{guess: 1})


@pytest.mark.parametrize(
    ("name", "accepted", "answer"),
    [
        ("resolution", ["image_size", "z_dim"], "; did you mean 'image_size'?"),
        ("numpy", ["pil", "np", "pt"], "; did you mean 'np'?"),
        ("cifr10", ["demo", "cifar10"], "; did you mean 'cifar10'?"),
        ("foo", ["demo", "cifar10"], ""),
    ],
)
def test_did_you_mean(name: str, accepted: list[str], answer: str) -> None:
    assert did_you_mean(name, accepted) == answer


@pytest.mark.parametrize(
    ("call", "error", "answer"),
    [
        (lambda: BigGANConfig(resolution=64), TypeError, "did you mean 'image_size'"),  # type: ignore[call-arg]
        (lambda: BigGANConfig(ch=64), TypeError, "did you mean 'generator_base_channels'"),  # type: ignore[call-arg]
        (lambda: BigGANConfig.preset("biggan128"), ValueError, "did you mean 'biggan-128'"),
        (lambda: PIPE(1, output_type="tensor"), ValueError, "did you mean 'pt'"),  # type: ignore[arg-type]
        (lambda: BigGANPipeline(cast(Any, DISCRIMINATOR)), TypeError, "is a BigGANModel, got BigGANDiscri"),
        (lambda: BigGANPipeline(cast(Any, "folder")), TypeError, "got str; BigGANPipeline.from_pretrained loads"),
        (lambda: BigGANModel(cast(Any, "cifar10")), TypeError, "from_pretrained"),
        (lambda: BigGANModel.from_pretrained("/no/where"), FileNotFoundError, "^there is no folder '/no/where'$"),
        (lambda: PIPE.to("cuda:99"), ValueError, "device cuda:99: this machine has no such device"),
        (lambda: PIPE.to(device="cuda:99"), ValueError, "device cuda:99: this machine has no such device"),
        (lambda: MODEL("cat"), TypeError, "latents must be a tensor, got str; sample_latents draws it"),
        (lambda: MODEL(LATENTS.numpy(), 1), TypeError, "latents must be a tensor, got ndarray"),
        (lambda: DISCRIMINATOR([1], 1), TypeError, "pixel_values must be a tensor, got list"),
        (lambda: MODEL(LATENTS, [1, 2], 0.5), TypeError, "class_embeddings must be a tensor, got float; a truncation"),
        (lambda: MODEL(LATENTS, 1, latents=LATENTS), TypeError, "multiple values"),
        (lambda: cast(Any, PIPE)("1", 2), TypeError, "than class_labels without a name, got 2 too.* num_images_per_p"),
        (lambda: cast(Any, MODEL).sample("1", 2, 0.5), TypeError, "and num_images_per_prompt without a name, got 0.5"),
        (lambda: MODEL.sample(latents=LATENTS), ValueError, r"\(2, 16\); num_images.* model\(latents, class_labels\)"),
        (
            lambda: PIPE(latents=LATENTS),
            ValueError,
            r"be \(1, 16\), got \(2, 16\); num_images.* model\(latents, class",
        ),
        (lambda: MODEL.sample(1, latents=LATENTS[:, :3]), ValueError, r"be \(1, 16\), got \(2, 3\)$"),
        (lambda: MODEL.sample(latents=cast(Any, LATENTS.numpy())), TypeError, "must be a tensor, got ndarray"),
        (lambda: PIPE.progress_bar(total=1, desk="x"), TypeError, "did you mean desc="),
    ],
)
def test_what_is_given_in_place_of_the_right_thing(call: Any, error: type[Exception], answer: str) -> None:
    with pytest.raises(error, match=answer):
        call()


@pytest.mark.parametrize("device_map", ["cuda:99", {"": "cuda:99"}, {"": 99}, torch.device("cuda", 99)])
def test_a_device_that_is_not_there(device_map: Any, tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^device cuda:99: this machine has no such device that torch can use$"):
        BigGANModel.from_pretrained(tmp_path, device_map=device_map)


def test_the_fastest_device() -> None:
    pipe = BigGANPipeline(tiny_generator())
    assert pipe.to("auto") is pipe and pipe.device.type == device_or_best(None)


def test_the_keywords_of_transformers_are_kept(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="1GB", save_peft_format=False)
    PIPE.save_pretrained(tmp_path, variant="fp16")
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"model.safetensors", "model.fp16.safetensors"}
    loaded = BigGANPipeline.from_pretrained(tmp_path, variant="fp16").model
    torch.testing.assert_close(loaded(LATENTS, 3).images, MODEL(LATENTS, 3).images)


@pytest.mark.parametrize(
    ("guess", "answer"),
    [
        ("labels", "model.sample .*take class_labels="),
        ("use_auth_token", "did you mean token="),
        ("device", "from_pretrained takes device_map="),
        ("z_dmi", "did you mean z_dim="),
        ("seed", "write generator="),
    ],
)
def test_a_wrong_keyword_of_from_pretrained(guess: str, answer: str, tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    loaders: list[Any] = [BigGANModel, BigGANPipeline]
    for loader in loaders:
        with pytest.raises(TypeError, match=f"from_pretrained takes no keyword '{guess}': .*{answer}"):
            loader.from_pretrained(tmp_path, **{guess: 1})


def test_images_of_a_label_have_two_names() -> None:
    other: Any = {"num_images_per_label": 3}
    images = PIPE([1, 2], output_type="pt", generator=seeded(0), num_images_per_prompt=3).images
    assert torch.equal(PIPE([1, 2], output_type="pt", generator=seeded(0), **other).images, images)
    samples = MODEL.sample([1, 2], num_images_per_prompt=3, generator=seeded(0))
    assert torch.equal(MODEL.sample([1, 2], generator=seeded(0), **other), samples)
    for twice in (lambda: PIPE([1], num_images_per_prompt=3, **other), lambda: MODEL.sample([1], 3, **other)):
        with pytest.raises(TypeError, match="num_images_per_label is another name of num_images_per_prompt; give one"):
            twice()


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ([7, 3], [7, 3]),
        (("7", 3), [7, 3]),
        (np.array(["7", "3"]), [7, 3]),
        (np.array([7, 3]), [7, 3]),
        (range(3, 5), [3, 4]),
        (3, [3, 3]),
        ("3", [3, 3]),
        (np.int64(3), [3, 3]),
        (torch.tensor(3), [3, 3]),
        (torch.tensor([7, 3], dtype=torch.uint8), [7, 3]),
        (torch.tensor([7, 3], dtype=torch.int16), [7, 3]),
        (np.array([7, 3], dtype=np.uint16), [7, 3]),
    ],
)
def test_labels_of_any_kind(given: Any, labels: list[int]) -> None:
    expected = torch.tensor(labels)
    images = MODEL(LATENTS, expected).images
    for output in (
        MODEL(LATENTS, given),
        MODEL(LATENTS, class_labels=given),
        MODEL(latents=LATENTS, class_labels=given),
    ):
        assert torch.equal(output.images, images)
    logits = DISCRIMINATOR(IMAGES, expected).logits
    assert torch.equal(DISCRIMINATOR(IMAGES, given).logits, logits)
    one_each = labels[:1] if np.ndim(given) == 0 or isinstance(given, str) else labels
    sampled = MODEL.sample(given, generator=seeded(0))
    assert torch.equal(sampled, MODEL.sample(one_each, generator=seeded(0)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dog", "unknown class name 'dog'; the ids are 0 to 9, of '0', '1', '2'"),
        ([1, 2, 3], r"class_labels must be 2 integers .* got \(3,\)"),
        (torch.eye(10)[:2], r"class_labels must be 2 .* one-hot vectors are given as labels, class_labels.argmax"),
        (torch.eye(10).long()[:2], r"must be 2 .*got \(2, 10\) .* and mixtures as class_embeddings="),
        ([1.5, 2], "class_labels must be 2 integers .*torch.float32"),
        (True, "class_labels must be 2 integers .*torch.bool"),
        ({1: 2}, "class_labels must be integers or names, got"),
        ([10, 0], "class label 10 is outside 0 to 9, of '0', '1', '2'"),
    ],
)
def test_labels_of_no_kind(given: Any, message: str) -> None:
    for call in (lambda: MODEL(LATENTS, given), lambda: DISCRIMINATOR(IMAGES, given)):
        with pytest.raises(ValueError, match=message):
            call()


def test_one_hot_vectors_are_no_labels_to_sample() -> None:
    vectors, pipe = torch.eye(10).long()[[3, 7]], BigGANPipeline(MODEL)
    for call in (lambda: MODEL.sample(vectors), lambda: pipe(vectors)):
        with pytest.raises(ValueError, match="one-hot vectors are given as labels, class_labels.argmax"):
            call()


def test_many_classes_are_not_listed() -> None:
    many = tiny_generator(id2label={label: f"class {label}" for label in range(30)})
    with pytest.raises(
        ValueError, match="unknown class name 'clas 7'; the closest are 'class 7', 'class 27', "
    ) as told:
        many.sample("clas 7")
    assert len(str(told.value)) < 120
    with pytest.raises(ValueError, match="^class label 30 is outside 0 to 29$"):
        many.sample([30])


@pytest.mark.parametrize("call", [PIPE, PIPE.embed_classes, MODEL.sample])
@pytest.mark.parametrize("label", [10, -1])
def test_a_label_out_of_range_lists_few_classes(call: Callable[[Any], Any], label: int) -> None:
    for given in (label, [0, label]):
        with pytest.raises(ValueError, match=f"class label {label} is outside 0 to 9, of '0', '1'.*'9'$"):
            call(given)


# Networks that are looked for in the folder of the other


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_the_discriminator_is_found(place: str, tmp_path: Path, fake_hub: FakeHub) -> None:
    source = str(tmp_path) if place == "folder" else "user/x"
    if place == "folder":
        MODEL.save_pretrained(tmp_path)
    else:
        MODEL.push_to_hub("user/x")
    with pytest.raises(OSError, match="holds a generator, and no discriminator in subfolder='discriminator'"):
        BigGANDiscriminator.from_pretrained(source)
    if place == "folder":
        DISCRIMINATOR.save_pretrained(tmp_path / "discriminator")
    else:
        DISCRIMINATOR.push_to_hub("user/x")
    found = BigGANDiscriminator.from_pretrained(source)
    torch.testing.assert_close(found(IMAGES, 3).logits, DISCRIMINATOR(IMAGES, 3).logits)
    for loader in (BigGANModel, BigGANPipeline):
        with pytest.raises(ValueError, match="holds a discriminator: BigGANDiscriminator.from_pretrained loads it"):
            loader.from_pretrained(source, subfolder="discriminator")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("cuda", r"no attribute 'cuda': write pipe.to\(.cuda.\)$"),
        ("cpu", r'write pipe.to\("cpu"\)$'),
        ("half", r"write pipe.to\(torch.float16\)$"),
        ("float", r"write pipe.to\(torch.float32\)$"),
        ("bfloat16", r"write pipe.to\(torch.bfloat16\)$"),
        ("eval", r"its model has: pipe.model.eval$"),
        ("config", r"its model has: pipe.model.config$"),
        ("progres_bar", r"did you mean 'progress_bar'\?$"),
        ("unet", r"has no attribute 'unet'$"),
    ],
)
def test_an_attribute_that_others_have(name: str, answer: str) -> None:
    with pytest.raises(AttributeError, match=answer):
        getattr(PIPE, name)


def test_a_pipeline_is_copied() -> None:
    assert copy.deepcopy(PIPE).id2label == PIPE.id2label


# Bars


def test_a_bar_has_the_keywords_of_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(PIPE.progress_bar([1, 2], desc="drawing", unit="sheet")) == [1, 2]
    assert "drawing: 100%" in capsys.readouterr().err


def all_bars(capsys: pytest.CaptureFixture[str]) -> str:
    """What a pipeline, an inversion and standing statistics write to stderr."""
    PIPE(2, num_images_per_prompt=2)
    invert(MODEL, IMAGES, num_steps=1, num_candidates=2)
    collect_standing_statistics(tiny_generator(), num_batches=1, batch_size=2)
    return capsys.readouterr().err


def test_the_switches_of_others_turn_all_bars_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert "2/2" in all_bars(capsys)
    switches = [
        (logging.disable_progress_bar, logging.enable_progress_bar),
        (disable_progress_bars, enable_progress_bars),
    ]
    for off, on in switches:
        off()
        try:
            assert all_bars(capsys) == ""
            with own_bars_alone():
                assert all_bars(capsys) == ""
        finally:
            on()
        assert "2/2" in all_bars(capsys)
    with own_bars_alone():
        assert "2/2" in all_bars(capsys) and not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()


def test_blocks_that_overlap_leave_the_switches_as_they_were() -> None:
    for last_first in (False, True):
        blocks = [own_bars_alone(), own_bars_alone()]
        for block in blocks:
            block.__enter__()
        assert bars_are_on() and not logging.is_progress_bar_enabled()
        for block in blocks[::-1] if last_first else blocks:
            block.__exit__(None, None, None)
        assert bars_are_on() and logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        assert not bars_are_on()
        logging.enable_progress_bar()


def test_blocks_of_many_threads() -> None:
    def block(_: int) -> bool:
        with own_bars_alone():
            return bars_are_on()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within the block's first lines
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(block, range(2_000)))
    finally:
        sys.setswitchinterval(before)
    assert bars_are_on() and logging.is_progress_bar_enabled()


def test_the_bars_of_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = BigGANPipeline(MODEL)
    pipe.set_progress_bar_config(disable=True)
    pipe(2)
    assert list(pipe.progress_bar([1, 2])) == [1, 2] and capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="digits")
    pipe(2)
    with pipe.progress_bar(total=3) as bar:
        bar.update(3)
    err = capsys.readouterr().err
    assert err.count("digits") >= 2 and "3/3" in err
    with pytest.raises(ValueError, match="needs an iterable or a total"):
        pipe.progress_bar()


def test_variables_turn_the_bars_of_a_program_off(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "model")
    hub = "HF_HUB_DISABLE_PROGRESS_BARS"
    for variable, value, shown in ((hub, "1", False), (hub, "0", True), ("TQDM_DISABLE", "1", False)):
        command = [sys.executable, "-m", "biggan_hf", "sample", str(tmp_path / "model"), "--classes", "7"]
        environment = {**os.environ, variable: value}
        command += ["--output", str(tmp_path / f"{variable}{value}.png")]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0 and ("10/10" in ran.stderr) == shown, ran.stderr
        assert shown or ran.stderr == ""
