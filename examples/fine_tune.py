"""Trains a model further on other pictures: `python examples/fine_tune.py path/to/pictures` writes fine-tuned/."""

__program__ = "biggan_hf"  # biggan_hf then sets how torch's threads wait, which a library must not do

import sys

from biggan_hf.training import parse_arguments, set_up, train


pictures, *more = sys.argv[1:]  # more options of train.py
words = ["--init_from", "biggan_hf:fashion", "--preset", "demo", "--dataset_name", pictures]
words += ["--output_dir", "fine-tuned", "--diff_augment", "--max_train_steps", "1000", *more]
train(set_up(*parse_arguments(words)))  # as `biggan-hf train --init_from biggan_hf:fashion …`
