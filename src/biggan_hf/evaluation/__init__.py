"""Measuring a generator: FID, KID, MIND, IS, precision and more, each with its protocol (docs/evaluation.md)."""

from .extractors import FeatureExtractor, load_extractor
from .measuring import evaluate, evaluate_all
from .metrics import frechet_distance, kernel_distance, manifold_scores, monge_distance
from .reports import Measure, Report, add_to_card
from .settings import EvaluationSettings
from .sources import GeneratedImages, ImageArray, ImageSource, RealImages
from .statistics import Measurements, measure, read_moments, write_moments


__all__ = [
    "EvaluationSettings",
    "FeatureExtractor",
    "GeneratedImages",
    "ImageArray",
    "ImageSource",
    "Measure",
    "Measurements",
    "RealImages",
    "Report",
    "add_to_card",
    "evaluate",
    "evaluate_all",
    "frechet_distance",
    "kernel_distance",
    "load_extractor",
    "manifold_scores",
    "measure",
    "monge_distance",
    "read_moments",
    "write_moments",
]
