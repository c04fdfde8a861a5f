"""Writes a model folder as a checkpoint of BigGAN-PyTorch: `G.pth`, `G_ema.pth`, `D.pth` and `state_dict.pth`."""

import json
from pathlib import Path
from typing import Any

import torch
from architecture import imagenet_classes
from convert_biggan_pytorch import INITIALIZERS, OUTPUT_BATCH_NORM_EPS, discriminator_modules, generator_modules
from reading import State, guess, load
from training_state import STATE_FILE
from transformers.utils import logging
from writing import check_output, parser, replaced_folder, run

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.presets import CHANNEL_MULTIPLIERS, CIFAR10_CLASSES


def check_exportable(config: BigGANConfig) -> None:
    """Raises `ValueError` for a generator that the program can't build."""
    largest = 256 if config.is_deep else 512
    problems = {
        "is unconditional": not config.num_labels,
        "is not RGB": config.num_channels != 3,
        f"is larger than {largest} pixels": config.image_size > largest,
        "has projections for shortcuts": config.deep_projection_shortcut,
        "has other channel multipliers": not _has_usual_width(config, 0),
        "has another depth than 2": config.is_deep
        and config.image_size > 32
        and config.generator_blocks_per_stage != 2,
    }
    for what, is_so in problems.items():
        if is_so:
            raise ValueError(f"BigGAN-PyTorch can't build this generator, which {what}")


def discriminator_problem(config: BigGANConfig) -> str | None:
    """Why the program can't build the discriminator; `None` where it can."""
    attention = config.discriminator_attention
    problems = {
        "it is larger than 256 pixels": config.image_size > 256,
        "its shortcuts see the ReLU'd map": config.discriminator_shortcut_relu,
        "it has other channel multipliers": not _has_usual_width(config, 1),
        "it is not spectrally normalised": not config.discriminator_spectral_norm,
        "its attention does not follow all stages of a size": config.discriminator_attention_stages is not None
        or (config.image_size == 32 and any(attention) and not all(attention)),
    }
    return next((what for what, is_so in problems.items() if is_so), None)


def _has_usual_width(config: BigGANConfig, network: int) -> bool:
    multipliers = (config.generator_channel_multipliers, config.discriminator_channel_multipliers)[network]
    return list(multipliers or ()) == CHANNEL_MULTIPLIERS[config.image_size][network]


def settings(config: BigGANConfig) -> dict[str, Any]:
    """The program's settings, what `Generator(**config)` and `Discriminator(**config)` need, in plain values."""
    return {
        "model": "BigGANdeep" if config.is_deep else "BigGAN",
        "resolution": config.image_size,
        "n_classes": config.num_labels,
        "G_ch": config.generator_base_channels,
        "D_ch": config.discriminator_base_channels,
        "G_depth": config.generator_blocks_per_stage if config.is_deep else 1,
        "D_depth": config.discriminator_blocks_per_stage if config.is_deep else 1,
        "D_wide": config.discriminator_wide,
        "G_shared": config.shared_class_embedding,
        "shared_dim": config.class_embedding_dim if config.shared_class_embedding else 0,
        "dim_z": config.z_dim,
        "hier": config.hierarchical_latents,
        "G_attn": _sizes(config.generator_attention_resolutions),
        # At 32 pixels the program calls the outputs of all stages 16 wide, and they are 16, 8, 8, 8.
        "D_attn": _sizes(r for r in config.discriminator_attention_resolutions if config.image_size > 32 or r == 16),
        "G_param": "SN" if config.generator_spectral_norm else "none",
        "D_param": "SN",
        "G_nl": "relu",
        "D_nl": "relu",
        "G_init": next(name for name, ours in INITIALIZERS.items() if ours == config.initializer),
        "D_init": next(name for name, ours in INITIALIZERS.items() if ours == config.initializer),
        "BN_eps": config.batch_norm_eps,
        "SN_eps": config.spectral_norm_eps,
        "num_G_SVs": 1,
        "num_D_SVs": 1,
        "num_G_SV_itrs": 1,
        "num_D_SV_itrs": 1,
        "cross_replica": False,
        "mybn": False,
        "norm_style": "bn",
        "ema": True,
        "use_ema": True,
        **_data_set(config),
    }


def _data_set(config: BigGANConfig) -> dict[str, str]:
    """The program's name of the data set that the class names are those of; `{}` for any other."""
    names = config.id2label
    if config.image_size == 32 and names == dict(enumerate(CIFAR10_CLASSES)):
        return {"dataset": "C10"}
    return {"dataset": f"I{config.image_size}"} if names == imagenet_classes() else {}


def _sizes(resolutions: Any) -> str:
    return "_".join(str(resolution) for resolution in resolutions) or "0"


def export_state(state: State, modules: dict[str, str]) -> State:
    """The program's names, by its table of modules read the other way."""
    theirs = {ours: module for module, ours in modules.items()}
    exported: State = {}
    for key, value in state.items():
        parts = key.split(".")
        length = next(n for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in theirs)
        tail = ".".join(parts[length:]).replace("running_", "stored_")
        exported[f"{theirs['.'.join(parts[:length])]}.{tail}"] = value
    return exported


def export_generator(model: BigGANModel) -> State:
    """
    The generator's tensors in the program's names.

    Tables of statistics have no place there; the running ones, of truncation 1 in a converted model, stay. The
    program's last batch norm has an epsilon of its own, and a variance of var + (ours - its) is the same function.
    """
    config = model.config
    state = {key: value for key, value in model.state_dict().items() if ".standing_" not in key}
    excess = (config.output_batch_norm_eps or config.batch_norm_eps) - OUTPUT_BATCH_NORM_EPS
    if excess:
        state["output_bn.running_var"] = state["output_bn.running_var"] + excess
    depth = config.generator_blocks_per_stage if config.is_deep else 1
    return export_state(state, generator_modules(len(model.stages), depth))


def export_discriminator(model: BigGANDiscriminator) -> State:
    depth = model.config.discriminator_blocks_per_stage if model.config.is_deep else 1
    return export_state(dict(model.state_dict()), discriminator_modules(len(model.stages), depth))


def load_networks(source: Path) -> tuple[BigGANModel, BigGANDiscriminator | None]:
    """The generator, and the discriminator where there is one; raises where the folder is no model's."""
    path = source / "config.json"
    try:
        is_ours = json.loads(path.read_text(encoding="utf-8")).get("model_type") == BigGANConfig.model_type
    except (OSError, ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"{str(source)!r} is not the folder of a biggan_hf model{guess(source)}")
    logging.disable_progress_bar()
    folder = source / "discriminator"
    try:
        discriminator = BigGANDiscriminator.from_pretrained(folder) if folder.is_dir() else None
        return BigGANModel.from_pretrained(source), discriminator
    # A damaged file raises one of half a dozen types, some of them private.
    except Exception as error:
        raise ValueError(f"{str(source)!r} can't be loaded: {error}") from error


def load_live(source: Path) -> BigGANModel | None:
    """The generator as it trains, which a training checkpoint holds beside the average; else the average is both."""
    folder = source / "generator"
    return load_networks(folder)[0] if folder.is_dir() else None


def step(source: Path) -> int:
    """Of a training checkpoint; 0 for a model."""
    path = source / STATE_FILE
    return int(load(path)["global_step"]) if path.is_file() else 0


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, "MODEL_DIR", "a folder with config.json and model.safetensors").parse_args(argv)
    check_output(args.output, args.overwrite)
    model, discriminator = load_networks(args.source)
    check_exportable(model.config)
    remarks = []
    live = load_live(args.source) or model
    files: dict[str, Any] = {"G": export_generator(live), "G_ema": export_generator(model)}
    problem = discriminator_problem(model.config)
    if discriminator is None or problem:
        remarks.append(f"no D.pth: {problem or 'the model has no discriminator'}")
    else:
        files["D"] = export_discriminator(discriminator)
    if model.config.standing_truncations:
        remarks.append("left out the standing statistics; the running ones stay")
    counters = {
        "itr": step(args.source),
        "epoch": 0,
        "save_num": 0,
        "save_best_num": 0,
        "best_IS": 0,
        "best_FID": 999999,
    }
    files["state_dict"] = {**counters, "config": settings(model.config)}
    with replaced_folder(args.output, owned="D.pth") as staging:
        for name, content in files.items():
            torch.save(content, staging / f"{name}.pth")
    for remark in remarks:
        print(remark)
    print(args.output)


if __name__ == "__main__":
    run(main)
