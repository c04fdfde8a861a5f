"""`biggan-hf evaluate`: what it writes, with one process and with two, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import in_two_processes, tiny_generator
from evaluation_common import TINY_SOURCE, save_pictures
from huggingface_hub import ModelCard
from PIL import Image

from biggan_hf.cli import build_parser, main


MEASURED = ["--dataset_name", "pictures", "--reference_images", "60", "--extractor", "own:extract"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model, an extractor and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("own", None)
    (tmp_path / "own.py").write_text(TINY_SOURCE)
    save_pictures(tmp_path / "pictures", num_classes=3)
    model = tiny_generator(num_channels=1, num_labels=3)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    with torch.no_grad():
        model.output_conv.weight += 0.3
    model.save_pretrained(tmp_path / "model" / "generator")
    return tmp_path


def evaluate(*options: str) -> None:
    main(["evaluate", "model", *MEASURED, "--num_images", "50", "--cache_dir", "cache", *options])


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *argv])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("biggan-hf")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


def test_the_card_says_which_state_of_the_model_was_measured(folder: Path) -> None:
    model, card = tiny_generator(num_channels=1, num_labels=3), Path("model/README.md")
    checksums = set()
    for step, words in ((None, "with the weights {}"), (1000, "at step 1,000"), (2000, "at step 2,000")):
        with torch.no_grad():
            model.output_conv.weight += 0.1
        model.save_pretrained("model", global_step=step)
        evaluate("--metrics", "fid", "--update_card", "--output", "report.json", "--overwrite")
        samples = json.loads(Path("report.json").read_text())["protocol"]["samples"]
        checksums.add(samples["checksum"])
        words = words.format(samples["checksum"])
        (result,) = ModelCard.load(card).data.eval_results  # an earlier state's number is replaced
        assert result.metric_name == f"FD-own:extract {words}" and samples["global_step"] == step
        assert card.read_text().count("Measured ") == card.read_text().count(f"\n\nMeasured {words}.\n\n") == 1
    assert len(checksums) == 3


def test_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("--output", "report.json", "--update_card", "--floor", "rest", "--save_moments", "moments.npz")
    printed = capsys.readouterr().out
    report = json.loads(Path("report.json").read_text())
    values = {measure["label"]: measure["value"] for measure in report["measures"]}
    names = ["FD-own:extract", "KD-own:extract", "MIND-own:extract", "FWD-log-Haar@3", "saturation", "IS-own:extract"]
    assert list(values)[:6] == names and values["score-own:extract"] > 0
    # Every number has its interval and its N.
    assert all(measure["interval"] and measure["num_images"] for measure in report["measures"])
    assert f"{values['FD-own:extract']:.5g}" in printed and "samples.weights" in printed
    assert report["protocol"]["reference"]["split"] == "train" and report["protocol"]["samples"]["weights"] == "ema"
    results = ModelCard.load("model/README.md").data.eval_results
    of_the_model = {label: value for label, value in values.items() if " of the " not in label and "real" not in label}
    weights = f" with the weights {report['protocol']['samples']['checksum']}"
    named = {result.metric_name.removesuffix(weights): result.metric_value for result in results}
    assert named == of_the_model
    assert {(r.dataset_type, r.dataset_name) for r in results} == {("imagefolder", "the local folder 'pictures'")}

    # Against the moments that it wrote.
    argv = ["--moments", "moments.npz", "--num_images", "50", "--cache_dir", "cache", "--metrics", "fid"]
    main(["evaluate", "model", *argv, "--extractor", "own:extract", "--output", "moments.json"])
    again = json.loads(Path("moments.json").read_text())
    assert again["measures"][0]["value"] == pytest.approx(values["FD-own:extract"], rel=1e-9)
    assert again["measures"][0]["label"] == "FD-own:extract"
    reference = again["protocol"]["reference"]
    assert (reference["source"], reference["split"], reference["num_images"]) == ("pictures", "train", 60)
    # With another extractor, or after a change of the code, they are no reference.
    Path("other.py").write_text(TINY_SOURCE.replace("255", "128"))
    message = refused(capsys, "model", *argv, "--extractor", "other:extract")
    assert "was measured with extractor own:extract" in message and "not with other:extract" in message


def test_options_reach_what_they_are_for(folder: Path) -> None:
    source = TINY_SOURCE.replace("    return", "    open('sizes', 'a').write(f'{len(images)} ')\n    return")
    Path("own.py").write_text(source)
    options = ["--seed", "7", "--truncations", "0.5", "--truncation_mode", "scale", "--batch_size", "25"]
    evaluate("--output", "report.json", *options)
    protocol = json.loads(Path("report.json").read_text())["protocol"]
    samples = protocol["samples"]
    assert (samples["seed"], samples["truncation"], samples["truncation_mode"]) == (7, 0.5, "scale")
    assert Path("sizes").read_text().split() == ["2", "25", "25", "10", "25", "25"]  # tried, 60 real ones, 50 samples
    assert protocol["kid"] == "100 subsets of 50" and protocol["is"] == "1 split"
    assert protocol["features_of"].startswith("60 real images and 50 samples")


def test_no_samples_of_classes_without_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class {label}" for label in range(3)]
    tiny_generator(num_channels=1, id2label=dict(enumerate(["none", *names]))).save_pretrained("model")
    evaluate("--output", "report.json", "--metrics", "fid")
    assert "pictures has pictures of 3 of the model's 4 classes" in capsys.readouterr().out
    samples = json.loads(Path("report.json").read_text())["protocol"]["samples"]
    assert samples["labels"] == "uniform over 3 of 4 classes: 1, 2, 3"
    with pytest.raises(SystemExit):
        evaluate("--metrics", "fid", "intra_class_fid")
    printed = capsys.readouterr()
    assert "pictures has no class 'none'" in printed.err and "samples are of these" not in printed.out
    tiny_generator(num_channels=1, id2label={0: "ant", 1: "bee", 2: "cat"}).save_pretrained("model")
    evaluate("--metrics", "fid", "--truncations", "0.5", "none", "--output", "curve.json")
    assert capsys.readouterr().out.count("pictures of none of the model's 3 classes, by their names") == 1


def test_what_was_found_and_which_classes_the_model_lacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_generator(num_channels=1, id2label={0: "class 2", 1: "class 0"}).save_pretrained("model")
    evaluate("--output", "report.json", "--metrics", "fid")
    printed = capsys.readouterr().out
    assert printed.startswith(
        "pictures    120 of split 'train' of pictures\nclasses     3 classes by column 'label', 40 "
    )
    foreign = "the real images include 1 class that the model lacks: class 1"
    assert f"unusual     {foreign}. These images count too." in printed
    assert json.loads(Path("report.json").read_text())["protocol"]["reference_classes"] == foreign


def test_defaults() -> None:
    args = build_parser().parse_args(["evaluate", "model", "--dataset_name", "x"])
    assert (args.num_images, args.seed, args.truncations) == (50_000, 0, [None])
    assert (args.dataset_split, args.weights, args.batch_size) == ("train", "ema", 64)
    assert (args.extractor, args.metrics) == ("inception", ["fid", "kid", "mind", "fwd", "saturation", "is", "prdc"])


def test_pictures_unlike_the_samples_are_converted_only_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*MEASURED, "--num_images", "50", "--cache_dir", "cache"]
    tiny_generator(num_labels=3).save_pretrained("rgb")
    message = refused(capsys, "rgb", *argv)
    assert "samples are RGB images of 32×32 px, pictures holds grey images of 32×32 px: --convert" in message
    np.savez("small.npz", x=np.zeros((50, 1, 16, 16), np.uint8))
    message = refused(capsys, "small.npz", *argv)
    assert "samples are grey images of 16×16 px, pictures holds grey images of 32×32 px: --convert" in message
    main(["evaluate", "rgb", *argv, "--convert", "--output", "report.json"])
    reference = json.loads(Path("report.json").read_text())["protocol"]["reference"]
    assert reference["stored"] == "grey images of 32×32 px" and reference["conversion"] == "grey repeated to RGB"


def test_every_picture_must_be_like_the_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those between the 16 that are looked at when the pictures are opened."""
    Path("files").mkdir()
    for index in range(60):
        size = (48, 40) if index == 1 else (32, 32)
        Image.new("RGB" if index == 2 else "L", size, index).save(f"files/{index:02}.png")
    argv = ["--dataset_name", "files", "--extractor", "own:extract", "--num_images", "50", "--cache_dir", "cache"]
    argv = ["model", *argv, "--metrics", "fid"]
    expected = "expected grey of 32×32 px as the samples are: --convert makes them alike"
    message = refused(capsys, *argv)
    assert "picture " in message and message.endswith(f"files/01.png (row 1) is grey of 40×48 px, {expected}")
    Path("files/01.png").unlink()
    assert refused(capsys, *argv).endswith(f"files/02.png (row 1) is RGB of 32×32 px, {expected}")
    main(["evaluate", *argv, "--convert", "--output", "report.json"])
    assert Path("report.json").is_file()
    assert refused(capsys, *argv).endswith(expected)  # although the pass is in the cache
    Path("files/02.png").unlink()
    main(["evaluate", *argv])


def test_live_weights_are_those_of_the_checkpoint(folder: Path) -> None:
    evaluate("--output", "ema.json")
    evaluate("--output", "live.json", "--weights", "live")
    ema, live = (json.loads(Path(f"{name}.json").read_text()) for name in ("ema", "live"))
    assert live["protocol"]["samples"]["weights"] == "live"
    assert ema["measures"][0]["value"] != live["measures"][0]["value"]


def test_a_truncation_curve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("--output", "curve.json", "--truncations", "0.3", "1", "none", "0.30", "none")
    reports = json.loads(Path("curve.json").read_text())
    assert [report["protocol"]["samples"]["truncation"] for report in reports] == [0.3, 1.0, None]
    assert len(Path("curve.csv").read_text().splitlines()) == 4
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    assert "min FD-own:extract: truncation" in capsys.readouterr().out


def _evaluate_as(rank: int, *options: str) -> None:
    evaluate(*options)


def test_two_processes_measure_what_one_does(folder: Path) -> None:
    options = ["--batch_size", "8", "--metrics", "fid", "kid", "is", "prdc", "intra_class_fid", "--device", "cpu"]
    evaluate(*options, "--output", "one.json")
    in_two_processes(_evaluate_as, folder, *options, "--cache_dir", "cache2", "--output", "two.json")
    assert Path("out 0").read_text().count("| FD-own:extract ") == 1 and Path("out 1").read_text() == ""

    one, two = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["protocol"]["processes"], two["protocol"]["processes"]) == (1, 2)
    values = [{measure["key"]: measure["value"] for measure in report["measures"]} for report in (one, two)]
    assert values[0] == pytest.approx(values[1], rel=1e-6) and len(values[0]) == 9
    assert len(list(Path("cache2").iterdir())) == 4  # the real side and its classes; no samples, nothing unfinished


def test_what_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("report.json").write_text("precious")
    Path("broken").mkdir()
    Path("broken/README.md").write_text("---\n- a: [\n---\n# Mine\n")
    np.savez("few.npz", x=np.zeros((4, 1, 32, 32), np.uint8))
    np.savez("wide.npz", x=np.zeros((50, 1, 32, 48), np.uint8))
    Path("latin").mkdir()
    Path("latin/README.md").write_text("# Où\n", encoding="latin-1")
    fast = [*MEASURED, "--num_images", "50", "--cache_dir", "cache"]
    cases = {
        "name the real images with --dataset_name": ["model"],
        "or their moments with --moments": ["model", "--dataset_name", "x", "--moments", "y.npz"],
        "--floor and --save_moments need": ["model", "--moments", "y.npz", "--floor", "rest"],
        "--floor train holds the real images themselves: --floor rest": ["model", *fast, "--floor", "train"],
        "they need --output": ["model", *fast, "--truncations", "0.5", "1"],
        "must be a .json file, got 'report.csv'": ["model", *fast, "--output", "report.csv"],
        "folder 'nowhere' does not exist": ["model", *fast, "--output", "nowhere/report.json"],
        "'report.json' exists; --overwrite": ["model", *fast, "--output", "report.json"],
        "no local folder with a README.md": ["own.py", *fast, "--update_card"],
        "a positive number or 'none', got '0'": ["model", *fast, "--truncations", "0"],
        "integer from 0 to 2**63 - 1, got '-1'": ["model", *fast, "--seed", "-1"],
        "cache 'own.py/a/b': 'own.py' is a file": ["model", *fast, "--cache_dir", "own.py/a/b"],
        "--save_moments needs the metric 'fid'": ["model", *fast, "--save_moments", "m.npz", "--metrics", "is"],
        "the metadata of 'broken/README.md' is no YAML": ["broken", *fast, "--update_card"],
        "all images of pictures are in use": ["model", *fast, "--reference_images", "120", "--floor", "rest"],
        "--num_images 4": ["few.npz", *fast],
        "integer from 0 to 2**31 - 1, got '-1'": ["model", *fast, "--num_workers", "-1"],
        "--weights live: 'pictures' is no folder with": ["pictures", *fast, "--weights", "live"],
        "samples are grey images of 32×48 px, and real images are read as squares: crop": ["wide.npz", *fast],
        "the card 'latin/README.md' is no text in UTF-8": ["latin", *fast, "--update_card"],
        "'samples.npz' holds images: --truncations, --weights": ["samples.npz", *fast, "--truncations", "0.5"],
        "there is no file 'samples.npz'": ["samples.npz", *fast],
        "there is no file 'y.npz'": ["model", "--moments", "y.npz", "--extractor", "own:extract"],
        "cannot import extractor 'nothing:here'": ["model", *fast, "--extractor", "nothing:here"],
        "pictures has 120 images, 121": ["model", *fast, "--reference_images", "121"],
        "11 images are fewer than the 12": ["model", *fast, "--num_images", "11"],
        "invalid choice: 'lpips'": ["model", *fast, "--metrics", "lpips"],
        "cannot load 'missing'": ["missing", *fast],
    }
    for message, argv in cases.items():
        assert message in refused(capsys, *argv)
    # What is found after the real images were opened leaves no moments either.
    assert "11 images are fewer" in refused(capsys, "model", *fast, "--num_images", "11", "--save_moments", "m.npz")
    assert not Path("m.npz").exists()
    assert Path("report.json").read_text() == "precious"


def test_a_missing_package_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biggan_hf.evaluation.measuring.find_spec", lambda name: None)
    message = refused(capsys, "model", *MEASURED, "--num_images", "50", "--cache_dir", "cache")
    assert "the metric kid needs" in message and 'pip install "biggan_hf[eval]", or leave it out' in message
    monkeypatch.setattr("biggan_hf.commands.evaluate.find_spec", lambda name: None)
    message = refused(capsys, "model", *MEASURED, "--truncations", "0.5", "1", "--output", "curve.json")
    assert 'a curve needs matplotlib: pip install "biggan_hf[eval]"' in message


def test_weights_that_can_t_be_downloaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its weights are searched for, and there is no network here.
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    url = "http://127.0.0.1:9/inception_v3_google-0cc3c7bd.pth"
    monkeypatch.setattr("biggan_hf.evaluation.extractors.TORCHVISION_WEIGHTS", url)
    message = refused(capsys, "model", "--dataset_name", "pictures", "--extractor", "inception-torchvision")
    assert "cannot download http://127.0.0.1:9/inception_v3_google-0cc3c7bd.pth" in message
