"""The orbit probe against its definitions, written out naively; exact cases; statistics of its intervals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import eqbench
from eqbench import results
from eqbench.errors import UserError
from eqbench.groups import get
from eqbench.metrics import METRICS
from eqbench.metrics.ladder import LADDER
from eqbench.probes import RUN, base, orbit
from eqbench.probes.notebook import tensor_subject
from eqbench.results import Status
from eqbench.schema import PROBES, Orbit
from eqbench.stats import STORED, bootstrap, resamples, unpack

N, C = 24, 5


class Net(nn.Module):
    """Small, and anything but symmetric."""

    def __init__(self, classes: int = C) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(classes))

    def forward(self, x):
        return 4 * self.body(x)


@pytest.fixture
def case():
    torch.manual_seed(0)
    x, y = torch.rand(N, 3, 9, 9), torch.randint(C, (N,))
    net = Net()
    net(x)
    return net, x, y


def naive(net, x, y, name, placebo):
    """Every metric by its definition, an image and an element at a time, in float64 on the float32 logits."""
    group = get(name)
    with torch.no_grad():
        logits = [[net(group.act(image[None], g))[0].double() for g in group.elements()] for image in x]
    still = torch.stack([row[0] for row in logits])
    mean = still.mean(0)
    gaps = [sum(float((f - row[0]).square().sum()) for f in row[1:]) / (len(row) - 1) for row in logits]
    found = {"lattice_error": math.sqrt(sum(gaps) / sum(float((f - mean).square().sum()) for f in still))}
    losses, mixed, entropies, mixed_entropies, agree, orbit_right = [], [], [], [], [], []
    cosines, distances = [], []
    for row, label in zip(logits, y, strict=True):
        p = [f.softmax(0) for f in row]
        average = sum(p) / len(p)
        losses.append(sum(-math.log(q[label]) for q in p) / len(p))
        mixed.append(-math.log(average[label]))
        entropies.append(sum(-float((q * q.log()).sum()) for q in p) / len(p))
        mixed_entropies.append(-float((average * average.log()).sum()))
        cosines += [1 - float(q @ average / (q.norm() * average.norm())) for q in p]
        distances += [float((q - average).norm()) for q in p]
        agree += [int(q.argmax() == p[0].argmax()) for q in p[1:]]
        orbit_right += [int(q.argmax() == label) for q in p]
    found["symmetry_share"] = 1 - sum(mixed) / sum(losses)
    found["js_share"] = 1 - sum(entropies) / sum(mixed_entropies)
    found["js_divergence"] = (sum(mixed_entropies) - sum(entropies)) / len(x) / math.log(2)
    found["orbit_cosine"], found["orbit_distance"] = sum(cosines) / len(cosines), sum(distances) / len(distances)
    found["consistency"] = sum(agree) / len(agree)
    found["orbit_accuracy"] = sum(orbit_right) / len(orbit_right)
    top = [int(row[0].argmax()) for row in logits]
    moved = [int(f.argmax()) for row in logits for f in row[1:]]
    chance = sum(top.count(c) / len(top) * moved.count(c) / len(moved) for c in range(C))
    found["kappa"] = (found["consistency"] - chance) / (1 - chance)
    found["accuracy"] = sum(t == int(label) for t, label in zip(top, y, strict=True)) / len(top)
    if placebo:
        other = naive(net, x, y, placebo, None)
        found["placebo_gap"] = other["symmetry_share"] - found["symmetry_share"]
        found["js_gap"] = other["js_share"] - found["js_share"]
    return found


@pytest.mark.parametrize(("name", "placebo"), [("hflip", "vflip"), ("c4", "d2_diagonal"), ("d4", "d4_shifted")])
def test_against_the_definitions(case, name, placebo):
    net, x, y = case
    expected = naive(net, x, y, name, placebo)
    labelled = eqbench.probe("orbit", net, x, y, name, placebo=placebo).metrics
    for metric in labelled.keys() - {"lattice_error_aligned", "aligned_size"} - {metric.name for metric in LADDER}:
        assert labelled[metric].value == pytest.approx(expected[metric], abs=1e-6), metric
    free = eqbench.probe("orbit", net, x, None, name, placebo=placebo).metrics
    assert free["js_share"].value == pytest.approx(expected["js_share"], abs=1e-6)
    assert free["placebo_gap"].value == pytest.approx(expected["js_gap"], abs=1e-6)
    assert free.keys().isdisjoint({"symmetry_share", "accuracy", "orbit_accuracy"})


@pytest.mark.parametrize(
    ("place", "mutant", "metric"),
    [
        (
            "log_mean_exp",
            lambda log_p: log_p.mean(0),
            "symmetry_share",
        ),  # the mean of the logs, not the log of the mean
        ("mean_entropy", lambda log_p: -log_p.mean(-1), "js_share"),
        (
            "lattice_error",
            lambda orbit: lambda w: np.sqrt(w @ (orbit[1] - orbit[0]).square().sum(1).numpy()),
            "lattice_error",
        ),
    ],
)
def test_the_definitions_notice_a_mutation(case, monkeypatch, place, mutant, metric):
    net, x, y = case
    monkeypatch.setattr(orbit, place, mutant)
    labels = None if metric == "js_share" else y
    value = eqbench.probe("orbit", net, x, labels, "hflip").metrics[metric].value
    assert abs(value - naive(net, x, y, "hflip", None)[metric]) > 1e-3


def test_an_invariant_network_is_found_invariant(case):
    net, x, y = case

    class Averaged(nn.Module):
        def forward(self, x):
            return torch.stack([net(get("d4").act(x, g)) for g in get("d4").elements()]).mean(0)

    found = eqbench.probe("orbit", Averaged(), x, y, "d4").metrics
    assert found["lattice_error"].value < 1e-5
    assert abs(found["symmetry_share"].value) < 1e-6
    assert found["consistency"].value == found["kappa"].value == 1
    assert found["placebo_gap"].lo > 1e-3


def test_shuffled_pairs_are_the_null(case):
    """E of unrelated images is about sqrt 2, and every moved image is paired with another one's."""
    net, x, _ = case
    found = eqbench.probe("orbit", net, x, None, "hflip").metrics
    assert 1.2 < found["lattice_error"].null < 1.7


@pytest.mark.parametrize("sizes", [[1] * 9, [2] * 8, [1, 2, 3, 4], [5, 1, 1], [7], [3, 3]])
def test_strangers_are_of_other_clusters(sizes):
    """A derangement; images stay in a cluster only where the others are too few, the rest of the largest one."""
    n = sum(sizes)
    clusters = np.random.RandomState(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    other = base.another(n, clusters).numpy()
    assert sorted(other) == list(range(n))
    assert (other != np.arange(n)).all()
    assert (clusters[other] == clusters).sum() == max(0, 2 * max(sizes) - n)
    assert (base.another(n, clusters).numpy() == other).all()
    assert (base.another(n) == base.another(n, np.arange(n))).all()


NULLS = {
    "orbit": ("hflip", "lattice_error"),
    "sweep": ("hue", "sweep_error"),
    "consistency": ("hue", "consistency_js"),
}


@pytest.mark.parametrize("probe", NULLS)
def test_nulls_know_clusters(case, probe):
    """Of twice the same images, the null is that of pairs that are no copies of each other."""
    net, x, _ = case
    half = x[: len(x) // 2]
    pairs, n = np.tile(np.arange(len(half)), 2), 2 * len(half)
    name, key = NULLS[probe]
    conf = PROBES[probe](images=n, resamples=100)
    nulls = []
    for clusters in (None, pairs, np.zeros(n)):
        subject = tensor_subject(net, torch.cat([half, half]))
        subject.clusters = clusters
        nulls.append(RUN[type(conf)](subject, get(name), None, conf).metrics[key].null)
    assert nulls[0] == nulls[2] != nulls[1]  # one cluster leaves no choice


def test_constant_logits_have_no_error_to_report(case, tmp_path):
    _, x, y = case

    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), C)

    found = eqbench.probe("orbit", Constant(), x, y, "hflip").metrics
    assert found["lattice_error"].value is None
    assert found["lattice_error"].reason == "the logits are the same for every image"
    assert "one class" in found["kappa"].reason
    result = eqbench.probe("orbit", Constant(), x, y, "hflip")
    results.write(result, tmp_path / "result.json")  # a curve without numbers is written as such
    assert results.read(tmp_path / "result.json").curves == {"lattice_error_by_element": [None]}
    assert found["symmetry_share"].value == pytest.approx(0, abs=1e-12)


def test_large_common_offset_does_not_cancel():
    """The spread is taken after centring: an offset of 1e4 leaves the error as it is."""
    torch.manual_seed(0)
    still, moved = torch.randn(40, C).double(), torch.randn(40, C).double()
    w = np.ones((1, 40))
    plain = orbit.lattice_error([still, moved])(w)
    assert orbit.lattice_error([still + 1e4, moved + 1e4])(w) == pytest.approx(plain, rel=1e-6)


def test_every_logit_is_computed_once(case):
    """d4 holds hflip and vflip and transpose: after d4 they cost no forward, whatever the order of the cells.

    Their layers cost one pass each, of the image and the generator.
    """
    net, x, y = case
    subject = tensor_subject(net.eval(), x, y)
    orbit.run(subject, get("d4"), get("d4_shifted"), Orbit(images=N))
    before = subject.forwards
    orbit.run(subject, get("hflip"), get("vflip"), Orbit(images=N, layers=False))
    assert subject.forwards == before
    alone = orbit.run(subject, get("hflip"), get("vflip"), Orbit(images=N))
    assert subject.forwards == before + 2 * N
    assert alone == orbit.run(tensor_subject(net.eval(), x, y), get("hflip"), get("vflip"), Orbit(images=N))


def test_the_pass_over_layers_gives_the_logits_too(case):
    """Without it the orbit costs |G| forwards an image and size; with it, where the native size is the aligned one, too."""
    _, x, y = case
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, C)).eval()
    costs = {}
    for layers in (False, True):
        subject = tensor_subject(net, x, y)
        found = orbit.run(subject, get("d4"), None, Orbit(images=N, layers=layers))
        assert found.metrics["aligned_size"].value == subject.size
        costs[layers] = subject.forwards
    assert costs == {False: 8 * N, True: 8 * N}


@pytest.mark.parametrize(("images", "batch"), [(2, 32), (5, 32), (9, 1), (9, 4)])
def test_few_images_and_any_batch(case, images, batch):
    """Floors are taken on one batch of at most `floor_images`, however the images come."""
    _, x, y = case
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, C))
    found = eqbench.probe("orbit", net, x[:images], y[:images], "hflip", batch=batch, floor_images=4).metrics
    assert found["lattice_error"].n == images
    assert found["lattice_error"].floor < 1e-4 < found["lattice_error"].value


def test_an_architecture_without_an_aligned_size_has_no_floor_and_says_so(case):
    net, x, y = case  # its flattened map meets a dense layer: mirrored kernels do not make it invariant
    found = eqbench.probe("orbit", net, x, y, "hflip").metrics
    assert found["lattice_error"].floor is None
    assert "no aligned size near 9 px" in found["lattice_error_aligned"].reason


def test_clusters_widen_intervals():
    """Eight copies of each of 20 images are 20 images: their interval, not one a square root of 8 narrower."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=20)
    copies = np.repeat(values, 8)

    def mean_of(x):
        return lambda w: w @ x / w.sum(1)

    alone = bootstrap(mean_of(values), 20, 1000)
    assert bootstrap(mean_of(copies), 160, 1000, np.repeat(np.arange(20), 8)) == pytest.approx(alone)
    _, lo, hi = bootstrap(mean_of(copies), 160, 1000)
    assert (hi - lo) * 2 < alone[2] - alone[1]


def test_failures_are_rows(case):
    _, x, y = case

    class Features(nn.Module):
        def forward(self, x):
            return x

    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), C), math.nan)

    class Pair(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x

    assert eqbench.probe("orbit", Pair(), x, y, "hflip").status is Status.skipped
    features = eqbench.probe("orbit", Features(), x, y, "hflip")
    assert (features.status, features.metrics) == (Status.skipped, {})
    assert "(2, 3, 9, 9)" in features.reason
    beyond = eqbench.probe("orbit", Net(2), x, y, "hflip")
    assert (beyond.status, beyond.reason) == (Status.skipped, "labels go up to 3, and the network has 2 logits")
    broken = eqbench.probe("orbit", Broken(), x, y, "hflip")
    assert broken.status is Status.failed
    assert "not finite" in broken.reason


def test_out_of_memory_is_a_row_and_any_other_error_is_not(case, monkeypatch):
    net, x, y = case
    monkeypatch.setitem(RUN, Orbit, lambda *_: torch.empty(10**14))
    found = eqbench.probe("orbit", net, x, y, "hflip")
    assert (found.status, "out of memory" in found.reason) == (Status.failed, True)
    monkeypatch.setitem(RUN, Orbit, lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        eqbench.probe("orbit", net, x, y, "hflip")


def test_the_module_is_left_as_it_was(case):
    net, x, y = case
    net.train()
    net.body[1].eval()
    eqbench.probe("orbit", net, x, y, "hflip")
    assert net.training
    assert not net.body[1].training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "orbt"}, "did you mean 'orbit'"),
        ({"group": "hflop"}, "did you mean 'hflip'"),
        ({"group": "none"}, "needs a finite group"),
        ({"resample": 3}, "did you mean 'resamples'"),
        ({"resamples": 3}, "at least 100"),
        ({"resamples": "many"}, "resamples|Integer"),
        ({"images": torch.rand(4, 1, 8, 8)}, r"expected \(n, 3, H, H\)"),
        ({"images": torch.rand(8, 3, 8, 8) * 255}, r"\[0, 1\]"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels: expected \(24,\)"),
        ({"labels": torch.zeros(N)}, "labels: expected an int64 tensor, got torch.float32"),
        ({"labels": torch.full((N,), -1)}, "labels"),
        ({"images": torch.rand(1, 3, 8, 8)}, "at least 2"),
        ({"images": np.zeros((8, 3, 8, 8))}, "float tensor"),
        ({"mean": [0.5], "std": [0.5]}, "3 numbers"),
        ({"batch": 0}, "at least 1"),
        ({"mean": [0.5] * 3}, "both"),
    ],
)
def test_mistakes_are_named(case, change, words):
    net, x, y = case
    arguments = {"name": "orbit", "module": net, "images": x, "labels": y, "group": "hflip"} | change
    with pytest.raises(UserError, match=words):
        eqbench.probe(**arguments)


def test_precision_settings_are_left_as_they_were(case):
    net, x, y = case
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        eqbench.probe("orbit", net, x, y, "hflip")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_normalisation_outside_equals_inside(case):
    net, x, y = case
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])

    class Inside(nn.Module):
        def forward(self, x):
            return net((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))

    inside = eqbench.probe("orbit", Inside(), x, y, "hflip")
    outside = eqbench.probe("orbit", net, x, y, "hflip", mean=mean.tolist(), std=std.tolist())
    assert outside.metrics["lattice_error"].value == pytest.approx(inside.metrics["lattice_error"].value, rel=1e-5)


def test_resamples_are_the_same_for_everyone():
    first = resamples(20, 300)
    resamples.cache_clear()
    assert (resamples(20, 300) == first).all()
    assert (first.sum(1) == 20).all()


@pytest.mark.parametrize(("probe", "group"), [("orbit", "hflip"), ("sweep", "rotation"), ("lie", "rotation")])
def test_cells_keep_replicates_of_the_metrics_that_are_compared(case, probe, group, tmp_path):
    net, x, y = case
    found = eqbench.probe(probe, net, x, y, group)
    kept = [name for name, measure in found.metrics.items() if measure.replicates]
    assert kept == [name for name in found.metrics if METRICS[name].replicated] != []
    measure = found.metrics[next(name for name in kept if METRICS[name].rank)]
    drawn = unpack(measure.replicates)
    assert (len(drawn), measure.units) == (STORED, len(x))
    assert 2 * 1.96 * drawn.std() == pytest.approx(measure.hi - measure.lo, rel=0.25), "of the same statistic"
    assert np.mean((measure.lo < drawn) & (drawn < measure.hi)) == pytest.approx(0.95, abs=0.04)
    path = tmp_path / "cell.json"
    results.write(found, path)
    assert results.read(path).metrics == found.metrics
    bare = replace(found, metrics={name: replace(m, units=None, replicates=None) for name, m in found.metrics.items()})
    whole = path.stat().st_size
    results.write(bare, path)
    assert 0 < whole - path.stat().st_size < 4096 * len(kept)
    assert "replicates" not in path.read_text()
    assert results.read(path).metrics == bare.metrics, "as older versions wrote them"


def test_large_sets_are_drawn_in_blocks(monkeypatch):
    x = np.arange(50.0)
    whole = bootstrap(lambda w: w @ x / w.sum(1), 50, 4000)
    monkeypatch.setattr("eqbench.stats.BLOCK", 5000)
    assert bootstrap(lambda w: w @ x / w.sum(1), 50, 4000) == pytest.approx(whole, rel=0.03)


def test_intervals_cover():
    """95 % intervals of the lattice error hold the population's value in 90-98 % of 300 samples of 100 images."""
    rng = np.random.default_rng(0)
    truth, hits = math.sqrt((0.2**2 + 0.2 * 0.8 + 0.8**2) / 3), 0  # E scale^2, the spread being 1
    for _ in range(300):
        still = rng.normal(size=(100, C))
        scale = rng.uniform(0.2, 0.8, size=(100, 1))
        moved = still + scale * rng.normal(size=(100, C))
        _, lo, hi = bootstrap(orbit.lattice_error([torch.from_numpy(still), torch.from_numpy(moved)]), 100, 500)
        hits += lo <= truth <= hi
    assert 0.90 * 300 <= hits <= 0.985 * 300


def test_helpers():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    assert base.mean_entropy(p)[0] == pytest.approx(math.log(2))
    assert base.log_mean_exp(p).exp().tolist() == pytest.approx([0.7, 0.3])


class Tiny(nn.Module):
    """The network of the published numbers below: its k-th parameter is 0.5 frac(43758.5453 sin(12.9898 i + 78.233 k))."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.GELU())
        self.head = nn.Linear(16, 10)
        for k, p in enumerate(self.parameters()):
            i = torch.arange(p.numel(), dtype=torch.float64)
            p.data = (0.5 * (43758.5453 * torch.sin(12.9898 * i + 78.233 * k)).frac()).float().reshape(p.shape)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def test_distances_to_the_orbits_centre_are_those_of_tagtorch():
    """G-EED of the softmax under C4 on one image: KL 8.129404e-4 nat, cosine 1.026675e-3, Euclid 1.347430e-2; twirl .0016."""
    line = torch.linspace(-1, 1, 33)
    y, x = torch.meshgrid(line, line, indexing="ij")
    image = torch.stack([torch.sin(3 * x + 2 * y), torch.cos(4 * x * y), torch.exp(-4 * (x**2 + (y - 0.2) ** 2))])[None]
    with torch.no_grad():
        logits = [Tiny()(get("c4").act(image, g)).double() for g in get("c4").elements()]
    found = {name: float(statistic(np.ones((1, 1)))[0]) for name, statistic in orbit.spreads(logits).items()}
    assert found["js_divergence"] * math.log(2) == pytest.approx(8.129404e-4, rel=1e-4)
    assert found["orbit_cosine"] == pytest.approx(1.026675e-3, rel=1e-4)
    assert found["orbit_distance"] == pytest.approx(1.347430e-2, rel=1e-4)
    share = orbit.shares(logits, torch.tensor([6]))["symmetry_share"]
    assert float(share(np.ones((1, 1)))[0]) == pytest.approx(0.0016, abs=5e-5)
    raw = orbit.spreads([logits[0], logits[0], *logits[2:]])  # Mutation: one turn left out
    assert float(raw["orbit_distance"](np.ones((1, 1)))[0]) != pytest.approx(1.347430e-2, rel=1e-2)
