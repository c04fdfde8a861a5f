"""Trains BigGAN: `python train.py --preset cifar10 --dataset_name uoft-cs/cifar10 --output_dir out`."""

__program__ = "biggan_hf"  # biggan_hf then sets how torch's threads wait, which a library must not do

from biggan_hf.options import missing_package


try:
    from biggan_hf.training import program
except ImportError as error:
    raise SystemExit(f"error: {missing_package(error)}") from error


if __name__ == "__main__":
    program()
