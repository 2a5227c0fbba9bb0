"""EGMA: its terms, gaze and no gaze in one batch, the control without gaze, the released choices, checkpoints."""

from pathlib import Path

import pytest
import torch
import yaml

from medprism.checkpoint import load_method
from medprism.losses.finegrained import clip_loss, fine_grained_contrast
from medprism.losses.gaze import gaze_label_loss
from medprism.losses.mapping import cross_mapping_loss
from medprism.method import CohortMismatchError
from medprism.methods import EGMA
from medprism.methods.clip import sentence_mask
from medprism.methods.egma import patch_gaze

from examples import make_reading_cohort, make_readings

CONFIGS = Path(__file__).parents[3] / "configs" / "methods"
SMALL = {
    "encoder_options": {"grid": 4, "width": 8, "blocks": 0},
    "text_options": {"width": 16, "layers": 0},
    "dim": 8,
}


def made(cohort=None, **options) -> EGMA:
    torch.manual_seed(0)
    return EGMA((cohort or make_reading_cohort()).to_dict(), **{**SMALL, **options})


def without_gaze_fields():
    return make_reading_cohort(
        fields=tuple(name for name in make_reading_cohort().fields if name not in ("gaze", "has_gaze")), grid=()
    )


def terms_of(method: EGMA, batch: dict) -> dict[str, torch.Tensor]:
    return method.losses(batch, method.represent(batch))


def blind(batch: dict) -> dict:
    """The same readings without an eye tracker."""
    return {**batch, "gaze": torch.zeros_like(batch["gaze"]), "has_gaze": torch.zeros_like(batch["has_gaze"])}


def without_gradient(method) -> list[str]:
    return [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]


# --------------------------------------------------------------------------------------------------------------- terms
@pytest.mark.parametrize("released", [False, True])
def test_terms_are_those_of_the_losses(released):
    weights = {"lambda_gaze": 0.5, "lambda_contrast": 2.0, "lambda_mapping": 3.0, "lambda_global": 0.25}
    method = made(released=released, lambda_dep=0.1, **weights)
    batch = make_readings(method.cohort)
    rep = method.represent(batch)
    mask, t = sentence_mask(batch["sentences"]), 1 / 0.07
    patches, sentences = rep.tokens["patches"], rep.tokens["sentences"]
    gaze, has = patch_gaze(batch["gaze"], (4, 4)), batch["has_gaze"]
    logits = t * sentences @ patches.mT
    valid = mask.any(1)
    expected = {
        "contrast": 2
        * fine_grained_contrast(patches, sentences, mask, t, transpose_text=not released, masked=not released),
        "mapping": 3 * cross_mapping_loss(patches, sentences, gaze, mask, has, t, released),
        "gaze": 0.5 * gaze_label_loss(logits, gaze > 0, mask, has, (0.8, 0.2) if released else (0.5, 0.5)),
        "global": 0.25 * clip_loss(rep.blocks["image"], rep.blocks["text"], t, valid=valid),
        "dependence": method.dependence(batch, rep)["dependence"],
    }
    found = method.losses(batch, rep)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        assert value.isfinite() and abs(value.item()) > 1e-4


def test_gaze_reaches_the_patches_that_were_looked_at():
    gaze = torch.zeros(1, 3, 8, 8)
    gaze[0, 0, :4, 4:] = 1.0
    gaze[0, 1, 7, 0] = 0.5
    found = patch_gaze(gaze, (4, 4)).view(1, 3, 4, 4)
    assert found.min() >= 0 and found.max() <= 1
    assert found[0, 0, 0, 3] == 1 and found[0, 0, 3].max() == 0
    assert (found[0, 1] > 0).nonzero().tolist()[-1] == [3, 0] and not found[0, 2].any()
    torch.testing.assert_close(patch_gaze(torch.ones(2, 1, 56, 56), (7, 7)), torch.ones(2, 1, 49))
    assert patch_gaze(torch.zeros(2, 0, 8, 8), (4, 4)).shape == (2, 0, 16)


@pytest.mark.parametrize("encoder", ["patches", "small"])
def test_gradients_reach_both_towers(encoder):
    options = {} if encoder == "small" else SMALL["encoder_options"]
    method = made(encoder=encoder, encoder_options=options)
    batch = make_readings(method.cohort)
    for name in ("contrast", "mapping", "gaze"):
        method.zero_grad()
        terms_of(method, batch)[name].backward()
        grads = [method.projection.weight.grad, method.tower.words.weight.grad, method.log_scale.grad]
        assert all(grad.isfinite().all() and grad.any() for grad in grads), name
    method.zero_grad()
    sum(terms_of(method, batch).values()).backward()
    assert without_gradient(method) == []


def test_each_sentence_of_a_batch_is_encoded_once():
    method = made()
    encode, asked = method.tower.encode, []
    method.tower.encode = lambda texts: asked.extend(texts) or encode(texts)
    batch = make_readings(method.cohort, 16)
    method.represent(batch)
    said = [text for each in batch["sentences"] for text in each]
    assert len(said) > len(asked) == len(set(asked)) and set(asked) == set(said)


def test_permuting_sentences_with_their_gaze_leaves_the_losses():
    method = made(text_options={"width": 16, "layers": 0}).eval()
    batch = make_readings(method.cohort)
    shuffled = {**batch, "gaze": batch["gaze"].clone(), "sentences": [each[::-1] for each in batch["sentences"]]}
    for row, each in enumerate(batch["sentences"]):
        shuffled["gaze"][row, : len(each)] = batch["gaze"][row, : len(each)].flip(0)
    for name, value in terms_of(method, batch).items():
        torch.testing.assert_close(terms_of(method, shuffled)[name], value, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- without gaze
def test_without_gaze_it_is_the_fine_grained_model():
    """Readings without gaze, a cohort without gaze, and gaze that may not be read: one and the same."""
    method, control, plain = made(), made(use_gaze=False), made(without_gaze_fields())
    batch = make_readings(method.cohort)
    off = terms_of(method, blind(batch))
    assert off.pop("gaze").item() == 0
    for other, given in ((control, batch), (plain, make_readings(plain.cohort))):
        found = terms_of(other, given)
        assert found.keys() == off.keys() == {"contrast", "mapping"}
        for name, value in off.items():
            assert found[name].item() == value.item(), name
    on = terms_of(method, batch)
    assert on["contrast"].item() == off["contrast"].item()
    assert abs(on["mapping"].item() - off["mapping"].item()) > 1e-4 and on["gaze"] > 0


def test_no_gaze_in_a_batch_keeps_the_graph():
    method = made(lambda_contrast=0.0, lambda_mapping=0.0)
    loss = terms_of(method, blind(make_readings(method.cohort)))["gaze"]
    loss.backward()
    assert loss.item() == 0 and without_gradient(method) == []


def test_gaze_of_a_sample_without_gaze_is_not_looked_at():
    method = made()
    batch = make_readings(method.cohort)
    noise = torch.rand_like(batch["gaze"]) * ~batch["has_gaze"][:, None, None, None]
    for name, value in terms_of(method, batch).items():
        assert terms_of(method, {**batch, "gaze": batch["gaze"] + noise})[name].item() == value.item()


@pytest.mark.parametrize("released", [False, True])
def test_a_batch_without_sentences(released):
    method = made(released=released, lambda_global=1.0)
    batch = make_readings(method.cohort)
    batch["sentences"], batch["gaze"] = [[] for _ in range(8)], batch["gaze"][:, :0]
    terms = terms_of(method, batch)
    assert all(term.item() == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert without_gradient(method) == [] and all(p.grad.isfinite().all() for p in method.parameters())


# ----------------------------------------------------------------------------------------------------------- training
def test_overfits_a_batch_and_gaze_guides_it():
    """Sentences come closer to the patches that were looked at than to the others, more so than without gaze."""
    closer = {}
    for use_gaze in (True, False):
        method = made(use_gaze=use_gaze, dim=16)
        batch = make_readings(method.cohort, 24, seed=2)
        optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
        history = []
        for _ in range(30):
            optimizer.zero_grad()
            terms = terms_of(method, batch)
            sum(terms.values()).backward()
            optimizer.step()
            history.append({name: term.item() for name, term in terms.items()})
        assert history[-1]["contrast"] < 0.8 * history[0]["contrast"]
        assert not use_gaze or history[-1]["gaze"] < 0.2 * history[0]["gaze"]
        rep = method.eval().represent(batch)
        cosines = (rep.tokens["sentences"][:, :1] @ rep.tokens["patches"].mT)[:, 0]  # of each first sentence
        seen = patch_gaze(batch["gaze"], method.grid)[:, 0] > 0.5
        rows = batch["has_gaze"] & (batch["target"] == 1)
        cosines, seen = cosines[rows], seen[rows]
        closer[use_gaze] = (cosines[seen].mean() - cosines[~seen].mean()).item()
    assert closer[True] > 0.5 and closer[True] > 1.5 * closer[False]


def test_checkpoint_round_trip(tmp_path):
    method = made(released=True, lambda_global=0.5, text_options={"width": 16, "layers": 1}).eval()
    content = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
    method.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    again = load_method(tmp_path / "a.ckpt")
    assert type(again) is EGMA and again.hparams["released"] and again.hparams["pooling"] == "patches"
    batch = make_readings(method.cohort)
    one, other = method.represent(batch), again.represent(batch)
    assert torch.equal(one.logits["opacity"], other.logits["opacity"])
    for name, value in method.losses(batch, one).items():
        assert again.losses(batch, other)[name].item() == value.item()


def test_half_precision():
    method = made(lambda_global=1.0)
    batch = make_readings(method.cohort)
    plain = terms_of(method, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = terms_of(method, batch)
    for name, value in plain.items():
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], value, rtol=0.1, atol=0.1)
    sum(rough.values()).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


# ------------------------------------------------------------------------------------------------- configs, bad input
@pytest.mark.parametrize("name", ["egma", "egma_small", "egma_released", "fine_grained", "clip", "clip_small"])
def test_configs_fit_the_classes(name):
    """Their arguments, with towers that are at hand."""
    from medprism import methods

    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    options = {key: value for key, value in config["init_args"].items() if key not in ("optimizer", "scheduler")}
    if options["encoder"] == "timm":
        options |= {"encoder": "patches", "encoder_options": SMALL["encoder_options"]}
        options |= {"text_tower": "small", "text_options": SMALL["text_options"]}
    cohort = make_reading_cohort(input_shape=(1, 64, 64))
    method = getattr(methods, config["class_path"])(cohort.to_dict(), **options)
    batch = make_readings(cohort, 4)
    assert all(term.isfinite() for term in method.losses(batch, method.represent(batch)).values())
    assert method.hparams.get("use_gaze", True) == (name != "fine_grained")


@pytest.mark.parametrize("grid", [(), (3, 3), (8, 3)])
def test_gaze_maps_that_are_coarser_than_the_patches(grid):
    with pytest.raises(CohortMismatchError, match=r"4 x 4 patches: maps must be at least as fine.*use_gaze=false"):
        made(make_reading_cohort(grid=grid))
    assert not made(make_reading_cohort(grid=grid), use_gaze=False).reads_gaze


def test_gaze_that_does_not_fit_the_batch():
    method = made()
    batch = make_readings(method.cohort)
    with pytest.raises(ValueError, match=r"gaze of shape \(8, 3, 6, 6\) for 3 sentences at most and maps of \(8, 8\)"):
        terms_of(method, {**batch, "gaze": torch.zeros(8, 3, 6, 6)})
    with pytest.raises(ValueError, match="one map a sentence"):
        terms_of(method, {**batch, "gaze": torch.zeros(8, 5, 8, 8)})


@pytest.mark.parametrize(
    "options",
    [
        {"lambda_gaze": -1.0},
        {"lambda_contrast": 0.0, "lambda_mapping": 0.0, "use_gaze": False},
        {"lambda_contrast": 0.0, "lambda_mapping": 0.0, "lambda_gaze": 0.0},
    ],
)
def test_weights_that_make_no_sense(options):
    with pytest.raises(ValueError, match="weights are at least 0"):
        made(**options)
