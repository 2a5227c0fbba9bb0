"""The base class: refusals, optimizers, ramps, what steps return."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medprism.checkpoint import CheckpointError, load_method
from medprism.cohort import Representation
from medprism.method import CohortMismatchError, Method, NonFiniteLossError
from medprism.methods import ERM, NeuroLIP

from examples import make_batch, make_cohort


class Tiny(Method):
    """One linear layer and one critic."""

    def __init__(self, cohort: dict, scale: float = 1.0, optimizer=None, scheduler=None) -> None:
        super().__init__(cohort, optimizer, scheduler)
        self.head = nn.Linear(12, 2)
        self.critic = nn.Linear(2, 1)

    def represent(self, batch):
        return Representation(logits={"disease": self.head(batch["connectome"].mean(1))})

    def losses(self, batch, rep):
        logits = rep.logits["disease"]
        return {"target": self.hparams["scale"] * logits.square().mean(), "extra": logits.log().mean() * 0 + 1}

    def critic_losses(self, batch, rep):
        return {"critic": self.critic(rep.logits["disease"].detach()).square().mean()}

    def critic_parameters(self):
        return self.critic.parameters()


def test_a_cohort_without_a_needed_field_is_refused():
    cohort = make_cohort(fields=("id", "subject", "connectome", "target"), attributes=())
    with pytest.raises(CohortMismatchError) as error:
        NeuroLIP(cohort.to_dict())
    said = str(error.value)
    assert "`Made` yields {connectome, id, subject, target}" in said
    assert "`NeuroLIP` needs {attributes, connectome, target}" in said
    assert "Choose a cohort" in said


def test_weights_that_a_method_would_not_use_are_refused():
    cohort = make_cohort(fields=(*make_cohort().fields, "weight")).to_dict()
    with pytest.raises(
        CohortMismatchError, match=r"gives its samples a weight \(balance=reweight\), which `Tiny` does"
    ):
        Tiny(cohort)
    assert "weight" in ERM(cohort).cohort.fields


def test_a_term_that_is_not_finite_is_named():
    model, batch = Tiny(make_cohort().to_dict()), make_batch(make_cohort(), 4)
    torch.nn.init.ones_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    batch["connectome"] = -batch["connectome"].abs()  # negative logits, whose logarithm is not a number
    with pytest.raises(NonFiniteLossError, match=r"loss term extra of Tiny not finite in train, epoch 0.*s0_0, s0_1"):
        model.training_step(batch, 0)


def test_critics_have_a_group_of_their_own():
    model = Tiny(make_cohort().to_dict())
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert set(optimizer.param_groups[1]["params"]) == set(model.critic.parameters())
    chosen = Tiny(
        make_cohort().to_dict(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
    ).configure_optimizers()
    assert isinstance(chosen["optimizer"], torch.optim.SGD)
    assert isinstance(chosen["lr_scheduler"], torch.optim.lr_scheduler.StepLR)


def test_ramp():
    model = Tiny(make_cohort().to_dict())
    assert model.ramp(0.2) == 1.0
    model._trainer = SimpleNamespace(max_epochs=50, current_epoch=5)
    model._trainer.barebones = False
    assert model.ramp(0.2) == 0.5
    assert model.ramp(0.0) == 1.0


@pytest.mark.parametrize("method", [ERM, NeuroLIP])
def test_a_checkpoint_alone_gives_the_model_back(method, tmp_path):
    torch.manual_seed(0)
    cohort = make_cohort()
    model, batch = method(cohort.to_dict(), encoder="region", encoder_options={"dim": 8}).eval(), make_batch(cohort)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = load_method(tmp_path / "a.ckpt")
    assert type(again) is method and not again.training and again.cohort == cohort
    assert torch.equal(again.predict_step(batch, 0)["probabilities"], model.predict_step(batch, 0)["probabilities"])


def test_bad_checkpoints_are_explained(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*missing\.ckpt"):
        load_method(tmp_path / "missing.ckpt")
    broken = tmp_path / "broken.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {}}, broken)
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"cannot be read as a checkpoint \(300 bytes\)"):
        load_method(broken)
    torch.save({"state_dict": {}, "hyper_parameters": {}, "medprism_method": "elsewhere.Theirs"}, broken)
    with pytest.raises(CheckpointError, match=r"'elsewhere\.Theirs', which is not among the imported methods"):
        load_method(broken)
    torch.save([1, 2], broken)
    with pytest.raises(CheckpointError, match="lacks state_dict"):
        load_method(broken)
    torch.save({"state_dict": {}, "hyper_parameters": {}, "run": print}, broken)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_method(broken)
    model = ERM(make_cohort().to_dict())
    content = {"state_dict": {"other": torch.ones(1)}, "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    torch.save(content, broken)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_method(broken)


def test_outputs_of_every_kind_of_target():
    from medprism.cohort import Factor

    batch = make_batch(make_cohort(), 4)
    several = make_cohort(target=Factor("disease", ("a", "b"), role="target"), target_kind="labels")
    assert ERM(several.to_dict()).predict_step(batch, 0)["probabilities"].shape == (4, 2)
    value = make_cohort(target=Factor("score", (), role="target"), target_kind="value")
    model, batch["target"] = ERM(value.to_dict()), torch.rand(4)
    assert model.predict_step(batch, 0)["probabilities"].shape == (4, 1)
    assert model.losses(batch, model.represent(batch))["target"].isfinite()
