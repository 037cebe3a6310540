"""The derive verb: models made of other models' weights, as state folders and a card like any other's."""

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from eqbench import data, feeding, models, preprocessing, schema, weights
from eqbench.combined import Ensemble, Twirled
from eqbench.config import Plan
from eqbench.costs import DERIVED
from eqbench.errors import Unsupported, UserError
from eqbench.fetch import versions
from eqbench.groups import FiniteGroup
from eqbench.groups.twin import blank, reset_batch_norm, symmetrise
from eqbench.groups.weights import act_on_weights
from eqbench.models import Network
from eqbench.options import digest
from eqbench.probes.landscape.group_action import canonical
from eqbench.schema import How, Source
from eqbench.symmetries.permutation import find_spaces, permute

IMAGES, BATCH = DERIVED  # of the training images, on which batch norms take their statistics anew
KEPT = ("timm", "recipe", "data")  # what a card says as the cards of its members do


def derive(plan: Plan, model_id: str, seed: str, root: Path) -> None:
    """Write root/<model>/<seed>/: every state that all members have, and last card.json, with the hashes of all it is made of.

    Run again, it gives the same bytes, and does nothing where they are there.

    Raises:
        UserError: a member's weights are missing or damaged, or cannot be averaged; says why.
    """
    conf, members, config = plan.option("model", model_id), plan.members(model_id, seed), plan.weights(model_id)
    cards = [weights.read_card(root, *member) for member in members]
    states = [state for state in sorted(cards[0]["states"]) if all(state in card["states"] for card in cards)]
    made = {state: [weights.check_state(root, *member, state) for member in members] for state in states}
    statistics = _Statistics(plan, conf)
    seen = statistics.images.sha256 if conf.how in (How.weights, How.matched) else None
    identity = digest([model_id, seed, config, made, seen, versions()])
    if weights.intact(root, model_id, seed, identity=identity):
        return
    weights.card_path(root, model_id, seed).unlink(missing_ok=True)
    group = plan.option("group", conf.group) if conf.group else None
    written, facts = {}, {}
    for state in states:
        networks = [models.load_state(weights.state_dir(root, *member, state)) for member in members]
        try:
            module = _combine(conf, networks, group, statistics)
        except Unsupported as reason:  # as an architecture whose channels cannot be matched
            raise UserError(f"conf/model/{model_id}.yaml: {conf.how}: {reason}") from None
        written[state] = models.save_state(module, weights.state_dir(root, model_id, seed, state))
        facts = models.facts(module)
    origin = {"of": str(conf.of), "seeds": " ".join(seed for _, seed in members)}
    origin |= {} if conf.how is None else {"averaged over": str(conf.group), "by": str(conf.how)}
    card = {
        "model": model_id,
        "seed": seed,
        "source": str(conf.source),
        "licence": conf.licence or cards[0].get("licence"),
        "origin": origin,
        "states": written,
        "made_of": {f"{m}/{s}/{state}": sha[i] for state, sha in made.items() for i, (m, s) in enumerate(members)},
        "facts": facts,
        "versions": versions(),
        "config": config,
        "identity": identity,
    }
    weights.write_card(root, model_id, seed, {key: cards[0][key] for key in KEPT if key in cards[0]} | card)


class _Statistics:
    """Sets batch-norm statistics anew on training images, which are read when a network first needs them."""

    def __init__(self, plan: Plan, conf: schema.Model) -> None:
        self._plan, self._conf = plan, conf
        self._batches: list[Tensor] = []

    @cached_property
    def images(self) -> data.Dataset:
        """Of the model's `data`, or of what its origin is trained on: of these, none that its recipe leaves out."""
        origin = self._plan.option("model", str(self._conf.of))
        recipe: Any = self._plan.option("train", origin.train) if origin.source is Source.train else None
        name: str = self._conf.data or recipe.data
        conf = self._plan.option("data", name)
        if recipe is None or recipe.data != name or recipe.fraction == 1:
            return data.load(name, conf, schema.Split.train, IMAGES)
        whole = data.load(name, conf, schema.Split.train)
        return feeding.share(whole, min(recipe.fraction, IMAGES / len(whole)))

    def batches(self, network: Network) -> Iterator[Tensor]:
        """The images as the network sees them; decoded when the first one is asked for."""
        if not self._batches:
            crop_pct = self._plan.option("data", self.images.name).crop_pct or network.crop_pct
            view = (network.size, BATCH, network.interpolation, crop_pct)
            self._batches = [x for x, _ in preprocessing.batches(self.images, *view)]
        yield from self._batches

    def reset(self, network: Network) -> None:
        """Those of the network's batch norms, if it has any."""
        device = models.device()
        network.to(device)
        reset_batch_norm(network, (x.to(device) for x in self.batches(network)))
        network.cpu()


def _combine(
    conf: schema.Model, networks: Sequence[Network], group: schema.Group | None, statistics: _Statistics
) -> nn.Module:
    """The module that `conf` asks for, of these networks."""
    if conf.source is Source.ensemble:
        return Ensemble([network.module for network in networks])
    (network,) = networks
    assert group, "a symmetrised model names one"
    if conf.how is How.logits:
        return Twirled(network.module, group.action, group.file)
    acting = group.group
    assert isinstance(acting, FiniteGroup)
    either = blank(network)
    pairs = zip(symmetrise(either, acting).parameters(), either.parameters(), strict=True)
    if all(torch.equal(a, b) for a, b in pairs):
        raise Unsupported(f"on none of its weights the group '{conf.group}' is known to act")
    if conf.how is How.matched:
        averaged = matched_mean(network, acting, next(statistics.batches(network))[:2])
    else:
        averaged = cast(Network, symmetrise(network, acting))
    statistics.reset(averaged)
    return averaged


def matched_mean(network: Network, group: FiniteGroup, x: Tensor) -> Network:
    """A copy with the weights (1/|G|) sum_g Q_g theta, Q_g = P_g^-1 T_g with P_g theta's own order of channels.

    T_g moves kernels and grids of tokens (`act_on_weights`), and P_g puts the hidden channels of T_g theta in the order in
    which they are most like theta's (`permutation.match`, on the canonical form of both: group_landscape). Without P_g, the
    mean of T_g theta cancels what a channel and its mirror image in another channel share. Where Q is a representation of
    the group, the mean is invariant; matching alone does not make it one.

    Args:
        x: two or more images (B, 3, n, n) in [0, 1] that it takes.

    Raises:
        Unsupported: no hidden channels are found.
    """
    plain = canonical(network, x)
    spaces = find_spaces(plain, x)
    reference = {name: p.detach() for name, p in plain.named_parameters()}
    own = {name: p.detach().double() for name, p in network.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in own.items()}
    for g in group.elements():
        order = spaces.match(reference, act_on_weights(plain, group, g, reference))
        for name, moved in permute(act_on_weights(network, group, g, own), order).items():
            sums[name] += moved
    averaged = copy.deepcopy(network)
    with torch.no_grad():
        for name, p in averaged.named_parameters():
            p.copy_(sums[name] / len(group.elements()))
    return averaged
