"""The frame that a notebook reads: the same from a board's CSV and from its cells, types included."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from board import fail, fill, suite

from eqbench import gains, leaderboard, report, treatments
from eqbench.errors import UserError
from eqbench.results import COLUMNS, TYPES, read_results, tidy

ROOT = Path(__file__).parents[1]
KEYS = ["model", "data", "seed", "state", "group", "probe", "layer", "metric"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A board with a failed and a missing model, and its cells."""
    folder = tmp_path_factory.mktemp("board")

    def change(cell, result):
        if cell.model == "vit_digits":
            return fail(result, "NA" if cell.group == "c4" else '"quoted",\r\n=1+1')
        return None if cell.model == "resnet_digits" else result

    leaderboard.collect(fill(folder / "cells", suite(), change=change), folder / "cells", folder / "reports/demo")
    return folder


def test_a_board_and_its_cells_give_the_same_frame(folder):
    board, cells = read_results(folder / "reports/demo"), read_results(folder / "cells")
    assert list(board.columns) == COLUMNS
    assert {name: str(kind) for name, kind in board.dtypes.items()} == TYPES
    in_order = [frame.sort_values(KEYS, ignore_index=True) for frame in (board, cells)]
    pd.testing.assert_frame_equal(*in_order, check_exact=True)
    assert len(board) > 500


def test_the_frame_is_the_boards_own_rounded_as_in_its_csv(folder):
    board = leaderboard.load(suite(), folder / "cells")
    frame = read_results(folder / "reports/demo")
    pd.testing.assert_frame_equal(frame, board.tidy, rtol=1e-5)
    assert board.tidy.dtypes.equals(frame.dtypes)
    assert (
        frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        == (folder / "reports/demo/results.csv").read_bytes().decode()
    ), "nothing is lost on the way"


def test_only_what_is_empty_is_missing(folder):
    frame = read_results(folder / "reports/demo")
    failed = frame[frame["status"] == "failed"]
    assert set(failed["reason"]) == {"NA", '"quoted",\r\n=1+1'}
    assert failed["metric"].isna().all()
    assert failed["higher_is_better"].isna().all()
    assert frame.loc[frame["metric"] == "accuracy", "unit"].isna().all(), "a share has no unit"
    assert tidy([]).dtypes.equals(frame.dtypes), "an empty board has the same columns"


def test_a_wrong_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_results(tmp_path / "typo")
    assert read_results(tmp_path).empty


def test_the_columns_are_documented():
    text = (ROOT / "reports/README.md").read_text()
    for name in (*leaderboard.FILES, *report.FILES):
        assert f"| `{name}` |" in text, name
    files = {name: text.split(f"**`{name}.csv`**")[1].split("**`")[0] for name in ("treatments", "ensembles")}
    for file, columns in (("treatments", treatments.COLUMNS), ("ensembles", gains.COLUMNS)):
        for name in columns:
            assert f"`{name}`" in files[file], f"{file}.csv: {name}"
    for verdict in (*treatments.VERDICTS, treatments.ALONE):
        assert f"`{verdict}`" in files["treatments"], verdict
    tidy_part, wide_part = (text.split(f"**`{name}.csv`**")[1].split("**`")[0] for name in ("results", "leaderboard"))
    for name in COLUMNS:
        assert name in tidy_part, f"results.csv: {name}"
    for name in [
        *leaderboard.KEYS,
        *leaderboard.FACTS,
        *(f"m{end}" for end in leaderboard.STATISTICS + leaderboard.TESTS),
    ]:
        assert f"`{name}`" in wide_part, f"leaderboard.csv: {name}"


def test_the_example_draws_a_figure(folder, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "reports/example.py"),
        str(folder / "reports/demo"),
        str(tmp_path / "one.svg"),
    ]
    environment = os.environ | {"MPLBACKEND": "svg", "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.svg").read_text().count("<path") > 20
