"""The pipeline of a repository that holds the code: transformers loads it where this package is not installed."""

from typing import Any

from PIL import Image
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

    model: Any
    _load_tokenizer: Any = False
    _load_processor: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, options, {}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        return {"class_labels": input_}

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> Any:
        return self.model.sample(**input_tensors, **options)

    def postprocess(self, model_outputs: Any, **_: Any) -> list[Image.Image]:
        return to_pil(model_outputs)
