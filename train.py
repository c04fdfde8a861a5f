"""Trains BigGAN: `accelerate launch train.py --preset cifar10 --dataset_name uoft-cs/cifar10 --output_dir out`."""

from biggan_hf.options import missing_package


try:
    from biggan_hf.training import main
except ImportError as error:
    raise SystemExit(f"error: {missing_package(error)}") from error


if __name__ == "__main__":
    main()
