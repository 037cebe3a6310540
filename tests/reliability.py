"""make reliability: run the tests that record what they survived, and write reports/reliability.md from their report."""

import ast
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import psutil

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "reports/reliability.md"
AREAS = ["tests/faults", "tests/slurm", "tests/test_scale.py"]
HEADER = "| area | fault | tried | survived | bytes lost | figures | outcome |\n|---|---|--:|--:|--:|---|---|\n"


@dataclass
class Row:
    """One fault: the sums over all tests that tried it.

    Attributes:
        figures: name -> every value that was measured. wrong: why tests failed or were skipped; empty if none was.
    """

    tried: int = 0
    survived: int = 0
    bytes_lost: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, record: dict) -> None:
        self.tried += record["tried"]
        self.survived += record["survived"]
        self.bytes_lost += record["bytes_lost"]
        for name, value in record["figures"].items():
            self.figures.setdefault(name, []).append(value)

    def cells(self) -> list[str]:
        figures = [f"{name.replace('_', ' ')} {_span(values)}" for name, values in self.figures.items()]
        outcome = "; ".join(dict.fromkeys(self.wrong)) or ("ok" if self.tried == self.survived else "FAILED")
        return [str(self.tried), str(self.survived), str(self.bytes_lost), ", ".join(figures), outcome]


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def rows(report: Path) -> dict[tuple[str, str], Row]:
    """(area, fault) -> its row, in the order of the tests; a test that recorded nothing is a row by its own name."""
    found: dict[tuple[str, str], Row] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        below = Path(case.get("file", "")).parts[1:]
        area = below[0].removesuffix(".py").removeprefix("test_")
        records = [json.loads(p.get("value", "")) for p in case.iter("property") if p.get("name") == "reliability"]
        wrong = list(_wrong(case))
        name = (case.get("name") or "").removeprefix("test_").replace("_", " ")
        for record in records:
            found.setdefault((area, record["fault"]), Row()).add(record)
        if wrong or not records:
            row = found.setdefault((area, records[-1]["fault"] if records else name), Row())
            row.wrong += wrong or ["recorded nothing"]
            failed = not records and not any(text.startswith("skipped") for text in wrong)
            row.tried += failed
    return found


def _wrong(case: ElementTree.Element) -> Iterator[str]:
    for kind in ("failure", "error", "skipped"):
        for element in case.iter(kind):
            said = " ".join((element.get("message") or "").split())[:120]
            yield f"{'skipped' if kind == 'skipped' else 'FAILED'}: {said}"


def table(found: dict[tuple[str, str], Row]) -> str:
    """The rows as Markdown."""
    lines = [[area, fault, *row.cells()] for (area, fault), row in sorted(found.items(), key=lambda item: item[0][0])]
    return HEADER + "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def machine() -> str:
    """Where and of what the figures are."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    sources = ["eqbench", "Snakefile", "conf", "tests"]
    changed = subprocess.run([*git, "status", "--porcelain", "--", *sources], capture_output=True, text=True).stdout
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"Commit {commit or 'unknown'}{' with changes' if changed else ''}, {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.platform()}, Python {platform.python_version()}."
    )


def tests() -> Iterator[str]:
    """All tests of the areas, and of other files those that take the fixture `reliability`."""
    yield from AREAS
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        name = str(path.relative_to(ROOT))
        if name not in AREAS:
            for node in ast.parse(path.read_text()).body:
                takes = [a.arg for a in node.args.args] if isinstance(node, ast.FunctionDef) else []
                if "reliability" in takes and node.name.startswith("test_"):
                    yield f"{name}::{node.name}"


def main() -> int:
    """Run the tests, write the table; the exit code is pytest's."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        command = [sys.executable, "-m", "pytest", *(sys.argv[1:] or tests()), f"--junit-xml={report}"]
        apart = ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile", "-o", "junit_family=xunit1"]
        code = subprocess.run([*command, *apart], cwd=ROOT).returncode
        found = rows(report)
    TABLE.write_text(
        "# Reliability\n\nWhat the tests broke on purpose, and what came of it. Written by `make reliability`; do not edit.\n"
        f"{machine()}\n\n{table(found)}"
    )
    print(TABLE.relative_to(ROOT))
    return code


if __name__ == "__main__":
    sys.exit(main())
