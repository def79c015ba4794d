"""Every notebook runs from top to bottom, and was saved with its output."""

import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter itself
        import nbformat
        from nbclient import NotebookClient

        notebook = nbformat.read(path, 4)
        saved = [shown(cell) for cell in notebook.cells]
        assert any(saved)
        client = NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        )
        client.execute()  # raises the error of a cell
    assert [shown(cell) for cell in notebook.cells] == saved


def shown(cell: Any) -> list[str]:
    """The kinds of what a cell put out, one after another; how often a kernel sends what was printed is its affair."""
    kinds = [out.output_type for out in cell.get("outputs", ()) if out.get("name") != "stderr"]
    return [kind for kind, _ in groupby(kinds)]
