"""Trains BigGAN: `accelerate launch train.py --preset cifar10 --dataset_name uoft-cs/cifar10 --output_dir out`."""

from biggan_hf.training import main


if __name__ == "__main__":
    main()
