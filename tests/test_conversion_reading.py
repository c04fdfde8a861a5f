"""The files of strangers: nothing in them is executed, and a wrong file gets an error of one line."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_common import FIXTURES, ORIGINALS, SHARED, answers, assert_equal, convert, weights
from huggingface_hub import ModelCard
from torch import nn

from biggan_hf import BigGANModel
from biggan_hf.cards import EVALUATION, RUN, is_by_hand, with_numbers, with_part
from biggan_hf.conversion import convert_biggan_pytorch as biggan_pytorch
from biggan_hf.conversion import convert_ivclab, reading
from biggan_hf.conversion import convert_pretrained_biggan as pretrained_biggan
from biggan_hf.conversion import convert_studiogan as studiogan
from biggan_hf.conversion.architecture import imagenet_classes
from biggan_hf.files import sha256_of_file


SHARED_CASE = ORIGINALS / "biggan_shared"
STUDIOGAN = FIXTURES / "golden" / "studiogan_c10"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of a BigGAN-PyTorch checkpoint, to be damaged."""
    return Path(shutil.copytree(SHARED_CASE, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted checkpoint, in a folder that was empty before."""
    return convert(biggan_pytorch, SHARED_CASE, tmp_path_factory.mktemp("plain"))


def change(path: Path, **changes: Any) -> None:
    """Sets keys of a state dict; a value of `None` removes one."""
    state = torch.load(path, weights_only=True)
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    torch.save(state, path)


def refused(source: Path, output: Path, match: str, *options: str, script: Any = biggan_pytorch) -> None:
    """The script refuses the source with an error of one line, and writes nothing."""
    before = sorted(output.parent.iterdir())
    with pytest.raises((ValueError, OSError), match=match) as error:
        convert(script, source, output, *options)
    assert "\n" not in str(error.value)
    assert sorted(output.parent.iterdir()) == before


def assert_same_generator(ours: Path, theirs: Path) -> None:
    assert_equal(weights(ours), weights(theirs))
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()


# Nothing in a file is executed


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


class Foreign:
    pass


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("name", ["G_ema.pth", "state_dict.pth", "D.pth"])
@pytest.mark.parametrize("config", [{}, {"G_activation": nn.ReLU()}], ids=["no module", "a module"])
def test_malicious_pickles_run_nothing(
    config: dict[str, Any], name: str, new_format: bool, checkpoint: Path, tmp_path: Path
) -> None:
    # With a module in it, the old format takes another way through the reader.
    target = tmp_path / "executed"
    content = {"config": {**config, "x": Malicious(target)}}
    torch.save(content, checkpoint / name, _use_new_zipfile_serialization=new_format)
    refused(
        checkpoint, tmp_path / "model", f"{name}.*holds the class (posix|os|nt)[.]mkdir.*nothing in it was executed"
    )
    assert not target.exists()
    # The file would have done it.
    torch.load(checkpoint / name, weights_only=False)
    assert target.exists()


def test_foreign_classes_are_named(tmp_path: Path) -> None:
    for content, name in ((Foreign(), f"{__name__}[.]Foreign"), (nn.Linear(1, 1), "torch.nn.modules.linear.Linear")):
        torch.save({"x": content}, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=f"holds the class {name}"):
            reading.load(tmp_path / "file.pth")


@pytest.mark.parametrize("new_format", [True, False])
def test_harmless_classes_are_read(new_format: bool, tmp_path: Path) -> None:
    content = {"activation": nn.ReLU(inplace=True), "best_IS": np.float64(9.2), "best_FID": np.float32(6.5), "itr": 3}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=new_format)
    loaded = reading.load(tmp_path / "file.pth")
    assert loaded["best_IS"] == 9.2 and loaded["best_FID"] == 6.5 and loaded["itr"] == 3
    assert isinstance(loaded["activation"], nn.ReLU) and loaded["activation"].inplace


def test_old_files_of_wrapped_networks_convert(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    # Torch 1.0 wrote the files that the program's users have, and DataParallel puts a prefix before each name.
    for path in checkpoint.glob("*.pth"):
        content = torch.load(path, weights_only=False)
        if path.stem in ("G_ema", "D"):
            content = {f"module.{name}": tensor for name, tensor in content.items()}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    output = convert(biggan_pytorch, checkpoint, tmp_path / "model")
    assert_same_generator(output, plain)
    assert_equal(weights(output, "discriminator"), weights(plain, "discriminator"))


# Damaged files


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999, None])
@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_files_and_text(new_format: bool, share: float | None, checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "G_ema.pth"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    path.write_bytes(b"<!DOCTYPE html>" if share is None else content[: int(share * len(content))])
    refused(checkpoint, tmp_path / "model", "G_ema.pth' is truncated or ")


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        ("G_ema.pth", {"linear.bias": None}, "1 missing: linear.bias"),
        ("G_ema.pth", {"linear.weight": None}, "linear.weight is missing"),
        ("G_ema.pth", {"extra.weight": torch.ones(2)}, "1 of 186 tensors have no place in a BigGAN: extra.weight"),
        ("G_ema.pth", {"linear.bias": torch.ones(3)}, r"1 of the wrong shape: linear.bias \(3,\) for \(128,\)"),
        ("G_ema.pth", {"shared.weight": torch.ones(7)}, "class_embedding.weight has the shape"),
        ("D.pth", {"blocks.3.0.conv_sc.weight": torch.ones(8, 8, 1, 1)}, "1 left over: stages.3.blocks.0.conv_sc.w"),
        ("D.pth", {"embed.weight": torch.ones(5, 8)}, "the discriminator has 5 classes, the generator 7"),
        ("D.pth", {"blocks.3.0.conv2.bias": None}, "1 missing: stages.3.blocks.0.conv2.bias"),
        ("D.pth", {"linear.weight": torch.full((1, 8), torch.nan)}, "D.pth': linear.weight holds NaN or infinity"),
        ("D.pth", {"linear.weight": torch.full((1, 8), torch.inf)}, "D.pth': linear.weight holds NaN or infinity"),
    ],
)
def test_tensors_that_fit_no_architecture(
    file: str, changes: dict[str, Any], match: str, checkpoint: Path, tmp_path: Path
) -> None:
    change(checkpoint / file, **changes)
    refused(checkpoint, tmp_path / "model", match)


# The wrong file


def test_something_else_in_a_file(checkpoint: Path, tmp_path: Path) -> None:
    generator = torch.load(checkpoint / "G_ema.pth", weights_only=True)
    shorter = {key: tensor for key, tensor in generator.items() if not key.startswith("blocks.2.")}
    for file, content, match in (
        ("state_dict.pth", {"itr": 1}, "state_dict.pth' holds no 'config'"),
        ("G_ema.pth", shorter, "a generator of 2 stages fits no image size"),
        ("G_ema.pth", [torch.ones(2)], "holds a list, expected the tensors of a BigGAN-PyTorch generator"),
        ("G_ema.pth", {"net.0.weight": torch.ones(2)}, "is none of the known networks, expected a BigGAN-PyTorch gen"),
        ("D.pth", generator, "expected a BigGAN-PyTorch discriminator"),
    ):
        before = (checkpoint / file).read_bytes()
        torch.save(content, checkpoint / file)
        refused(checkpoint, tmp_path / "model", match)
        (checkpoint / file).write_bytes(before)


@pytest.mark.parametrize(
    ("script", "source", "match"),
    [
        (biggan_pytorch, SHARED_CASE / "D.pth", "a BigGAN-PyTorch discriminator, expected a BigGAN-PyTorch generator"),
        (biggan_pytorch, STUDIOGAN, "looks like a StudioGAN checkpoint, try convert_studiogan.py"),
        (biggan_pytorch, ORIGINALS / "pretrained_biggan", "try convert_pretrained_biggan.py"),
        (studiogan, SHARED_CASE, "looks like a BigGAN-PyTorch checkpoint, try convert_biggan_pytorch.py"),
        (pretrained_biggan, STUDIOGAN, "config.json'.*looks like a StudioGAN checkpoint"),
        (convert_ivclab, SHARED_CASE / "G.pth", "a BigGAN-PyTorch generator.*try convert_biggan_pytorch.py"),
        (biggan_pytorch, FIXTURES / "nowhere", "there is no folder"),
        (studiogan, FIXTURES / "nowhere", "there is no folder"),
        (pretrained_biggan, FIXTURES / "nowhere", "there is no folder"),
        (convert_ivclab, FIXTURES / "nowhere", "there is no file"),
        (biggan_pytorch, FIXTURES, "holds no G.pth, so it is no such checkpoint of BigGAN-PyTorch$"),
    ],
)
def test_the_wrong_script(script: Any, source: Path, match: str, tmp_path: Path) -> None:
    refused(source, tmp_path / "model", match, script=script)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["shared_feat.weight", "output_layer.0.gain"], "an IC-GAN generator"),
        (["generator_ema.noise2feat.weight_orig"], "a mmgeneration generator"),
        (["module.output_layer.0.gain"], "a BigGAN-PyTorch generator"),
        (["output_bn.gain", "stages.0.blocks.0.conv1.weight"], "a biggan_hf generator"),
        (["conv.weight"], ""),
    ],
)
def test_recognised_keys(keys: list[str], kind: str) -> None:
    assert reading.recognise(keys)[0] == kind


# The output


def test_an_output_that_holds_something(plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.write_text("mine")
    refused(SHARED_CASE, output, "is a file, expected a folder", "--overwrite")
    assert output.read_text() == "mine"
    output.unlink()
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    refused(SHARED_CASE, output, "already holds something; --overwrite")
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
    convert(biggan_pytorch, SHARED_CASE, output, "--overwrite")
    assert (output / "notes.txt").read_text() == "mine"
    assert_same_generator(output, plain)


def test_an_earlier_model(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(plain, tmp_path / "model"))
    change(checkpoint / "D.pth", **{"linear.bias": None})
    refused(checkpoint, output, "1 missing: linear.bias", "--overwrite")
    assert_same_generator(output, plain)  # a refused conversion leaves it
    # A new model does not keep parts of it, and keeps files of other names.
    (checkpoint / "D.pth").unlink()
    for name in ("training_state.pt", "notes.txt", "samples.png", "truncation.png", "directions.json"):
        (output / name).write_text("old")
    for name in ("adapter", "onnx"):
        (output / name).mkdir()
    (output / ".eval_results").symlink_to(tmp_path)
    convert(biggan_pytorch, checkpoint, output, "--overwrite")
    names = {path.name for path in output.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "notes.txt", "onnx"}
    assert tmp_path.is_dir()


def test_a_card_by_hand_stays(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(plain, tmp_path / "model"))
    card = with_part(with_part((output / "README.md").read_text(), "7 steps", RUN), "FID 7", EVALUATION)
    card = with_numbers(card, [{"name": "x", "results": []}])
    (output / "README.md").write_bytes(card.encode().replace(b"# BigGAN", b"# Mine: caf\xe9", 1))
    change(checkpoint / "G_ema.pth", **{"output_layer.0.bias": torch.ones(8)})
    convert(biggan_pytorch, checkpoint, output, "--overwrite")
    new = (output / "README.md").read_bytes()
    read, before = (sha256_of_file(folder / "G_ema.pth").encode() for folder in (checkpoint, SHARED_CASE))
    assert b"# Mine: caf\xe9" in new and read in new and before not in new
    assert not [text for text in (b"7 steps", b"FID 7", b"name: x") if text in new]


@pytest.mark.parametrize("place", [".", "link", "nowhere"])
def test_an_empty_output(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "nowhere").symlink_to("missing")
    monkeypatch.chdir(tmp_path / "empty" if place == "." else tmp_path)
    output = tmp_path / ("missing" if place == "nowhere" else "empty")
    convert(biggan_pytorch, ORIGINALS / "biggan_thin", Path(place))
    assert (output / "model.safetensors").is_file() and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "link", "nowhere", output.name}


def test_the_card(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "D.pth").unlink()
    card = (convert(biggan_pytorch, checkpoint, tmp_path / "model") / "README.md").read_text()
    assert card.startswith("---\n")
    assert "[BigGAN-PyTorch](https://github.com/ajbrock/BigGAN-PyTorch), the generator's ema weights" in card
    assert f"`G_ema.pth`: SHA-256 `{sha256_of_file(checkpoint / 'G_ema.pth')}`" in card
    assert "the source holds no discriminator" in card
    assert "MIT licence" in card and "base_model" not in card and not is_by_hand(card)


def test_the_card_names_the_model_on_the_hub_that_was_converted(tmp_path: Path) -> None:
    cached = tmp_path / "models--user--x.y" / "snapshots" / "0a1b" / "model"
    shutil.copytree(SHARED_CASE, cached)
    for source, options, base in ((cached, [], "user/x.y"), (SHARED_CASE, ["--base-model", "user/z"], "user/z")):
        card = convert(biggan_pytorch, source, tmp_path / base, *options) / "README.md"
        told = ModelCard.load(card).data.to_dict()
        assert (told["base_model"], told["base_model_relation"]) == (base, "quantized")
    refused(SHARED_CASE, tmp_path / "out", "Repo id must", "--base_model", "user/<z>")


def test_the_reference_and_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = SHARED_CASE / "expected.npz"
    convert(biggan_pytorch, SHARED_CASE, tmp_path / "model", "--reference", str(reference))
    printed = capsys.readouterr().out
    assert "images_ema: largest difference from the reference" in printed
    assert "disc_scores: largest difference from the reference" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["z_dim", "20", "tensor", "shapes"] in lines
    assert ["batch_norm_eps", "1e-05", "state_dict"] in lines
    assert "left out 31 × u1:".split() in [line[:5] for line in lines]
    assert "generator (ema): all 123 tensors in their places".split() in lines
    images = answers(SHARED_CASE)["images_ema"].numpy()
    latents, labels = (answers(SHARED_CASE)[name].numpy() for name in ("latents", "labels"))
    np.savez(tmp_path / "wrong.npz", images_ema=images + 1e-3, latents=latents, labels=labels)
    np.savez(tmp_path / "alone.npz", images_ema=images)
    np.savez(tmp_path / "empty.npz", x=np.zeros(1))
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "fewer.npz", images_ema=images[:1], latents=latents, labels=labels)
    np.savez(tmp_path / "none.npz", images_ema=images[:0], latents=latents[:0], labels=labels[:0])
    np.savez(tmp_path / "narrow.npz", images_ema=images, latents=latents[:, :3], labels=labels)
    np.savez(tmp_path / "named.npz", images_trunc_=images, latents=latents, labels=labels)
    for name, match in (
        ("fewer", rf"images_ema is \(1, 3, 32, 32\) in the reference and \({len(images)}, 3, 32, 32\) in the model's"),
        ("none", r"does not fit this model: latents \(0, 20\), images_ema \(0, 3, 32, 32\): "),
        ("narrow", "latents"),
        ("named", "holds 'images_trunc_', expected a name as 'images_trunc_0.5'"),
        ("wrong", "images_ema differs"),
        ("alone", "holds images_ema, expected its inputs latents too"),
        ("empty", "no answer of this model"),
        ("text", "is no .npz file"),
    ):
        refused(SHARED_CASE, tmp_path / "other", match, "--reference", str(tmp_path / f"{name}.npz"))


# BigGAN-PyTorch: which files, and variants of their content


@pytest.mark.parametrize("suffix", ["best0", "copy1", "ep_10"])
def test_suffixes(suffix: str, checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    for path in list(checkpoint.glob("*.pth")):
        path.rename(path.with_stem(f"{path.stem}_{suffix}"))
    refused(checkpoint, tmp_path / "model", rf"there are G_.*{suffix}.pth, G_.*{suffix}.pth: choose with --suffix")
    assert_same_generator(convert(biggan_pytorch, checkpoint, tmp_path / "model", "--suffix", suffix), plain)
    # The file of a generator finds the settings that belong to it.
    alone = convert(biggan_pytorch, checkpoint / f"G_ema_{suffix}.pth", tmp_path / "alone")
    assert_equal(weights(alone), weights(plain))
    assert BigGANModel.from_pretrained(alone).config.spectral_norm_eps == 1e-6


def test_weights_that_are_not_there(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "G_ema.pth").unlink()
    refused(checkpoint, tmp_path / "model", "holds no G_ema.pth.*there are G.pth", "--weights", "ema")
    live = convert(biggan_pytorch, checkpoint, tmp_path / "live", "--weights", "live")
    assert_same_generator(convert(biggan_pytorch, checkpoint, tmp_path / "default"), live)


def test_a_single_file_without_settings(plain: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(SHARED_CASE / "G_ema.pth", tmp_path))
    output = convert(biggan_pytorch, source, tmp_path / "model")
    assert_equal(weights(output), weights(plain))
    assert not (output / "discriminator").exists()
    options = ["--batch_norm_eps", "1e-4", "--spectral_norm_eps", "1e-6"]
    with_flags = convert(biggan_pytorch, source, tmp_path / "flags", *options)
    # The program's defaults, and the flags.
    for folder, epsilons in ((output, (1e-5, 1e-8, 1e-5)), (with_flags, (1e-4, 1e-6, 1e-5))):
        config = BigGANModel.from_pretrained(folder).config
        assert (config.batch_norm_eps, config.spectral_norm_eps, config.output_batch_norm_eps) == epsilons


def test_missing_singular_values(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    path = checkpoint / "G_ema.pth"
    change(path, **{name: None for name in torch.load(path, weights_only=True) if ".sv" in name})
    filled, original = weights(convert(biggan_pytorch, checkpoint, tmp_path / "model")), weights(plain)
    rest = [name for name in original if not name.endswith("sv0")]
    assert_equal({name: filled[name] for name in rest}, {name: original[name] for name in rest})
    model = BigGANModel.from_pretrained(tmp_path / "model").eval()
    expected = model.linear.weight.detach() / model.linear.eval().normalized_weight().detach()
    torch.testing.assert_close(filled["linear.sv0"].expand_as(expected), expected)


def test_half_precision(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "G_ema.pth"
    change(path, **{name: tensor.half() for name, tensor in torch.load(path, weights_only=True).items()})
    tensors = weights(convert(biggan_pytorch, checkpoint, tmp_path / "model"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_latents_before_classes(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    path = checkpoint / "G_ema.pth"
    state = torch.load(path, weights_only=True)
    width = state["shared.weight"].shape[1]
    maps = [name for name in state if name.endswith(("gain.weight", "bias.weight"))]
    change(path, **{name: torch.cat([state[name][:, width:], state[name][:, :width]], dim=1) for name in maps})
    assert_same_generator(convert(biggan_pytorch, checkpoint, tmp_path / "zy", "--condition_order", "zy"), plain)


# StudioGAN: which files


def test_the_newest_step_unless_another_is_given(tmp_path: Path) -> None:
    # The best weights are those of step 20. The current ones, of step 100, have biases of 1.
    run = Path(shutil.copytree(STUDIOGAN, tmp_path / "run"))
    for path in list(run.glob("model=*.pth")):
        content = torch.load(path, weights_only=True)
        for name, tensor in content["state_dict"].items():
            if name.endswith(".bias"):
                tensor.fill_(1)
        torch.save(content, path.with_name(path.name.replace("best", "current").replace("step=20", "step=100")))
    newest = weights(convert(studiogan, run, tmp_path / "newest"))
    assert (newest["linear.bias"] == 1).all()
    chosen = weights(convert(studiogan, run, tmp_path / "a", "--step", "20"))
    assert_equal(chosen, weights(convert(studiogan, STUDIOGAN, tmp_path / "b")))
    refused(run, tmp_path / "model", "step=7.*there are the steps 20, 100", "--step", "7", script=studiogan)
    # A run needs neither a discriminator nor a configuration.
    for path in [*run.glob("model=D-*"), run / "config.yaml"]:
        path.unlink()
    output = convert(studiogan, run, tmp_path / "model")
    assert not (output / "discriminator").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("MODEL: {backbone: stylegan2}", "backbone must be one of big_resnet,"),
        ("MODEL: {g_act_fn: ELU}", "g_act_fn must be ReLU, got 'ELU'"),
        ("{MODEL: {backbone: big_resnet}, DATA: [1]}", "fits no BigGAN: AttributeError"),
        ("- 1", "has no section MODEL"),
        ("{", "is no YAML"),
        ("!!python/object/apply:os.mkdir [executed]", "is no YAML"),
    ],
)
def test_studiogan_configurations(text: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    refused(STUDIOGAN, tmp_path / "model", match, "--config", "run.yaml", script=studiogan)


def test_class_names_of_studiogan(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("DATA: {name: CIFAR10}\nMODEL: {backbone: big_resnet}")
    output = convert(studiogan, STUDIOGAN, tmp_path / "model", "--config", str(tmp_path / "run.yaml"))
    assert list((BigGANModel.from_pretrained(output).config.id2label or {}).values())[3] == "cat"


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("linear2.weight", torch.ones(10, 16), "a classifier or an embedding head"),
        ("blocks.0.0.bn1.weight", torch.ones(16), "batch norms"),
        ("linear1.bias", torch.ones(11), "an output for each class"),
        ("embedding.weight_orig", torch.ones(20, 16), "20 class embeddings for 10 classes"),
    ],
)
def test_other_discriminators_of_studiogan(
    name: str, tensor: torch.Tensor, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(STUDIOGAN, tmp_path / "run"))
    path = next(run.glob("model=D-*"))
    content = torch.load(path, weights_only=True)
    content["state_dict"][name] = tensor
    torch.save(content, path)
    output = convert(studiogan, run, tmp_path / "model")
    assert f"left out {path.name}, which has {reason}" in capsys.readouterr().out
    assert not (output / "discriminator").exists()


def test_kept_spectral_norm(tmp_path: Path) -> None:
    output = convert(studiogan, STUDIOGAN, tmp_path / "model", "--weights", "live", "--spectral_norm", "keep")
    config = BigGANModel.from_pretrained(output).config
    assert config.generator_spectral_norm and config.discriminator_spectral_norm
    source = torch.load(next(STUDIOGAN.glob("model=G-*")), weights_only=True)["state_dict"]
    kept = weights(output)
    assert torch.equal(kept["linear.weight"], source["linear0.weight_orig"])
    assert torch.equal(kept["linear.u0"], source["linear0.weight_u"][None])
    folded = weights(convert(studiogan, STUDIOGAN, tmp_path / "folded", "--weights", "live"))
    torch.testing.assert_close(kept["linear.weight"] / kept["linear.sv0"], folded["linear.weight"])


# pytorch-pretrained-biggan


def test_class_names_of_imagenet() -> None:
    names = imagenet_classes()
    last = "toilet tissue, toilet paper, bathroom tissue"
    assert (len(names), names[0], names[207], names[999]) == (1000, "tench, Tinca tinca", "golden retriever", last)


@pytest.mark.parametrize(
    ("layers", "attention", "match"),
    [
        ([[False, 16, 16], [True, 16, 8], [True, 8, 4]], 2, "expected stages of one length"),
        ([[False, 16, 16]], 8, "expected stages of one length"),
        ([[False, 16, 16], [True, 16, 8], [False, 8, 8], [True, 8, 4]], 3, "before layer 3 stands within a stage"),
        ([[False, 16, 16], [True, 16, 8]], 0, "before layer 0 stands within a stage"),
    ],
)
def test_layers_that_fit_no_architecture(layers: list[list[Any]], attention: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pretrained_biggan.stage_modules(layers, attention)


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    source = Path(shutil.copytree(ORIGINALS / "pretrained_biggan", tmp_path / "source"))
    (source / "config.json").write_text("{")
    refused(source, tmp_path / "model", "config.json' is no JSON", script=pretrained_biggan)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} does not exist: no training checkpoints")
def test_optimiser_states_are_no_networks(tmp_path: Path) -> None:
    source = SHARED / "biggan_c10_train3" / "G_optim_end.pth"
    refused(source, tmp_path / "model", "expected the tensors of a BigGAN-PyTorch generator")


def test_one_row_of_statistics_is_refused(tmp_path: Path) -> None:
    source = Path(shutil.copytree(ORIGINALS / "pretrained_biggan", tmp_path / "source"))
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    state = {
        name: value[-1:] if name.endswith(("running_means", "running_vars")) else value
        for name, value in state.items()
    }
    torch.save(state, source / "pytorch_model.bin")
    match = r"statistics of the last batch norm is \(1, \d+\), expected a row for each of at least 2 truncations"
    refused(source, tmp_path / "model", match, script=pretrained_biggan)


@pytest.mark.parametrize(
    ("data", "first"), [("I128_hdf5", "tench"), ("I256", "tench"), ("INat1000", ""), ("Icons", "")]
)
def test_imagenets_names_are_for_imagenet(data: str, first: str) -> None:
    findings = biggan_pytorch.Findings()
    findings.add("a test", num_labels=1000)
    biggan_pytorch.find_settings({"dataset": data}, dict.fromkeys(biggan_pytorch.DEFAULT_EPS), findings)
    assert findings.fields.get("id2label", {0: ""})[0].startswith(first) and ("id2label" in findings.fields) == bool(
        first
    )
