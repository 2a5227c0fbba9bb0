"""NeuroLIP: every check of its note that needs no training."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from medprism.cohort import Factor
from medprism.encoders.attention import TokenConditionedAttention
from medprism.losses.alignment import alignment_loss
from medprism.method import CohortMismatchError
from medprism.methods import NeuroLIP

from examples import make_batch, make_cohort

OPTIONS = {"encoder": "transformer", "encoder_options": {"dim": 16, "layers": 1, "heads": 2, "feedforward": 16}}


def build(cohort=None, seed=0, **options):
    torch.manual_seed(seed)
    cohort = cohort or make_cohort()
    return NeuroLIP(cohort.to_dict(), **{**OPTIONS, **options}).eval()


# ------------------------------------------------------------------------------------------------------- attention
def test_attention_equals_a_plain_loop():
    torch.manual_seed(0)
    ask = TokenConditionedAttention(8, heads=2)
    text, regions = torch.randn(3, 8), torch.randn(2, 5, 8)
    answers, maps = ask(text, regions)
    norm_text, norm_regions = ask.norm_text(text), ask.norm_regions(regions)
    for b in range(2):
        for t in range(3):
            q, heads, attended = ask.query(norm_text[t]), [], []
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                keys = [ask.key(norm_regions[b, n])[part] for n in range(5)]
                weights = torch.stack([q[part] @ key / math.sqrt(4) for key in keys]).softmax(0)
                attended.append(weights)
                heads.append(sum(w * ask.value(norm_regions[b, n])[part] for n, w in enumerate(weights)))
            assert torch.allclose(answers[b, t], ask.out(torch.cat(heads)), atol=1e-6)
            assert torch.allclose(maps[b, t], torch.stack(attended).mean(0), atol=1e-6)


def test_attention_takes_tokens_of_each_sample():
    torch.manual_seed(0)
    ask, text, regions = TokenConditionedAttention(8), torch.randn(3, 8), torch.randn(2, 5, 8)
    shared, own = ask(text, regions), ask(text.expand(2, -1, -1), regions)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(shared, own, strict=True))


def test_uniform_attention_is_the_mean_and_leaves_no_idle_parameter():
    torch.manual_seed(0)
    ask = TokenConditionedAttention(8, uniform=True)
    text, regions = torch.randn(3, 8), torch.randn(2, 5, 8)
    answers, maps = ask(text, regions)
    assert torch.allclose(maps, torch.full((2, 3, 5), 0.2))
    assert torch.allclose(answers[:, 0], ask.out(ask.value(ask.norm_regions(regions)).mean(1)), atol=1e-6)
    answers.sum().backward()
    assert all(p.grad is not None for p in ask.parameters())


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide"):
        TokenConditionedAttention(8, heads=3)


# -------------------------------------------------------------------------------------------------- representation
def test_map_rows_sum_to_one_and_answers_follow_the_regions():
    model, batch = build(), make_batch(make_cohort())
    rep = model.represent(batch)
    for factor, classes in (("disease", 2), ("sex", 2), ("age", 2)):
        assert rep.maps[factor].shape == (16, classes, 12)
        assert torch.allclose(rep.maps[factor].sum(-1), torch.ones(16, classes), atol=1e-5)
    assert "site" not in rep.maps  # a nuisance attribute is not sensitive unless it is named
    moved = {**batch, "connectome": batch["connectome"].flip(0)}
    assert not torch.allclose(model.represent(moved).blocks["disease"], rep.blocks["disease"])


def test_renaming_regions_permutes_maps_and_leaves_scores():
    model, batch = build(), make_batch(make_cohort())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    tokens = model.encoder(batch["connectome"]).tokens
    text, _ = model._tokens(model._bank(), [list(group) for group in model.target.phrases])
    answers, maps = model._ask(text, tokens)
    moved_answers, moved_maps = model._ask(text, tokens[:, order])
    assert torch.allclose(moved_maps, maps[..., order], atol=1e-6)
    assert torch.allclose(moved_answers, answers, atol=1e-5)


def test_scores_do_not_see_labels_or_captions():
    model, batch = build(captions=True), make_batch(make_cohort())
    shuffled = {
        **batch,
        "target": batch["target"].flip(0),
        "attributes": {name: values.flip(0) for name, values in batch["attributes"].items()},
    }
    unlabelled = {key: batch[key] for key in ("id", "connectome")}
    expected = model.predict_step(batch, 0)["probabilities"]
    assert torch.equal(model.predict_step(shuffled, 0)["probabilities"], expected)
    assert torch.equal(model.predict_step(unlabelled, 0)["probabilities"], expected)


def test_prediction_is_the_mean_similarity_over_the_target_phrases():
    model, batch = build(), make_batch(make_cohort())
    rep = model.represent(batch)
    bank = model.phrases()
    scale = model.log_scale.exp()
    regions = rep.tokens["regions"]
    expected = []
    for group in model.target.phrases:
        scores = []
        for phrase in group:
            u = bank.vectors[model.phrases.index(phrase)]  # (1, d)
            z, _ = model.attend(u, regions)
            scores.append(scale * F.cosine_similarity(z[:, 0], u[0], dim=-1) + model.bias)
        expected.append(torch.stack(scores).mean(0))
    assert torch.allclose(rep.logits["disease"], torch.stack(expected, 1), atol=1e-4)


@pytest.mark.parametrize("regions", [60, 190])
def test_any_number_of_regions(regions):
    cohort = make_cohort(regions)
    model, batch = build(cohort, encoder="region", encoder_options={"dim": 8}), make_batch(cohort, 4)
    assert model.represent(batch).maps["disease"].shape == (4, 2, regions)


# ---------------------------------------------------------------------------------------------------------- losses
def total(model, batch):
    return sum(model.losses(batch, model.represent(batch)).values())


def test_both_lambdas_zero_is_plain_calt_bit_for_bit():
    batch = make_batch(make_cohort())
    off = build(lambda_dis=0.0, lambda_neg=0.0)
    text, mask = off._tokens(off._bank(), [list(group) for group in off.target.phrases])
    answers, _ = off._ask(text, off.encoder(batch["connectome"]).tokens)
    plain = alignment_loss(off._similarity(answers, text), mask, batch["target"])
    assert list(off.losses(batch, off.represent(batch))) == ["align"]
    assert torch.equal(total(off, batch), plain)
    on = build()
    assert torch.equal(on.losses(batch, on.represent(batch))["align"], plain)


@pytest.mark.parametrize("distance", ["cosine", "jensen_shannon", "total_variation", "l2"])
def test_distance_term_equals_a_plain_loop_and_lies_in_minus_one_to_zero(distance):
    from medprism.losses.attention import attention_distance

    model, batch = build(lambda_dis=1.0, lambda_neg=0.0, distance=distance), make_batch(make_cohort())
    rep = model.represent(batch)
    bank, regions, means = model.phrases(), rep.tokens["regions"], []
    for factor in model.sensitive:
        each = []
        for i in range(16):
            y, s = int(batch["target"][i]), int(batch["attributes"][factor.name][i])
            if s == -1:
                continue
            maps = {}
            for name, group in (("p", model.target.phrases[y]), ("q", factor.phrases[s])):
                asked = torch.cat([bank.vectors[model.phrases.index(text)] for text in group])
                maps[name] = model.attend(asked, regions[i : i + 1])[1][0]
            pairs = [attention_distance(p, q, distance) for p in maps["p"] for q in maps["q"]]
            each.append(torch.stack(pairs).mean())
        means.append(torch.stack(each).mean())
    value = model.losses(batch, rep)["distance"]
    assert torch.allclose(value, -torch.stack(means).mean(), atol=1e-5)
    assert -1 <= float(value) <= 0


def sensitive_alignment(model, batch):
    regions, bank = model.encoder(batch["connectome"]).tokens, model._bank()
    values = []
    for factor in model.sensitive:
        text, mask = model._tokens(bank, [list(group) for group in factor.phrases])
        answers, _ = model._ask(text, regions)
        values.append(alignment_loss(model._similarity(answers, text), mask, batch["attributes"][factor.name]))
    return torch.stack(values).mean()


@pytest.mark.parametrize("mode", ["literal", "clamped"])
def test_a_step_on_the_negative_gradient_raises_the_sensitive_alignment(mode):
    # In the clamped mode there is something to raise only while the alignment is better than chance.
    model, batch = build(negative=mode, lambda_neg=1.0), make_batch(make_cohort(), unknown=False)
    better = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        better.zero_grad()
        sensitive_alignment(model, batch).backward()
        better.step()
    before = sensitive_alignment(model, batch).item()
    assert before < math.log(2)
    model.zero_grad()
    model.losses(batch, model.represent(batch))["negative"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert sensitive_alignment(model, batch).item() > before


def test_clamped_has_no_reward_past_chance_and_literal_is_bounded():
    model, batch = build(negative="clamped", lambda_neg=1.0), make_batch(make_cohort())
    with torch.no_grad():
        model.log_scale.fill_(math.log(100.0))
    term = model.losses(batch, model.represent(batch))["negative"]
    assert float(term.detach()) >= -math.log(2) - 1e-6
    literal = build(negative="literal", lambda_neg=1.0)
    with torch.no_grad():
        literal.log_scale.fill_(math.log(100.0))
    term = literal.losses(batch, literal.represent(batch))["negative"]
    assert -math.log1p(math.exp(10)) <= float(term.detach()) < 0
    term.backward()
    assert literal.log_scale.grad is None
    assert literal.bias.grad is None


def test_reversal_teaches_the_text_side_and_turns_the_encoder_around():
    batch = make_batch(make_cohort())
    plain, turned = build(), build(negative="reversal", lambda_neg=1.0)
    sensitive_alignment(plain, batch).backward()
    turned.losses(batch, turned.represent(batch))["negative"].backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in turned.named_parameters():
        expected = gradients[name].grad
        if expected is None:
            continue
        sign = -1 if name.startswith("encoder") else 1
        assert torch.allclose(parameter.grad, sign * expected, atol=1e-5), name


def test_parts_switch_off():
    batch = make_batch(make_cohort())
    names = lambda **options: set(build(**options).losses(batch, build(**options).represent(batch)))  # noqa: E731
    assert names() == {"align", "distance", "negative"}
    assert names(lambda_dis=0.0) == {"align", "negative"}
    assert names(lambda_neg=0.0, lambda_global=0.5) == {"align", "distance", "global"}
    assert names(lambda_align=0.0, lambda_dis=0.0, lambda_neg=0.0, lambda_global=1.0) == {"global"}
    assert names(sensitive=[]) == {"align"}
    with pytest.raises(ValueError, match="lambda_align or lambda_global"):
        build(lambda_align=0.0)
    with pytest.raises(KeyError, match="no attribute 'colour'"):
        build(sensitive=["colour"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negative": "reversal"},
        {"negative": "literal"},
        {"contrast": "softmax"},
        {"captions": True},
        {"text_options": {"level": "word"}},
        {"captions": True, "text_options": {"level": "word"}},
        {"lambda_global": 1.0},
        {"uniform_attention": True},
        {"lambda_align": 0.0, "lambda_global": 1.0, "lambda_dis": 0.0, "lambda_neg": 0.0},
        {"encoder": "region", "encoder_options": {"dim": 8}},
        {"encoder": "graph", "encoder_options": {"dim": 16}},
    ],
    ids=str,
)
def test_every_trainable_parameter_receives_a_gradient(options):
    """Plain DDP waits for each of them."""
    model, batch = build(**options), make_batch(make_cohort())
    total(model, batch).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def test_targets_and_captions_that_do_not_fit_are_refused():
    with pytest.raises(CohortMismatchError, match="target of kind 'labels'"):
        build(make_cohort(target_kind="labels"))
    many = tuple(Factor(f"a{k}", tuple(map(str, range(20))), role="sensitive") for k in range(3))
    with pytest.raises(ValueError, match=r"9,261 combinations"):
        build(make_cohort(attributes=many), captions=True)


def test_captions_use_the_sample_s_own_attributes():
    model, batch = build(captions=True, lambda_dis=0.0, lambda_neg=0.0), make_batch(make_cohort())
    text, mask = model._caption_tokens(batch, model._bank())
    bank = model.phrases()
    for i in range(16):
        said = [
            factor.phrases[code][0]
            for factor in model.sensitive
            if (code := int(batch["attributes"][factor.name][i])) != -1
        ]
        for c, group in enumerate(model.target.phrases):
            for k, phrase in enumerate(group):
                caption = ", ".join([phrase, *said])
                assert torch.equal(text[i, c, k], bank.vectors[model.phrases.index(caption), 0])
                assert bool(mask[i, c, k])


def test_a_fixed_seed_gives_the_same_numbers_and_a_copy_is_equal():
    batch = make_batch(make_cohort())
    first, second = build(seed=3), build(seed=3)
    assert torch.equal(total(first, batch), total(second, batch))
    assert torch.equal(total(copy.deepcopy(first), batch), total(first, batch))


def test_reversal_teaches_sensitive_phrases_whenever_the_distance_needs_them():
    batch = make_batch(make_cohort())
    model = build(negative="reversal", lambda_neg=0.0, lambda_dis=1.0)
    terms = model.losses(batch, model.represent(batch))
    assert terms["negative"].item() == pytest.approx(sensitive_alignment(model, batch).item(), abs=1e-6)
    terms["negative"].backward()
    assert model.attend.query.weight.grad.abs().max() > 0
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())
    plain = build(negative="reversal", lambda_neg=0.0, lambda_dis=0.0)
    assert "negative" not in plain.losses(batch, plain.represent(batch))


def test_the_strength_of_a_reversal_acts_on_the_encoder_alone():
    batch = make_batch(make_cohort())
    weak, strong = build(negative="reversal", lambda_neg=0.25), build(negative="reversal", lambda_neg=1.0)
    for model in (weak, strong):
        model.losses(batch, model.represent(batch))["negative"].backward()
    for (name, one), two in zip(weak.named_parameters(), strong.parameters(), strict=True):
        if two.grad is not None:
            factor = 0.25 if name.startswith("encoder") else 1.0
            assert torch.allclose(one.grad, factor * two.grad, atol=1e-6), name


@pytest.mark.parametrize("mode", ["literal", "clamped", "reversal"])
def test_sensitive_phrases_can_be_aligned_within_each_class_of_the_target(mode):
    batch = make_batch(make_cohort(), n=32)
    model = build(negative=mode, lambda_neg=1.0, within_target=True)
    rep, bank, each = model.represent(batch), model._bank(), []
    for factor in model.sensitive:
        text, mask = model._tokens(bank, [list(group) for group in factor.phrases])
        scores = model._similarity(model._ask(text, rep.tokens["regions"])[0], text)
        scores = scores.clamp(-10, 10) if mode == "literal" else scores
        rows = [batch["target"] == code for code in range(len(model.target.classes))]
        loss = torch.stack([alignment_loss(scores[r], mask, batch["attributes"][factor.name][r]) for r in rows]).mean()
        each.append(loss if mode == "reversal" else -loss if mode == "literal" else -loss.clamp(max=math.log(2)))
    assert torch.allclose(model.losses(batch, rep)["negative"], torch.stack(each).mean(), atol=1e-5)
