"""Oracles of hidden-channel permutations: the function stays, a planted order is found, a forgotten tensor shows."""

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torch.overrides import TorchFunctionMode

from eqbench.errors import Unsupported
from eqbench.symmetries import channels, permutation
from eqbench.symmetries.permutation import Space, apply, find_spaces, general_position, permute

SMALL_SWIN = {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
CASES = {  # name -> (size, options, units in all)
    "test_resnet": (64, {}, 672),
    "test_vit": (64, {"img_size": 64}, 1996),
    "test_convnext": (64, {}, 1800),
    "test_efficientnet": (64, {}, 964),
    "mobilenetv3_small_050": (64, {}, 3072),  # squeeze and excitation, hard swish
    "swin_tiny_patch4_window7_224": (56, SMALL_SWIN, 948),
    "test_vit3": (64, {"img_size": 64}, None),
    "test_byobnet": (64, {}, 784),
    "skresnet18": (64, {}, 3136),  # gates that two pooled images would saturate
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A network in general position, images, and its spaces."""
    size, options, units = CASES[request.param]
    torch.manual_seed(0)
    network = timm.create_model(request.param, num_classes=10, **options).eval()
    x = torch.randn(2, 3, size, size)
    return general_position(network, x), x.double(), find_spaces(network, x), units


def test_every_unit_is_found(case):
    _, _, found, units = case
    assert not found.refused
    assert units is None or sum(space.size for space in found.spaces) == units


@torch.no_grad()
def test_logits_stay(case):
    network, x, found, _ = case
    still, moved = network(x), apply(network, found.random(3))
    assert (moved(x) - still).norm() <= 1e-12 * still.norm()
    weights = dict(network.named_parameters())
    changed = [name for name, p in moved.named_parameters() if not torch.equal(p, weights[name])]
    assert len(changed) > 0.95 * len(weights) - 1  # all but the logits' bias, and one-number scales


@torch.no_grad()
def test_matching_recovers_a_planted_permutation(case):
    network, x, found, _ = case
    planted = apply(network, found.random(4))
    a, b = dict(network.named_parameters()), dict(planted.named_parameters())
    back = apply(planted, found.match(a, b))
    assert all(torch.equal(p, a[name]) for name, p in back.named_parameters())
    assert (back(x) - network(x)).norm() <= 1e-12 * network(x).norm()


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_a_place_left_out_changes_the_logits(case, seed):
    """Mutation: each space without one of its tensors, running statistics among them, is no symmetry."""
    network, x, found, _ = case
    still = network(x)
    generator = torch.Generator().manual_seed(seed)
    space = found.spaces[int(torch.randint(len(found.spaces), (), generator=generator))]
    left_out = int(torch.randint(len(space.members), (), generator=generator))
    members = tuple(m for i, m in enumerate(space.members) if i != left_out)
    wrong = Space(space.name, space.size, members)
    order = torch.arange(space.size).roll(1)
    assert (apply(network, {wrong: order})(x) - still).norm() > 1e-6 * still.norm()
    assert (apply(network, {space: order})(x) - still).norm() <= 1e-12 * still.norm()


@torch.no_grad()
def test_running_statistics_move_too():
    """Mutation: parameters alone, without batch norms' buffers."""
    network = timm.create_model("test_resnet", num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    found, model = find_spaces(network, x), general_position(network, x)
    still, pi = model(x.double()), found.random(0)
    moved = permute(dict(model.named_parameters()), pi)
    logits = torch.func.functional_call(model, moved, (x.double(),))
    assert (logits - still).norm() > 1e-3 * still.norm()


def test_two_heads_are_really_exchanged():
    """A random order of two is the identity every other time: wrong heads of gcvit's windows would pass."""
    network = timm.create_model("gcvit_xxtiny", img_size=96).eval()
    found = find_spaces(network, torch.randn(2, 3, 96, 96))
    assert "stages.0.blocks.0.attn.qkv (groups)" in found.refused
    assert torch.equal(permutation._cycle(torch.tensor([2, 0, 1])), torch.tensor([1, 2, 0]))


def test_no_attention_is_saturated_in_general_position():
    """Where it is, any order of queries leaves the logits alone: shvit's would pass for a symmetry that its Hessian lacks."""
    network, x = timm.create_model("shvit_s1").eval(), torch.randn(2, 3, 128, 128)
    found = find_spaces(network, x)
    assert len(found.spaces) > 20
    # Queries, keys and values in one layer, without heads: no one knows which are queries, so none is even proposed.
    assert not any("mixer.m.qkv" in name for name in (*found.refused, *(space.name for space in found.spaces)))
    model, x = general_position(network, x), x.double()
    gradient = torch.autograd.grad(model(x)[:, 0].sum(), list(model.parameters()))
    size = {name: float(g.norm()) for (name, _), g in zip(model.named_parameters(), gradient, strict=True)}
    assert min(size[name] for name in size if name.endswith("qkv.c.weight")) > 1e-6 * max(size.values())


@torch.no_grad()
def test_activations_do_not_grow_in_general_position():
    """Attention over positions lets through more where it is sharper: narrower norms would sharpen it block by block."""
    small = {"block_size": 4, "halo_size": 1}
    torch.manual_seed(0)
    network, x = timm.create_model("halonet_h1", self_attn_kwargs=small).eval(), torch.rand(2, 3, 128, 128)
    model = general_position(network, x)
    largest = []

    class Softmax(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            if func is torch.Tensor.softmax:
                largest.append(float(y.amax(-1).median()))
            return y

    with Softmax():
        model(x.double())
    assert len(largest) == 19
    assert max(largest) < 0.5


class Interleaved(nn.Module):
    """Two layers' channels in turns, so that only the data flow tells which is which; the first two of one are off."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mix, self.head = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(12, 5, 3),
            nn.Linear(5, 4),
        )
        with torch.no_grad():
            self.a.bias.fill_(1.0)[:2] = -100.0
            self.b.bias.fill_(1.0)

    def forward(self, x):
        both = torch.stack([self.a(x).relu(), self.b(x).relu()], 2).flatten(1, 2)
        return self.head(self.mix(both).tanh().mean((2, 3)))


def test_units_that_no_image_excites_are_not_proposed(monkeypatch):
    """Mutation: without the rule two of them are a space, by their writer's rows and by their reader's columns."""
    torch.manual_seed(0)
    network, x = Interleaved(), torch.rand(2, 3, 8, 8)

    def proposed() -> set[tuple[str, int]]:
        return {(space.name, space.size) for space in permutation._spaces(channels.channels(network, x))}

    assert proposed() == {("a", 4), ("b", 6), ("mix", 5)}
    monkeypatch.setattr(channels, "_alone", lambda met: [])
    assert proposed() == {("a", 4), ("b", 6), ("mix", 5), ("a", 2), ("mix", 2)}


@torch.no_grad()
@pytest.mark.parametrize("independent", [True, False])
def test_spaces_are_confirmed_on_other_weights(monkeypatch, independent):
    """Mutation: on those that propose. Two inputs of a projection that no image excites, once proposed, would pass."""
    torch.manual_seed(0)
    network, x = timm.create_model("efficientvit_m0", img_size=96, num_classes=10).eval(), torch.rand(2, 3, 96, 96)
    model, images = permutation._random(network, x, seed=2).double(), x.double()
    monkeypatch.setattr(channels, "_alone", lambda met: [])
    if not independent:
        monkeypatch.setattr(permutation, "general_position", lambda *given: permutation._random(*given).double())
    found, still = find_spaces(network, x), model(images)
    order = {space: permutation._cycle(pi) for space, pi in found.random(0).items()}
    moved = apply(model.train().eval(), order)(images)
    assert ((moved - still).norm() < 1e-12 * still.norm()) == independent


def test_a_permutation_is_orthogonal_and_composes():
    network = timm.create_model("test_vit", num_classes=10, img_size=64).eval()
    found = find_spaces(network, torch.randn(2, 3, 64, 64))
    v = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    moved = permute(v, found.random(1))
    for name, piece in v.items():
        assert torch.equal(piece.flatten().sort().values, moved[name].flatten().sort().values)


class Grouped(nn.Module):
    """A grouped convolution between two free ones: its groups can be exchanged, and the channels inside each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.grouped(self.stem(x).relu()).relu().mean((2, 3)))


@torch.no_grad()
def test_groups_of_a_convolution():
    network, x = Grouped().eval(), torch.randn(2, 3, 9, 9)
    found = find_spaces(network, x)
    assert [space.size for space in found.spaces if space.inner] == [4]
    assert sorted(space.size for space in found.spaces if not space.inner) == [2] * 4 + [3] * 4
    network, x = network.double(), x.double()
    planted = apply(network, found.random(5))
    assert (planted(x) - network(x)).abs().max() < 1e-12
    back = apply(planted, found.match(dict(network.named_parameters()), dict(planted.named_parameters())))
    assert all(torch.equal(p, q) for p, q in zip(back.parameters(), network.parameters(), strict=True))


class Gated(nn.Module):
    """Concatenated branches, then a gate of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 10, 3)
        self.both, self.head = nn.Conv2d(16, 14, 1), nn.Linear(7, 5)

    def forward(self, x):
        z = self.both(torch.cat([self.left(x), self.right(x)], 1).relu())
        a, b = z.chunk(2, 1)
        return self.head((a * b.sigmoid()).mean((2, 3)))


@torch.no_grad()
def test_concatenated_branches_and_gates():
    network, x = Gated().eval(), torch.randn(2, 3, 9, 9)
    found = find_spaces(network, x)
    assert sorted(space.size for space in found.spaces) == [6, 7, 10]
    moved = apply(network.double(), found.random(0))
    assert (moved(x.double()) - network(x.double())).abs().max() < 1e-12


def test_tokens_are_no_channels():
    """What is proposed and refuted is said: the tokens of a mixer are an order of positions, not of channels."""
    network = MlpMixer(num_classes=10, img_size=64, patch_size=16, num_blocks=2, embed_dim=48).eval()
    found = find_spaces(network, torch.randn(2, 3, 64, 64))
    assert 48 in {space.size for space in found.spaces}
    assert all("changes the logits" in reason for reason in found.refused.values())


def test_a_network_without_hidden_channels():
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(Unsupported, match="no hidden channels"):
        find_spaces(network, torch.randn(2, 3, 9, 9))


def test_gains_of_standardised_weights_move_with_their_channels():
    torch.manual_seed(0)
    network = timm.create_model("test_nfnet", num_classes=5).eval()
    found = find_spaces(network, torch.randn(2, 3, 64, 64))
    places = {member.place.tensor for space in found.spaces for member in space.members}
    gains = {name for name, p in network.named_parameters() if name.endswith(".gain") and p.ndim == 4}
    assert len(gains) > 10
    assert gains <= places
    assert not found.refused
