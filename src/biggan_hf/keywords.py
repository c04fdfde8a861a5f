"""Keywords: those that people guess are answered with the right ones, and second names are passed on."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, cast

from torch import Tensor

from .class_labels import as_labels, widened


# Arguments of `from_pretrained` that say where the files are.
PLACE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


Function = TypeVar("Function", bound=Callable[..., Any])

# A row holds the names of one thing: first ours, then those of people who come from another library or command.
_ROWS = [row.split() for row in (
    "class_labels classes prompt prompts label labels class class_label class_name class_names class_id class_ids "
    "category categories name names target targets y c",
    "num_images_per_prompt images_per_class num_images num_samples num_batches num_images_per_class n_samples "
    "n_images n number count num_outputs num_return_sequences samples_per_class",
    "truncation truncations truncation_psi psi trunc truncation_threshold threshold temperature z_var",
    "truncation_mode mode truncation_type",
    "latents z zs latent noise noises noise_vector",
    "pixel_values image images picture pictures x input inputs",
    "class_embeddings prompt_embeds embedding embeddings embeds class_embedding class_embeds",
    "generator generators rng random_state",
    "batch_size per_device_batch_size global_batch_size bs minibatch_size max_batch_size train_batch_size "
    "per_device_train_batch_size gradient_accumulation_steps accumulation_steps num_accumulations",
    "output_type return_type return_tensors output_format format",
    "np numpy array ndarray",
    "pt torch tensor pytorch",
    "progress_bar show_progress show_progress_bar disable_progress_bar verbose use_tqdm",
    "dtype precision data_type",
    "token use_auth_token auth_token hf_token hub_token",
    "revision branch tag commit variant",
    "repo_id hub_model_id repo repo_name",
    "save_directory output output_dir o out path folder directory output_path outdir",
    "image_size preset config_overrides resolution size img_size image_resolution height width",
    "generator_base_channels discriminator_base_channels ch base_channels",
    "z_dim dim_z latent_dim latent_size nz",
    "num_labels num_classes n_classes n_class nclass",
    "generator_learning_rate discriminator_learning_rate learning_rate lr",
    "dataset_name dataset data data_dir train_data_dir data_root data_path",
    "max_train_steps epochs num_epochs num_train_epochs n_epochs max_steps num_steps iterations",
    "dataloader_num_workers num_workers workers",
    "version V",
    "sample generate samples",
    "evaluate eval",
    "push upload push_to_hub",
)]  # fmt: skip

_NO_GUIDANCE = "a GAN has no guidance; truncation= trades variety for typical images"
_ONE_SIZE = "a model generates one size, config.image_size"
# What no keyword takes, and what to do.
_ANSWERS = {
    **dict.fromkeys(["seed", "random_seed", "manual_seed"], "write generator=torch.Generator().manual_seed(…)"),
    **dict.fromkeys(["guidance_scale", "guidance", "cfg_scale"], _NO_GUIDANCE),
    **dict.fromkeys(["height", "width", "image_size", "resolution", "size"], _ONE_SIZE),
    **dict.fromkeys(["num_inference_steps", "steps", "num_steps", "timesteps"], "a GAN generates in one step"),
    "negative_prompt": "a mixture with a negative weight leads away from a class, {'cat': 1.5, 'dog': -0.5}",
    "device": "from_pretrained takes device_map=, and .to(device) moves a model or a pipeline",
    "safe_serialization": "weights are always written as safetensors",
    "safety_checker": "there is none",
}

# What a network's forward takes as tensors, and what to say to those who give something else.
_TENSORS = {
    "latents": "sample_latents draws it, and model.sample and BigGANPipeline(…) draw latents for names of classes",
    "pixel_values": "(N, channels, height, width) in [-1, 1]",
    "class_embeddings": "a truncation is truncation=, and labels are class_labels=",
}

# Which call takes a keyword that another one was given.
_TAKEN_BY = {
    "BigGANPipeline(…)": "class_labels num_images_per_prompt truncation truncation_mode latents class_embeddings "
    "directions generator batch_size output_type progress_bar",
    "model.sample": "class_labels num_images_per_prompt truncation truncation_mode latents class_embeddings generator",
    "model(…)": "class_labels class_embeddings",
}


def meant(name: str, accepted: Collection[str]) -> list[str]:
    """Those of the accepted names that mean the same as a guess."""
    return [word for row in _ROWS if name in row for word in row if word in accepted]


def did_you_mean(name: str, accepted: Collection[str]) -> str:
    """The end of a message on a wrong name: the accepted names that are meant, or the one that is spelt alike."""
    likely = meant(name, accepted) or get_close_matches(name, accepted, n=1)
    return f"; did you mean {' or '.join(map(repr, likely))}?" if likely else ""


def unknown_keyword(function: str, name: str, accepted: Collection[str], others: Collection[str] = ()) -> str:
    """What to say of a keyword that a function does not take; `others` are accepted too, but too many to list."""
    ours = next((row[0] for row in _ROWS if name in row), name)
    calls = [call for call, names in _TAKEN_BY.items() if ours in names.split()]
    if likely := meant(name, accepted):
        answer = f"did you mean {likely[0]}=?"
    elif name in _ANSWERS:
        answer = _ANSWERS[name]
    elif calls:
        answer = f"{' and '.join(calls)} {'takes' if len(calls) == 1 else 'take'} {ours}="
    elif close := get_close_matches(name, [*accepted, *others], n=1):
        answer = f"did you mean {close[0]}=?"
    else:
        answer = f"its keywords are {', '.join(accepted)}"
    return f"{function} takes no keyword {name!r}: {answer}"


def answers_keywords(function_name: str, **aliases: str) -> Callable[[Function], Function]:
    """
    Answers a keyword that the function does not take with the one that is meant. `aliases` are second names of
    keywords; a call that gives both names is refused.
    """

    def decorate(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        names = [*parameters]
        keywords = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
        unnamed = names[: names.index(keywords[0])] if keywords else []

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for alias in aliases.keys() & kwargs.keys():
                name = aliases[alias]
                if name in kwargs or names.index(name) < len(args):
                    raise TypeError(f"{alias} is another name of {name}; give one of the two")
                kwargs[name] = kwargs.pop(alias)
            check_keywords(function_name, kwargs, names)
            if keywords and len(args) > len(unnamed):
                first = " and ".join(name for name in unnamed if name != "self")
                raise TypeError(
                    f"{function_name} takes no more than {first} without a name, got {args[len(unnamed)]!r} too; "
                    f"write its name in front: {'=, '.join(keywords)}="
                )
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate


def check_keywords(function: str, given: Mapping[str, Any], names: Collection[str]) -> None:
    """Raises `TypeError` for the first keyword that is none of the names."""
    for name in given:
        if name not in names:
            raise TypeError(unknown_keyword(function, name, [n for n in names if n not in ("self", "cls", "kwargs")]))


@functools.cache
def _names(forward: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)


def understood(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    The arguments of a network's forward: labels that are names, numbers or lists become a tensor, one label one for
    each sample. Raises `TypeError` for a keyword that the forward does not take, and for what should be a tensor.
    """
    names = _names(type(network).forward)[1:]  # without `self`
    check_keywords(f"{type(network).__name__}(…)", kwargs, names)
    if len(args) > len(names) or kwargs.keys() & {*names[: len(args)]}:
        return args, kwargs  # Python says what is wrong
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for name in given.keys() & _TENSORS.keys():
        value, is_optional = given[name], name != network.main_input_name
        if not (isinstance(value, Tensor) or (is_optional and value is None)):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; {_TENSORS[name]}")
    labels, samples = given.get("class_labels"), given.get(network.main_input_name)
    if isinstance(labels, Tensor) and labels.ndim:
        given["class_labels"] = widened(labels)
    elif labels is not None and samples is not None:
        ids = as_labels(labels, network.config.id2label).to(samples.device)
        given["class_labels"] = ids if ids.ndim else ids.expand(len(samples))
    return tuple(given.pop(name) for name in names[: len(args)]), given
