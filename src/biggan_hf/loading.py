"""Loading a network: it is loaded whole, with weights that are numbers, or one line says why not."""

import copy
import json
import pickle
import re
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from logging import Filter, LogRecord
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.utils import cached_file, logging

from .devices import check_device
from .embedded import located
from .files import check_weights, step_of_weights, weight_globs
from .finite import wrong_tensor
from .keywords import PLACE, unknown_keyword


logger = logging.get_logger(__name__)
# transformers' table of missing, surplus and mismatched weights comes from here; a line of ours takes its place.
_TABLE = logging.get_logger("transformers.modeling_utils")

# Where each network stands in a repository.
_FOLDERS = {"BigGANModel": "", "BigGANDiscriminator": "discriminator"}
_KEYWORDS = (
    *PLACE,
    "convert",
    "config",
    "dtype",
    "device_map",
    "ignore_mismatched_sizes",
    "use_safetensors",
    "state_dict",
)
# Whether weights that a load does not find get initial values. Each thread has its own answer.
_DRAWS_VALUES = ContextVar("draws_values", default=True)


class _Reshape(ConversionOps):
    # The γ of self-attention is () in the files, as in the original's, and (1,) in a network: FSDP shards no scalars.
    def __init__(self, shape: tuple[int, ...] = (1,)):
        self.shape = shape

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **_: Any
    ) -> dict[str, Any]:
        tensor = input_dict[source_patterns[0]]
        return {target_patterns[0]: (tensor[0] if isinstance(tensor, list) else tensor).reshape(self.shape)}

    @property
    def reverse_op(self) -> ConversionOps:
        return _Reshape(() if self.shape else (1,))


_GAMMA = WeightConverter("attention.gamma", "attention.gamma", [_Reshape()])
for _name in ("BigGANModel", "BigGANDiscriminator"):
    register_checkpoint_conversion_mapping(_name, [_GAMMA], overwrite=True)


class LoadingMixin(PreTrainedModel):
    """A load that is complete or refused: a mixin in front of `PreTrainedModel`."""

    _path_in_repo = ""
    saved_step: int | None = None  # the step of the training at which the file was saved that was loaded
    hub_id: str | None = None  # the repository from which it was loaded; none for a folder

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """
        Loads a network, in eval mode, as in transformers, but whole or not at all.

        Args:
            pretrained_model_name_or_path: A folder, a repository on the Hub (`"user/name"`), or `"biggan_hf:fashion"`,
                a generator that comes with the package. A discriminator is found in the folder `discriminator/` of a
                generator.
            *model_args: Go to the constructor.
            **kwargs: Those of transformers: revision, subfolder, token, cache_dir, local_files_only, dtype,
                device_map, config or fields of it, ignore_mismatched_sizes, state_dict, output_loading_info, … With
                `state_dict=…`, weights may be missing and get initial values. `convert=True`, which transformers
                lacks, converts another program's checkpoint on the Hub, once, to a folder in the cache, and loads it
                from there.

        Returns:
            The network; with `output_loading_info=True` also transformers' report on the load.

        Raises:
            ValueError: Weights are missing, damaged or not finite; a variance is negative; the source holds the other
                network, or another program's checkpoint (the message names the command that converts it).
            RuntimeError: A weight has another shape than the configuration says.
            OSError: There is no such folder or repository, or a file of it is missing.
            MemoryError: The network does not fit the memory.
            TypeError: A keyword is unknown.
        """
        named, device_map = pretrained_model_name_or_path, kwargs.get("device_map")
        if kwargs.get("subfolder", "") is None:  # none is written so, too
            del kwargs["subfolder"]
        for device in device_map.values() if isinstance(device_map, Mapping) else [device_map]:
            check_device(device)
        wants_report = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        network_class, source, folder = cls, None, None
        if named is not None:
            network_class, source, kwargs, folder = cls._located(str(named), kwargs)
        where = "the given weights" if named is None else repr(str(named))
        may_miss = "state_dict" in kwargs
        with _told_in_one_line(network_class, where, folder), _no_table(draws_values=may_miss or may_differ):
            loaded: Any = super(LoadingMixin, network_class).from_pretrained(
                source, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        network, report = loaded
        network.hub_id = None if named is None or Path(located(str(named))).is_dir() else str(named)
        for path in _weights_of(folder, kwargs.get("variant")):
            check_weights(path)
            network.saved_step = step_of_weights(path)
        _check_report(network_class.__name__, where, report, may_miss, may_differ)
        if (wrong := wrong_tensor(network)) is not None:
            raise ValueError(f"{where} cannot be used: {wrong}")
        return loaded if wants_report else network

    def initialize_weights(self) -> None:
        """As in transformers, but a load that will be refused for its missing weights does not wait for values."""
        weights = self.state_dict(keep_vars=True).values()
        if _DRAWS_VALUES.get() or all(getattr(weight, "_is_hf_initialized", False) for weight in weights):
            super().initialize_weights()

    @classmethod
    def _located(cls, source: str, kwargs: dict[str, Any]) -> tuple[Any, str, dict[str, Any], Path | None]:
        # The class to load, where from, the arguments, with the folder in which the network was found, and the local
        # folder of its files. The class is another one only where `AutoModel` asks: in remote code it knows the
        # generator's alone.
        config_class: Any = cls.config_class
        try:
            settings, source, kwargs = settings_of(config_class, source, kwargs)
        except OSError:
            if "config" not in kwargs:
                raise
            return cls, located(source), {name: value for name, value in kwargs.items() if name != "convert"}, None
        place = {name: kwargs[name] for name in PLACE if name in kwargs}
        held = next((name for name in settings.get("architectures") or [] if name in _FOLDERS), None)
        network_class = cls
        if held is not None and "trust_remote_code" in kwargs and cls.__name__ in _FOLDERS:  # `AutoModel` passes it on
            network_class = getattr(sys.modules[cls.__module__], held)
        elif held is not None and _FOLDERS[held] != cls._path_in_repo:
            if _FOLDERS[held]:
                raise ValueError(f"{source!r} holds a discriminator: BigGANDiscriminator.from_pretrained loads it")
            place["subfolder"] = "/".join(filter(None, [place.get("subfolder"), cls._path_in_repo]))
            try:
                config_class.get_config_dict(source, **place)
            except (OSError, ValueError) as error:
                message = f"{source!r} holds a generator, and no discriminator in subfolder={place['subfolder']!r}"
                raise OSError(message) from error
            kwargs = {**kwargs, "subfolder": place["subfolder"]}
        config_file = cached_file(located(source), "config.json", **place)
        folder = None if config_file is None else Path(config_file).parent
        if folder is not None:
            check_files(folder)
        return network_class, located(source), kwargs, folder


# Another program's checkpoint


def settings_of(
    config_class: Any, source: str, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """
    The content of a model's `config.json`, where the model is, and the other arguments of `from_pretrained`. With
    `convert=True` among these, another program's checkpoint on the Hub is converted first, to a folder in the cache.

    Raises:
        ValueError: It is another program's. The message says which command converts it.
    """
    rest = {name: value for name, value in kwargs.items() if name != "convert"}
    place = {name: value for name, value in rest.items() if name in PLACE}
    try:
        return config_class.get_config_dict(source, **place)[0], source, rest
    except (OSError, ValueError):
        folder = _converted(source, place, bool(kwargs.get("convert")))
        if folder is None:
            raise
    return config_class.get_config_dict(folder)[0], folder, {name: rest[name] for name in rest.keys() - {*PLACE}}


def _converted(source: str, place: Mapping[str, Any], convert: bool) -> str | None:
    # The folder with what another program's checkpoint was converted to; `None` if there is no such checkpoint.
    try:
        repositories = import_module("biggan_hf.conversion.repositories")
    except ImportError:  # this is remote code, without the package
        return None
    if convert and not Path(source).exists():
        converted = repositories.converted(source, **place)
        return None if converted is None else str(converted)
    told = repositories.told(source, **place)
    if told is not None:
        raise ValueError(told)
    return None


# What may be wrong with the files


def check_files(folder: Path) -> None:
    """Raises `OSError` for weights that can't be opened, `ValueError` if an index names files outside the folder."""
    for file in folder.glob("*.safetensors"):
        file.open("rb").close()  # safetensors says of any failure that there is no such file
    for index in folder.glob("*.index.json"):
        for name in _files_of_index(index):
            if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".", ".."):
                raise ValueError(f"{str(index)!r} is refused: it names {name!r}, which is no file in its folder")
            if not (folder / name).exists() and not index.is_symlink():  # in the Hub's cache they may follow
                raise FileNotFoundError(f"{str(index)!r} names {name!r}, which is not there")


def _weights_of(folder: Path | None, variant: str | None) -> list[Path]:
    """The files of safetensors that a load reads, of those in a folder: all weights in one before shards."""
    if folder is None:
        return []
    whole, _, shards = weight_globs(variant)
    return sorted(folder.glob(whole)) or sorted(folder.glob(shards))


def _files_of_index(index: Path) -> Iterable[Any]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(index)!r} is no index of weights: it is no JSON ({error})") from error
    fields = [content.get(name) if isinstance(content, dict) else None for name in ("metadata", "weight_map")]
    if not all(isinstance(field, dict) for field in fields) or not fields[1]:
        expected = "an object with the objects 'metadata' and 'weight_map', the file of each weight"
        raise ValueError(f"{str(index)!r} is no index of weights: expected {expected}")
    return fields[1].values()


# What torch raises of a damaged file, beside `RuntimeError`.
_OF_PICKLES = (pickle.UnpicklingError, struct.error, EOFError, LookupError, UnicodeError)


@contextmanager
def _told_in_one_line(cls: Any, where: str, folder: Path | None) -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        match = re.search(r"__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if match is None and "dictionary update" in str(error):  # the file holds something else than weights
            raise ValueError(_what_is_wrong(where, folder, error)) from error
        if match is None:
            raise
        fields = cls.config_class.__dataclass_fields__
        message = unknown_keyword(f"{cls.__name__}.from_pretrained", match[1], _KEYWORDS, [*fields, "num_labels"])
        raise TypeError(message) from error
    except MemoryError:
        raise
    except (RuntimeError, SafetensorError, *_OF_PICKLES) as error:
        if isinstance(error, RuntimeError) and re.search("can't allocate|out of memory|overflow", str(error)):
            raise MemoryError(f"{where}: a network of this configuration does not fit the memory") from error
        raise ValueError(_what_is_wrong(where, folder, error)) from error


def _what_is_wrong(where: str, folder: Path | None, error: Exception) -> str:
    """Names the file of weights that cannot be read, and what is wrong with it."""
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        if (reason := _unreadable(file)) is not None:
            return f"{str(file)!r} cannot be read: {reason}"
    files = [] if folder is None else list(folder.glob("*.bin"))
    file_name = repr(str(files[0])) if len(files) == 1 else f"a file of weights in {where}"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f"it names {match[1]}, and a file" if match else "a file"
        return f"{file_name} is refused: {held} that holds more than tensors could run code; ask for safetensors"
    return f"{file_name} cannot be read: {_one_line(error)}"


def _unreadable(file: Path) -> str | None:
    """Why a file of safetensors cannot be read; `None` if it can."""
    try:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():
                weights.get_tensor(name)
    except Exception as error:  # its types are the library's own
        with open(file, "rb") as opened:
            is_pointer = opened.read(40).startswith(b"version https://git-lfs")
        return "it is a pointer of Git LFS; `git lfs pull` fetches the file" if is_pointer else _one_line(error)
    return None


def _one_line(error: Exception) -> str:
    """The first sentence of an error's text, with its type where the text says little."""
    text = " ".join(str(error).split())
    return text.partition(". ")[0] if len(text) > 20 else f"{type(error).__name__}: {text}"


# What may be wrong with the weights


class _Table(Filter):
    def filter(self, record: LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()


@contextmanager
def _no_table(draws_values: bool) -> Iterator[None]:
    table, before = _Table(), _DRAWS_VALUES.set(draws_values)
    _TABLE.addFilter(table)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # of a file that is damaged
            yield
    finally:
        _TABLE.removeFilter(table)
        _DRAWS_VALUES.reset(before)


def _check_report(network: str, where: str, report: Mapping[str, Any], may_miss: bool, may_differ: bool) -> None:
    """Raises for weights that are missing or of other shapes; warns of weights that have no place."""
    # A table of standing statistics has a place only where the configuration says of which truncations it is.
    surplus = sorted(name for name in report["unexpected_keys"] if ".standing_" not in name)
    missing = sorted(report["missing_keys"])
    differing = sorted(report["mismatched_keys"])
    if missing and not may_miss:
        raise ValueError(f"{where} lacks {_counted(missing)} of {network}")
    if differing and not may_differ:
        name, stored, expected = differing[0]
        raise RuntimeError(
            f"{where}: {name!r} is {tuple(stored)} in the file and {tuple(expected)} in the configuration"
            f"{f', and {len(differing) - 1} others differ' if len(differing) > 1 else ''}; "
            f"ignore_mismatched_sizes=True gives such weights new values"
        )
    if differing:
        logger.warning(f"{where}: other shapes have {_counted([name for name, *_ in differing])} and get new values")
    if missing:
        logger.warning(f"{where} lacks {_counted(missing)} of {network}; new values take their place")
    if surplus:
        logger.warning(f"{where} holds {_counted(surplus)} for which {network} has no place")


def _counted(names: list[str]) -> str:
    return f"{len(names)} weights, such as {names[0]!r}," if len(names) > 1 else f"the weight {names[0]!r}"


# What could not be loaded again


def check_configuration(network: Any, weights: Mapping[str, Any]) -> None:
    """Raises `ValueError` where a network of this configuration, whose fields may have been set, has other weights."""
    if getattr(network, "_hf_peft_config_loaded", False):  # transformers saves the adapter alone
        return
    with torch.device("meta"):
        expected = type(network)(copy.deepcopy(network.config)).state_dict()
    for name in [*expected, *weights]:
        here, there = (tuple(held[name].shape) if name in held else None for held in (weights, expected))
        if (here or (1,)) != (there or (1,)) or None in (here, there):  # the γ of self-attention may be ()
            told = ["missing" if shape is None else shape for shape in (here, there)]
            raise ValueError(
                f"the configuration does not fit the weights, and what is saved could not be loaded: {name!r} is "
                f"{told[0]} in this network and {told[1]} in a network of this configuration"
            )
