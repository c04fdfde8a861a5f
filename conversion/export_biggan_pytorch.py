"""Writes a model folder as a checkpoint of BigGAN-PyTorch: `G.pth`, `G_ema.pth`, `D.pth` and `state_dict.pth`."""

import json
from pathlib import Path
from typing import Any

from biggan_hf import BigGANConfig, BigGANDiscriminator, BigGANModel
from biggan_hf.bars import own_bars_alone
from biggan_hf.conversion.architecture import imagenet_classes
from biggan_hf.conversion.convert_biggan_pytorch import (
    INITIALIZERS,
    OUTPUT_BATCH_NORM_EPS,
    discriminator_modules,
    generator_modules,
)
from biggan_hf.conversion.reading import State, hint, load
from biggan_hf.conversion.training_state import STATE_FILE
from biggan_hf.conversion.writing import check_output, output_folder, parser, run
from biggan_hf.files import save_archive
from biggan_hf.presets import CHANNEL_MULTIPLIERS, CIFAR10_CLASSES


def check_exportable(config: BigGANConfig) -> None:
    """Raises `ValueError` if the program can't build the generator."""
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
    """Why the program can't build the discriminator; `None` if it can."""
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
    """The program's settings: what `Generator(**config)` and `Discriminator(**config)` need, in plain values."""
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
        # At 32 pixels the stages end at 16, 8, 8 and 8 pixels; the program calls each of these sizes 16.
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
    """The program's name of the data set that has these class names; `{}` if it has none."""
    names = config.id2label
    if config.image_size == 32 and names == dict(enumerate(CIFAR10_CLASSES)):
        return {"dataset": "C10"}
    return {"dataset": f"I{config.image_size}"} if names == imagenet_classes() else {}


def _sizes(resolutions: Any) -> str:
    return "_".join(str(resolution) for resolution in resolutions) or "0"


def export_state(state: State, modules: dict[str, str]) -> State:
    """The tensors under the program's names. `modules` maps these names to ours."""
    theirs = {ours: module for module, ours in modules.items()}
    exported: State = {}
    for key, value in state.items():
        parts = key.split(".")
        length = next(n for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in theirs)
        tail = ".".join(parts[length:]).replace("running_", "stored_")
        exported[f"{theirs['.'.join(parts[:length])]}.{tail}"] = value.reshape(()) if tail == "gamma" else value
    return exported


def export_generator(model: BigGANModel) -> State:
    """
    The generator's tensors under the program's names.

    The program has no place for standing statistics; the running ones stay, which in a converted model are those of
    truncation 1. The program's last batch norm has another epsilon; the variance takes up the difference, so that
    variance + epsilon, and with it the function, is the same.
    """
    config = model.config
    state = {key: value for key, value in model.state_dict().items() if ".standing_" not in key}
    excess = (config.output_batch_norm_eps or config.batch_norm_eps) - OUTPUT_BATCH_NORM_EPS
    if excess:
        state["output_bn.running_var"] = state["output_bn.running_var"] + excess
    depth = config.generator_blocks_per_stage if config.is_deep else 1
    return export_state(state, generator_modules(len(model.stages), depth))


def export_discriminator(model: BigGANDiscriminator) -> State:
    """The discriminator's tensors under the program's names."""
    depth = model.config.discriminator_blocks_per_stage if model.config.is_deep else 1
    return export_state(dict(model.state_dict()), discriminator_modules(len(model.stages), depth))


@own_bars_alone()
def load_networks(source: Path) -> tuple[BigGANModel, BigGANDiscriminator | None]:
    """The generator, and the discriminator if there is one; raises `ValueError` if the folder holds no model."""
    path = source / "config.json"
    try:
        is_ours = json.loads(path.read_text(encoding="utf-8")).get("model_type") == BigGANConfig.model_type
    except (OSError, ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"{str(source)!r} is not the folder of a biggan_hf model{hint(source)}")
    folder = source / "discriminator"
    try:
        discriminator = BigGANDiscriminator.from_pretrained(folder) if folder.is_dir() else None
        return BigGANModel.from_pretrained(source), discriminator
    # A damaged file raises one of half a dozen errors, and some of their types are private.
    except Exception as error:
        raise ValueError(f"{str(source)!r} can't be loaded: {error}") from error


def load_live(source: Path) -> BigGANModel | None:
    """The generator as it trains, which a training checkpoint holds beside the average; `None` for another folder."""
    folder = source / "generator"
    return load_networks(folder)[0] if folder.is_dir() else None


def step(source: Path) -> int:
    """The step of a training checkpoint; 0 for another folder."""
    path = source / STATE_FILE
    return int(load(path)["global_step"]) if path.is_file() else 0


def main(argv: list[str] | None = None) -> None:
    """The script; `argv` stands for the command line."""
    args = parser(__doc__, "MODEL_DIR", "a folder with config.json and model.safetensors", converts=False).parse_args(
        argv
    )
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
    counters = {"itr": step(args.source), "epoch": 0, "save_num": 0, "save_best_num": 0, "best_IS": 0}
    files["state_dict"] = {**counters, "best_FID": 999999, "config": settings(model.config)}
    with output_folder(args.output, owned=("D.pth",)) as staging:
        for name, content in files.items():
            save_archive(content, staging / f"{name}.pth")
    for remark in remarks:
        print(remark)
    print(args.output)


if __name__ == "__main__":
    run(main)
