"""The ladder against a dense float64 reference, exact equivariance, published numbers; what it refuses; what it costs."""

import copy
import itertools
import math

import numpy as np
import pytest
import timm
import torch
from equivariant import p4, pictures, smears
from scipy.optimize import linear_sum_assignment
from torch import nn

import eqbench
from eqbench.errors import Unsupported, UserError
from eqbench.features import Kind, Layer, Taps
from eqbench.groups import FiniteGroup, get
from eqbench.probes.base import Subject
from eqbench.probes.ladders import ladder as ladders
from eqbench.probes.ladders import layers
from eqbench.probes.ladders.ladder import CHANCE, RUNGS, Ladder
from eqbench.probes.ladders.positions import Positions
from eqbench.probes.ladders.similarity import NormalisedVariance, hsic, unrelated
from eqbench.probes.notebook import tensor_subject
from eqbench.results import Status
from eqbench.schema import Orbit

CPU = torch.device("cpu")


def net(seed=0, classes=4):
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.GELU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, classes)).eval()


def measured(module, x, group, size=None, batch=5, **options):
    subject = tensor_subject(module.eval(), x, batch=batch)
    return layers.measure(
        subject, get(group) if isinstance(group, str) else group, size or x.shape[-1], Orbit(**options)
    )


def value(rows, layer, rung):
    (row,) = (row for row in rows if row.name == layer)
    return row.metrics[f"layer_error_{rung}"].value


# --- against a dense reference ----------------------------------------------------------------------------------------


def dense(module, x, group, ridge):
    """Every layer's errors in float64, all features in memory, position by position: name -> (rungs, its null's rungs)."""
    subject = tensor_subject(module, x)
    elements = [group.elements()[0], *group.generators()]
    taps = Taps(module, x)
    with taps.recording() as maps, torch.no_grad():
        features = {}
        for g in elements:
            module(group.act(x, g))
            features[g] = {name: z.double() for name, z in maps.items()}
    found = {}
    for layer in taps.layers:
        still = features[elements[0]][layer.name]
        moved, chance = [], None
        for g in group.generators():
            turned = features[g][layer.name]
            back = turned
            if layer.kind is Kind.map and group.spatial:
                back = group.act_features(
                    turned, next(h for h in group.elements() if group.multiply(h, g) == elements[0])
                )
            moved.append(_errors(still, turned, back, subject.fitted, ridge))
            if chance is None:
                order = torch.from_numpy(subject.order)
                half = int(subject.fitted.sum())
                other = torch.empty(len(x), dtype=torch.long)
                for start, end in [*_batches(0, half), *_batches(half, len(x))]:
                    other[order[start:end]] = order[start:end].roll(-((end - start) // 2))
                chance = _errors(still, turned[other], back[other], subject.fitted, ridge)
        found[layer.name] = np.sqrt(np.mean(moved, 0)), np.sqrt(chance)
    return found


def _batches(start, end, size=5):
    return [(i, min(i + size, end)) for i in range(start, end, size)]


def _errors(a, c, b, fitted, ridge):
    """Squared relative errors of the four rungs."""

    def rows(z, half):
        return z[half].movedim(1, -1).reshape(-1, z.shape[1]).numpy()

    fit_a, fit_b = rows(a, fitted), rows(b, fitted)
    mean_a, mean_b = fit_a.mean(0), fit_b.mean(0)
    fit_a, fit_b = fit_a - mean_a, fit_b - mean_b
    test_a, test_b, test_c = rows(a, ~fitted) - mean_a, rows(b, ~fitted) - mean_b, rows(c, ~fitted) - mean_b
    n, channels = fit_a.shape
    scores = fit_a.T @ fit_b / n
    stay = math.sqrt(2 * math.log(channels) / n) * fit_a.std(0) * fit_b.std(0)
    source, target = linear_sum_assignment(scores + np.diag(stay), maximize=True)
    permute = np.zeros((channels, channels))
    permute[target, source] = 1  # (P a)_target = a_source
    gram = fit_a.T @ fit_a / n
    penalty = ridge * channels / n * np.diag(np.diag(gram))
    mix = permute + (np.linalg.pinv(gram + penalty) @ fit_a.T @ (fit_b - fit_a @ permute.T) / n).T
    residuals = [test_c - test_a, test_b - test_a, test_b - test_a @ permute.T, test_b - test_a @ mix.T]
    return [(r**2).sum() / (test_b**2).sum() for r in residuals]


@pytest.mark.parametrize("group", ["hflip", "d4", "rgb_cycle"])
def test_against_a_dense_reference(group):
    module, x = net(), pictures(24, 13)
    expected = dense(module, x, get(group), Orbit().ridge)
    rows, found = measured(module, x, group)
    assert [row.name for row in rows] == list(expected)
    for row in rows:
        own, chance = expected[row.name]
        for i, rung in enumerate(RUNGS):
            metric = row.metrics[f"layer_error_{rung}"]
            assert metric.value == pytest.approx(own[i], rel=1e-5), (row.name, rung)
            assert metric.null == pytest.approx(chance[i], rel=1e-5), (row.name, rung)
            assert metric.lo < metric.value < metric.hi
    maps = [row.name for row in rows if math.prod(row.shape[1:]) > 1]
    for i, rung in enumerate(RUNGS):
        mean = np.mean([expected[name][0][i] for name in maps])
        assert found[f"layer_error_{rung}"].value == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("place", "mutant"),
    [
        ("eqbench.groups.lattice.LatticeGroup.inverse", lambda self, g: g),  # R_g for R_g^-1
        ("eqbench.probes.ladders.ladder.match", lambda scores: torch.arange(len(scores))),
        ("eqbench.probes.ladders.ladder.Ladder.solve", None),  # fitted to the images that it is judged on
    ],
)
def test_the_reference_notices_a_mutation(monkeypatch, place, mutant):
    module, x = net(), pictures(24, 13)
    expected = dense(module, x, get("c4"), Orbit().ridge)
    if mutant is None:
        monkeypatch.setattr(Subject, "fitted", property(lambda self: np.arange(self.n) % 3 > 0))
    else:
        monkeypatch.setattr(place, mutant)
    rows, _ = measured(module, x, "c4")
    off = [
        abs(value(rows, name, rung) / own[i] - 1) for name, (own, _) in expected.items() for i, rung in enumerate(RUNGS)
    ]
    assert max(off) > 1e-2


def test_the_result_does_not_depend_on_the_batch():
    module, x = net(), pictures(24, 13)
    first, second = (measured(module, x, "d4", batch=batch)[0] for batch in (5, 12))
    for a, b in zip(first, second, strict=True):
        for rung in RUNGS:
            assert value([a], a.name, rung) == pytest.approx(value([b], b.name, rung), rel=1e-4)


# --- exact symmetries -------------------------------------------------------------------------------------------------


def test_p4_is_equivariant_by_a_permutation_alone():
    """33 px: worse than unrelated if only positions move, exact if channels do too; the permutation is the known one."""
    torch.manual_seed(0)
    module, x = p4(filters := 6), pictures(24, 33)
    rows, found = measured(module, x, "c4")
    for layer in "0123":
        assert value(rows, layer, "spatial") > 1
        assert value(rows, layer, "permuted") < 1e-5
        assert value(rows, layer, "fitted") < 1e-5
        assert value(rows, layer, "permuted") < 1e-4 * value(rows, layer, "trivial")
    assert value(rows, "logits", "trivial") < 1e-5
    assert found["layer_error_permuted"].hi < 1e-5 < 1 < found["layer_error_permuted"].null

    subject = tensor_subject(module, x)
    taps = Taps(module, x)
    (turn,) = get("c4").generators()
    climbed = [Ladder(layer, get("c4"), 33, 10.0, CPU) for layer in taps.layers[:4]]
    layers.climb(subject, get("c4"), 33, taps, climbed)
    for climb in climbed:
        partner = climb.fits[turn].partner
        index = torch.arange(4 * filters).view(4, filters)
        assert torch.equal(partner.view(4, filters), index.roll(1, 0))  # turned once more
        assert torch.equal(partner[partner[partner[partner]]], index.flatten())
        assert not torch.equal(partner[partner], index.flatten())


def test_a_filter_that_is_not_turned_breaks_p4():
    """Mutation: one turn of the first layer is a copy of another."""
    torch.manual_seed(0)
    module = p4()
    weight = module[0].weight.data
    weight[18:] = weight[12:18]
    rows, _ = measured(module, pictures(24, 33), "c4")
    assert value(rows, "0", "permuted") > 0.1


def test_a_fixed_representation_ranks_wrongly():
    """Equivariance that permutes channels loses to none at all under the fixed map, and wins under the others."""
    torch.manual_seed(0)
    x = pictures(24, 33)
    exact, none = (measured(module, x, "c4")[1] for module in (p4(), smears()))
    assert exact["layer_error_spatial"].lo > none["layer_error_spatial"].hi
    for rung in ("permuted", "fitted"):
        assert exact[f"layer_error_{rung}"].hi < none[f"layer_error_{rung}"].lo


def test_flipped_kernels_are_the_flipped_network():
    """f_gθ(gx) = f_θ(x) where the grid is symmetric, and only there."""
    torch.manual_seed(0)
    module = timm.create_model("resnet18").eval()
    flipped = copy.deepcopy(module)
    for layer in flipped.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.flip(-1)
    error = {}
    for size in (225, 224):
        x = torch.rand(4, 3, size, size)
        with torch.no_grad():
            still = module(x)
            error[size] = float((flipped(x.flip(-1)) - still).norm() / (still - still.mean(0)).norm())
    assert error[225] < 5e-5
    assert error[224] > 0.1


def test_a_vit_without_position_embedding_does_not_see_order():
    torch.manual_seed(0)
    module, x = timm.create_model("test_vit", img_size=64, num_classes=5).eval(), pictures(16, 64)
    before = eqbench.probe("orbit", module, x, None, "patches_16", floor_images=4, resamples=100)
    module.pos_embed.data.zero_()
    after = eqbench.probe("orbit", module, x, None, "patches_16", floor_images=4, resamples=100)
    for metric in ("lattice_error", "layer_error_spatial"):
        assert after.metrics[metric].value < 1e-5
        assert before.metrics[metric].value > 1e-2
    for row in after.layers:
        rung = "layer_error_spatial" if math.prod(row.shape[1:]) > 1 else "layer_error_trivial"
        assert row.metrics[rung].value is None or row.metrics[rung].value < 1e-5, row.name


def test_colours_permute_channels():
    """Channel (r, i) sees the colours rotated r times: the cycle of RGB moves r, and no position."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 12, 3, bias=False)
    base = torch.randn(4, 3, 3, 3)
    first.weight.data = torch.cat([base.roll(r, 1) for r in range(3)])
    module = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)).eval()
    rows, _ = measured(module, pictures(24, 13), "rgb_cycle")
    for layer in ("0", "1"):
        assert value(rows, layer, "spatial") == value(rows, layer, "trivial") > 0.5
        assert value(rows, layer, "permuted") < 1e-5


def test_an_invariant_layer_has_no_error():
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    rows, found = measured(module, pictures(16, 9), "d4")
    for row in rows:
        assert row.metrics["layer_error_trivial"].value < 1e-5
        assert row.metrics["layer_cka"].value == pytest.approx(1, abs=1e-5)
        assert row.metrics["layer_variance"].value < 1e-5
    assert found["layer_error_trivial"].value is None
    assert found["layer_error_trivial"].reason == layers.NO_MAPS


# --- statistics -------------------------------------------------------------------------------------------------------


def fed(a, b, group="hflip", ridge=10.0, fit=None):
    """A ladder fed with maps: fitted to the first half, tested on the second; `fit` says on how many of the first."""
    (g,) = get(group).generators()
    climb = Ladder(Layer("x", 0.0, Kind.map, tuple(a.shape[1:])), get(group), 32, ridge, CPU)
    half = len(a) // 2
    for start, step in ((0, climb.fit), (half, climb.test)):
        for i in range(start, start + (fit or half) if start == 0 else len(a), 8):
            end = min(i + 8, start + half)
            climb.take(a[i:end], None, i)
            climb.take(get(group).act_features(b[i:end], g), g, i)
            step(*map(torch.from_numpy, layers.strangers(np.arange(i, end), None)))
        if start == 0:
            climb.solve()
    energy, *residuals = torch.cat(climb.errors[g], 1).sum(1)
    return climb, [math.sqrt(r / energy) for r in residuals]


def test_unrelated_features_are_not_fitted():
    """Few images and many channels: a fitted map predicts nothing, and says so because it is judged on other images."""
    a, b = torch.randn(2, 32, 48, 3, 3, generator=torch.Generator().manual_seed(0))
    climb, (trivial, spatial, _, fitted) = fed(a, b, ridge=1e-3)
    energy, *chance = torch.cat(climb.errors[CHANCE], 1).sum(1)
    assert fitted > 1
    assert fitted > 0.95 * math.sqrt(chance[-1] / energy)
    assert spatial == pytest.approx(math.sqrt(2), rel=0.05)
    assert trivial == pytest.approx(math.sqrt(2), rel=0.05)
    _, (*_, own) = fed(torch.cat([a[:16], a[:16]]), torch.cat([b[:16], b[:16]]), ridge=1e-3)
    assert own < 0.9  # Mutation: judged on what it was fitted to, it seems to know something


def test_each_rung_contains_the_one_below():
    """On the images fitted to, without shrinkage, errors fall from rung to rung; held out, they do where images are many."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(64, 12, 4, 4, generator=generator)
    mix = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q + 2 * torch.eye(12)[torch.randperm(12)]
    b = torch.einsum("ij,bjhw->bihw", mix, a) + 0.3 * torch.randn(a.shape, generator=generator)
    for x, y in ((a, b), (torch.cat([a[:32]] * 2), torch.cat([b[:32]] * 2))):
        _, (_, spatial, permuted, fitted) = fed(x, y, ridge=1e-6)
        assert spatial > permuted > fitted > 0.05


def test_chance_has_a_map_of_its_own():
    a = torch.randn(64, 12, 4, 4, generator=torch.Generator().manual_seed(0)).cumsum(1)
    climb, own = fed(a, a)
    assert max(own[1:]) < 1e-5
    energy, _, spatial, _, fitted = torch.cat(climb.errors[CHANCE], 1).sum(1)
    assert math.sqrt(spatial / energy) == pytest.approx(math.sqrt(2), rel=0.1)
    assert math.sqrt(fitted / energy) == pytest.approx(1, rel=0.1)


def test_a_channel_moves_only_for_a_gain_beyond_chance():
    """32 images of one position: assignment alone would permute what is nearly itself."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(128, 1, 1, 1, generator=generator)
    a, b = (common + 0.5 * torch.randn(128, 40, 1, 1, generator=generator) for _ in range(2))
    climb, (_, spatial, permuted, _) = fed(a, b)
    (g,) = get("hflip").generators()
    assert (climb.fits[g].partner == torch.arange(40)).float().mean() > 0.9
    assert permuted == pytest.approx(spatial, rel=0.02)


def test_memory_does_not_grow_with_images():
    def held(thing):
        if isinstance(thing, torch.Tensor):
            return thing.numel()
        if isinstance(thing, dict):
            return sum(map(held, thing.values()))
        if isinstance(thing, list | tuple):
            return sum(map(held, thing))
        return held(vars(thing)) if type(thing).__module__.startswith("eqbench.probes") else 0

    a = torch.randn(160, 6, 5, 5)
    small, large = (fed(a[:n], a[:n])[0] for n in (32, 160))
    for climb in (small, large):
        assert [len(z[0]) for z in climb.errors.values()] == [1 + len(RUNGS)] * 2  # scalars an image
        climb.errors.clear()
        climb.hsic.clear()
    assert held(small) == held(large) > 0


def test_intervals_are_over_held_out_clusters():
    module, x = net(), pictures(12, 13).repeat_interleave(2, 0)
    subject = tensor_subject(module, x, batch=5)
    subject.clusters = np.repeat(np.arange(12), 2)
    assert all(len(set(subject.fitted[2 * i : 2 * i + 2])) == 1 for i in range(12))
    assert subject.fitted.sum() == 12
    _, wide = layers.measure(subject, get("hflip"), 13, Orbit())
    metric = "layer_error_permuted"
    assert wide[metric].hi - wide[metric].lo > 0
    assert wide[metric].n == 12


@pytest.mark.parametrize("clusters", [None, [0] * 20, [0] * 9 + list(range(1, 12)), [*range(10), *range(10)]])
def test_halves(clusters):
    x = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 3, 4, 4) / 20
    subject = tensor_subject(net(), x, batch=6)
    subject.clusters = None if clusters is None else np.array(clusters)
    parts = list(subject.halves(4))
    assert torch.equal(torch.cat(parts), x[subject.order])
    fitted = [subject.fitted[np.rint(20 * part[:, 0, 0, 0].numpy()).astype(int)] for part in parts]
    assert all(len(set(half)) == 1 for half in fitted)
    assert [len(part) for part in parts if len(part) < 6] in ([4, 4], [2], [5, 3], [4], [5], [3, 5])
    if clusters != [0] * 20:
        assert 9 <= subject.fitted.sum() <= 11


@pytest.mark.parametrize("count", [1, 2, 5])
def test_strangers_share_no_cluster(count):
    images = np.arange(3, 3 + count)
    left, right = layers.strangers(images, None)
    assert sorted(left) == sorted(right) == list(range(count)) * (count > 1)
    assert (left != right).all()
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    left, right = layers.strangers(images, clusters)
    assert (clusters[images[left]] != clusters[images[right]]).all()
    assert len(left) == {1: 0, 2: 0, 5: 4}[count]


def test_a_stranger_is_half_a_batch_away():
    """Where images of a class come together, the next one would be of the same class."""
    assert layers.strangers(np.arange(8), None)[1].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


# --- CKA and normalised variance --------------------------------------------------------------------------------------


def test_hsic_is_the_average_over_distinct_images():
    """The U-statistic by its definition (Song et al. 2012, eq. 4): all quadruples of different images."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    k, l = x @ x.T, (x + 0.3 * y) @ (x + 0.3 * y).T  # noqa: E741
    quads = list(itertools.permutations(range(7), 4))
    mean = sum(float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])) for i, j, q, r in quads) / len(quads)
    assert float(hsic(k, l)) == pytest.approx(mean, rel=1e-9)
    centre = torch.eye(7, dtype=torch.float64) - 1 / 7
    biased = float((centre @ k @ centre * (centre @ l @ centre)).sum() / 36)
    assert abs(biased - mean) > 0.1 * mean  # Mutation: the usual, biased estimate


def test_four_images_are_too_few_to_tell_pairs_from_strangers():
    """HSIC of four sees no more than how they fall into two pairs; of five, it sees an exchange."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for n, alike in ((4, True), (5, False)):
        k = x[:n] @ x[:n].T
        left, right = map(torch.from_numpy, layers.strangers(np.arange(n), None))
        other = k[right][:, right]
        assert torch.allclose(hsic(k[left][:, left], other), hsic(k, k)) == alike
    _, found = measured(net(), pictures(16, 13), "hflip", batch=4)
    assert found["layer_cka"].reason == layers.SMALL


def test_cka_has_no_bias_where_features_outnumber_images():
    """Unrelated features have CKA 0 on average, although the biased estimate is near 1; equal ones have 1."""
    a, b = torch.randn(2, 256, 200, 2, 2, generator=torch.Generator().manual_seed(0))
    climb, _ = fed(a, b)
    (g,) = get("hflip").generators()
    own, _, _ = torch.cat(climb.hsic[g], 1).sum(1) / torch.cat(climb.hsic[g], 1).sum(1)[1]
    assert abs(float(own)) < 0.15
    same, _ = fed(a, a)
    ab, aa, bb = torch.cat(same.hsic[g], 1).sum(1)
    assert float(ab / (aa * bb).sqrt()) == pytest.approx(1, abs=1e-5)
    ab, aa, bb = torch.cat(same.hsic[CHANCE], 1).sum(1)
    assert abs(float(ab / (aa * bb).sqrt())) < 0.15


def test_cka_is_blind_to_rotations_of_the_features():
    torch.manual_seed(0)
    rows, _ = measured(p4(), pictures(32, 33), "c4", batch=8)
    for row in rows:
        assert row.metrics["layer_cka"].value == pytest.approx(1, abs=1e-4)


def shifted(x, t):
    """tmeasures' translation: t in image sides, bilinear, borders replicated."""
    theta = torch.tensor([[1.0, 0.0, 2 * t[0]], [0.0, 1.0, 2 * t[1]]]).expand(len(x), 2, 3)
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def test_normalised_variance_is_that_of_tmeasures():
    """Numbers of tmeasures 1.2.11 on this network, images and translations."""
    torch.manual_seed(0)
    x = torch.randn(32, 3, 17, 17)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    moves = [(0, 0), (1 / 17, 0), (0, 1 / 17), (-1 / 17, 0)]
    own = [NormalisedVariance() for _ in range(8)]
    with torch.no_grad():
        for part in x.split(7):
            features = []
            for t in moves:
                z, each = shifted(part, t), []
                for layer in body:
                    each.append(z := layer(z))
                features.append(each)
            for layer, maps in enumerate(zip(*features, strict=True)):
                own[layer].update(maps)
                own[4 + layer].update([shifted(z, (-t[0], -t[1])) for z, t in zip(maps, moves, strict=True)])
    values = [float(nv.value()) for nv in own]
    assert values[:4] == pytest.approx([0.92924, 0.85220, 0.92046, 0.82061], abs=1.5e-5)
    assert values[4:] == pytest.approx([0.16351, 0.14293, 0.86121, 0.78899], abs=1.5e-5)
    within = [nv._within.mean() / nv.count for nv in own[:4]]
    assert within == pytest.approx([0.52513, 0.27826, 0.16196, 0.09227], abs=1.5e-5)
    assert values[0] != pytest.approx(
        0.92924 * math.sqrt(3 / 4) / math.sqrt(31 / 32), abs=1e-2
    )  # Mutation: divided by n


def test_normalised_variance_knows_nothing_and_everything():
    z = torch.randn(3, 200, 50, generator=torch.Generator().manual_seed(0))
    free, same, dead = NormalisedVariance(), NormalisedVariance(), NormalisedVariance()
    free.update(list(z))
    same.update([z[0], z[0], z[0]])
    dead.update([torch.zeros(4, 2)] * 3)
    assert float(free.value()) == pytest.approx(unrelated(3), rel=0.01)
    assert float(same.value()) == 0
    assert float(dead.value()) == 1
    assert dead.constant
    assert not same.constant


# --- positions --------------------------------------------------------------------------------------------------------


class Smooth(FiniteGroup):
    """A half turn that blurs: no cell is moved to a cell."""

    name, exact = "smooth", False

    def elements(self):
        return (0, 1)

    def generators(self):
        return (1,)

    def multiply(self, g, h):
        return (g + h) % 2

    def keeps_shape(self, g):
        return True

    def act(self, x, g):
        turned = x.rot90(2, (-2, -1)) if g else x
        return (turned + turned.roll(1, -1)) / 2 if g else x


class Circular(Smooth):
    """Circular shifts of 9 x 9 cells: one orbit."""

    name, exact = "circular", True

    def elements(self):
        return tuple(itertools.product(range(9), range(9)))

    def generators(self):
        return ((1, 0), (0, 1))

    def inverse(self, g):
        return (-g[0] % 9, -g[1] % 9)

    def act(self, x, g):
        return x.roll(g, (-2, -1))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("least", "few"), [(7, 5), (40, 100), (1000, 20)])
@pytest.mark.parametrize("group", ["hflip", "d4", "d4_shifted", "smooth"])
def test_positions_read_what_moving_the_whole_map_gives(monkeypatch, group, least, few, last):
    monkeypatch.setattr("eqbench.probes.ladders.positions.LEAST", least)
    monkeypatch.setattr("eqbench.probes.ladders.positions.FEW", few)
    group = Smooth() if group == "smooth" else get(group)
    z = torch.randn(3, 9 * 9, 5).mT.unflatten(-1, (9, 9))
    z = z if last else z.contiguous()
    places = Positions((5, 9, 9), group, 36, CPU)
    grid = torch.arange(81.0).view(1, 1, 9, 9).expand(3, -1, -1, -1)
    common, _ = places.few(grid, None)
    assert (common == common[0]).all()
    for g in group.generators():
        back = group.act_features(z, group.inverse(g), 36)
        cases = [(common, z, places.few(z, g)[0]), (common, back, places.few(z, g)[1])]
        for start in (0, 5):
            here = places.plain(grid, start)
            cases += [(here, z, places.plain(z, start)), (here, back, places.pulled(z, g, start))]
        for here, whole, read in cases:
            assert torch.equal(read, whole.flatten(2).mT.gather(1, here.long().expand(-1, -1, 5)))
            assert read.is_contiguous()


def test_every_position_is_read_equally_often():
    """1024 images of 128 of 1024 cells: each cell 128 times, whatever the batches."""
    places = Positions((512, 32, 32), get("d4"), 64, CPU)
    grid = torch.arange(1024.0).view(1, 1, 32, 32)
    whole = places.plain(grid.expand(1024, -1, -1, -1), 0).flatten(1).long()
    assert (whole.flatten().bincount() == 128).all()
    assert all(len(set(cells)) == 128 for cells in whole[:50].tolist())
    assert torch.equal(places.plain(grid.expand(24, -1, -1, -1), 1000).flatten(1).long(), whole[1000:])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("group", "most", "cells"), [("d4", 40, 40), ("d4", 81, 81), ("circular", 40, 81)])
def test_images_are_compared_at_whole_orbits(monkeypatch, group, most, cells, last):
    """So that inner products of turned maps are those of the maps; all of them if there is but one orbit."""
    monkeypatch.setattr("eqbench.probes.ladders.positions.ORBITS", most)
    group = Circular() if group == "circular" else get(group)
    places = Positions((2, 9, 9), group, 9, CPU)
    z = torch.randn(3, 81, 2, dtype=torch.float64).mT.unflatten(-1, (9, 9))
    z = z if last else z.contiguous()
    read = places.compared(z).flatten(1)
    assert cells - 8 < read.shape[1] / 2 <= cells
    for g in group.generators():
        turned = places.compared(group.act_features(z, g)).flatten(1)
        torch.testing.assert_close(turned @ turned.T, read @ read.T)


def test_positions_drawn_give_nearly_the_error_of_all(monkeypatch):
    torch.manual_seed(0)
    module, x = net(), pictures(48, 65)
    some, _ = measured(module, x, "hflip")
    monkeypatch.setattr("eqbench.probes.ladders.positions.LEAST", 10**6)
    every, _ = measured(module, x, "hflip")
    for rung in RUNGS:
        assert value(some, "0", rung) == pytest.approx(value(every, "0", rung), rel=0.06)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_maps_that_a_turn_does_not_fit_are_refused():
    layer = Layer("x", 0.0, Kind.map, (4, 11, 6))
    with pytest.raises(UserError, match="11 x 6"):
        Ladder(layer, get("c4"), 33, 10.0, CPU)
    Ladder(layer, get("hflip"), 33, 10.0, CPU)


def test_patches_that_are_no_whole_cells_are_refused():
    rows, found = measured(net(), pictures(16, 16), "patches_4")
    assert [row.coverage for row in rows] == [0, 0, 0, 0, 1, 1]
    assert "no whole cells" in rows[0].reason
    assert rows[0].metrics == {}
    assert found["layer_coverage"].value == pytest.approx(1 / 3)
    assert found["layer_error_permuted"].value is None
    assert found["layer_error_permuted"].reason == layers.NO_MAPS


def test_too_many_channels_are_refused(monkeypatch):
    monkeypatch.setattr(ladders, "CHANNELS", 6)
    rows, _ = measured(net(), pictures(16, 13), "hflip")
    assert [row.coverage for row in rows] == [1, 1, 0, 0, 0, 1]
    assert rows[2].reason == "7 channels: more than 6 are not matched"


def test_a_network_without_a_measured_layer_says_so(monkeypatch):
    monkeypatch.setattr(ladders, "CHANNELS", 1)
    rows, found = measured(net(), pictures(16, 13), "hflip")
    assert all(row.coverage == 0 and row.reason for row in rows)
    assert found["layer_coverage"].value == 0
    assert found["layer_error_permuted"].reason == layers.NO_MAPS


def test_too_few_images_leave_the_output_measured():
    module, x = net(), pictures(16, 13)
    few = eqbench.probe("orbit", module, x[:7], None, "hflip", floor_images=4)
    assert few.status is Status.ok
    assert few.layers == []
    assert few.metrics["layer_error_permuted"].reason.startswith("7 images: layers need at least 8")
    subject = tensor_subject(module, x)
    subject.clusters = np.zeros(16, np.int64)
    with pytest.raises(Unsupported, match="depend on each other"):
        layers.measure(subject, get("hflip"), 13, Orbit())
    none = eqbench.probe("orbit", module, x, None, "hflip", floor_images=4, layers=False)
    assert none.layers == []
    assert not any(name.startswith("layer") for name in none.metrics)


def test_single_images_have_neither_strangers_nor_cka():
    rows, found = measured(net(), pictures(16, 13), "hflip", batch=1)
    assert rows[0].metrics["layer_error_permuted"].value > 0
    assert rows[0].metrics["layer_error_permuted"].null is None
    assert found["layer_cka"].reason == layers.SMALL


def test_a_layer_that_is_the_same_for_every_image_is_no_zero():
    pattern = torch.linspace(1, 2, 16).view(1, 1, 4, 4).expand(32, 5, 4, 4)
    climb, _ = fed(pattern, pattern)
    assert climb.constant
    constant = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(constant[-1].weight)
    rows, found = measured(constant, pictures(16, 9), "hflip")
    for name in ("layer_error_spatial", "layer_cka", "layer_variance"):
        assert rows[-1].metrics[name].value is None
        assert rows[-1].metrics[name].reason == layers.CONSTANT
    assert found["layer_error_spatial"].value > 0
