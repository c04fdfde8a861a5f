"""Publishing a model: what is uploaded, and what becomes of the cards that are there."""

import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import NotASafetensorsRepoError
from huggingface_hub.utils import filter_repo_objects, yaml_dump
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .cards import (
    ENGINES,
    EVALUATION,
    RUN,
    SOURCE,
    is_by_hand,
    is_path,
    is_text,
    license_of,
    metadata,
    names_path,
    part_of,
    with_evaluation_of,
    with_metadata,
    with_numbers_of,
    with_part,
    without_part,
)
from .configuration_biggan import BigGANConfig
from .directions import FILE as DIRECTIONS
from .directions import Directions, read_directions, save_directions
from .engine_files import INDEX as EXPORTS
from .engine_files import PACKAGES, Index, of_weights, read_index, write_index
from .files import (
    CHECKSUM,
    LEFTOVERS,
    WEIGHT_GLOBS,
    add_checksum,
    checksum_of_weights,
    read_text,
    staged_folder,
    weight_patterns,
    without_metadata,
    write_file,
    write_text,
)
from .keywords import answers_keywords, check_keywords
from .loading import LoadingMixin, check_configuration, check_files
from .model_card import CARD, HOW_TO_LICENSE, NO_PLACE_YET, SHEETS, model_card, on_engines, with_code
from .sheets import write_sheets


logger = logging.get_logger(__name__)

# What is published of a folder: the model and its card, and of `onnx/` and `openvino/` the files that their indices
# name. All else stays here unless it is asked for.
PUBLISHED = [CARD, *SHEETS, DIRECTIONS, "LICENSE", "LICENSE.txt", "LICENSE.md", ".eval_results/*.yaml"]
PUBLISHED += [f"{folder}{name}" for folder in ("", "discriminator/") for name in ("config.json", *WEIGHT_GLOBS)]
PUBLISHED += [f"adapter/{folder}{name}" for folder in ("", "discriminator/")
              for name in (CARD, "adapter_config.json", "adapter_model.safetensors")]  # fmt: skip
# No field of a configuration names a file; some are words that a file here may have for its name.
_OWN_FIELDS = {*BigGANConfig.__dataclass_fields__, "model_type", "custom_pipelines"}
# Weights that `from_pretrained` loads and a push does not take: pickles, and variants, whose name is the group.
_OTHER_WEIGHTS = re.compile(
    r"(?:pytorch_model|model(?=\.[\w-]+\.))(?:\.([\w-]+?))?(?:-\d{5}-of-\d{5})?\.(?:bin|safetensors)"
)
_MODELING, _PIPELINE = "modeling_biggan.py", "remote_pipeline.py"
CODE = tuple(path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))

PUSH_ARGUMENTS = "repo_id commit_message commit_description private token revision create_pr tags license".split()
PUSH_ARGUMENTS += ["directions"]
SAVE_ARGUMENTS = [*inspect.signature(PreTrainedModel.save_pretrained).parameters, *PUSH_ARGUMENTS]


class PublishingMixin(LoadingMixin):
    """A save that loses nothing, and a push that adds a card: a mixin in front of `PreTrainedModel`."""

    def save_pretrained(  # type: ignore[override]  # the arguments it does not name are passed on
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        include_code: bool = False,
        global_step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Writes `config.json` and `model.safetensors`, as in transformers. If a save fails, the folder stays as it was.
        If it succeeds, no shards of an earlier save remain.

        Args:
            save_directory: The folder; created if it does not exist.
            is_main_process: `False` writes nothing: of several processes, one writes.
            push_to_hub: Uploads what is saved, too; `repo_id` and the other arguments go to `push_to_hub`.
            include_code: Writes the code beside the weights, for machines without this package.
            global_step: The step of the training at which the weights were saved, which an evaluation then reports.
            **kwargs: Those of transformers, as `max_shard_size` and `state_dict`.

        Raises:
            ValueError: The configuration does not fit the weights, or these are sharded. Nothing has been written.
            TypeError: A keyword is unknown.
        """
        if kwargs.get("safe_serialization") is True:  # as always
            del kwargs["safe_serialization"]
        check_keywords("save_pretrained", kwargs, SAVE_ARGUMENTS)
        push = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        if not is_main_process:
            return
        weights = kwargs.get("state_dict") or self.state_dict()
        if any(hasattr(tensor, "full_tensor") for tensor in weights.values()):
            raise ValueError(
                "the weights are sharded (DTensor): give whole ones, state_dict=get_model_state_dict(model, options="
                "StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict"
            )
        check_configuration(self, weights)
        with staged_folder(save_directory) as staging:
            super().save_pretrained(staging, **kwargs)
            for path in staging.glob("*.safetensors"):
                add_checksum(path, global_step)
            if include_code:
                add_code(staging)
            elif not any(staging.glob("*.py")):
                forget_code(staging / "config.json")
        if push_to_hub:
            repo_id = push.pop("repo_id", Path(save_directory).name)
            # A variant is a second name of files beside others; on the Hub these weights have the first one.
            step = self.saved_step if global_step is None and "state_dict" not in kwargs else global_step
            saved = {**kwargs, "variant": None, "global_step": step}
            _push(self, repo_id, saved, include_code=include_code, **push)

    @answers_keywords("push_to_hub")
    def push_to_hub(  # type: ignore[override]  # transformers wraps its own, and loses the signature
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: list[str] | None = None,
        license: str | None = None,
        include_code: bool = False,
        directions: Directions | None = None,
    ) -> str:
        """
        Uploads the network to the Hub: a generator and its card to the root, a discriminator to `discriminator/`. A
        card on the Hub that somebody has written stays. Nothing else is uploaded.

        Args:
            repo_id: `"user/name"`, or `"name"` in the token's own namespace; created if it does not exist.
            commit_message: First line of the commit.
            commit_description: The rest of it.
            private: Whether a repository that is created is private.
            token: Access token; by default the one stored on this machine.
            revision: Branch to commit to; created if it does not exist.
            create_pr: Opens a pull request against the main branch instead.
            max_shard_size: As for `save_pretrained`.
            tags: Tags to add to the card, if it is a generated one.
            license: The licence that the card names, if it names none: an identifier of the Hub's list, as `"mit"`.
            include_code: Uploads the code too: `AutoModel.from_pretrained(repo_id, trust_remote_code=True)` and
                `transformers.pipeline(model=repo_id, trust_remote_code=True)` then need transformers and Pillow alone.
                A repository that has the code gets it anew in any case.
            directions: Those of the latents, as `directions.json`.

        Returns:
            The commit's address.

        Raises:
            ValueError: The configuration does not fit the weights, or a malformed token. Nothing has been uploaded.
            huggingface_hub.errors.HfHubHTTPError: The Hub refuses, for example a token without the right to write.
        """
        return _push(
            self,
            repo_id,
            {"max_shard_size": max_shard_size, "global_step": self.saved_step},
            directions=directions,
            tags=tags,
            license=license,
            include_code=include_code,
            token=token,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
        )


def _push(
    network: Any,
    repo_id: str,
    saved: Mapping[str, Any],
    directions: Directions | None = None,
    commit_message: str | None = None,
    **upload: Any,
) -> str:
    """Uploads what `save_pretrained` writes with the arguments `saved`; `upload` goes to `upload_folder`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / network._path_in_repo
        network.save_pretrained(path, **saved)
        if directions is not None:
            save_directions(directions, Path(folder))
        sampled = None if network._path_in_repo else network
        if sampled is not None and saved.get("state_dict"):  # weights that the network itself does not have
            sampled = type(network).from_pretrained(path).to(network.device)
        message = commit_message or f"Upload {type(network).__name__}"
        return upload_folder(folder, repo_id, sampled=sampled, commit_message=message, **upload).commit_url


# The card


def published_card(repo_id: str, token: bool | str | None = None, revision: str | None = None) -> str:
    """The card of a branch (which may not exist yet), else of the main one, as `read_text` reads it."""
    api = HfApi(token=token)
    for branch in dict.fromkeys([revision, None]):
        if api.file_exists(repo_id, CARD, revision=branch):
            return read_text(Path(api.hf_hub_download(repo_id, CARD, revision=branch)))
    return ""


class Upload(NamedTuple):
    """What a card tells of an upload."""

    repo_id: str
    revision: str | None
    tags: list[str] | None
    license: str | None
    brings_code: bool
    engines: Mapping[str, Index]  # that the repository holds then
    has_weights: bool


def card_to_upload(folder: Path, there: str, upload: Upload, name: str) -> str:
    """
    The one place that decides on a card: the text to upload; empty if the one on the Hub (`there`) does not change.

    A card by hand on the Hub keeps its text. It gets the parts that programs wrote into the folder's card, their
    numbers, and the part on the repository's engines, with metadata that is missing, and the section on code that is
    uploaded. A card by hand in the folder goes to a repository that has none by hand. Any other card is generated
    anew, and keeps these parts and numbers. `name` is the folder's name in a warning.
    """
    here, repo_id = read_text(folder / CARD), upload.repo_id
    for card, place in ((there, repo_id), (here, name)):
        if not is_text(card):
            logger.warning(f"the card of {place!r} stays where it is, and as it is: it is no text in UTF-8")
    here = here if is_text(here) else ""
    new = _generated_card(folder, upload, here, there)
    mine, theirs = here.replace(f"({NO_PLACE_YET!r}", f"({repo_id!r}") if is_by_hand(here) else "", there
    if new:
        mine, theirs = (card and _with_parts(card, upload) for card in (mine, theirs))
    if not is_by_hand(there):
        return mine or new or here
    if not is_text(there):
        return ""
    if mine and without_part(with_metadata(mine, new)) != without_part(with_metadata(theirs, new)):
        way = f"`hf upload {repo_id} {Path(name) / CARD} {CARD}` uploads yours"
        logger.warning(f"the card of {name!r} differs from that of {repo_id!r}: each keeps its own text; {way}")
    brought = [part for part in (RUN, SOURCE, EVALUATION) if part_of(here, part)]
    for part in brought:
        theirs = with_part(theirs, part_of(here, part), part)
    if brought or upload.engines:
        theirs = with_metadata(with_numbers_of(theirs, here), new)
    return "" if theirs == there else theirs


def _with_parts(card: str, upload: Upload) -> str:
    """A card by hand with what it has to tell of an upload."""
    if upload.brings_code and upload.has_weights:
        card = with_code(card, upload.repo_id, upload.revision)
    if upload.license:
        card = with_metadata(card, f"---\n{yaml_dump({'license': upload.license})}---\n")
        if (named := license_of(card)) != upload.license:
            logger.warning(f"the card of {upload.repo_id!r} names the license {named!r}, and keeps it")
    return with_part(card, on_engines(upload.engines, upload.repo_id, upload.revision), ENGINES)


def _generated_card(folder: Path, upload: Upload, here: str, there: str) -> str:
    """A new card in place of those that nobody has written; empty if the folder holds no generator."""
    settings = _settings(folder / "config.json")
    if settings.get("model_type") != BigGANConfig.model_type:
        return ""
    olds = [card for card in (here, there) if card.strip() and not is_by_hand(card)]
    old = olds[0] if olds else ""
    told = metadata(old)
    # "quantized" is of graphs alone, or of a conversion.
    keeps_base = told.get("base_model_relation") == "finetune" or part_of(old, SOURCE)
    card = model_card(
        BigGANConfig.from_pretrained(folder),
        repo_id=upload.repo_id,
        revision=upload.revision,
        license=upload.license or next(filter(None, map(license_of, olds)), None),
        tags=[*told.get("tags", []), *(upload.tags or [])],
        datasets=told.get("datasets"),
        base_model=told.get("base_model") if keeps_base else None,
        base_model_relation=told.get("base_model_relation", ""),
        sheets=[name for name in SHEETS if (folder / name).exists()],
        directions=read_directions(folder / DIRECTIONS).names if (folder / DIRECTIONS).exists() else (),
        has_code="auto_map" in settings,
        engines=upload.engines,
        has_weights=upload.has_weights,
    )
    for part in (RUN, SOURCE):
        card = with_part(card, part_of(old, part), part)
    for other in reversed(olds):
        card = with_evaluation_of(card, other)
    return card


# The upload


def create_repo(repo_id: str, token: bool | str | None = None, private: bool | None = None) -> str:
    """Creates a repo unless it exists; returns its whole id, `"user/name"`."""
    return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def upload_folder(
    folder: str | PathLike[str],
    repo_id: str,
    *,
    also: Sequence[str] = (),
    sampled: PreTrainedModel | None = None,
    include_code: bool = False,
    tags: list[str] | None = None,
    license: str | None = None,
    token: bool | str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload BigGAN",
    commit_description: str | None = None,
) -> CommitInfo:
    """
    Uploads the model in a folder: the files of `PUBLISHED`, the graphs that were exported from the weights, and no
    others, with the card of [`card_to_upload`], and without the paths of this machine that a `config.json` may name. A
    discriminator's go to `discriminator/`. Weights of an earlier upload, which the new ones replace, and graphs of
    other weights are deleted from the repo; its other files stay.

    Args:
        folder: The folder of a model.
        repo_id: As the arguments from `include_code` on, those of [`~PublishingMixin.push_to_hub`].
        also: Globs, relative to `folder`, of what else to upload.
        sampled: The generator in the folder: a generated card then shows sheets of its samples.

    Raises:
        FileNotFoundError: There is no such folder, or no model in it, or no weights of a name that is published, or
            a file is missing that an index names.
        ValueError: `directions.json` holds something else, the folder holds graphs without weights and the repo other
            weights, or a malformed token.
    """
    folder, token = Path(folder), _checked(token)
    settings = _settings(folder / "config.json")
    weights, engines = _exported(folder, settings)
    files = _files_to_upload(folder, settings, also, engines)
    if not files:
        raise FileNotFoundError(f"expected a folder with a model to upload, got {str(folder)!r}")
    _check_weights(files, bool(engines))
    if DIRECTIONS in files:
        read_directions(files[DIRECTIONS], settings.get("z_dim"))
    api, has_code = HfApi(token=token), _names_code(settings)
    repo_id = create_repo(repo_id, token, private)
    branch = revision if revision and api.revision_exists(repo_id, revision) else None  # a new one begins as main
    brings_weights = weights is None or checksum_of_weights(folder) is not None
    has_weights = brings_weights or _has_weights(api, repo_id, branch, weights)
    engines, stale = _joined(_published_engines(api, repo_id, branch), engines, weights)
    if revision and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        staging = Path(directory)
        for name, file in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).symlink_to(file.resolve())
        for engine, index in engines.items():
            (staging / engine).mkdir(exist_ok=True)
            write_index(staging / engine, index)
        if include_code or (not has_code and api.file_exists(repo_id, _MODELING, revision=revision)):
            add_code(staging)
        forget_paths(staging)
        there = published_card(repo_id, token, revision)
        if sampled is not None and not is_by_hand(there) and not is_by_hand(read_text(staging / CARD)):
            write_sheets(sampled, staging)
        shown = None if create_pr else revision
        upload = Upload(repo_id, shown, tags, license, include_code or has_code, engines, has_weights)
        card = card_to_upload(staging, there, upload, str(folder))
        if (text := card or there) and shown is None and not license_of(text):
            logger.warning(f"the card of {repo_id!r} names no license: {HOW_TO_LICENSE}")
        (staging / CARD).unlink(missing_ok=True)
        if card:
            with write_file(staging / CARD) as unfinished:
                unfinished.write_bytes(card.encode())
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=staging,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
            delete_patterns=[*weight_patterns(list(files)), *stale],
        )


def _checked(token: bool | str | None) -> bool | str | None:
    """The token without space around it. One that no header can hold is refused: the client would log all of it."""
    if not isinstance(token, str):
        return token
    if not re.fullmatch("[!-~]+", token.strip()):
        raise ValueError("the access token holds a line break, a space or a letter that no token has, or is empty")
    return token.strip()


def _files_to_upload(
    folder: Path, settings: Mapping[str, Any], also: Sequence[str], engines: Mapping[str, Index]
) -> dict[str, Path]:
    """The files of a folder that are uploaded, by their paths in the repo, but for the indices of its engines."""
    inner = "discriminator/" if _is_of_discriminator(settings) else ""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {name if name in CODE else inner + name: path for name, path in names.items()}
    allowed = [*PUBLISHED, *(CODE if "auto_map" in settings else ()), *(inner + glob for glob in also)]
    chosen = {*filter_repo_objects(files, allow_patterns=allowed, ignore_patterns=LEFTOVERS)}
    for engine, index in engines.items():
        named = _named(engine, index)
        for name in named - files.keys():
            raise FileNotFoundError(f"{str(folder / engine / EXPORTS)!r} names {name!r}, which is not there")
        chosen |= named
    return {name: files[name] for name in sorted(chosen)}


def _check_weights(files: Mapping[str, Path], has_graphs: bool) -> None:
    """Raises `FileNotFoundError` for a network whose weights are not among the files: nobody could load it."""
    for place, network in (("", "BigGANModel"), ("discriminator/", "BigGANDiscriminator")):
        held = {name.removeprefix(place) for name in files if PurePosixPath(name).parent == PurePosixPath(place)}
        if "config.json" not in held or "model.safetensors" in held or (has_graphs and not place):
            continue
        folder = files[f"{place}config.json"].parent
        if "model.safetensors.index.json" in held:
            check_files(folder)
            continue
        others = sorted(path.name for path in folder.iterdir() if _OTHER_WEIGHTS.fullmatch(path.name))
        if held.isdisjoint(others):  # some may be asked for by name
            raise FileNotFoundError(_without_weights(folder, others, network))


def _without_weights(folder: Path, others: Sequence[str], network: str) -> str:
    """What to say of a folder without weights that are published; `others` are those of other names."""
    told = f"{str(folder)!r} holds no model.safetensors, nor its shards with their index, which a push publishes"
    if not others:
        return told
    found = _OTHER_WEIGHTS.fullmatch(others[0])
    variant = f", variant={found[1]!r}" if found and found[1] else ""
    there = ", ".join(others)
    return f"{told}; {network}.from_pretrained({str(folder)!r}{variant}).save_pretrained(DIR) writes one from {there}"


# Exported graphs


def _exported(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Index]]:
    """
    The checksum of the generator's weights in a folder, or of those that its graphs were exported from, and the graphs
    of these weights, by engine. `None` and no graphs if the folder holds neither.
    """
    if settings.get("model_type") != BigGANConfig.model_type or _is_of_discriminator(settings):
        return None, {}
    found = {engine: read_index(folder / engine) for engine in PACKAGES}
    sources = {entry["weights"] for index in found.values() for entry in index.values()}
    weights = checksum_of_weights(folder)
    if weights is None and len(sources) > 1:
        raise ValueError(f"the graphs in {str(folder)!r} were exported from different weights; export them anew")
    weights = weights or next(iter(sources), None)
    for engine, index in found.items():
        if other := index.keys() - of_weights(index, weights):
            what = f"{str(folder / engine)!r} in {', '.join(sorted(other))}"
            logger.warning(f"{what} is not uploaded: it was exported from other weights than those beside it")
    return weights, {engine: same for engine, index in found.items() if (same := of_weights(index, weights))}


def _published_engines(api: HfApi, repo_id: str, revision: str | None) -> dict[str, Index]:
    """What is known of the graphs in a repository, by engine. A damaged index counts as none."""
    found: dict[str, Index] = {}
    for engine in PACKAGES:
        name = f"{engine}/{EXPORTS}"
        if api.file_exists(repo_id, name, revision=revision):
            with suppress(ValueError):
                found[engine] = read_index(Path(api.hf_hub_download(repo_id, name, revision=revision)).parent)
    return found


def _has_weights(api: HfApi, repo_id: str, revision: str | None, weights: str | None) -> bool:
    """Whether a repository holds weights; raises `ValueError` if they have another checksum, or none."""
    try:
        files = api.get_safetensors_metadata(repo_id, revision=revision).files_metadata
    except NotASafetensorsRepoError:
        return False
    if "-".join(str(files[name].metadata.get(CHECKSUM)) for name in sorted(files)) != weights:
        raise ValueError(f"{repo_id!r} holds other weights than those of the graphs; push the weights too")
    return True


def _joined(
    there: Mapping[str, Index], new: Mapping[str, Index], weights: str | None
) -> tuple[dict[str, Index], list[str]]:
    """
    The graphs that a repository holds after an upload, by engine, and the files that the upload deletes. Graphs of the
    same weights stay. An upload of neither weights nor graphs (`weights` is `None`) changes nothing.
    """
    if weights is None:
        return dict(there), []
    joined = {name: {**of_weights(there.get(name, {}), weights), **new.get(name, {})} for name in PACKAGES}
    stale = set().union(*(_named(name, there.get(name, {})) - _named(name, joined[name]) for name in PACKAGES))
    stale |= {f"{name}/{EXPORTS}" for name in PACKAGES if not joined[name]}
    return {name: index for name, index in joined.items() if index}, sorted(stale)


def _named(engine: str, index: Index) -> set[str]:
    """The files of an engine's graphs, by their paths in a repo."""
    return {f"{engine}/{name}" for entry in index.values() for name in entry["crc32"]}


# Code, for machines without this package


def add_code(folder: Path) -> None:
    """
    Adds the code of networks and pipeline to a saved model, and to the `config.json` of each network the names
    by which `AutoModel` and `transformers.pipeline` find the classes.
    """
    starts = [Path(__file__).with_name(name) for name in (_MODELING, _PIPELINE)]
    for file in {*starts, *(Path(name) for start in starts for name in get_relative_import_files(start))}:
        (folder / file.name).unlink(missing_ok=True)
        shutil.copyfile(file, folder / file.name)
    for path in (folder / "config.json", folder / "discriminator" / "config.json"):
        settings = _settings(path)
        for name in (settings.get("architectures") or [])[:1]:
            names = {"AutoConfig": "configuration_biggan.BigGANConfig", "AutoModel": f"modeling_biggan.{name}"}
            impl = {"impl": "remote_pipeline.BigGANRemotePipeline", "pt": ["AutoModel"]}
            pipelines = {} if _is_of_discriminator(settings) else {"unconditional-image-generation": impl}
            _write_settings(path, {**settings, "auto_map": names, "custom_pipelines": pipelines})


def forget_code(path: Path) -> None:
    """Removes from a `config.json` the names of classes in files that are not there."""
    settings = _settings(path)
    if _names_code(settings):
        of_code = ("auto_map", "custom_pipelines")
        _write_settings(path, {name: value for name, value in settings.items() if name not in of_code})


def forget_paths(folder: Path) -> None:
    """
    Removes from what is published what names files of this machine: in the settings of the networks where they came
    from, and fields that another program has added; words about the weights; an adapter's card that names some.
    """
    for path in (*folder.rglob("config.json"), *folder.rglob("adapter_config.json")):
        settings, own = _settings(path), set() if path.name.startswith("adapter") else _OWN_FIELDS
        # Of an adapter's fields this one may be a short path; others are words, and patterns with a backslash.
        told = {name: bool(own) or name == "base_model_name_or_path" for name in settings.keys() - own}
        if private := sorted(name for name, may_be_one in told.items() if _holds_path(settings[name], may_be_one)):
            _say_private(path.relative_to(folder), private)
            _write_settings(path, {name: value for name, value in settings.items() if name not in private})
    for path in folder.rglob("*.safetensors"):
        if private := without_metadata(path, names_path):
            _say_private(path.relative_to(folder), private)
    for path in folder.glob(f"adapter/**/{CARD}"):
        if names_path(read_text(path)):
            _say_private(path.relative_to(folder), ["all of it"])
            path.unlink()


def _say_private(path: Path, private: list[str]) -> None:
    where = path.as_posix()
    logger.warning(f"not published of {where}, since it names files of this machine: {', '.join(private)}")


def _holds_path(value: Any, may_be_one: bool) -> bool:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        return any(_holds_path(one, may_be_one) for one in value)
    return isinstance(value, str) and (names_path(value) or (may_be_one and is_path(value)))


def _names_code(settings: Mapping[str, Any]) -> bool:
    """Whether a configuration names classes in files beside it, and not in another repository."""
    return any("--" not in str(name) for name in settings.get("auto_map", {}).values())


def _is_of_discriminator(settings: Mapping[str, Any]) -> bool:
    return settings.get("architectures") == ["BigGANDiscriminator"]


def _settings(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")  # a link to somebody's file is replaced
