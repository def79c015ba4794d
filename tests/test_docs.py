"""The documents say what the measurements say."""

import json

import pytest

from docs.fill import documents, filled


@pytest.mark.parametrize("path", documents(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_numbers_match_the_measurements(path) -> None:
    text = path.read_text()
    assert filled(text) == text, f"{path.name} is stale: run python -m docs.fill"


def test_fills_values_and_tables(tmp_path) -> None:
    (tmp_path / "m.json").write_text(
        json.dumps({"ratios": {"a": 0.5}, "rows": [{"n": "x", "v": 1.25}, {"n": "y", "v": None}]})
    )
    text = (
        "A <!-- value m.json ratios.a .1% -->old<!-- /value -->.\n"
        "<!-- table m.json rows | name: n | value: v .2f -->\nold\n<!-- /table -->\n"
    )
    expected = (
        "A <!-- value m.json ratios.a .1% -->50.0 %<!-- /value -->.\n"
        "<!-- table m.json rows | name: n | value: v .2f -->\n"
        "| name | value |\n| --- | --- |\n| x | 1.25 |\n| y | n/a |\n<!-- /table -->\n"
    )
    assert filled(text, tmp_path) == expected
    assert filled(expected, tmp_path) == expected


def test_a_missing_number_is_an_error(tmp_path) -> None:
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(KeyError, match="ratios"):
        filled("<!-- value m.json ratios.a .1% -->?<!-- /value -->", tmp_path)
