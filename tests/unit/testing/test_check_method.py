"""`check_method`: a sound method passes, and for each check there is a method that fails it and no other."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medprism.cohort import Representation
from medprism.datamodules import SimulatedConnectomes
from medprism.distributed import world_size
from medprism.losses.reduction import mean_over_samples
from medprism.losses.supervised import target_loss
from medprism.method import Method
from medprism.testing import METHOD_CHECKS, ChecksFailed, check_method
from medprism.testing.cohorts import DEFAULTS


class Sound(Method):
    """A hidden layer, a head, and a critic that the losses ask without training it.

    Args:
        cohort: plain values of the cohort.
        width: of the hidden layer.
    """

    requires = frozenset({"connectome", "target"})

    def __init__(self, cohort: dict, width: int = 8) -> None:
        super().__init__(cohort)
        self.hidden = nn.Linear(144, width)
        self.head = nn.Linear(width, 2)
        self.critic = nn.Linear(width, 1)

    def represent(self, batch):
        z = self.hidden(batch["connectome"].flatten(1)).tanh()
        return Representation(logits={"disease": self.head(z)}, blocks={"z": z})

    def losses(self, batch, rep):
        asked = F.linear(rep.blocks["z"], self.critic.weight.detach(), self.critic.bias.detach())
        play = 0.01 * mean_over_samples(asked[:, 0].float())
        return {"target": target_loss(rep.logits["disease"], batch["target"]), "play": play}

    def critic_losses(self, batch, rep):
        return {"critic": mean_over_samples((self.critic(rep.blocks["z"].detach())[:, 0] - 1).float().square())}

    def critic_parameters(self):
        return self.critic.parameters()


class Misspelt(Sound):
    requires = frozenset({"conectome", "target"})


class Unexplained(Sound):
    """Its depth is in no docstring.

    Args:
        cohort: plain values of the cohort.
    """

    def __init__(self, cohort: dict, depth: int = 1) -> None:
        super().__init__(cohort)


class Unnormalised(Sound):
    def represent(self, batch):
        rep = super().represent(batch)
        rep.maps["disease"] = torch.ones(len(batch["id"]), 2, 12)
        return rep


class Greedy(Sound):
    def losses(self, batch, rep):
        unused = batch["attributes"]["sex"].float()
        return {**super().losses(batch, rep), "unused": 0 * mean_over_samples(unused * rep.blocks["z"][:, 0])}


class Infinite(Sound):
    def losses(self, batch, rep):
        return {name: term if self.training else term / 0 for name, term in super().losses(batch, rep).items()}


class Expectant(Sound):
    def losses(self, batch, rep):
        known = (batch["target"] >= 0).any().float()
        return {name: term * known / known for name, term in super().losses(batch, rep).items()}


class Idle(Sound):
    def __init__(self, cohort: dict, width: int = 8) -> None:
        super().__init__(cohort, width)
        self.unused = nn.Parameter(torch.ones(1))


class Leaky(Sound):
    def critic_losses(self, batch, rep):
        return {"critic": mean_over_samples((self.critic(rep.blocks["z"])[:, 0] - 1).float().square())}


class Blind(Sound):
    def represent(self, batch):
        return super().represent({"connectome": batch["connectome"] * 0})


class Forgetful(Sound):
    steps = 0

    def represent(self, batch):
        self.steps += self.training
        rep = super().represent(batch)
        rep.logits["disease"] = rep.logits["disease"] * (1 + self.steps / 10)
        return rep


class Unseeded(Sound):
    def __init__(self, cohort: dict, width: int = 8) -> None:
        super().__init__(cohort, width)
        start = np.random.default_rng().normal(size=(2, width)) / 4
        self.head.weight.data = torch.tensor(start, dtype=torch.float32)


class Local(Sound):
    def losses(self, batch, rep):
        return {**super().losses(batch, rep), "spread": rep.blocks["z"].float().var(0).sum()}


class Cheating(Sound):
    def represent(self, batch):
        rep = super().represent(batch)
        if not self.training and "target" in batch:
            rep.logits["disease"] = rep.logits["disease"] + F.one_hot(batch["target"].clamp(min=0), 2)
        return rep


class Leaning(Sound):
    def represent(self, batch):
        rep = super().represent(batch)
        if not self.training and "attributes" in batch:
            rep.logits["disease"] = rep.logits["disease"] + 0.1 * batch["attributes"]["sex"][:, None] * torch.eye(2)[0]
        return rep


class Crowded(Sound):
    def represent(self, batch):
        rep = super().represent(batch)
        if not self.training:
            rep.logits["disease"] = rep.logits["disease"] - rep.logits["disease"].mean(0)
        return rep


class Narrow(Sound):
    def losses(self, batch, rep):
        kept = torch.zeros(rep.blocks["z"].shape)
        kept[torch.arange(len(kept))] = rep.blocks["z"]  # refuses another type
        return {**super().losses(batch, rep), "small": 0.01 * mean_over_samples(kept.square().mean(1))}


class Lonely(Sound):
    def losses(self, batch, rep):
        if world_size() > 1:
            raise RuntimeError("too many of us")
        return super().losses(batch, rep)


class Stubborn(Sound):
    def losses(self, batch, rep):
        raise RuntimeError("no losses today")


BROKEN = {
    "construct": Misspelt,
    "arguments": Unexplained,
    "contract": Unnormalised,
    "requires": Greedy,
    "finite_losses": Infinite,
    "unknown_labels": Expectant,
    "gradients": Idle,
    "critics": Leaky,
    "overfits": Blind,
    "checkpoint": Forgetful,
    "determinism": Unseeded,
    "target_unseen": Cheating,
    "attributes_unseen": Leaning,
    "samples_alone": Crowded,
    "bf16": Narrow,
    "two_ranks": Local,
}
SAID = {
    "construct": "some of ['id', 'subject'",
    "arguments": "no line for ['depth']",
    "contract": "sums from 12 to 12",
    "requires": "KeyError: 'attributes'",
    "finite_losses": "finite loss terms in evaluation; found {'target': inf",
    "unknown_labels": "all labels unknown",
    "gradients": "none for unused",
    "critics": "gradients for hidden.weight, hidden.bias. Mend: detach the blocks",
    "overfits": "a fit of 50%",
    "checkpoint": "the same probabilities from the checkpoint",
    "determinism": "others in hidden.weight",
    "target_unseen": "another target",
    "attributes_unseen": "another attributes",
    "samples_alone": "use no statistics of the batch",
    "bf16": "Index put requires",
    "two_ranks": "the same term of spread in two processes",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> SimulatedConnectomes:
    return SimulatedConnectomes(**DEFAULTS["SimulatedConnectomes"], cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_a_sound_method_passes_and_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    report = check_method(Sound)  # on a cohort that is found for it
    assert {each.name: each.state for each in report.outcomes} == dict.fromkeys(METHOD_CHECKS, "passed")
    assert report.subject == "Sound on simulated connectomes"
    assert "two_ranks" in str(report) and "passed" in str(report)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_check_has_a_broken_method():
    assert set(BROKEN) == set(SAID) == set(METHOD_CHECKS)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_fails_its_check_and_no_other(name, cohort):
    quick = {} if name == "two_ranks" else {"two_ranks": "it takes two processes"}
    with pytest.raises(ChecksFailed) as error:
        check_method(BROKEN[name], cohort=cohort, skip=quick)
    report = error.value.report
    assert [each.name for each in report.failed] == [name], str(error.value)
    assert SAID[name] in report.failed[0].detail
    if name != "two_ranks" and name != "construct":
        assert report.state("two_ranks") == "skipped" and "by the caller: it takes two processes" in str(report)


def test_all_failures_are_listed_with_their_mend(cohort):
    with pytest.raises(ChecksFailed) as error:
        check_method(Stubborn, cohort=cohort, checks=["construct", "finite_losses", "gradients"])
    text = str(error.value)
    assert "Stubborn on simulated connectomes fails 2 of 3 checks:" in text
    assert text.count("RuntimeError: no losses today (test_check_method.py, line ") == 2


def test_what_ends_one_of_two_processes_is_said(cohort):
    with pytest.raises(ChecksFailed) as error:
        check_method(Lonely, cohort=cohort, checks=["two_ranks"])
    assert "a training step in each of two processes; found on rank" in str(error.value)
    assert "RuntimeError: too many of us (test_check_method.py, line " in str(error.value)


def test_a_class_that_other_processes_cannot_import_is_skipped_visibly(cohort):
    class Inner(Sound):
        pass

    Inner.__doc__ = Sound.__doc__
    report = check_method(Inner, cohort=cohort, checks=["two_ranks"])
    assert report.state("two_ranks") == "skipped"
    assert "put it on the top level of a module" in report.outcomes[0].detail


def test_what_cannot_be_checked_is_refused(cohort):
    with pytest.raises(TypeError, match=r"takes a subclass of medprism\.method\.Method, and got 'Sound'"):
        check_method("Sound")
    with pytest.raises(TypeError, match="Method cannot be built: define losses and represent"):
        check_method(Method)
    with pytest.raises(TypeError, match=r"cohort is a datamodule, such as .*, and got <class"):
        check_method(Sound, cohort=SimulatedConnectomes)
    with pytest.raises(ValueError, match=r"there are no checks \['overfit'\]; the checks are \['construct'"):
        check_method(Sound, cohort=cohort, checks=["overfit"])
    with pytest.raises(ValueError, match=r"no reason for \['bf16'\]"):
        check_method(Sound, cohort=cohort, skip={"bf16": " "})
    with pytest.raises(
        ValueError, match=r"no default cohort suits Sound; .*SimulatedConnectomes: .*depth.*ReadingRoom l"
    ):
        check_method(Sound, depth=3)
