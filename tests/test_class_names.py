"""Which class of one source is which of another."""

import pytest

from biggan_hf.class_names import match_classes


@pytest.mark.parametrize(
    ("there", "here", "rows", "how"),
    [
        (["dog", "ant", "cat"], ["cat", "dog"], [2, 0], "name"),
        (["cat", "dog"], ["cat", "ant"], [0, None], "name"),
        (["crane", "crane", "tench"], ["crane", "tench", "crane"], [0, 2, 1], "name"),
        (["crane", "tench"], ["crane", "crane"], [None, None], "name"),
        (["0", "1", "2", "10"], ["0", "1", "10", "2"], [0, 1, 3, 2], "number"),
        (["0", "1"], ["5", "1"], [None, 1], "number"),
        (["0", "1", "2", "3", "4"], ["0", "1", "2"], [0, 1, 2], "number"),
        (["0", "1", "2", "3", "4"], ["3", "4"], [3, 4], "number"),
        (["0", "1", "2"], ["0", "1", "2", "3"], [0, 1, 2, None], "number"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["1", "2", "3"], [1, 2, None], "number"),
        (["00", "01"], ["1", "LABEL_0"], [1, 0], "number"),
        (["3", "7", "900"], ["0", "1", "2"], [None] * 3, "number"),
        (["cat", "dog", "0"], ["0", "cat"], [2, 0], "name"),
        (["ant, emmet", "tench"], ["tench, Tinca tinca", "ant"], [1, 0], "name"),
        (["ant, bug", "bee, bug"], ["bug"], [None], "name"),
        (["Cat"], ["cat"], [None], "name"),
        (["cat", "dog"], ["LABEL_0", "LABEL_1"], [0, 1], "position"),
        (["0", "1"], ["cat", "dog"], [0, 1], "position"),
        (["0", "1", "2"], ["cat", "dog"], [None, None], "position"),
        (["0", "1"], ["LABEL_0", "LABEL_1"], [0, 1], "number"),
    ],
)
def test_names_decide_and_numbers_only_where_there_are_none(
    there: list[str], here: list[str], rows: list[int | None], how: str
) -> None:
    assert match_classes(there, here) == (rows, how)
