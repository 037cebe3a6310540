"""The profile for clusters, without one: what it says, and that nothing else names an engine."""

import itertools
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROFILE = ROOT / "conf/slurm/profile.yaml"


def test_rules_name_no_engine():
    """Resources that every executor knows; partitions, accounts and constraints are a profile's."""
    text = (ROOT / "Snakefile").read_text()
    assert not re.search(r"slurm|sbatch|srun|kubernetes|\blsf\b|\bsge\b", text, re.IGNORECASE)
    blocks = re.findall(r"^    resources:\n((?:        .*\n)+)", text, re.MULTILINE)
    assert blocks
    names = {name for block in blocks for name in re.findall(r"^        (\w+)=", block, re.MULTILINE)}
    assert names == {"gpu", "mem_mb", "overrides", "runtime"}
    assert "retries" not in text


def test_every_key_of_the_profile_is_explained():
    """Beside it, or in the line above; keys below another one count as that one's."""
    lines = PROFILE.read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"[a-z]", line) and line != "default-resources:":
            assert "#" in line or above.startswith("#"), line
    assert [line for line in lines if line.startswith("  ") and "#" not in line] == [
        "  train: {gpu: 1}",
        "  probe: {gpu: 1}",
    ]


def test_the_readme_lists_the_sites_lines():
    readme = (ROOT / "conf/slurm/README.md").read_text()
    named = re.findall(r"^\| (\d) \| `([\w-]+)[^`]*`", readme, re.MULTILINE)
    profile = PROFILE.read_text()
    assert [number for number, _ in named] == re.findall(r"\((\d)\)", profile) == list("12345")
    assert all(key in profile for _, key in named if key != "gpu")


def test_the_profile_asks_again_and_asks_for_parts_one_by_one():
    profile = yaml.safe_load(PROFILE.read_text())
    assert profile["retries"] == 2
    assert profile["keep-going"] is profile["slurm-requeue"] is True
    assert not {"group-components", "groups", "slurm-array-jobs"} & set(profile)  # one failure would cost the others
    assert set(profile["default-resources"]) == {"slurm_partition"}  # the rules know memory and time
