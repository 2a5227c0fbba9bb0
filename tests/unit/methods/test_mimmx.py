import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F

from medprism.checkpoint import load_method
from medprism.method import CohortMismatchError
from medprism.methods import MIMMX

from examples import make_batch, make_cohort

SMALL = {"hidden": 16, "negatives": 3}


def cohort_of(attributes: int):
    cohort = make_cohort(regions=6)
    return make_cohort(regions=6, attributes=cohort.attributes[:attributes])


def made(attributes: int = 3, **options) -> MIMMX:
    torch.manual_seed(0)
    plain = {"input_dropout": 0.0}
    options = {"encoder": "region", "encoder_options": plain, "measure_options": SMALL, "scaling": "off", **options}
    return MIMMX(cohort_of(attributes).to_dict(), **options)


def batch_of(method: MIMMX, n: int = 24, unknown: bool = False, seed: int = 0):
    return make_batch(method.cohort, n, seed, unknown)


def terms_of(method: MIMMX, batch):
    rep = method.represent(batch)
    return {**method.losses(batch, rep), **method.critic_losses(batch, rep)}


def gradients(method: MIMMX) -> dict:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


# --------------------------------------------------------------------------------------------------- architecture
def test_blocks_and_heads_of_every_factor():
    method = made(3, block_dim=4)
    rep = method.represent(batch_of(method))
    assert list(rep.blocks) == ["disease", "sex", "age", "site", "pooled"]
    assert all(rep.blocks[name].shape == (24, 4) for name in ("disease", "sex", "age", "site"))
    assert {name: logits.shape[1] for name, logits in rep.logits.items()} == {
        "disease": 2,
        "sex": 2,
        "age": 2,
        "site": 3,
    }


def test_a_head_reads_its_own_block_only():
    method = made(2)
    batch = batch_of(method)
    rep = method.represent(batch)
    for position, name in enumerate(("disease", "sex", "age")):
        assert torch.equal(rep.logits[name], method.heads[position](rep.blocks[name]))


# ------------------------------------------------------------------------------------------------- rules of the note
def test_one_attribute_is_the_predecessor_whatever_the_pairs():
    values = []
    for pairs in ("pairwise", "joint", "weighted"):
        method = made(1, pairs=pairs)
        values.append(torch.stack(list(terms_of(method, batch_of(method)).values())))
    assert torch.equal(values[0], values[1])
    assert torch.allclose(values[0], values[2], atol=1e-7)


def test_uniform_weights_are_the_joint_form():
    weighted, joint = made(3, pairs="weighted", tau=1e9), made(3, pairs="joint")
    torch.nn.init.normal_(weighted.attention.out)
    joint.load_state_dict(weighted.state_dict(), strict=False)
    batch = batch_of(weighted)
    first, second = terms_of(weighted, batch), terms_of(joint, batch)
    for name, value in second.items():
        assert torch.allclose(first[name], value, atol=1e-5), name


def test_pairwise_has_a_critic_for_every_pair_and_takes_their_mean():
    method = made(3, pairs="pairwise", measure="hsic", measure_options=None)
    batch = batch_of(method)
    rep = method.represent(batch)
    blocks = [rep.blocks[name] for name in ("disease", "sex", "age", "site")]
    each = [method.measure([(blocks[i], blocks[j])] * 6)[0].item() for i in range(4) for j in range(i + 1, 4)]
    assert method.losses(batch, rep)["dependence"].item() == pytest.approx(sum(each) / 6, rel=1e-5)


def test_without_memory_over_all_parameters_it_is_the_rule_of_the_precursor():
    method = made(2, scaling="norms", scaling_momentum=0.0, scaling_over="parameters", lambda_dep=1.5)
    plain = made(2, lambda_dep=1.5)
    plain.load_state_dict(method.state_dict())
    batch = batch_of(method)
    rep = plain.represent(batch)
    terms = plain.losses(batch, rep)
    dependence = terms.pop("dependence")
    weights = list(plain.encoder.parameters())
    norms = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True)]).norm()
        for loss in (sum(terms.values()), dependence / 1.5)
    ]
    expected = dependence * (torch.minimum(*norms) / norms[1])
    found = method.losses(batch, method.represent(batch))["dependence"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_conditional_ignores_dependence_through_the_target():
    torch.manual_seed(0)
    method = made(1, measure="hsic", measure_options=None)
    conditional = made(1, measure="hsic", measure_options=None, conditional=True)
    batch = batch_of(method, 200)
    target = batch["target"][:, None].float()
    rep = method.represent(batch)
    for name in ("disease", "sex"):  # alike only through the target
        rep.blocks[name] = 4 * target + torch.randn(200, 2)
    plain, given = (m._dependence(batch, rep).item() for m in (method, conditional))
    assert plain > 0.03
    assert given < 0.2 * plain


def test_conditional_critics_see_the_class():
    assert made(1, conditional=True).measure.classes == 2
    assert made(1).measure.classes == 0


# ---------------------------------------------------------------------------------------------------------- routing
@pytest.mark.parametrize("pairs", ["pairwise", "joint", "weighted"])
def test_critics_and_encoder_are_two_players(pairs):
    method = made(3, pairs=pairs)
    if method.attention is not None:
        torch.nn.init.normal_(method.attention.out)
    batch = batch_of(method)
    critics = {id(p) for p in method.critic_parameters()}
    names = {True: set(), False: set()}
    for name, p in method.named_parameters():
        names[id(p) in critics].add(name)
    rep = method.represent(batch)
    sum(method.losses(batch, rep).values()).backward()
    assert set(gradients(method)) == names[False]
    method.zero_grad()
    sum(method.critic_losses(batch, method.represent(batch)).values()).backward()
    assert set(gradients(method)) == names[True]
    assert (pairs == "weighted") == any(name.startswith("attention.") for name in names[True])


def test_one_backward_is_both_players():
    method = made(2)
    batch = batch_of(method)
    method.eval()  # the derangements of a call stay those of the next
    sum(terms_of(method, batch).values()).backward()
    together = gradients(method)
    method.zero_grad()
    rep = method.represent(batch)
    sum(method.losses(batch, rep).values()).backward()
    sum(method.critic_losses(batch, method.represent(batch)).values()).backward()
    apart = gradients(method)
    assert set(together) == set(apart)
    for name, grad in together.items():
        assert torch.allclose(grad, apart[name], atol=1e-6), name


def test_a_critic_step_raises_the_estimate_and_an_encoder_step_lowers_it():
    method = made(1, measure_options={"hidden": 32, "negatives": "all"})
    batch = batch_of(method, 64)
    rep = method.represent(batch)
    before = method._dependence(batch, rep)
    critics = torch.optim.SGD(method.critic_parameters(), lr=0.05)
    sum(method.critic_losses(batch, rep).values()).backward()
    critics.step()
    raised = method._dependence(batch, method.represent(batch))
    assert raised > before
    method.zero_grad()
    encoder = torch.optim.SGD([*method.encoder.parameters(), *method.cut.parameters()], lr=0.01)
    raised.backward()
    encoder.step()
    assert method._dependence(batch, method.represent(batch)) < raised


def test_attention_weighs_without_the_block_of_the_target():
    method = made(3)
    torch.nn.init.normal_(method.attention.out)
    batch = batch_of(method)
    rep = method.represent(batch)
    blocks = method._blocks(rep, detached=True)
    one = method._pairs(blocks, frozen=True)[1]
    other = method._pairs([torch.randn_like(blocks[0]), *blocks[1:]], frozen=True)[1]
    assert torch.equal(one, other)


def test_terms_weigh_the_critics_by_their_estimates():
    method = made(3, weighter="terms", tau=0.5, beta=0.0)
    batch = batch_of(method)
    rep = method.represent(batch)
    blocks = method._blocks(rep, detached=False)
    each = method.measure([(blocks[0], other) for other in blocks[1:]])
    share = F.softmax(each.detach().clamp(min=0) / 0.5, 0)
    assert method._dependence(batch, rep).item() == pytest.approx((share * each).sum().item(), abs=1e-6)


def test_pairs_of_attributes_take_turns_in_their_places():
    method = made(3)
    blocks = [torch.full((5, 2), float(k)) for k in range(4)]
    first, second = method._pair_among(blocks)
    assert first.tolist()[0] == [1, 1, 0, 0, 0, 0]
    assert second.tolist()[0] == [0, 0, 2, 2, 0, 0]


# ---------------------------------------------------------------------------------------------------------- schedule
def test_alternating_turns(monkeypatch):
    method = made(2, schedule="alternating", encoder_batches=2, critic_batches=3)
    batch = batch_of(method)
    seen = []
    for step in range(6):
        monkeypatch.setattr(type(method), "global_step", property(lambda self, step=step: step))
        rep = method.represent(batch)
        seen.append((bool(method.losses(batch, rep)), bool(method.critic_losses(batch, rep))))
    assert seen == [(True, False)] * 2 + [(False, True)] * 3 + [(True, False)]
    method.eval()
    assert method.losses(batch, rep) and method.critic_losses(batch, rep)


class Fixed(torch.utils.data.Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.batch


def fitted(method, folder, epochs=4, **options):
    loader = torch.utils.data.DataLoader(Fixed(batch_of(method)), batch_size=None)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(method, loader)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_warm_up_and_ramp(tmp_path):
    method = made(2, critic_warmup=0.5, ramp_share=0.25)
    weights = []
    losses = method.losses
    method.losses = lambda batch, rep: (  # type: ignore[method-assign]
        weights.append((method.current_epoch, method.ramp(0.25, 0.5))) or losses(batch, rep)
    )
    fitted(method, tmp_path, epochs=8)
    assert dict(weights) == {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0.5, 6: 1, 7: 1}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_trains_tests_and_comes_back_from_a_checkpoint(tmp_path, schedule):
    method = made(2, schedule=schedule, scaling="norms", critic_lr=5e-3)
    trainer = fitted(method, tmp_path)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [1e-3, 5e-3]
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    loaded = load_method(tmp_path / "last.ckpt")
    method.eval()
    batch = batch_of(method)
    assert torch.equal(loaded.represent(batch).blocks["disease"], method.represent(batch).blocks["disease"])
    assert torch.equal(loaded.scale.norms, method.scale.norms)


@pytest.mark.filterwarnings("ignore")
def test_same_seed_same_numbers(tmp_path):
    weights = []
    for _ in range(2):
        pl.seed_everything(3, verbose=False)
        method = made(2, scaling="norms")
        fitted(method, tmp_path)
        weights.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
    assert torch.equal(*weights)


# ---------------------------------------------------------------------------------------------------------- options
def test_unknown_attributes_are_masked():
    method = made(2)
    batch = batch_of(method)
    rep = method.represent(batch)
    batch["attributes"]["sex"][:12] = -1
    expected = F.cross_entropy(rep.logits["sex"][12:], batch["attributes"]["sex"][12:]) / 3
    assert method.losses(batch, rep)["sex"].item() == pytest.approx(expected.item(), rel=1e-5)
    batch["attributes"]["sex"][:] = -1
    assert method.losses(batch, rep)["sex"] == 0


def test_eta_weighs_the_heads_of_attributes():
    method = made(2, eta=0.5)
    batch = batch_of(method)
    rep = method.represent(batch)
    terms = method.losses(batch, rep)
    assert terms["disease" if "disease" in terms else "target"].item() == pytest.approx(
        F.cross_entropy(rep.logits["disease"], batch["target"]).item() / 2, rel=1e-5
    )
    expected = 0.5 * F.cross_entropy(rep.logits["age"], batch["attributes"]["age"]).item() / 2
    assert terms["age"].item() == pytest.approx(expected, rel=1e-5)


def test_importance_weights_reach_labels_and_dependence():
    method = made(1, measure="dcor", measure_options=None)
    batch = batch_of(method)
    rep = method.represent(batch)
    plain = method.losses(batch, rep)
    batch["weight"] = torch.linspace(0, 2, 24)
    weighted = method.losses(batch, rep)
    assert all(not torch.allclose(plain[name], weighted[name], rtol=1e-4) for name in plain)


def test_without_dependence_there_are_no_critics():
    method = made(2, lambda_dep=0.0)
    batch = batch_of(method)
    assert set(terms_of(method, batch)) == {"target", "sex", "age"}
    assert method.critic_parameters() == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block_dim": 0}, "block_dim=0"),
        ({"lambda_dep": -1.0}, "lambda_dep=-1"),
        ({"spurious": []}, "spurious is empty"),
        ({"measure": "nonsense"}, "unknown dependence measure"),
        ({"measure_options": {"width": 3}}, "no options"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        made(2, **options)


def test_unknown_attribute_name():
    with pytest.raises(KeyError, match="no attribute 'scanner'"):
        made(2, spurious=["scanner"])


def test_cohorts_that_do_not_fit():
    for changes in ({"attributes": ()}, {"target_kind": "value"}):
        with pytest.raises(CohortMismatchError, match="needs classes and at least one attribute"):
            MIMMX(make_cohort(regions=6, **changes).to_dict(), encoder="region")
