"""Which class of one source is which of another."""

import pytest

from biggan_hf.class_names import match_classes


@pytest.mark.parametrize(
    ("there", "here", "rows", "by_number"),
    [
        (["dog", "ant", "cat"], ["cat", "dog"], [2, 0], False),
        (["cat", "dog"], ["cat", "ant"], [0, None], False),
        (["crane", "crane", "tench"], ["crane", "tench", "crane"], [0, 2, 1], False),
        (["crane", "tench"], ["crane", "crane"], [None, None], False),
        (["0", "1", "2", "10"], ["0", "1", "10", "2"], [0, 1, 3, 2], False),
        (["0", "1"], ["5", "1"], [None, 1], False),
        (["ant, emmet", "tench"], ["tench, Tinca tinca", "ant"], [1, 0], False),
        (["ant, bug", "bee, bug"], ["bug"], [None], False),
        (["Cat"], ["cat"], [None], False),
        (["cat", "dog"], ["LABEL_0", "LABEL_1"], [0, 1], True),
        (["0", "1"], ["cat", "dog"], [0, 1], True),
        (["0", "1", "2"], ["cat", "dog"], [None, None], True),
        (["0", "1"], ["LABEL_0", "LABEL_1"], [0, 1], True),
    ],
)
def test_names_decide_and_numbers_only_where_there_are_none(
    there: list[str], here: list[str], rows: list[int | None], by_number: bool
) -> None:
    assert match_classes(there, here) == (rows, by_number)
