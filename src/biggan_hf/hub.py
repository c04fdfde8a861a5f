"""Publishing a model: its card and its upload."""

import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCardData
from huggingface_hub.utils import filter_repo_objects
from transformers import PreTrainedConfig, PreTrainedModel

from .files import LEFTOVERS, add_checksum, check_weights, staged_folder, weight_patterns
from .images import sample_sheet


CITATION = """\
```bibtex
@inproceedings{brock2019large,
  title     = {Large Scale {GAN} Training for High Fidelity Natural Image Synthesis},
  author    = {Andrew Brock and Jeff Donahue and Karen Simonyan},
  booktitle = {International Conference on Learning Representations},
  year      = {2019},
  url       = {https://arxiv.org/abs/1809.11096},
}
```"""

LIMITS = """\
For research on generative models, and for making pictures of the kind that the model was trained on. It shows the
variety, the gaps and the biases of its training pictures, and may come close to some of them. Its pictures are
not photographs: do not present them as such. A low truncation gives typical pictures, a high one varied pictures with
more failures."""

CARD_SETTINGS = (
    "architecture",
    "image_size",
    "num_channels",
    "num_labels",
    "z_dim",
    "class_embedding_dim",
    "truncation_mode",
    "generator_base_channels",
    "discriminator_base_channels",
)


PUSH_ARGUMENTS = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
    "tags",
)


class PublishingMixin(PreTrainedModel):
    """A save that loses nothing, and a push that adds a card: a mixin in front of `PreTrainedModel`."""

    _path_in_repo = ""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Weights in a folder are compared with the checksum that `save_pretrained` gave them."""
        if pretrained_model_name_or_path is not None:
            for path in Path(pretrained_model_name_or_path, kwargs.get("subfolder", "")).glob("*.safetensors"):
                check_weights(path)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(  # type: ignore[override]  # the arguments it does not name are passed on
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        As in transformers. If a save fails, the folder stays as it was. If it succeeds, no shards of an earlier save
        remain. With `push_to_hub=True`, `repo_id` and the other arguments go to [`push_to_hub`].
        """
        push = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        if not is_main_process:
            return
        with staged_folder(save_directory) as staging:
            super().save_pretrained(staging, **kwargs)
            for path in staging.glob("*.safetensors"):
                add_checksum(path)
        if push_to_hub:
            self.push_to_hub(push.pop("repo_id", Path(save_directory).name), **push)

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
    ) -> str:
        """
        Uploads the network to the Hub: a generator and its card to the root, a discriminator to `discriminator/`. An
        existing card does not change.

        Args:
            repo_id: `"user/name"`; created if it does not exist.
            commit_message: First line of the commit.
            commit_description: The rest of it.
            private: Whether a repository that is created is private.
            token: Access token; by default the one stored on this machine.
            revision: Branch to commit to.
            create_pr: Opens a pull request instead.
            max_shard_size: As for `save_pretrained`.
            tags: Tags to add to a new card.

        Returns:
            The commit's address.
        """
        repo_id = create_repo(repo_id, token, private)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if not has_card(repo_id, token, revision):
                self._write_card(Path(folder), repo_id, tags)
            commit = upload_folder(
                folder,
                repo_id,
                path_in_repo=self._path_in_repo,
                token=token,
                private=private,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
            )
        return commit.commit_url

    def _write_card(self, folder: Path, repo_id: str, tags: list[str] | None) -> None:
        """Writes `README.md` and its sheet of samples. Does nothing for a discriminator."""
        if self._path_in_repo:
            return
        sample_sheet(self, rows=8, columns=4).save(folder / "samples.png")
        card = model_card(self.config, repo_id=repo_id, tags=tags, sample_image="samples.png")
        (folder / "README.md").write_text(card, encoding="utf-8")


def model_card(
    config: PreTrainedConfig,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    tags: list[str] | None = None,
    datasets: list[str] | None = None,
    sample_image: str | None = None,
    training: Mapping[str, object] | None = None,
) -> str:
    """
    The text of a repo's `README.md`: metadata for the Hub's search, then what a reader needs to use the model.

    Args:
        config: The model's `BigGANConfig`.
        repo_id: `"user/name"` on the Hub: the title and the usage examples name it.
        license: An identifier of the Hub's list, such as `"mit"`. `None` claims nothing: the weights' license depends
            on the pictures they were trained on.
        tags: Added to the card's own.
        datasets: Ids of the training data sets on the Hub.
        sample_image: File name, within the repo, of a grid of samples.
        training: Settings to list, by name.
    """
    conditional = bool(config.num_labels)
    data = ModelCardData(
        license=license,
        library_name="biggan_hf",
        pipeline_tag="unconditional-image-generation",
        tags=["biggan", "gan", "image-generation"]
        + ["class-conditional-image-generation"] * conditional
        + (tags or []),
        datasets=datasets,
    )
    sections = [
        f"# {repo_id.split('/')[-1] if repo_id else 'BigGAN'}",
        _summary(config),
        f"![samples]({sample_image})" if sample_image else "",
        f"## Usage\n\n{_usage(config, repo_id or 'path/to/this/folder')}",
        f"## Architecture\n\n{_table({name: getattr(config, name) for name in CARD_SETTINGS})}",
        f"## Training\n\n{_table(training)}" if training else "",
        f"## Intended use and limits\n\n{LIMITS}",
        f"## Citation\n\n{CITATION}",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _summary(config: PreTrainedConfig) -> str:
    name = {"biggan": "BigGAN", "biggan-deep": "BigGAN-deep"}[config.architecture]
    size = f"{config.image_size}×{config.image_size}"
    classes = f"in {config.num_labels} classes" if config.num_labels else "without classes"
    return f"A {name} generator of {size} images {classes} ([Brock et al. 2018](https://arxiv.org/abs/1809.11096))."


def _usage(config: PreTrainedConfig, source: str) -> str:
    prompt = f"{_class_prompt(config)!r}, " if config.num_labels else ""
    label = "class_labels=[0], " if config.num_labels else ""
    return f"""\
```python
import torch
from biggan_hf import BigGANModel, BigGANPipeline

generator = torch.Generator().manual_seed(0)

pipe = BigGANPipeline.from_pretrained({source!r})
images = pipe({prompt}truncation=0.5, num_images_per_prompt=4, generator=generator).images  # PIL images

model = BigGANModel.from_pretrained({source!r})
images = model.sample({label}num_images_per_label=4, truncation=0.5, generator=generator)  # tensor in [-1, 1]
```"""


def _class_prompt(config: PreTrainedConfig) -> str | int:
    """The first class as the pipeline takes it: its name where it has one, else its number."""
    name = list((config.id2label or {}).values())[0].split(",")[0]
    return 0 if name == "LABEL_0" else name


def _table(settings: Mapping[str, object]) -> str:
    def cell(value: object) -> str:
        return " ".join(str(value).split()).replace("|", "\\|")

    rows = [f"| {cell(name)} | {cell(value)} |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def create_repo(repo_id: str, token: bool | str | None = None, private: bool | None = None) -> str:
    """Creates a repo unless it exists; returns its whole id, `"user/name"`."""
    return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def has_card(repo_id: str, token: bool | str | None = None, revision: str | None = None) -> bool:
    """Whether a branch (which may not exist yet) or the main one has a `README.md`, perhaps by somebody's hand."""
    api = HfApi(token=token)
    return any(api.file_exists(repo_id, "README.md", revision=branch) for branch in {revision, None})


def upload_folder(
    folder: str | PathLike[str],
    repo_id: str,
    *,
    path_in_repo: str = "",
    token: bool | str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload BigGAN",
    commit_description: str | None = None,
    ignore_patterns: list[str] | None = None,
) -> CommitInfo:
    """
    Uploads a folder; creates the repo and the branch where they are missing. Weights of an earlier upload, which the
    new ones replace, are deleted from the repo; its other files stay. What a kill has left half-written is not
    uploaded (`files.LEFTOVERS`).

    Args:
        folder: What to upload, with its subfolders.
        repo_id: `"user/name"`, or `"name"` in the token's own namespace.
        path_in_repo: Subfolder of the repo to upload into.
        token: Access token; by default the one stored on this machine.
        private: Whether a repo that is created is private.
        revision: Branch to commit to; default the main branch.
        create_pr: Opens a pull request against the main branch instead.
        commit_message: First line of the commit.
        commit_description: The rest of it.
        ignore_patterns: Globs, relative to `folder`, of what stays here.

    Raises:
        FileNotFoundError: There is no such folder, or nothing in it to upload.
    """
    folder = Path(folder)
    ignore_patterns = [*(ignore_patterns or []), *LEFTOVERS]
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = list(filter_repo_objects(paths, ignore_patterns=ignore_patterns))
    if not files:
        raise FileNotFoundError(f"expected a folder with files to upload, got {folder}")
    api = HfApi(token=token)
    repo_id = create_repo(repo_id, token, private)
    if revision and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=path_in_repo,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
        ignore_patterns=ignore_patterns,
        delete_patterns=weight_patterns(files),
    )
