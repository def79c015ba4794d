"""Lists of features: edits, the file, blind mode with its controls, and the page with the star."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from dashboard_pages import open_page, words

pytest.importorskip("streamlit", reason="the dashboard is the extra [app]")


def some(n: int = 4) -> Any:
    """Lists with one list "a" of n features."""
    from apps.dashboard.feature_lists import Item, added

    lists: Any = {}
    for feature in range(n):
        lists = added(lists, "a", Item("mid_block", feature, "0123abcd", f"note {feature}"))
    return lists


def test_edits_keep_order_and_refuse_what_is_not_there() -> None:
    from apps.dashboard.feature_lists import Item, Score, added, moved, noted, removed, scored, without
    from apps.errors import InvalidOption

    lists = some()
    assert added(lists, "a", Item("mid_block", 2)) == lists  # it is there already, with its note
    for item, by, order in ((0, 1, [1, 0, 2, 3]), (0, -1, [0, 1, 2, 3]), (3, -2, [0, 3, 1, 2]), (1, 9, [0, 2, 3, 1])):
        assert [i.feature for i in moved(lists, "a", Item("mid_block", item), by)["a"].items] == order
    left = removed(lists, "a", Item("mid_block", 1))
    assert [i.feature for i in left["a"].items] == [0, 2, 3]
    assert noted(lists, "a", Item("mid_block", 1), " new ")["a"].items[1].note == "new"
    assert without(lists, "a") == {}
    with pytest.raises(InvalidOption, match="feature 1 of mid_block is no longer in 'a'; reload"):
        moved(left, "a", Item("mid_block", 1), 1)
    with pytest.raises(InvalidOption, match="expected 1 to 60 letters"):
        added(lists, "  ", Item("mid_block", 1))
    with pytest.raises(InvalidOption, match="score 6 cannot be used; expected 1 to 5"):
        scored(lists, "a", 0, "Ana", Score(6))
    with pytest.raises(InvalidOption, match="the rater '' cannot be used"):
        scored(lists, "a", 0, " ", Score(3))


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    from apps.dashboard import list_files
    from apps.dashboard.feature_lists import Item, Score, scored

    path = tmp_path / "lists.json"
    assert list_files.read(path) == {}
    lists = scored(some(), "a", Item("mid_block", 2), "Ana", Score(4, "a umbrella, “red”"))
    lists = scored(lists, "a", 0, "Ana", Score(1))
    assert list_files.change(path, lambda _: lists) == lists
    assert list_files.read(path) == lists
    assert json.loads(list_files.as_json(lists["a"]))["lists"] == json.loads(path.read_text())["lists"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"format": 2}, "format 2; this version reads 1"),
        ({"lists": [{"name": "a"}]}, "KeyError"),
        ({"lists": [{"name": "a", "items": [], "controls": {}}] * 2}, "two lists of one name"),
        ({"lists": {"name": "a"}}, "cannot be read"),
        ({"lists": [{"name": "a", "controls": {}, "items": [{"dictionary": "m", "feature": True, "bundle": "",
                                                              "note": "", "scores": {}}]}]}, "no feature"),
        ({"lists": [{"name": "a" * 61, "items": [], "controls": {}}]}, "no text of 60 characters"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, damage: dict[str, Any], says: str) -> None:
    from apps.dashboard import list_files
    from apps.errors import InvalidFile

    path = tmp_path / "lists.json"
    path.write_text(json.dumps({"format": 1, "lists": []} | damage))
    before = path.read_bytes()
    with pytest.raises(InvalidFile, match=r"lists '.*lists.json'") as error:
        list_files.change(path, lambda lists: lists)
    assert says in str(error.value)
    assert path.read_bytes() == before


def test_two_sessions_lose_no_change(tmp_path: Path) -> None:
    from apps.dashboard import list_files
    from apps.dashboard.feature_lists import Item, added

    path = tmp_path / "lists.json"

    def work(session: int) -> None:
        for i in range(10):
            item = Item("mid_block", 100 * session + i)
            list_files.change(path, lambda lists, item=item: added(lists, "a", item))

    threads = [Thread(target=work, args=(session,)) for session in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = list_files.read(path)["a"].items
    assert sorted(item.feature for item in kept) == [100 * s + i for s in range(3) for i in range(10)]


def test_csv_is_a_table_that_no_spreadsheet_runs() -> None:
    from apps.dashboard import list_files
    from apps.dashboard.feature_lists import Item, Score, added, noted, scored

    lists = noted(some(2), "a", Item("mid_block", 0), '=HYPERLINK("http://x")')
    lists = scored(lists, "a", Item("mid_block", 1), "Ana", Score(4, "two\nlines"))
    lists = added(lists, "a", Item("up", 7))
    rows = list(csv.DictReader(io.StringIO(list_files.as_csv(lists["a"]).decode("utf-8-sig"))))
    assert [(r["place"], r["dictionary"], r["feature"]) for r in rows] == [
        ("1", "mid_block", "0"),
        ("2", "mid_block", "1"),
        ("3", "up", "7"),
    ]
    assert rows[0]["note"] == '\'=HYPERLINK("http://x")'
    assert (rows[1]["mean score"], rows[1]["score (Ana)"], rows[1]["says (Ana)"]) == ("4", "4", "two\nlines")
    assert rows[0]["score (Ana)"] == ""


def test_a_rater_meets_every_task_once_in_an_order_of_their_own() -> None:
    from apps.dashboard import blind
    from apps.dashboard.feature_lists import Item, Score, added, scored

    lists = some(12)
    one = lists["a"]
    ana, ben = blind.tasks(one, "Ana"), blind.tasks(one, "Ben")
    assert one.n_controls == 3
    assert len(ana) == 15
    assert {str(t) for t in ana} == {str(t) for t in ben}
    assert ana != ben
    assert blind.tasks(one, " Ana ") == ana
    longer = added(lists, "a", Item("mid_block", 99))["a"]  # a thirteenth item moves none of the others
    assert [t for t in blind.tasks(longer, "Ana") if t in ana] == ana
    for task in (ana[0], 1):
        lists = scored(lists, "a", task, "Ana", Score(5))
    assert sum(blind.is_scored(lists["a"], t, "Ana") for t in blind.tasks(lists["a"], "Ana")) == 2
    assert not any(blind.is_scored(lists["a"], t, "Ben") for t in ben)
    drawn = blind.control_features(one, 0, range(40))
    assert len(set(drawn)) == blind.PICTURES
    assert not set(drawn) & set(range(12))
    assert drawn == blind.control_features(one, 0, range(40))
    assert drawn != blind.control_features(one, 1, range(40))
    assert len(blind.control_features(one, 0, range(5))) == 5


def test_agreement_is_krippendorffs() -> None:
    """The example of four observers and twelve units in Krippendorff (2011): alpha for interval data is 0.849."""
    from apps.dashboard.blind import alpha

    observers = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    scores = [[None if c == "." else float(c) for c in row] for row in observers]
    assert alpha(scores) == pytest.approx(0.849, abs=5e-4)
    assert alpha([[1, 2, 5], [1, 2, 5]]) == 1
    assert alpha([[1, 5], [5, 1]]) < 0
    assert np.isnan(alpha([[1, 2, None], [None, None, 3]]))
    assert np.isnan(alpha([]))
    rng = np.random.default_rng(0)
    assert alpha(rng.integers(1, 6, (5, 2000)).tolist()) == pytest.approx(0, abs=0.03)


# --- pages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(planted: Path, tmp_path: Path) -> Path:
    """The planted run, in a folder that may be written."""
    for part in ("store", "sae", "bundle"):
        (tmp_path / part).symlink_to(planted / part)
    return tmp_path


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return partial(open_page, monkeypatch)


def test_star_order_score_and_delete(app: Callable[..., Any], run: Path) -> None:
    from apps.dashboard import list_files

    assert "There are no lists in this run" in words(app(run, "lists"))
    for feature in ("9", "3"):
        page = app(run, "feature", f=feature)
        page.text_input(key="star_new").set_value("good ones" if feature == "9" else "")
        page.text_input(key="star_note").set_value(f"[note]({feature})")
        next(b for b in page.button if b.label == "Add").click().run()
        assert not page.exception
    kept = list_files.read(run / "lists.json")["good ones"]
    assert [(i.feature, i.note) for i in kept.items] == [(9, "[note](9)"), (3, "[note](3)")]

    page.text_input(key="star_new").set_value("others")  # a typed name is meant, whatever list is chosen
    next(b for b in page.button if b.label == "Add").click().run()
    assert [i.feature for i in list_files.read(run / "lists.json")["others"].items] == [3]
    list_files.change(run / "lists.json", lambda lists: {"good ones": lists["good ones"]})

    page = app(run, "lists")
    assert "object umbrella, AUC 1.00" in words(page)
    page.button(key="ls_down_good ones_mid_block_9").click().run()
    assert not page.exception
    assert [i.feature for i in list_files.read(run / "lists.json")["good ones"].items] == [3, 9]
    page.button(key="ls_remove_good ones_mid_block_3").click().run()
    assert page.query_params["ls"] == "good ones"

    page = app(run, "lists", ls_mode="blind")
    assert "Write your name to begin" in words(page)
    page.text_input(key="ls_rater").set_value("Ana").run()
    for number in range(2):  # the feature and a control, in Ana's order
        hidden = words(page)
        assert "umbrella" not in hidden
        assert "note" not in hidden.replace("notes and labels", "")
        assert len(page.get("image")) == 8
        page.radio(key=f"ls_score_{number}").set_value(5 - number)
        page.text_input(key=f"ls_says_{number}").set_value("a thing")
        next(b for b in page.button if b.label == "Save and next").click().run()
        assert not page.exception
    assert "All done" in words(page)
    one = list_files.read(run / "lists.json")["good ones"]
    scores = {one.items[0].scores["Ana"].score, one.controls["Ana"][0].score}
    assert scores == {4, 5}

    page = app(run, "lists")
    assert {m.label: m.value for m in page.metric}["Raters"] == "1"
    next(b for b in page.button if b.label == "Delete").click().run()
    assert list_files.read(run / "lists.json") == {}


def test_wrong_link_and_damaged_file_are_told(app: Callable[..., Any], run: Path) -> None:
    from apps.dashboard import list_files

    list_files.change(run / "lists.json", lambda _: some(2))
    said = words(app(run, "lists", ls="../x", ls_mode="y", ls_page="7"))
    for asked in ("list '../x'", "mode 'y'", "page '7'"):
        assert f"asks for {asked}" in said
    (run / "lists.json").write_text("{")
    assert "The file of lists cannot be read" in words(app(run, "lists"))
    assert "Feature 9" in words(app(run, "feature", f="9"))
