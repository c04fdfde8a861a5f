"""Measures a model against real pictures: `python examples/evaluate.py path/to/pictures` prints a table."""

import sys

from biggan_hf import BigGANModel
from biggan_hf.data import load_labelled_images
from biggan_hf.evaluation import EvaluationSettings, GeneratedImages, RealImages, evaluate, load_extractor


NUM_IMAGES = 500  # enough for MIND; take 10,000 and more for FID
samples = GeneratedImages(BigGANModel.from_pretrained("biggan_hf:fashion"), NUM_IMAGES, name="biggan_hf:fashion")
pictures = RealImages(load_labelled_images(sys.argv[1], image_size=32, num_channels=1), NUM_IMAGES, name=sys.argv[1])
report = evaluate(samples, pictures, load_extractor("lite0"), EvaluationSettings(metrics=("mind",)))
print(report.table())
