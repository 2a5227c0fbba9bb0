"""Adversarial, EnD and MDN; and what MIMM-X shares with them or has to get right beside its own rules."""

import math
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F

from medprism.checkpoint import load_method
from medprism.cohort import Factor
from medprism.losses.entangle import entangle_disentangle
from medprism.losses.information import label_information
from medprism.losses.metadata import metadata_effect
from medprism.losses.scaling import LossScale
from medprism.method import CohortMismatchError
from medprism.methods import MDN, MIMMX, Adversarial, EnD

from examples import make_batch, make_cohort

BASELINES = [Adversarial, EnD, MDN]
DV = {"hidden": 8, "negatives": 2}


def made(cls, cohort=None, **options):
    torch.manual_seed(0)
    cohort = make_cohort(regions=6) if cohort is None else cohort
    return cls(cohort.to_dict(), encoder="region", encoder_options={"dim": 4, "input_dropout": 0.0}, **options)


def batch_of(method, n=40, unknown=False, seed=0):
    return make_batch(method.cohort, n, seed, unknown)


# ------------------------------------------------------------------------------------------------------ what all share
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", BASELINES)
def test_trains_and_comes_back_from_a_checkpoint(cls, tmp_path):
    method = made(cls, spurious=["sex"], optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    loader = torch.utils.data.DataLoader([batch_of(method, seed=k) for k in range(3)], batch_size=None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(method, loader, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]["spurious"] == ["sex"]
    loaded, batch = load_method(tmp_path / "last.ckpt"), batch_of(method)
    assert type(loaded) is cls and [factor.name for factor in loaded.spurious] == ["sex"]
    expected = method.eval().predict_step(batch, 0)
    assert torch.equal(loaded.predict_step(batch, 0)["probabilities"], expected["probabilities"])


@pytest.mark.parametrize("cls", BASELINES)
def test_attributes_by_name(cls):
    assert [factor.name for factor in made(cls).spurious] == ["sex", "age", "site"]
    assert [factor.name for factor in made(cls, spurious=["age", "age"]).spurious] == ["age"]
    with pytest.raises(KeyError, match="no attribute 'scanner'; it has"):
        made(cls, spurious=["sex", "scanner"])
    with pytest.raises(ValueError, match="spurious is empty"):
        made(cls, spurious=[])
    with pytest.raises(ValueError, match="spurious is empty"):
        made(cls, make_cohort(regions=6, attributes=()))


def test_weights_of_samples():
    cohort = make_cohort(regions=6, fields=(*make_cohort().fields, "weight"))
    for cls in (EnD, MDN):
        with pytest.raises(CohortMismatchError, match=rf"which `{cls.__name__}` does not use: choose balance=resample"):
            made(cls, cohort)
    method = made(Adversarial, cohort, spurious=["sex"])
    batch = batch_of(method) | {"weight": torch.rand(40)}
    rep = method.represent(batch)
    each = F.cross_entropy(rep.logits["sex"], batch["attributes"]["sex"], reduction="none")
    assert torch.allclose(method.losses(batch, rep)["adversary_sex"], (each * batch["weight"]).mean())


@pytest.mark.parametrize("cls", BASELINES)
def test_unknown_attributes_and_targets_stay_finite(cls):
    method = made(cls)
    batch = batch_of(method, unknown=True)
    batch["target"][::3] = -1
    batch["attributes"]["age"][:] = -1
    loss = sum(method.losses(batch, method.represent(batch)).values())
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (Adversarial, {"strength": -1.0}, "strength=-1"),
        (Adversarial, {"gamma": 0.0}, "gamma=0"),
        (EnD, {"entangle": -0.1}, "entangle=-0.1"),
        (MDN, {"momentum": 1.0}, "momentum is 1"),
        (MIMMX, {"critic_warmup": 1.5}, "critic_warmup=1.5"),
        (MIMMX, {"weighter": "terms", "tau": 0.0}, "tau=0"),
        (MIMMX, {"pairs": "all"}, "pairs is 'all'; choose one of pairwise, joint, weighted"),
        (MIMMX, {"scaling": "norm"}, "scaling is 'norm'"),
    ],
)
def test_settings_that_make_no_sense(cls, options, message):
    with pytest.raises(ValueError, match=message):
        made(cls, **options)


# -------------------------------------------------------------------------------------------------------- adversarial
def test_the_encoder_gets_the_reversed_gradient_of_the_heads():
    method = made(Adversarial, spurious=["sex", "age"], strength=0.3)
    batch = batch_of(method)
    terms = method.losses(batch, method.represent(batch))
    encoder, heads = list(method.encoder.parameters()), list(method.adversaries.parameters())
    adversary = terms["adversary_sex"] + terms["adversary_age"]
    found = torch.autograd.grad(adversary, encoder + heads)
    pooled = method.encoder(batch["connectome"]).pooled
    plain = sum(
        F.cross_entropy(head(pooled), batch["attributes"][name]) / 2
        for name, head in zip(("sex", "age"), method.adversaries, strict=True)
    )
    expected = torch.autograd.grad(plain, encoder + heads)
    assert torch.allclose(adversary, plain)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        factor = -method._strength() if index < len(encoder) else 1.0
        assert theirs.abs().sum() > 0 and torch.allclose(ours, factor * theirs, atol=1e-7)


def test_strength_follows_its_closed_form():
    method = made(Adversarial, strength=2.0, gamma=3.0)
    assert method._strength() == pytest.approx(2 * math.tanh(1.5))  # outside of a training run: the end
    for epoch in (0, 5, 10):
        method._trainer = SimpleNamespace(max_epochs=10, current_epoch=epoch, barebones=False)
        assert method._strength() == pytest.approx(2 * (2 / (1 + math.exp(-3 * epoch / 10)) - 1))


# ----------------------------------------------------------------------------------------------------------------- EnD
def test_end_adds_two_weighted_means_over_attributes():
    method = made(EnD, spurious=["sex", "age"], disentangle=0.2, entangle=0.7)
    batch = batch_of(method, unknown=True)
    rep = method.represent(batch)
    terms = method.losses(batch, rep)
    pairs = [
        entangle_disentangle(rep.blocks["pooled"], batch["target"], batch["attributes"][n]) for n in ("sex", "age")
    ]
    assert set(terms) == {"target", "disentangle", "entangle"}
    assert terms["disentangle"].item() == pytest.approx(0.2 * (pairs[0][0] + pairs[1][0]).item() / 2, rel=1e-5)
    assert terms["entangle"].item() == pytest.approx(0.7 * (pairs[0][1] + pairs[1][1]).item() / 2, rel=1e-5)
    assert terms["target"].item() == pytest.approx(F.cross_entropy(rep.logits["disease"], batch["target"]).item())


def test_end_needs_classes():
    with pytest.raises(CohortMismatchError, match="target of kind 'value'; `EnD`"):
        made(EnD, make_cohort(regions=6, target=Factor("score", (), role="target"), target_kind="value"))


# ----------------------------------------------------------------------------------------------------------------- MDN
def test_training_leaves_no_linear_effect_of_the_attributes_beside_the_label():
    method = made(MDN)
    batch = batch_of(method, 200)
    batch["connectome"] += 0.5 * batch["attributes"]["sex"][:, None, None]
    columns, labels = method._columns(batch), method._labels(batch)
    before = metadata_effect(method.encoder(batch["connectome"]).pooled, columns, labels)
    after = metadata_effect(method.represent(batch).blocks["pooled"], columns, labels)
    assert before.abs().max() > 0.1
    assert after.abs().max() < 1e-4


def test_evaluation_takes_the_moving_average():
    method = made(MDN, momentum=0.75)
    batches, average = [batch_of(method, seed=k) for k in range(3)], None
    for batch in batches:
        pooled = method.encoder(batch["connectome"]).pooled
        effect = metadata_effect(pooled, method._columns(batch), method._labels(batch))
        average = effect if average is None else 0.75 * average + 0.25 * effect
        method.represent(batch)
    assert torch.allclose(method.effect, average, atol=1e-6)
    method.eval()
    rep = method.represent(batches[0])
    expected = method.encoder(batches[0]["connectome"]).pooled - method._columns(batches[0]) @ average
    assert torch.allclose(rep.blocks["pooled"], expected, atol=1e-6)
    assert torch.allclose(method.effect, average, atol=1e-6)


def trained_mdn():
    method = made(MDN)
    method.represent(batch_of(method))
    return method.eval()


def test_predictions_do_not_depend_on_the_target():
    method = trained_mdn()
    batch = batch_of(method)
    other = {key: value for key, value in batch.items() if key != "target"}
    assert torch.equal(method.represent(batch).logits["disease"], method.represent(other).logits["disease"])


def test_an_unknown_attribute_takes_nothing_out():
    method = trained_mdn()
    batch = batch_of(method)
    known = method.represent(batch).blocks["pooled"]
    pooled = method.encoder(batch["connectome"]).pooled
    for name in ("sex", "age", "site"):
        batch["attributes"][name][:20] = -1
    found = method.represent(batch).blocks["pooled"]
    assert torch.equal(found[:20], pooled[:20])
    assert torch.equal(found[20:], known[20:]) and not torch.allclose(found[20:], pooled[20:], atol=1e-3)


def test_samples_with_unknown_labels_do_not_count_in_the_estimate():
    method, other = made(MDN), made(MDN)
    batch = batch_of(method)
    fewer = {k: v[20:] for k, v in batch.items() if k not in ("attributes",)}
    fewer["attributes"] = {name: codes[20:].clone() for name, codes in batch["attributes"].items()}
    batch["target"][:10] = -1
    batch["attributes"]["site"][10:20] = -1
    method.represent(batch), other.represent(fewer)
    assert torch.allclose(method.effect, other.effect, atol=1e-5)


def test_a_batch_that_lacks_a_class_estimates_nothing_for_it():
    method = made(MDN, momentum=0.5)
    whole, lacking = batch_of(method), batch_of(method, seed=1)
    method.represent(whole)
    first = method.effect.clone()
    lacking["connectome"] += 1  # a large mean, which a constant column must not take
    lacking["attributes"]["sex"][:] = 0
    rep = method.represent(lacking)
    assert torch.equal(method.effect[0], first[0]) and not torch.allclose(method.effect[1], first[1], atol=1e-3)
    without = made(MDN, spurious=["age", "site"])
    assert torch.allclose(rep.blocks["pooled"], without.represent(lacking).blocks["pooled"], atol=1e-4)


# --------------------------------------------------------------------------------------------------------------- MIMMX
def test_half_precision():
    for cls, options in ((MIMMX, {"measure_options": DV}), (EnD, {}), (MDN, {}), (Adversarial, {})):
        method = made(cls, **options)
        batch = batch_of(method)
        exact = method.losses(batch, method.represent(batch))
        with torch.autocast("cpu", torch.bfloat16):
            rep = made(cls, **options).represent(batch)
            coarse = method.losses(batch, rep)
        for name, term in exact.items():
            assert term.item() == pytest.approx(coarse[name].item(), abs=0.02), (cls, name)
        sum(coarse.values()).backward()


@pytest.mark.filterwarnings("ignore")
def test_a_last_batch_too_small_for_the_dependence_does_not_stop_an_evaluation(tmp_path):
    for options in ({"measure_options": DV}, {"measure": "dcor"}, {"measure": "dcor", "conditional": True}):
        method = made(MIMMX, **options)
        sizes = torch.utils.data.DataLoader([batch_of(method, n) for n in (40, 1)], batch_size=None)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, default_root_dir=tmp_path, **quiet)
        assert "val/dependence" in trainer.validate(method, sizes, verbose=False)[0]
        with pytest.raises(ValueError, match="enlarge batch_size"):
            method.train().losses(one := batch_of(method, 1), method.represent(one))


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_both_players_meet_every_pair_of_attributes(schedule, monkeypatch):
    turns = {"schedule": schedule, "encoder_batches": 1, "critic_batches": 5}  # cycles of 6 steps; 3 pairs
    method = made(MIMMX, measure_options=DV, **turns)
    seen = {True: [], False: []}
    for step in range(36):
        monkeypatch.setattr(type(method), "global_step", property(lambda self, step=step: step))
        blocks = [torch.full((1, 2), float(k)) for k in range(4)]
        pair = tuple(side.max().item() for side in method._pair_among(blocks))
        seen[method._critics_turn()].append(pair)
    every = {(1, 2), (1, 3), (2, 3)}
    assert set(seen[False]) == every and (schedule == "simultaneous" or set(seen[True]) == every)
    assert len(seen[True]) == (30 if schedule == "alternating" else 0)


def test_the_floor_is_that_of_the_pairs_that_are_compared():
    agree = (torch.arange(1000) % 10 != 0).long()  # nine of ten
    target = torch.arange(1000) // 500
    sex = torch.where(agree == 1, target, 1 - target)
    age = torch.where((torch.arange(1000) // 10) % 10 != 0, target, 1 - target)
    labels = {"target": target, "attributes": {"sex": sex, "age": age, "site": torch.zeros(1000).long()}}
    options = {"spurious": ["sex", "age"], "measure_options": DV}
    one, among = label_information(target, sex).item(), label_information(sex, age).item()
    assert (one, (2 * one + among) / 3) == (pytest.approx(0.368, abs=1e-3), pytest.approx(0.319, abs=1e-3))
    both = label_information(target, 2 * sex + age).item()
    assert both > 1.3 * one
    floors = {
        (2 * one + among) / 3: {"pairs": "pairwise"},
        both + 0.5 * among: {"pairs": "joint", "beta": 0.5},
        both: {"pairs": "weighted", "beta": 0.0},
        one + among: {"weighter": "terms"},
        0.0: {"conditional": True},
    }
    for floor, more in floors.items():
        assert made(MIMMX, **options, **more)._floor(labels).item() == pytest.approx(floor, abs=1e-4), more


def test_information_of_several_pairs_at_once():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(-1, 4, (200, 3), generator=generator) for _ in range(2))
    weight = torch.rand(200, generator=generator)
    each = [label_information(first[:, p], second[:, p], weight) for p in range(3)]
    assert torch.allclose(label_information(first, second, weight), torch.stack(each))


def test_attention_learns_only_with_critics_that_maximise_the_dependence():
    assert any(name == "attention.out" for name, p in made(MIMMX).named_parameters() if p.requires_grad)
    for measure in ("club", "dcor"):
        method = made(MIMMX, measure=measure)
        assert not any(p.requires_grad for p in method.attention.parameters())
        learning = {id(p) for p in method.critic_parameters()}
        assert not learning & {id(p) for p in method.attention.parameters()}


@pytest.mark.parametrize("over", ["shared", "parameters"])
def test_a_frozen_encoder(over):
    method = made(MIMMX, measure_options=DV, scaling_over=over)
    method.encoder.requires_grad_(False)
    batch = batch_of(method)
    sum(method.losses(batch, method.represent(batch)).values()).backward()
    assert (method.scale.norms > 0).all() and method.cut.weight.grad.abs().sum() > 0


def scaled(floor=None, values=(3.0, 1.5)):
    """`gradnorm` after steps in which the first loss stays at 2 and the second has these values and the same norm."""
    scale = LossScale("gradnorm")
    for value in values:
        x = torch.tensor([1.0, 1.0], requires_grad=True)
        scale(x.sum(), x.sum() + value - 2, [x], local=True, floor=None if floor is None else torch.tensor(floor))
    return scale


def test_gradnorm_measures_a_loss_by_its_own_start_or_by_a_floor_above_noise():
    assert scaled().start.tolist() == [2.0, 3.0]
    assert scaled().scale < 1 < scaled(0.2).scale  # has fallen faster than the first; is far above its floor
    assert scaled(0.0, (0.02, 0.02)).scale < 1 < scaled(0.0, (0.2, 0.2)).scale  # noise, and more than noise
