"""The table of reliability says what the tests recorded: sums of equal faults, failures and skips by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import reliability as table

CASES = """
import pytest

@pytest.mark.parametrize("seconds", [1, 2.5])
def test_twice(reliability, seconds):
    reliability("kill | -9", tried=3, survived=3, seconds=seconds)

def test_lost(reliability):
    reliability("full disk", tried=4, survived=3, bytes_lost=12)

def test_broken(reliability):
    assert False, "it broke"

def test_broken_late(reliability):
    reliability("two runs", tried=1)
    raise OSError("too late")

@pytest.mark.skip(reason="not root")
def test_left_out(reliability):
    pass

def test_silent():
    pass
"""
ROWS = """\
| area | fault | tried | survived | bytes lost | figures | outcome |
|---|---|--:|--:|--:|---|---|
| faults | kill \\| -9 | 6 | 6 | 0 | seconds 1 to 2.5 | ok |
| faults | full disk | 4 | 3 | 12 |  | FAILED |
| faults | broken | 1 | 0 | 0 |  | FAILED: AssertionError: it broke assert False |
| faults | two runs | 1 | 1 | 0 |  | FAILED: OSError: too late |
| faults | left out | 0 | 0 | 0 |  | skipped: not root |
| faults | silent | 1 | 0 | 0 |  | recorded nothing |
"""


@pytest.fixture
def report(tmp_path):
    folder = tmp_path / "tests/faults"
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path / "tests/conftest.py")
    (folder / "test_cases.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\njunit_family=xunit1\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junit-xml=report.xml", "tests"]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    return tmp_path / "report.xml"


def test_the_table_is_what_was_recorded(report):
    assert table.table(table.rows(report)) == ROWS
