import json
from pathlib import Path
from typing import Any

import pytest
import torch
from common import tiny_config, tiny_discriminator, tiny_generator
from fake_hub import FakeHub
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModel

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel, BigGANPipeline
from biggan_hf.presets import CIFAR10_CLASSES, PRESETS


# Of the generator and the discriminator. Those of BigGAN-PyTorch and pytorch-pretrained-biggan by building their
# programs; nobody released a discriminator for 512 pixels. The deep generators are those of
# pytorch-pretrained-biggan less the 144,125 parameters of its last convolution's 125 unused output channels.
PARAMETERS = {
    "biggan-32": (9_487_619, 9_836_929),
    "biggan-64": (70_239_108, 45_511_970),
    "biggan-128": (70_433_988, 87_982_370),
    "biggan-256": (82_097_604, 99_225_890),
    "biggan-512": (82_296_804, None),
    "biggan-deep-64": (49_583_876, 20_951_554),
    "biggan-deep-128": (50_388_609 - 144_125, 34_590_210),
    "biggan-deep-256": (55_880_833 - 144_125, 38_247_426),
    "biggan-deep-512": (56_163_905 - 144_125, None),
    "cifar10": (4_304_387, 4_207_361),
    "sagan-128": (42_017_412, 39_448_258),
    "sngan-128": (41_996_931, 30_005_013),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_has_the_size_of_the_published_model(name: str) -> None:
    config = BigGANConfig.preset(name)
    with torch.device("meta"):
        networks = BigGANModel(config), BigGANDiscriminator(config)
    for network, expected in zip(networks, PARAMETERS[name], strict=True):
        assert network.num_parameters() == expected or expected is None
    assert networks[1].num_parameters() > 1_000_000


def test_every_published_model_is_a_row() -> None:
    assert PARAMETERS.keys() | {"demo", "small-64", "small-128"} == PRESETS.keys()


@pytest.mark.parametrize(("size", "parameters"), [(64, (7_818_884, 4_889_186)), (128, (7_799_876, 9_612_642))])
def test_small_presets_suit_few_pictures(size: int, parameters: tuple[int, int]) -> None:
    config, training = BigGANConfig.preset(f"small-{size}"), PRESETS[f"small-{size}"].training
    with torch.device("meta"):
        networks = BigGANModel(config), BigGANDiscriminator(config)
    assert tuple(network.num_parameters() for network in networks) == parameters
    assert (config.image_size, config.num_channels) == (size, 3)
    assert training["diff_augment"] and training["global_batch_size"] < 300


def test_preset_overrides() -> None:
    config = BigGANConfig.preset("biggan-256", num_labels=10, generator_base_channels=32)
    assert (config.num_labels, config.generator_base_channels, config.z_dim) == (10, 32, 140)
    assert BigGANConfig.preset("cifar10").id2label == dict(enumerate(CIFAR10_CLASSES))
    assert BigGANConfig.preset("cifar10", num_labels=10).id2label == dict(enumerate(CIFAR10_CLASSES))
    assert BigGANConfig.preset("cifar10", num_classes=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert BigGANConfig.preset("demo", id2label={0: "a", 1: "b"}).num_labels == 2
    assert BigGANConfig.preset("demo", num_classes=0).num_labels == 0
    assert "num_labels" not in PRESETS["cifar10"].networks  # the table itself stays as it was


# Round trips through config.json


def names(config: BigGANConfig) -> dict[Any, str]:
    assert config.id2label is not None
    return config.id2label


@pytest.mark.parametrize("num_labels", [None, 0, 1, 2, 3, 1000])
@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name: str, num_labels: int | None, tmp_path: Path) -> None:
    config = BigGANConfig.preset(name, **({} if num_labels is None else {"num_labels": num_labels}))
    config.save_pretrained(tmp_path)
    loaded = BigGANConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "transformers_version": loaded.transformers_version}
    assert loaded.num_labels == (config.num_labels if num_labels is None else num_labels)
    assert [*names(loaded)] == [*range(len(names(config)))]
    assert loaded.label2id == {name: label for label, name in names(loaded).items()}


def test_round_trip_of_fields_that_are_not_defaults(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "id2label": {0: "tench, Tinca tinca", 1: "goldfish"},
        "generator_channel_multipliers": [8, 4, 2, 2],
        "generator_attention_resolutions": [16, 32],
        "standing_truncations": [0.02, 0.5, 1.0],
        "output_batch_norm_eps": 1e-5,
        "truncation_mode": "scale",
    }
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    tiny_config(**given).save_pretrained(tmp_path)
    loaded = BigGANConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == fields


def test_json_is_flat_and_says_what_the_networks_are_built_from(tmp_path: Path) -> None:
    BigGANConfig.preset("biggan-deep-128", num_labels=2).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert written["generator_channel_multipliers"] == [16, 16, 8, 4, 2, 1]
    assert {key for key, value in written.items() if isinstance(value, dict)} == {"id2label", "label2id"}


# Labels


def test_num_classes_is_num_labels() -> None:
    config = tiny_config(num_classes=7)
    assert (config.num_labels, config.num_classes, len(names(config))) == (7, 7, 7)
    config.num_classes = 3
    assert (config.num_labels, [*names(config)]) == (3, [0, 1, 2])
    assert BigGANConfig().num_labels == 1000


def test_labels_from_names() -> None:
    config = tiny_config(id2label={"1": "crane", "0": "cat", "2": "crane"})  # as in JSON; ImageNet has two cranes
    assert config.id2label == {0: "cat", 1: "crane", 2: "crane"}
    assert (config.num_labels, config.label2id) == (3, {"cat": 0, "crane": 2})
    assert tiny_config(id2label={0: 7, 1: 0.5}).id2label == {0: "7", 1: "0.5"}


@pytest.mark.parametrize("loader", [BigGANConfig, AutoConfig])
def test_from_pretrained_replaces_fields(loader: Any, tmp_path: Path) -> None:
    BigGANConfig.preset("cifar10").save_pretrained(tmp_path)
    assert type(loader.from_pretrained(tmp_path)) is BigGANConfig
    assert loader.from_pretrained(tmp_path, num_labels=10).id2label == dict(enumerate(CIFAR10_CLASSES))
    fewer = loader.from_pretrained(tmp_path, num_labels=3)
    assert fewer.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert loader.from_pretrained(tmp_path, num_classes=0).num_labels == 0
    named = loader.from_pretrained(tmp_path, id2label={0: "a", 1: "b"})
    assert (named.num_labels, named.label2id) == (2, {"a": 0, "b": 1})
    assert loader.from_pretrained(tmp_path, z_dim=64).z_dim == 64


def test_from_pretrained_checks_what_it_replaces(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image_size must be one of .* got 77"):
        BigGANConfig.from_pretrained(tmp_path, image_size=77)
    with pytest.raises(TypeError, match="no field 'z_dims'; did you mean 'z_dim'"):
        BigGANConfig.from_pretrained(tmp_path, z_dims=64)
    _, unused = BigGANConfig.from_pretrained(tmp_path, z_dims=64, return_unused_kwargs=True)
    assert unused == {"z_dims": 64}
    hub = {"revision": "main", "cache_dir": tmp_path, "local_files_only": True, "token": None, "subfolder": ""}
    AutoConfig.from_pretrained(tmp_path, trust_remote_code=True, code_revision=None, force_download=False, **hub)


def test_keys_of_a_later_transformers_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_generator()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    later = {"zdim": 3, "cache_layout": {"1": [2]}, "_experts": None, "is_deep": True, "__class__": 1}
    later |= {"max_length": 20, "temperature": 0.5}  # with these, transformers saves no configuration
    path.write_text(json.dumps({**json.loads(path.read_text()), **later}))
    for loader in (BigGANModel, AutoModel):
        loader.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
        again = BigGANConfig.from_pretrained(tmp_path / "again").to_dict()
        assert {name: again.get(name) for name in ("zdim", "cache_layout", "_experts")} == {
            name: later[name] for name in ("zdim", "cache_layout", "_experts")
        }
        assert not again.keys() & {"is_deep", "__class__", "max_length", "temperature"}
    assert "no field 'zdim'; did you mean 'z_dim'? (kept, without effect)" in caplog.text
    assert "no field 'is_deep' (left out)" in caplog.text and "no field 'max_length' (left out)" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no BigGAN's: it names no model_type"),
        ("[]", "is no BigGAN's: it names no model_type"),
        ("3", "is no BigGAN's: it is no object"),
        ('{"model_type": "bert"}', "is no BigGAN's: its model_type is 'bert'"),
        ("{", "not a valid JSON"),
        (None, "there is no config.json in "),
    ],
)
def test_what_is_no_configuration_is_refused_at_once(text: str | None, message: str, tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink() if text is None else (tmp_path / "config.json").write_text(text)
    for loader in (BigGANConfig, BigGANModel, BigGANDiscriminator):
        with pytest.raises((ValueError, OSError), match=message):
            loader.from_pretrained(tmp_path)


def test_a_repository_without_a_configuration_names_its_discriminator(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.create("models", "user/empty")
    disc = tiny_discriminator()
    disc.push_to_hub("user/x")
    disc.save_pretrained(tmp_path / "discriminator")
    for loader in (BigGANConfig, BigGANModel, BigGANDiscriminator):
        for source in ("user/x", str(tmp_path)):
            with pytest.raises(
                FileNotFoundError, match=f"no config.json in '{source}'; a discriminator lies in it, in sub"
            ):
                loader.from_pretrained(source)
        with pytest.raises(FileNotFoundError, match="no config.json in 'user/empty'$"):
            loader.from_pretrained("user/empty")
        with pytest.raises(FileNotFoundError, match="no config.json in 'user/x/nope'$"):
            loader.from_pretrained("user/x", subfolder="nope")


def test_none_is_no_subfolder(tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path)
    for loader in (BigGANConfig, BigGANModel, BigGANPipeline):
        loader.from_pretrained(tmp_path, subfolder=None)


def test_the_folder_of_an_unfinished_run_names_its_newest_checkpoint(tmp_path: Path) -> None:
    """A person stops a run with Ctrl-C and wants to see samples: the folder itself is no model yet."""
    for name in ("checkpoint-250", "checkpoint-1000", "checkpoint-9999-mine"):
        tiny_generator().save_pretrained(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no config.json in .*; the newest checkpoint .*checkpoint-1000'$"):
        BigGANModel.from_pretrained(tmp_path)
    BigGANModel.from_pretrained(tmp_path / "checkpoint-1000")


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 77), ("id2label", {0: "a", 2: "b"}), ("id2label", ["a"]), ("note", object()), ("note", {1, 2})],
)
def test_what_could_not_be_loaded_is_not_saved(field: str, value: Any, tmp_path: Path) -> None:
    config = tiny_config()
    config.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    setattr(config, field, value)
    with pytest.raises((ValueError, TypeError, StrictDataclassError)):
        config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before


# Bad values


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("z_dim", "8"),
        ("z_dim", 8.0),
        ("z_dim", True),
        ("z_dim", None),
        ("batch_norm_eps", 1),  # an integer between 0 and 1 there is none
        ("shared_class_embedding", 1),
        ("generator_attention_resolutions", 16),
        ("generator_attention_resolutions", None),
        ("generator_channel_multipliers", [1.5, 1.5, 1.5, 1.5]),
        ("generator_channel_multipliers", "4444"),
        ("standing_truncations", ["0.5"]),
        ("architecture", "bigan"),
        ("initializer", "ortho"),
        ("truncation_mode", "cut"),
    ],
)
def test_wrong_type_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=rf"'{field}'"):
        tiny_config(**{field: value})
    config = tiny_config()
    with pytest.raises(StrictDataclassFieldValidationError, match=rf"'{field}'"):
        setattr(config, field, value)


def test_integers_are_thresholds_too() -> None:
    truncations = tiny_config(standing_truncations=[0.5, 1]).standing_truncations
    assert truncations == [0.5, 1.0] and all(isinstance(truncation, float) for truncation in truncations)


@pytest.mark.parametrize("keyword", ["resolution", "temperature", "num_beams", "G_ch"])
def test_unknown_keyword_is_named(keyword: str) -> None:
    with pytest.raises(TypeError, match=rf"no field '{keyword}'"):
        tiny_config(**{keyword: 1})


DEEP = {"architecture": "biggan-deep"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 100}, "image_size must be one of 32, 64, 128, 256, 512, got 100"),
        ({"num_channels": 4}, r"num_channels must be 1 \(grey\) or 3 \(RGB\), got 4"),
        ({"z_dim": 0}, "z_dim must be at least 1, got 0"),
        ({"z_dim": 18}, "z_dim=18 does not divide into 4 equal chunks .* is 16"),
        ({"class_embedding_dim": -3}, "class_embedding_dim must be at least 1, got -3"),
        ({"generator_base_channels": 0}, "generator_base_channels must be at least 1, got 0"),
        ({"discriminator_blocks_per_stage": -1, **DEEP}, "discriminator_blocks_per_stage must be at least 1, got -1"),
        ({"generator_blocks_per_stage": 3}, "generator_blocks_per_stage=3 is for biggan-deep: a plain stage has one"),
        ({"generator_blocks_per_stage": 0, **DEEP}, "generator_blocks_per_stage must be at least 1, got 0"),
        ({"generator_channel_multipliers": [4, 4, 4]}, r"generator_channel_multipliers must be 4 .* \[4, 4, 4\]"),
        ({"generator_channel_multipliers": []}, r"generator_channel_multipliers must be 4 .* got \[\]"),
        ({"discriminator_channel_multipliers": [4, 4, 0, 4]}, "discriminator_channel_multipliers must be 4 positive"),
        ({"generator_channel_multipliers": [4, 8, 4, 4], **DEEP}, r"must not ascend .* \[16, 32, 16, 16\]"),
        ({"discriminator_channel_multipliers": [4, 2, 4, 4], **DEEP}, r"must not descend .* \[16, 8, 16, 16\]"),
        ({"generator_channel_multipliers": [4, 4, 0, 0], **DEEP}, "must be 4 positive"),
        ({"generator_base_channels": 2, "generator_channel_multipliers": [1] * 4, **DEEP}, "needs 4, got 2"),
        ({"generator_attention_resolutions": [64]}, "names 64, but no stage of the 32-pixel generator .* 8, 16, 32$"),
        ({"discriminator_attention_resolutions": [32]}, "names 32, .* discriminator .* they are 16, 8$"),
        ({"generator_base_channels": 1, "generator_attention_resolutions": [16]}, "at least 8 channels, there are 4"),
        ({"hierarchical_latents": False, **DEEP}, "hierarchical_latents must be True in the deep architecture"),
        ({"shared_class_embedding": False}, "shared_class_embedding=False needs hierarchical_latents=False"),
        ({"spectral_norm_eps": 0.0}, "spectral_norm_eps must lie between 0 and 1, got 0.0"),
        ({"batch_norm_eps": float("nan")}, "batch_norm_eps must lie between 0 and 1, got nan"),
        ({"output_batch_norm_eps": 1.0}, "output_batch_norm_eps must lie between 0 and 1, got 1.0"),
        ({"standing_truncations": [1.0, 0.5]}, r"must ascend, got \[1.0, 0.5\]"),
        ({"standing_truncations": [-0.5, 0.5]}, r"must be numbers ≥ 0, got \[-0.5, 0.5\]"),
        ({"standing_truncations": [float("nan")]}, r"must be numbers ≥ 0, got \[nan\]"),
        ({"num_labels": -1}, "num_labels must be an integer ≥ 0 .* got -1"),
        ({"num_labels": "10"}, "num_labels must be an integer ≥ 0 .* got '10'"),
        ({"num_labels": 10**6}, "num_labels must be at most 100000, got 1000000"),
        ({"num_labels": True}, "num_labels must be an integer ≥ 0 .* got True"),
        ({"num_labels": 3, "num_classes": 4}, "num_classes is another name of num_labels, got 4 and 3"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels=3, but id2label has 1 names"),
        ({"id2label": {0: "a", 2: "b"}}, r"id2label must name the labels 0 to 1, got the keys \[0, 2\]"),
        ({"id2label": {"first": "a"}}, r"id2label must name the labels 0 to 0, got the keys \['first'\]"),
        ({"id2label": {0: "a", 1: None}}, "id2label must name each label with text or a number, got None for 1"),
        ({"id2label": {"0": ["a", "b"]}}, r"with text or a number, got \['a', 'b'\] for '0'"),
        ({"label2id": {"a": 0}}, "label2id follows from id2label"),
        ({"id2label": ["a", "b"]}, r"id2label must be a dictionary .* got \['a', 'b'\]"),
    ],
)
def test_bad_value_is_named_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        tiny_config(**overrides)
    assert "\n" not in str(caught.value)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="unknown preset 'biggan-1024'; the presets are biggan-128, "):
        BigGANConfig.preset("biggan-1024")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 100, "image_size must be one of"),
        ("z_dim", 18, "z_dim=18 does not divide"),
        ("generator_attention_resolutions", [64], "names 64"),
        ("standing_truncations", (1.0, 0.5), "must ascend"),
    ],
)
def test_networks_check_fields_that_were_set_later(field: str, value: Any, message: str) -> None:
    config = tiny_config()
    setattr(config, field, value)
    with pytest.raises(ValueError, match=message):
        BigGANModel(config)


# What the networks are built from


def test_geometry() -> None:
    config = BigGANConfig()  # the paper's 128-pixel model
    assert config.generator_channels == [1536, 1536, 768, 384, 192, 96]
    assert config.generator_resolutions == [8, 16, 32, 64, 128]
    assert config.discriminator_channels == [3, 96, 192, 384, 768, 1536, 1536]
    assert config.discriminator_resolutions == [64, 32, 16, 8, 4, 4]
    assert (config.num_latent_chunks, config.condition_dim) == (6, 128 + 20)

    deep = BigGANConfig.preset("biggan-deep-128")
    assert deep.discriminator_channels == [128, 256, 512, 1024, 2048, 2048]
    assert (deep.num_latent_chunks, deep.condition_dim) == (1, 128 + 128)
    assert BigGANConfig.preset("cifar10").discriminator_resolutions == [16, 8, 8, 8]


@pytest.mark.parametrize(
    ("overrides", "condition_dim"),
    [
        ({}, 6 + 4),
        ({"hierarchical_latents": False}, 6),
        ({"hierarchical_latents": False, "shared_class_embedding": False}, 5),
        ({"num_labels": 0}, 4),
        ({"num_labels": 0, "hierarchical_latents": False}, 0),
        ({"architecture": "biggan-deep"}, 6 + 16),
    ],
)
def test_condition_dim(overrides: dict[str, Any], condition_dim: int) -> None:
    assert tiny_config(**overrides).condition_dim == condition_dim
