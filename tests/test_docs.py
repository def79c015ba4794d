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


def test_rows_are_chosen_and_intervals_shown(tmp_path) -> None:
    rows = [
        {"part": "target", "name": "x", "v": 0.5, "v_low": 0.25, "v_high": 0.75},
        {"part": "average", "name": "y", "v": 0.5, "v_low": 0.4, "v_high": 0.6},
        {"part": "average", "name": "z", "v": 1.0, "v_low": None, "v_high": None},
    ]
    (tmp_path / "m.json").write_text(json.dumps({"rows": rows}))
    table = "<!-- table m.json rows[part=average] | name: name | v (%): v .0%~ -->\n<!-- /table -->"
    lines = filled(table, tmp_path).splitlines()
    assert lines[3:5] == ["| y | 50 (40 to 60) |", "| z | 100 % |"]
    value = "<!-- value m.json rows[part=average][name=z].0.v .1f --><!-- /value -->"
    assert ">1.0<" in filled(value, tmp_path)
    with pytest.raises(IndexError):
        filled(value.replace("=z]", "=w]"), tmp_path)


def test_a_missing_number_is_an_error(tmp_path) -> None:
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(KeyError, match="ratios"):
        filled("<!-- value m.json ratios.a .1% -->?<!-- /value -->", tmp_path)
