"""What is said of an option that there is not."""

import pytest

from biggan_hf.options import underscored, unknown_option


COMMAND = ["--batch_size", "--dataset_name", "--output", "--seed", "--truncation", "--truncation_mode"]
TRAINING = ["--per_device_batch_size", "--global_batch_size", "--generator_learning_rate", "--loss"]


@pytest.mark.parametrize(
    ("words", "known", "expected"),
    [
        (["--batchsize", "4"], COMMAND, "unrecognized arguments: --batchsize; did you mean --batch_size?"),
        (["--dataset", "x"], COMMAND, "unrecognized arguments: --dataset; did you mean --dataset_name?"),
        (["--outptu"], COMMAND, "unrecognized arguments: --outptu; did you mean --output?"),
        (["--seed", "1", "--colour"], COMMAND, "unrecognized arguments: --colour"),
        (
            ["--batch_size", "4"],
            TRAINING,
            "unrecognized arguments: --batch_size; did you mean --per_device_batch_size or --global_batch_size?",
        ),
        (
            ["--learning_rate", "1"],
            TRAINING,
            "unrecognized arguments: --learning_rate; did you mean --generator_learning_rate?",
        ),
        (["-o", "x"], COMMAND, "unrecognized arguments: -o; did you mean --output?"),
        (["--psi=1"], COMMAND, "unrecognized arguments: --psi; did you mean --truncation?"),
        (
            ["--lr", "1"],
            [*TRAINING, "--discriminator_learning_rate"],
            "unrecognized arguments: --lr; did you mean --generator_learning_rate or --discriminator_learning_rate?",
        ),
        (
            ["--gradient_accumulation_steps", "1"],
            TRAINING,
            "unrecognized arguments: --gradient_accumulation_steps; did you mean --per_device_batch_size or "
            "--global_batch_size?",
        ),
        (
            ["--hub_token", "x"],
            TRAINING,
            "unrecognized arguments: --hub_token; `hf auth login` stores a token, and the variable HF_TOKEN holds one",
        ),
        (["model", "-3", "--seed=1", "--", "--not-an-option"], COMMAND, None),
    ],
)
def test_unknown_option(words: list[str], known: list[str], expected: str | None) -> None:
    assert unknown_option(words, known) == expected


def test_hyphens_become_underscores_in_names_alone() -> None:
    words = ["a-b", "--batch-size=a-b", "-x", "--c-d", "e-f", "--", "--g-h"]
    assert underscored(words) == ["a-b", "--batch_size=a-b", "-x", "--c_d", "e-f", "--", "--g-h"]
