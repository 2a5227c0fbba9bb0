"""ERM: weights of samples, and the loss of the worst group."""

import pytest
import torch
from torch.nn import functional as F

from medprism.cohort import Factor
from medprism.losses.group import group_dro
from medprism.method import CohortMismatchError
from medprism.methods import ERM

from examples import make_batch, make_cohort

SMALL = {"encoder": "region", "encoder_options": {"dim": 4, "input_dropout": 0.0}}


def each_loss(model, batch):
    return F.cross_entropy(model.represent(batch).logits["disease"], batch["target"], reduction="none")


def test_weights_of_the_batch_count():
    torch.manual_seed(0)
    cohort = make_cohort(fields=(*make_cohort().fields, "weight"))
    model, batch = ERM(cohort.to_dict(), **SMALL).eval(), make_batch(cohort)
    batch["weight"] = torch.rand(16)
    rep = model.represent(batch)
    assert set(rep.logits) == {"disease"}
    expected = (each_loss(model, batch) * batch["weight"]).mean()
    assert torch.allclose(model.losses(batch, rep)["target"], expected)


def test_groups_gain_weight_in_training_alone():
    torch.manual_seed(0)
    cohort = make_cohort()
    model, batch = (
        ERM(cohort.to_dict(), objective="group_dro", group_by=["sex"], group_step=1.0, **SMALL),
        make_batch(cohort),
    )
    sex = batch["attributes"]["sex"]
    groups = torch.where(sex < 0, -1, 2 * batch["target"] + sex)
    start = torch.full((4,), 0.25)
    model.eval()
    expected, _ = group_dro(each_loss(model, batch), groups, start, 0.0)
    assert torch.allclose(model.losses(batch, model.represent(batch))["target"], expected)
    assert torch.equal(model.group_weights, start)
    model.train()
    for _ in range(3):
        expected, start = group_dro(each_loss(model, batch), groups, start, 1.0)
        loss = model.losses(batch, model.represent(batch))["target"]
        loss.backward()
        assert torch.allclose(loss, expected) and torch.allclose(model.group_weights, start)
    assert "group_weights" in model.state_dict() and "group_weights" not in ERM(cohort.to_dict(), **SMALL).state_dict()


def test_groups_are_of_sensitive_attributes_or_of_all():
    assert [f.name for f in ERM(make_cohort().to_dict(), objective="group_dro").grouping] == ["sex", "age"]
    nuisances = make_cohort(attributes=(Factor("view", ("PA", "AP")),)).to_dict()
    assert [f.name for f in ERM(nuisances, objective="group_dro").grouping] == ["view"]
    classes = ERM(make_cohort().to_dict(), objective="group_dro", group_by=[])
    assert classes.group_weights.shape == (2,)


def test_cohorts_without_such_groups_are_refused():
    cohort = make_cohort()
    with pytest.raises(CohortMismatchError, match=r"has no \['view'\] to group by; its attributes are \['sex', 'age'"):
        ERM(cohort.to_dict(), objective="group_dro", group_by=["view"])
    value = make_cohort(target=Factor("score", (), role="target"), target_kind="value").to_dict()
    with pytest.raises(CohortMismatchError, match="needs a target of classes"):
        ERM(value, objective="group_dro")
    with pytest.raises(CohortMismatchError, match="weighs groups itself"):
        ERM(make_cohort(fields=(*cohort.fields, "weight")).to_dict(), objective="group_dro")
