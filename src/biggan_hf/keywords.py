"""Keywords: those that people guess are answered with the right ones, and second names are passed on."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, cast

from torch import Tensor

from .class_labels import as_labels


Function = TypeVar("Function", bound=Callable[..., Any])

# By what a keyword is called here, what people call it who come from another library.
_GUESSES = {
    "class_labels": "prompt prompts label labels class_label class_name class_names class_id class_ids classes "
    "category categories name names target targets y c",
    "num_images_per_prompt": "num_images num_images_per_class images_per_class num_samples n_samples n_images n "
    "number count num_outputs num_return_sequences samples_per_class",
    "truncation": "truncation_psi psi trunc truncation_threshold threshold temperature z_var",
    "truncation_mode": "truncation_type",
    "latents": "z zs latent noise noises noise_vector",
    "pixel_values": "image images picture pictures x input inputs",
    "class_embeddings": "prompt_embeds embedding embeddings embeds class_embedding class_embeds",
    "generator": "generators rng random_state",
    "batch_size": "bs minibatch_size max_batch_size",
    "output_type": "return_type output_format format",
    "progress_bar": "show_progress show_progress_bar disable_progress_bar verbose",
    "dtype": "precision data_type",
    "device_map": "device",
    "token": "use_auth_token auth_token hf_token",
    "revision": "branch tag commit variant",
    "repo_id": "repo repo_name hub_model_id",
    "save_directory": "path folder directory output_dir",
}  # fmt: skip
_MEANT = {guess: name for name, guesses in _GUESSES.items() for guess in guesses.split()}

_NO_GUIDANCE = "a GAN has no guidance; truncation= trades variety for typical images"
_ONE_SIZE = "a model generates one size, config.image_size"
# What no keyword takes, and what to do.
_ANSWERS = {
    **dict.fromkeys(["seed", "random_seed", "manual_seed"], "write generator=torch.Generator().manual_seed(…)"),
    **dict.fromkeys(["guidance_scale", "guidance", "cfg_scale"], _NO_GUIDANCE),
    **dict.fromkeys(["height", "width", "image_size", "resolution", "size"], _ONE_SIZE),
    **dict.fromkeys(["num_inference_steps", "steps", "num_steps", "timesteps"], "a GAN generates in one step"),
    "negative_prompt": "a mixture with a negative weight leads away from a class, {'cat': 1.5, 'dog': -0.5}",
    "device": "move the model or the pipeline with .to(device)",
    "safe_serialization": "weights are always written as safetensors",
    "safety_checker": "there is none",
}

# Which call takes a keyword that another one was given.
_TAKEN_BY = {
    "batch_size": "BigGANPipeline(…)", "output_type": "BigGANPipeline(…)", "progress_bar": "BigGANPipeline(…)",
    "num_images_per_prompt": "BigGANPipeline(…) and model.sample", "generator": "BigGANPipeline(…) and model.sample",
    "truncation": "BigGANPipeline(…) and model.sample", "truncation_mode": "BigGANPipeline(…) and model.sample",
    "class_labels": "BigGANPipeline(…), model.sample and model(…)", "latents": "BigGANPipeline(…) and model.sample",
    "class_embeddings": "BigGANPipeline(…) and model(…)",
}  # fmt: skip


def unknown_keyword(function: str, name: str, accepted: Collection[str], others: Collection[str] = ()) -> str:
    """What to say of a keyword that a function does not take; `others` are accepted too, but too many to list."""
    meant = _MEANT.get(name, name)
    if meant in accepted:
        answer = f"did you mean {meant}=?"
    elif name in _ANSWERS:
        answer = _ANSWERS[name]
    elif meant in _TAKEN_BY:
        answer = f"{_TAKEN_BY[meant]} takes {meant}="
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
        names = [*inspect.signature(function).parameters]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for alias in aliases.keys() & kwargs.keys():
                name = aliases[alias]
                if name in kwargs or names.index(name) < len(args):
                    raise TypeError(f"{alias} is another name of {name}; give one of the two")
                kwargs[name] = kwargs.pop(alias)
            check_keywords(function_name, kwargs, names)
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate


def check_keywords(function: str, given: Mapping[str, Any], names: Collection[str]) -> None:
    """Raises `TypeError` for the first keyword that is none of the names."""
    for name in given:
        if name not in names:
            raise TypeError(unknown_keyword(function, name, [n for n in names if n not in ("self", "cls")]))


@functools.cache
def _names(forward: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)


def understood(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    The arguments of a network's forward: labels that are names, numbers or lists become a tensor, one label one for
    each sample. Raises `TypeError` for a keyword that the forward does not take.
    """
    names = _names(type(network).forward)
    check_keywords(f"{type(network).__name__}(…)", kwargs, names)
    place = names.index("class_labels") - 1  # without `self`
    labels = args[place] if len(args) > place else kwargs.get("class_labels")
    samples = args[0] if args else kwargs.get(network.main_input_name)
    if labels is None or not isinstance(samples, Tensor) or (isinstance(labels, Tensor) and labels.ndim):
        return args, kwargs
    ids = as_labels(labels, network.config.id2label).to(samples.device)
    ids = ids if ids.ndim else ids.expand(len(samples))
    if len(args) > place:
        return (*args[:place], ids, *args[place + 1 :]), kwargs
    return args, {**kwargs, "class_labels": ids}
