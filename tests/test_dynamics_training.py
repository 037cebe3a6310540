"""The recorder inside training, and the probe that reads what it wrote: on files, through kills, up to the cell."""

import hashlib
from dataclasses import asdict, replace
from types import SimpleNamespace

import noise
import numpy as np
import pytest
import torch

from eqbench import groups, measuring, results, schema, training, weights
from eqbench.config import Cell, Plan, _block_cells
from eqbench.dynamics import edge, recorder
from eqbench.epochs import Run
from eqbench.errors import Unsupported, UserError
from eqbench.probes import dynamics, measure
from eqbench.probes.base import Subject, ieee
from eqbench.results import Status
from eqbench.schema import Form, Opt, Source
from eqbench.tasks import Task

MODEL = schema.Model(timm="test_resnet", source=Source.train, train="tiny", image_size=32, args={"drop_rate": 0.2})
RECIPE = schema.Train(
    data="tiny", epochs=3, opt=Opt.sgd, momentum=0.0, lr=0.05, batch_size=16, augment="d4", model_ema=True, dynamics=4,
    penalty=schema.Penalty(Form.twirl, "hflip", 0.1), save=[],
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return noise.folder(tmp_path_factory.mktemp("tiny"), 40)


@pytest.fixture(scope="module")
def train(tiny):
    def train(root, recipe=RECIPE):
        used = {use: groups.get(name) for use, name in recipe.groups.items()}
        tree = {"recipe": asdict(recipe)}
        task = Task("tiny", "s0", MODEL, recipe, tiny, tree, used.get("augment"), used.get("penalty"))
        training.train(task, root)
        return weights.read_card(root, "tiny", "s0")

    return train


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return root, train(root)


@pytest.mark.parametrize("opt", [{}, {"opt": Opt.adamw, "lr": 3e-3}], ids=["sgd", "adamw"])
def test_the_weights_are_the_same_with_and_without_a_record(train, tmp_path, whole, opt):
    watched = whole[1] if not opt else train(tmp_path / "with", replace(RECIPE, **opt))
    alone = train(tmp_path / "without", replace(RECIPE, dynamics=0, **opt))
    assert watched["states"] == alone["states"]
    assert watched["metrics"] == alone["metrics"]
    assert "dynamics" not in alone
    assert not weights.dynamics_path(tmp_path / "without", "tiny", "s0").exists()


def test_the_record_is_whole_and_on_the_card(whole):
    root, card = whole
    path = weights.dynamics_path(root, "tiny", "s0")
    assert card["dynamics"] == hashlib.sha256(path.read_bytes()).hexdigest()
    log = weights.read_dynamics(root, "tiny", "s0")
    assert log["steps"]["update"] == [0, 4, 8, 12]  # 3 epochs of 5 updates
    assert (log["every"], log["momentum"], log["images"]) == (4, 0.0, 64)
    assert all(threshold == 2 / lr for threshold, lr in zip(log["steps"]["threshold"], log["steps"]["lr"], strict=True))
    assert all(value is not None for key in log["steps"] for value in log["steps"][key])


def test_single_precision_training_obeys_at_its_floor(whole):
    """With augmentation, penalty, dropout, smoothing and weight decay in it: the actual steps of training."""
    families = weights.read_dynamics(whole[0], "tiny", "s0")["families"]
    assert {"S1", "S8", "S9", "C0"} <= families.keys()
    for family in ("S1", "S8"):
        assert max(families[family]["identity"]) < 1e-7
        assert max(families[family]["residual"]) < 1e-4
    assert min(families["C0"]["identity"]) > 1e-5


def test_a_killed_training_leaves_the_same_record(train, tmp_path, whole, monkeypatch):
    write, seen = Run._write, []

    def killed(self, checkpoint):
        write(self, checkpoint)
        seen.append(self.epoch)
        if len(seen) < 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_write", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
        assert not weights.dynamics_path(tmp_path, "tiny", "s0").exists()
    train(tmp_path)
    assert seen == [1, 2, 3]
    root, card = whole
    ours, theirs = (weights.dynamics_path(at, "tiny", "s0").read_bytes() for at in (tmp_path, root))
    assert ours == theirs
    assert weights.read_card(tmp_path, "tiny", "s0")["states"] == card["states"]


def test_a_changed_record_is_refused_and_trained_again(train, tmp_path, whole):
    card = train(tmp_path)
    path = weights.dynamics_path(tmp_path, "tiny", "s0")
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"update"', b'"updata"'))
    with pytest.raises(UserError, match=r"dynamics\.json: expected sha256"):
        weights.read_dynamics(tmp_path, "tiny", "s0")
    assert train(tmp_path)["dynamics"] == card["dynamics"]
    assert path.read_bytes() == good


def test_the_record_belongs_to_the_cells_identity(whole, monkeypatch):
    root, card = whole
    plan, cell = Plan("demo", schema.Pack.run, {}, ()), Cell("demo", "tiny", "s0", "final", "none", "dynamics")
    other = Cell(*[*vars(cell).values()][:-1], "spectrum")
    plan.cells.update(dict.fromkeys((cell, other), ("digits", None)))
    monkeypatch.setattr(Plan, "config", lambda *_: {})
    monkeypatch.setattr(Plan, "others", lambda *_: {})
    part = measuring.State(measuring.Images(plan, [cell, other]), ("tiny", "s0", "final"), root)
    before = part.identity(cell)
    part.card = card | {"dynamics": "0" * 64}
    assert part.identity(cell) != before
    changed = part.identity(other)
    part.card = card
    assert part.identity(other) == changed


def subject(log):
    x = torch.rand(8, 3, 8, 8)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    return Subject(net, 8, lambda _: [x], 8, training=lambda: log)


def test_the_probe_sums_up_a_training(whole):
    log = weights.read_dynamics(whole[0], "tiny", "s0")
    result = measure(subject(log), None, None, schema.Dynamics())
    assert result.status is Status.ok, result.reason
    found = result.metrics
    assert found["step_identity"].value < 1e-7 < 100 * found["step_identity"].floor < found["step_identity"].null
    assert found["charge_residual"].value < 1e-4
    assert found["training_sharpness"].lo < log["steps"]["lambda_max"][-1] < found["training_sharpness"].hi
    fast = [i for i, lr in enumerate(log["steps"]["lr"]) if lr >= max(log["steps"]["lr"]) / 2]
    ratios = [log["steps"]["lambda_max"][i] * log["steps"]["lr"][i] / 2 for i in fast]
    assert found["edge_ratio"].value == pytest.approx(np.mean(ratios))
    assert found["top_alignment"].value == pytest.approx(np.mean(log["steps"]["alignment"]))
    assert 0 <= found["charge_breaking"].value < 0.1
    assert found["decay_imbalance"].null == pytest.approx(log["families"]["S8"]["decay_imbalance"][0])
    assert [entry["update"] for entry in result.curves["steps"]] == [0, 4, 8, 12]
    assert {entry["family"] for entry in result.curves["families"]} == log["families"].keys()


def test_what_the_optimiser_does_not_allow_has_its_reason(train, tmp_path):
    train(tmp_path, replace(RECIPE, opt=Opt.adamw, lr=3e-3, epochs=2, weight_decay=0.0, penalty=None))
    log = weights.read_dynamics(tmp_path, "tiny", "s0")
    found = measure(subject(log), None, None, schema.Dynamics()).metrics
    assert found["charge_residual"].reason == "its optimiser is adaptive"
    assert "not its edge" in found["edge_ratio"].reason
    assert found["decay_imbalance"].reason == "there is no weight decay"
    assert found["charge_breaking"].value > 0.1


def test_short_steps_are_read_against_the_rounding_of_the_weights(train, tmp_path):
    """At a rate at which weights move by a few units of their last place, the residual is that, and the floor says so."""
    train(tmp_path, replace(RECIPE, lr=1e-6, epochs=2, warmup_epochs=0))
    log = weights.read_dynamics(tmp_path, "tiny", "s0")
    found = measure(subject(log), None, None, schema.Dynamics()).metrics["charge_residual"]
    assert 100 * log["eps"] < found.value < found.floor
    steps = log["steps"]
    weighed = [steps["weights"][i] / steps["length"][i] for i in range(len(steps["update"]))]
    assert log["eps"] * min(weighed) < found.floor < log["unit"] + log["eps"] * max(weighed)


def change(log, key, values):
    """The same record with other numbers of each family."""
    families = {name: one | ({key: values} if key in one else {}) for name, one in log["families"].items()}
    return log | {"families": families}


def test_steps_count_by_their_length_and_those_that_change_nothing_not(whole):
    log = weights.read_dynamics(whole[0], "tiny", "s0")
    log = change(log, "residual", [1e-7, 0.5, None, None])
    log["steps"] |= {"length": [1.0, 1e-9, 0.0, 0.0]}
    found = measure(subject(log), None, None, schema.Dynamics()).metrics
    assert found["charge_residual"].value == pytest.approx(1e-7, rel=1e-3)
    still = change(log, "residual", [None] * 4)
    found = measure(subject(still), None, None, schema.Dynamics()).metrics
    assert found["charge_residual"].reason == "no step changed the weights"


def test_numbers_that_were_not_finite_are_left_out(whole):
    log = weights.read_dynamics(whole[0], "tiny", "s0")
    gaps = change(change(log, "identity", [3e-8, None, 4e-8, None]), "decay", [None, -1.0, -1.0, -1.0])
    found = measure(subject(gaps), None, None, schema.Dynamics()).metrics
    assert found["step_identity"].value == pytest.approx(12.5**0.5 * 1e-8)
    assert found["charge_breaking"].n == 3


def test_the_unit_is_that_of_the_steps_arithmetic(whole):
    """On a GPU convolutions are in TF32 unless told otherwise, and with `amp` all products in bfloat16."""
    there, here = SimpleNamespace(is_cuda=True, dtype=torch.float32), torch.zeros(1)
    assert [recorder.unit(there, amp) for amp in (True, False)] == [torch.finfo(torch.bfloat16).eps, 2**-10]
    with ieee():
        assert recorder.unit(there, False) == torch.finfo(torch.float32).eps
    assert recorder.unit(here, True) == torch.finfo(torch.float32).eps
    log = weights.read_dynamics(whole[0], "tiny", "s0") | {"unit": 2**-7}
    found = measure(subject(log), None, None, schema.Dynamics()).metrics
    assert found["step_identity"].floor == 2**-7 < found["charge_residual"].floor


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_without_memory_for_the_sharpness_training_goes_on(train, tmp_path, whole, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(edge.Hessian, "__matmul__", fail)
    assert train(tmp_path)["states"] == whole[1]["states"]
    log = weights.read_dynamics(tmp_path, "tiny", "s0")
    assert "out of memory" in log["reason"]
    found = measure(subject(log), None, None, schema.Dynamics()).metrics
    assert "out of memory" in found["training_sharpness"].reason
    assert found["step_identity"].value < 1e-7


def test_what_cannot_be_recorded_is_the_recipes_mistake(train, tmp_path, monkeypatch):
    def fail(*_):
        raise Unsupported("curvature needs weights in float32")

    monkeypatch.setattr(recorder, "TrainingObjective", fail)
    with pytest.raises(UserError, match=r"conf/train/tiny\.yaml: dynamics: curvature needs weights in float32"):
        train(tmp_path)


def test_no_mean_of_nothing(whole):
    log = weights.read_dynamics(whole[0], "tiny", "s0")
    bowed = log | {"steps": log["steps"] | {"lambda_max": [-1.0] * 4}}
    found = measure(subject(bowed), None, None, schema.Dynamics()).metrics
    assert found["training_curvature"].reason == "the largest eigenvalue is nowhere positive"
    slow = [i for i, lr in enumerate(log["steps"]["lr"]) if lr < max(log["steps"]["lr"]) / 2]
    assert slow
    late = [value if i in slow else None for i, value in enumerate(log["steps"]["lambda_max"])]
    found = measure(
        subject(log | {"steps": log["steps"] | {"lambda_max": late}}), None, None, schema.Dynamics()
    ).metrics
    assert found["edge_ratio"].reason == dynamics.SLOW


def test_intervals_are_over_blocks_of_steps():
    """As wide as independent blocks make them: a slow wave has a wider interval than the same numbers shuffled."""
    x = np.sin(np.arange(100) / 8)
    slow = dynamics._mean(x)
    mixed = dynamics._mean(np.random.default_rng(0).permutation(x))
    assert slow.value == pytest.approx(x.mean())
    assert slow.hi - slow.lo > 1.5 * (mixed.hi - mixed.lo)
    few = dynamics._mean([1.0, 2.0])
    assert (few.value, few.lo, few.hi) == (1.5, None, None)


def test_it_is_skipped_where_nothing_was_recorded(train, tmp_path):
    train(tmp_path, replace(RECIPE, dynamics=0, epochs=1, warmup_epochs=0))

    def asked(card):
        results.write_json(weights.card_path(tmp_path, "tiny", "s0"), card)
        one = subject({})
        one.training = lambda: weights.read_dynamics(tmp_path, "tiny", "s0")
        return measure(one, None, None, schema.Dynamics())

    card = weights.read_card(tmp_path, "tiny", "s0")
    for source, reason in (("train", "set `dynamics`"), ("hub", "not trained here"), ("ensemble", "not trained here")):
        result = asked(card | {"source": source})
        assert result.status is Status.skipped
        assert reason in result.reason


def test_only_final_states_have_such_cells():
    block = schema.Block(["resnet_digits"], "digits", probes=["dynamics", "symmetries"], states=["init", "final"])
    plan = Plan("demo", schema.Pack.run, {}, ())
    cells = list(_block_cells(plan, block, "here"))
    assert {(cell.state, cell.probe) for cell in cells} == {
        ("init", "symmetries"), ("final", "symmetries"), ("final", "dynamics")
    }  # fmt: skip
    with pytest.raises(UserError, match="'dynamics' takes final alone"):
        list(_block_cells(plan, replace(block, states=["init"]), "here"))


@pytest.mark.parametrize("value", [-1, 10**7])
def test_the_interval_is_checked(value):
    with pytest.raises(UserError, match="dynamics"):
        replace(RECIPE, dynamics=value)
