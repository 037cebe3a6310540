"""The placebo oracle on real training: what d4 augmentation teaches, and only that, shows in the symmetry share."""

import shutil
from pathlib import Path

import pytest

from eqbench import cli, options, results

ROOT = Path(__file__).parents[1]
MODELS = ("convnext_digits", "convnext_digits_d4")
GROUPS = ("hflip", "c4", "d4")


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """(model, state, group) -> metrics, with the demo's own recipes."""
    folder = tmp_path_factory.mktemp("digits")
    shutil.copytree(ROOT / "conf", folder / "conf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options.load.cache_clear()
        options.plain.cache_clear()
        for model in MODELS:
            assert cli.main(["train", f"model={model}"]) == 0
            for state in ("init", "final"):
                for group in GROUPS:
                    assert cli.main(["probe", "suite=demo", f"model={model}", f"state={state}", f"part={group}"]) == 0
        found = list(results.read_all(sorted(Path("data/cells").rglob("*.json"))))
    return {(r.cell["model"], r.cell["state"], r.cell["group"]): r.metrics for r in found}


@pytest.mark.parametrize("group", GROUPS)
def test_augmentation_lowers_the_share_far_below_the_plain_networks(shares, group):
    plain, augmented = (shares[model, "final", group] for model in MODELS)
    assert augmented["symmetry_share"].hi < 0.5 * plain["symmetry_share"].lo
    assert augmented["lattice_error_aligned"].hi < 0.5 * plain["lattice_error_aligned"].lo
    assert augmented["kappa"].lo > plain["kappa"].hi


def test_the_placebo_is_not_learned(shares):
    """D4 about another centre was not in the augmentation: its share stays, so the gap opens; the plain one's does not."""
    plain, augmented = (shares[model, "final", "d4"]["placebo_gap"] for model in MODELS)
    assert augmented.lo > max(plain.hi, 0.1)


def test_a_placebo_that_was_trained_on_is_none(shares):
    """vflip and the diagonal mirrors are in d4: against them nothing can be told."""
    for group in ("hflip", "c4"):
        gap = shares["convnext_digits_d4", "final", group]["placebo_gap"]
        assert gap.value is None
        assert "part of the training augmentation d4" in gap.reason
        assert shares["convnext_digits", "final", group]["placebo_gap"].value is not None


@pytest.mark.parametrize("group", GROUPS)
def test_both_start_alike(shares, group):
    """The same seed gives the same initialisation: all that differs at the end, training made."""
    before, after = (shares[model, "init", group] for model in MODELS)
    assert before == after
    assert before["symmetry_share"].hi < 0.02  # who knows nothing loses nothing
