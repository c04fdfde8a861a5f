"""The pipeline of a repository that holds the code: transformers loads it where this package is not installed."""

from typing import Any

from PIL import Image
from torch import Tensor
from transformers import Pipeline

from .images import to_pil


class BigGANRemotePipeline(Pipeline):
    """
    From a label or a name to pictures.

    Example:
        ```python
        pipe = transformers.pipeline(model="user/biggan", trust_remote_code=True)
        images = pipe("goldfish", truncation=0.4, num_images_per_prompt=4)  # keywords as of `BigGANModel.sample`
        ```
    """

    _load_tokenizer = _load_processor = _load_feature_extractor = False
    _load_image_processor = _load_video_processor = False

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, options, {}

    def preprocess(self, class_labels: Any) -> dict[str, Any]:
        return {"class_labels": class_labels}

    def _forward(self, inputs: dict[str, Any], **options: Any) -> Tensor:
        return self.model.sample(**inputs, **options)

    def postprocess(self, images: Tensor) -> list[Image.Image]:
        return to_pil(images)
