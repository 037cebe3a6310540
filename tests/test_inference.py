"""Every claim of the board by simulation: intervals cover, adjusted claims err rarely, detectable differences are found.

A simulated board draws what the real one is made of, images with heavy tails and seeds of its models, and goes through the
real code: replicates are drawn, packed and unpacked. Bounds of 93 and 97 % are three standard errors wide at 1,000 boards.
"""

import base64
import math
from dataclasses import replace

import numpy as np
import pytest
from board import DIGITS, fail, fill
from scipy import stats as scipy_stats

from eqbench import stats
from eqbench.inference import Spread, contrast, detectable, holm, sample, spread
from eqbench.leaderboard import load
from eqbench.meanranks import MeanRanks, friedman, mean_ranks, ranks
from eqbench.plots import critical_difference
from eqbench.results import Measure

BOARDS = 1000
CLASSES = 10


def covered(lo, hi, truth):
    return float(((lo <= truth) & (truth <= hi)).mean())


def ratio(gap, square):
    """E_G of many boards at once: the root of a ratio of means over images; (n, boards) each."""
    return lambda w: np.sqrt((w @ gap) / (w @ square))


# --- the bootstrap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [64, 256, 1000])
def test_bootstrap_intervals_cover(n):
    rng = np.random.default_rng(n)
    hard = np.exp(0.8 * rng.normal(size=(n, BOARDS)))  # an image that is hard for one network is hard for another
    square = rng.chisquare(CLASSES, (n, BOARDS))
    one, two = (scale**2 * hard * rng.chisquare(CLASSES, (n, BOARDS)) for scale in (0.8, 0.6))
    root = math.exp(0.16)  # [E hard]^(1/2)
    loss = np.exp(rng.normal(size=(n, BOARDS)))
    kept = loss * rng.beta(6, 2, (n, BOARDS))
    cases = {
        "lattice error": (ratio(one, square), 0.8 * root),
        "share": (lambda w: 1 - (w @ kept) / (w @ loss), 0.25),
        "paired difference": (lambda w: ratio(one, square)(w) - ratio(two, square)(w), 0.2 * root),
    }
    for name, (statistic, truth) in cases.items():
        _, lo, hi = stats.intervals(statistic, n, 1000)
        assert 0.93 - 0.01 * (n < 100) <= covered(lo, hi, truth) <= 0.97, name


def test_a_handful_of_clusters_widens_intervals_as_students_t_does():
    clusters = np.repeat(np.arange(9), 4)
    x = np.random.default_rng(0).normal(size=(9, 4 * BOARDS))[clusters]
    _, lo, hi = stats.intervals(lambda w: w @ x / 36, 36, 2000, clusters)
    assert 0.93 <= covered(lo, hi, 0.0) <= 0.97
    _, lo, hi = stats.intervals(lambda w: w @ x / 36, 36, 200, clusters * 0)
    assert np.isnan(lo).all(), "one cluster says nothing of its error"


def test_replicates_are_of_the_first_resamples_whatever_their_number():
    x = np.random.default_rng(0).normal(size=300)
    kept = stats.unpack(stats.replicates(lambda w: w @ x / 300, 300)["replicates"])
    many = stats.samples(lambda w: (w @ x / 300)[:, None], 300, 2000)[:, 0]
    assert kept == pytest.approx(many[: stats.STORED], rel=1e-5, abs=1e-7)
    assert len(stats.replicates(lambda w: w @ x, 300)["replicates"]) < 4096
    clusters = np.repeat(np.arange(60), 5)
    assert stats.replicates(lambda w: w @ x, 300, clusters)["units"] == 60


# --- images and seeds ---------------------------------------------------------------------------------------------------


def simulated(rng, rows, seeds, n, image, interaction, spreads, shared=None, groups=1):
    """Measures [row][seed] of true value 1, which differ by image (all alike), image x network and seed.

    Args:
        image, interaction, spreads: standard deviations of the mean over n images, and (rows,) of the seeds.
        shared: (n,) how hard the images are: drawn with a heavy tail, if None.
        groups: how many rows are of one model: they share half of the image x network variance.
    """
    hard = hardness(rng, n) if shared is None else shared
    own = rng.normal(size=(rows, seeds, n))
    if groups > 1:
        own = (own + rng.normal(size=(rows // groups, seeds, n)).repeat(groups, 0)) / math.sqrt(2)
    own *= interaction * math.sqrt(n)
    true = 1 + spreads[:, None] * rng.normal(size=(rows, seeds))
    each = true[..., None] + hard * image * math.sqrt(n) + own
    return packed(each.reshape(rows * seeds, n), rows)


def hardness(rng, n):
    """Log-normal, of mean 0 and variance 1."""
    return (np.exp(rng.normal(size=n)) - math.exp(0.5)) / math.sqrt(math.e * (math.e - 1))


def packed(each, rows):
    """(rows * seeds, n) values of images -> measures [row][seed] of their means, as cells keep them."""
    n = each.shape[1]
    drawn = stats.resamples(n, stats.STORED) @ each.T / n
    found = []
    for value, own in zip(each.mean(1), drawn.T, strict=True):
        text = base64.b64encode(own.astype("<f4").tobytes()).decode()
        half = 1.96 * own.std()
        found.append(Measure(value, value - half, value + half, n, units=n, replicates=text))
    seeds = len(found) // rows
    return [found[i * seeds : (i + 1) * seeds] for i in range(rows)]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("image", "between"), [(0.01, 0.05), (0.05, 0.05), (0.05, 0.01)], ids=["seeds", "both", "images"]
)
def test_intervals_over_images_and_seeds_cover(seeds, image, between):
    rng = np.random.default_rng(seeds)
    hits = []
    for _ in range(BOARDS):
        spreads = between * np.exp(0.4 * rng.normal(size=6))  # models differ in how alike their seeds are
        board = simulated(rng, 6, seeds, 64, image, image, spreads)
        around = spread([[m.value for m in own] for own in board])
        own = sample(board[0], around)  # one model a board: those of a board share their images
        lo, hi = contrast((1, own)).ends
        hits.append(lo <= 1 <= hi)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_the_widest_error_is_taken_without_replicates():
    rng = np.random.default_rng(0)
    for own in simulated(rng, 20, 3, 64, 0.05, 0.02, np.full(20, 0.03)):
        bare = [Measure(m.value, m.lo, m.hi, m.n) for m in own]
        paired, loose = (contrast((1, sample(some, Spread(9e-4, math.inf, 40)))) for some in (own, bare))
        assert loose.error > 0.97 * paired.error
        assert paired.paired
        assert not loose.paired
    a, b = (Measure(value, value - 0.1, value + 0.1) for value in (0.5, 0.2))
    assert contrast((1, sample([a])), (-1, sample([b]))).ends == pytest.approx((0.1, 0.5))


def test_what_has_no_value_or_interval_is_no_sample():
    assert sample([]) is None
    assert sample([Measure(0.5, 0.4, 0.6), Measure(None, reason="diverged")]) is None
    assert sample([Measure(0.5)]) is None
    other = Measure(0.5, 0.4, 0.6, units=8, replicates=stats.replicates(lambda w: w.sum(1) * np.nan, 8)["replicates"])
    assert sample([other]).draws is None, "replicates that are undefined pair nothing"


def test_a_spread_follows_its_models():
    rng = np.random.default_rng(0)
    alike = spread(rng.normal(size=(400, 3)).tolist())
    assert alike.variance == pytest.approx(1, rel=0.1)
    assert alike.prior > 15, "models of equal variance"
    differing = spread((rng.normal(size=(400, 3)) * np.exp(rng.normal(size=(400, 1)))).tolist())
    assert differing.prior < 5, "models that differ say little of each other"
    assert spread([[1.0], [2.0]]) == Spread()
    alone = spread([[1.0, 3.0]])
    assert alone.moderated([1.0, 3.0]) == (2.0, 1.0), "the only model with seeds has its own variance"


# --- claims -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
def test_claims_of_emergence_err_on_one_board_in_twenty(seeds):
    rng = np.random.default_rng(seeds)
    rows, n, wrong, single = 16, 128, [], []
    for _ in range(BOARDS):
        hard = hardness(rng, n)
        spreads = np.full(rows, 0.02 if seeds > 1 else 0.0)
        states = [simulated(rng, rows, seeds, n, 0.05, 0.02, spreads, hard, groups=4) for _ in range(2)]
        around = [spread([[m.value for m in own] for own in state]) for state in states]
        p = []
        for final, init in zip(*states, strict=True):
            found = contrast((1, sample(final, around[0])), (-1, sample(init, around[1])))
            assert found.paired
            p.append(found.p)
        wrong.append(min(holm(p)) < 0.05)
        single.append(p[0] < 0.05)
    assert np.mean(wrong) <= 0.05
    assert 0.03 <= np.mean(single) <= 0.07, "one claim by itself"


def test_paired_claims_find_what_conservative_ones_miss():
    rng = np.random.default_rng(0)
    hard = hardness(rng, 128)
    (final,), (init,) = (simulated(rng, 1, 1, 128, 0.05, 0.005, np.zeros(1), hard) for _ in range(2))
    final = [
        Measure(m.value - 0.05, m.lo - 0.05, m.hi - 0.05, m.n, units=m.units, replicates=m.replicates) for m in final
    ]
    bare = [[Measure(m.value, m.lo, m.hi, m.n) for m in own] for own in (final, init)]
    assert contrast((1, sample(final)), (-1, sample(init))).p < 1e-4
    assert contrast((1, sample(bare[0])), (-1, sample(bare[1]))).p > 0.5


def test_detectable_differences_are_found_in_four_of_five_cases():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(BOARDS):
        board = simulated(rng, 2, 1, 128, 0.05, 0.02, np.zeros(2))
        one, two = (sample(own) for own in board)
        apart = contrast((1, one), (-1, two))
        found.append(apart.ends[0] + detectable([one, two]) > 0)  # had the first been larger by that much
    assert 0.77 <= np.mean(found) <= 0.83


def test_detectable_differences_are_the_median_over_pairs():
    rng = np.random.default_rng(0)
    board = simulated(rng, 5, 2, 64, 0.05, 0.02, np.full(5, 0.02))
    around = spread([[m.value for m in own] for own in board])
    samples = [sample(own, around) for own in board]
    samples[4] = sample([Measure(m.value, m.lo, m.hi) for m in board[4]], around)  # an old cell among them
    each = []
    for i in range(5):
        for j in range(i):
            pair = contrast((1, samples[i]), (-1, samples[j]))
            each.append(pair.error * (scipy_stats.t.ppf(0.975, pair.df) + scipy_stats.t.ppf(0.8, pair.df)))
    assert detectable(samples) == pytest.approx(np.median(each), rel=1e-6)
    assert math.isnan(detectable(samples[:1]))


def test_holm():
    """Against the definition, worked out by hand."""
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).size == 0
    assert math.isnan(holm([math.nan, 0.2])[0])
    assert holm([math.nan, 0.2])[1] == 0.2


def test_ranks_separate_models_that_are_apart_and_rarely_order_equal_ones():
    rng = np.random.default_rng(0)
    wrong, order = [], []
    for _ in range(BOARDS):
        board = simulated(rng, 6, 1, 128, 0.02, 0.02, np.zeros(6))
        ends = [contrast((1, sample(own))).ends for own in board]
        wrong.append(max(best for best, _ in ranks(ends, False)) > 1)
        moved = [(lo + 0.2 * i, hi + 0.2 * i) for i, (lo, hi) in enumerate(ends)]
        order.append(ranks(moved, False) == [(i + 1, i + 1) for i in range(6)])
    assert np.mean(wrong) <= 0.05, "six equal models"
    assert np.mean(order) > 0.95, "six models that are ten standard errors apart"


# --- several groups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("models", "groups"), [(3, 4), (5, 8), (20, 6)])
def test_critical_differences_err_on_one_board_in_twenty(models, groups):
    rng = np.random.default_rng(models * groups)
    wrong = 0
    for _ in range(BOARDS):
        found, p, distance = friedman(rng.normal(size=(groups, models)))
        wrong += p < 0.05 and np.ptp(found) > distance
    assert wrong / BOARDS <= 0.05
    assert wrong / BOARDS >= 0.005, "nor are they never apart"


def test_mean_ranks_of_a_published_example():
    """Demšar 2006, table 6: four classifiers on 14 data sets; mean ranks 3.143, 2.000, 2.893, 1.964, CD 1.25.

    The last but one is printed as 975, 975 with the ranks 2 and 3.
    """
    accuracies = np.array(
        [[763, 768, 771, 798], [599, 591, 590, 569], [954, 971, 968, 967], [628, 661, 654, 657], [882, 888, 886, 898],
         [936, 931, 916, 931], [661, 668, 609, 685], [583, 583, 563, 625], [775, 838, 866, 875], [1000, 1000, 1000, 1000],
         [940, 962, 965, 962], [619, 666, 614, 669], [972, 981, 975, 974], [957, 978, 946, 970]]
    )  # fmt: skip
    found, p, distance = friedman(-accuracies)
    assert found == pytest.approx([3.143, 2.0, 2.893, 1.964], abs=5e-4)
    assert distance == pytest.approx(1.25, abs=5e-3)
    assert 0.01 < p < 0.05, "F = 3.69 of 3 and 39 degrees of freedom; a little more with the ties counted"


@pytest.fixture
def ranked(tmp_path):
    """A board on which three of four models on digits are ranked under every finite group, in the same order."""

    def change(cell, result):
        if cell.probe != "orbit" or cell.state != "final":
            return result
        if (cell.model, cell.group) == ("vit_digits", "d4"):
            return fail(result, "out of memory")
        value = 0.1 + 0.2 * sorted(DIGITS).index(cell.model) if cell.model in DIGITS else 0.5
        result.metrics["lattice_error_aligned"] = Measure(value, value - 0.01, value + 0.01, 200)
        return result

    return load(fill(tmp_path, change=change), tmp_path)


def test_mean_ranks_are_of_models_that_are_ranked_under_all_groups(ranked):
    (found,) = mean_ranks(ranked.table)
    assert (found.metric, found.data, found.groups) == (
        "lattice_error_aligned",
        "digits",
        ("hflip", "vflip", "c4", "d4"),
    )
    assert list(found.ranks.items()) == [(model, i + 1) for i, model in enumerate(sorted(set(DIGITS) - {"vit_digits"}))]
    assert found.p == pytest.approx(1 / 6**3), "three more groups in the order of the first"
    first, second, third = found.ranks
    assert found.apart(first, third)
    assert not found.apart(first, second)
    assert not replace(found, p=0.2).apart(first, third), "Friedman's test comes first"
    mirrored = ranked.table.assign(lattice_error_aligned=-ranked.table["lattice_error_aligned"])
    assert list(mean_ranks(mirrored)[0].ranks) == [third, second, first]
    assert mean_ranks(ranked.table[ranked.table["group"] == "c4"]) == [], "one group"
    assert mean_ranks(ranked.table[ranked.table["model"] != first]) == [], "two models"


def test_the_diagram_joins_what_does_not_differ(ranked, tmp_path):
    titles = {}
    figure = critical_difference.draw(ranked, titles)
    first, second, third = mean_ranks(ranked.table)[0].ranks
    said = [text for texts in titles.values() for text in texts]
    joined = [text for text in said if text.startswith("not known to differ")]
    assert joined == [f"not known to differ: {first}, {second}", f"not known to differ: {second}, {third}"]
    assert f"{first}: mean rank 1 of 3 over hflip, vflip, c4, d4" in said
    assert any("CD 1.66; Friedman p = 0.005" in text.get_text() for text in figure.axes[0].texts)
    ones = [cell for cell in ranked.plan.cells if cell.model == "efficientnet_lite0"]
    alone = load(
        fill(tmp_path / "alone", change=lambda cell, result: result if cell in ones else None), tmp_path / "alone"
    )
    assert critical_difference.draw(alone, {}) is None


def test_a_board_of_many_models_shows_the_best():
    ranks = {f"model_{i:03d}": float(i + 1) for i in range(300)}
    some = critical_difference.bars(MeanRanks("lie_ratio", "digits", ("hue", "scale"), ranks, 0.001, 5.5))
    assert some[0] == [f"model_{i:03d}" for i in range(6)]
    assert max(model for run in some for model in run) == "model_023"
