"""CLIP, and what all image-text methods share: their space, tokens, zero-shot scores, checkpoints."""

import sys

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from medprism.checkpoint import load_method
from medprism.cohort import Factor
from medprism.encoders import Encoded
from medprism.losses.finegrained import clip_loss
from medprism.method import CohortMismatchError
from medprism.methods import CLIP
from medprism.methods.clip import sentence_mask, unit

from examples import make_cohort, make_reading_cohort, make_readings

SMALL = {
    "encoder_options": {"grid": 4, "width": 8, "blocks": 0},
    "text_options": {"width": 16, "layers": 0},
    "dim": 8,
}


def made(cohort=None, cls=CLIP, **options):
    torch.manual_seed(0)
    return cls((cohort or make_reading_cohort()).to_dict(), **{**SMALL, **options})


def without_gradient(method) -> list[str]:
    return [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]


# ---------------------------------------------------------------------------------------------------------- represent
def test_blocks_tokens_and_grid():
    method = made().eval()
    batch = make_readings(method.cohort)
    rep = method.represent(batch)
    counts = torch.tensor([len(each) for each in batch["sentences"]])
    assert rep.grid == (4, 4) and {name: x.shape[0] for name, x in rep.blocks.items()} == {"image": 8, "text": 8}
    assert rep.tokens["patches"].shape == (8, 16, 8) and rep.tokens["sentences"].shape == (8, counts.max(), 8)
    torch.testing.assert_close(rep.tokens["patches"].norm(dim=-1), torch.ones(8, 16))
    lengths = sentence_mask(batch["sentences"]).float()
    torch.testing.assert_close(rep.tokens["sentences"].norm(dim=-1), lengths)
    assert torch.equal(lengths.sum(1).long(), counts)
    torch.testing.assert_close(rep.blocks["image"].norm(dim=-1), torch.ones(8))
    torch.testing.assert_close(rep.blocks["text"].norm(dim=-1), (counts > 0).float())
    for row, each in enumerate(batch["sentences"]):
        if each:
            own = method.embed_texts(each)
            torch.testing.assert_close(rep.tokens["sentences"][row, : len(each)], own)
            torch.testing.assert_close(rep.blocks["text"][row], unit(own.mean(0)))
    for row, boxes in enumerate(batch["boxes"]):
        for place, box in enumerate(boxes):
            torch.testing.assert_close(rep.tokens["phrases"][row, place], method.embed_texts([box[0]])[0])
        assert not rep.tokens["phrases"][row, len(boxes) :].any()


def test_training_asks_neither_prompts_nor_boxes():
    method = made()
    batch = make_readings(method.cohort)
    asked = []
    method.tower.register_forward_hook(lambda tower, args, vectors: asked.extend(args[0]))
    rep = method.represent(batch)
    assert rep.logits == {} and set(rep.tokens) == {"patches", "sentences"}
    assert asked == [text for each in batch["sentences"] for text in each]


def test_labels_are_not_looked_at():
    method = made().eval()
    batch = make_readings(method.cohort)
    first = method.represent(batch)
    second = method.represent({key: batch[key] for key in ("id", "image", "sentences")})
    assert torch.equal(first.logits["opacity"], second.logits["opacity"])
    assert torch.equal(first.blocks["image"], second.blocks["image"])


def test_pooling():
    own, patches = made().eval(), made(pooling="patches").eval()
    batch = make_readings(own.cohort)
    torch.testing.assert_close(own.represent(batch).blocks, patches.represent(batch).blocks)  # this encoder's own mean
    own, patches = (made(encoder="small", encoder_options={}, pooling=kind).eval() for kind in ("encoder", "patches"))
    encoded = own.encoder(batch["image"])
    torch.testing.assert_close(own.represent(batch).blocks["image"], unit(own.projection(encoded.pooled)))
    mean = unit(own.projection(encoded.tokens.mean(1)))
    torch.testing.assert_close(patches.represent(batch).blocks["image"], mean)


# ---------------------------------------------------------------------------------------------------------- zero-shot
@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_zero_shot_scores(pooling):
    method = made(prompt_pooling=pooling).eval()
    batch = make_readings(method.cohort)
    rep = method.represent(batch)
    pooled = {"max": max, "mean": lambda scores: sum(scores) / len(scores)}[pooling]
    for row, image in enumerate(rep.blocks["image"]):
        for k, phrases in enumerate(method.cohort.target.phrases):
            cosines = [F.cosine_similarity(image, method.embed_texts([text])[0], dim=0).item() for text in phrases]
            assert rep.logits["opacity"][row, k].item() == pytest.approx(
                method.scale().item() * pooled(cosines), abs=1e-4
            )


def test_prompts_follow_the_tower_and_are_encoded_once_while_it_stays():
    method = made().eval()
    batch = make_readings(method.cohort)
    asked = []
    method.tower.register_forward_hook(lambda tower, args, vectors: asked.append(list(args[0])))
    with torch.inference_mode():
        method.represent(batch)
    first = method.represent(batch).logits["opacity"]
    prompts = [text for group in method.cohort.target.phrases for text in group]
    assert asked.count(prompts) == 1
    with torch.no_grad():
        method.tower.projection.weight.neg_()
    assert not torch.allclose(method.represent(batch).logits["opacity"], first)
    assert asked.count(prompts) == 2
    method.represent(batch).logits["opacity"].sum().backward()  # what a test encoded does not stop training


def test_output_carries_tokens_and_grid():
    method = made().eval()
    output = method.predict_step(make_readings(method.cohort), 0)
    assert output["grid"] == (4, 4) and set(output["tokens"]) == {"patches", "sentences", "phrases"}
    assert output["probabilities"].shape == (8, 2) and set(output["blocks"]) == {"image", "text"}


def test_labels_cohort_scores_every_label():
    cohort = make_reading_cohort(target_kind="labels", target=Factor("findings", ("edema", "effusion", "mass")))
    method = made(cohort).eval()
    batch = make_readings(make_reading_cohort())
    assert method.output(batch, method.represent(batch))["probabilities"].shape == (8, 3)


# -------------------------------------------------------------------------------------------------------------- losses
@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_contrast_of_images_with_texts(contrast):
    method = made(contrast=contrast)
    batch = make_readings(method.cohort)
    rep = method.represent(batch)
    terms = method.losses(batch, rep)
    known = torch.tensor([bool(each) for each in batch["sentences"]])
    bias = -10.0 if contrast == "sigmoid" else None
    expected = clip_loss(rep.blocks["image"], rep.blocks["text"], 1 / 0.07, contrast, bias, known)
    assert set(terms) == {"contrast"} and terms["contrast"].item() == pytest.approx(expected.item(), rel=1e-5)
    terms["contrast"].backward()
    assert without_gradient(method) == []
    assert all(p.grad.any() for p in (method.projection.weight, method.tower.words.weight, method.log_scale))
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_a_batch_without_sentences_trains_nothing_and_breaks_nothing():
    method = made()
    batch = make_readings(method.cohort)
    batch["sentences"], batch["gaze"] = [[] for _ in range(8)], batch["gaze"][:, :0]
    loss = sum(method.losses(batch, method.represent(batch)).values())
    loss.backward()
    assert loss.item() == 0 and without_gradient(method) == []
    assert not any(p.grad.any() for p in method.parameters())


def test_contrast_falls_and_zero_shot_follows():
    """Sentences of the batch are the prompts, so what the contrast learns is the prediction."""
    method = made(dim=16)
    batch = make_readings(method.cohort, 16, seed=1)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = method.losses(batch, method.represent(batch))["contrast"]
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.6 * values[0]
    found = method.eval().represent(batch).logits["opacity"].argmax(1)
    assert (found == batch["target"]).float().mean() > 0.9


def test_scale_stays_in_bounds_and_comes_back():
    method = made()
    assert method.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)
    for value, expected in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            method.log_scale.fill_(value)
        assert method.scale().item() == pytest.approx(expected, rel=1e-5)
        method.on_train_batch_start({}, 0)
        method.scale().backward()
        assert method.log_scale.grad.item() > 0.9
        method.log_scale.grad = None


@pytest.mark.parametrize("measure", ["hsic", "dcor", "mmd"])
def test_dependence_on_spurious_attributes(measure):
    method = made(lambda_dep=0.5, measure=measure, spurious=["view"])
    batch = make_readings(method.cohort, 32)
    rep = method.represent(batch)
    terms = method.losses(batch, rep)
    assert set(terms) == {"contrast", "dependence"}
    known = batch["attributes"]["view"] >= 0
    assert 0 < known.sum() < 32
    method.measure.eval()
    value = method.dependence(batch, rep)["dependence"]
    one_hot = F.one_hot(batch["attributes"]["view"][known], 2).float()
    expected = 0.5 * method.measure([(rep.blocks["image"][known], one_hot)])[0]
    if measure != "mmd":  # which draws
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    value.backward()
    assert method.encoder.place.grad.any()


def test_a_small_batch_of_an_evaluation_goes_without_dependence():
    method = made(lambda_dep=0.5)
    batch = make_readings(method.cohort, 3)
    with pytest.raises(ValueError, match="enlarge batch_size"):
        method.losses(batch, method.represent(batch))
    method.eval()
    assert set(method.losses(batch, method.represent(batch))) == {"contrast"}


# ------------------------------------------------------------------------------------------------- training, checkpoint
class Readings(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader([make_readings(make_reading_cohort(), seed=k) for k in range(3)], batch_size=None)

    def val_dataloader(self):
        return DataLoader([make_readings(make_reading_cohort(), seed=9)], batch_size=None)


def fitted(method, folder):
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(method, datamodule=Readings())
    trainer.save_checkpoint(folder / "a.ckpt")
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_fit_checkpoint_and_seed(tmp_path):
    weights = []
    for _ in range(2):
        method = made(contrast="sigmoid", text_tower="frozen", text_options={"options": {"dim": 16}})
        trainer = fitted(method, tmp_path)
        weights.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
    assert torch.equal(*weights)
    assert {"train/contrast", "val/contrast"} <= set(trainer.callback_metrics)
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)
    again, batch = load_method(tmp_path / "a.ckpt"), make_readings(make_reading_cohort())
    assert type(again) is CLIP and again.hparams["contrast"] == "sigmoid"
    found, expected = again.represent(batch), method.eval().represent(batch)
    assert torch.equal(found.logits["opacity"], expected.logits["opacity"])


def test_half_precision():
    method = made()
    batch = make_readings(method.cohort)
    plain = method.losses(batch, method.represent(batch))["contrast"]
    with torch.autocast("cpu", torch.bfloat16):
        rep = method.represent(batch)
        rough = method.losses(batch, rep)["contrast"]
        scores = method.eval().represent(batch).logits["opacity"]
    assert rep.blocks["image"].dtype == rough.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(rough, plain, rtol=0.05, atol=0.05)


# ----------------------------------------------------------------------------------------------------------- bad input
def test_cohorts_that_do_not_fit():
    fields = tuple(name for name in make_reading_cohort().fields if name not in ("sentences", "gaze", "has_gaze"))
    with pytest.raises(CohortMismatchError, match=r"`CLIP` needs \{image, sentences\}. Missing: \{sentences\}"):
        made(make_reading_cohort(fields=fields))
    with pytest.raises(CohortMismatchError, match="has no classes to describe in words"):
        made(make_reading_cohort(target=Factor("age", ()), target_kind="value"))
    with pytest.raises(CohortMismatchError, match=r"Missing: \{image, sentences\}"):
        made(make_cohort())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text_tower": "bert"}, "unknown sentence tower 'bert'"),
        ({"encoder": "swin"}, "unknown encoder of a image 'swin'"),
        ({"contrast": "triplet"}, "contrast is 'triplet'"),
        ({"pooling": "best"}, "pooling is 'best'; choose one of encoder, patches"),
        ({"prompt_pooling": "sum"}, "choose one of max, mean"),
        ({"measure": "dv"}, "measure is 'dv'; choose one of dcor, hsic, mmd"),
        ({"initial_scale": 0.5}, "initial_scale=0.5"),
        ({"lambda_dep": -1.0}, "lambda_dep=-1"),
        ({"dim": 0}, "dim=0"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


class Flat(torch.nn.Module):
    """An encoder of a user without a grid."""

    def __init__(self, input_shape):
        super().__init__()
        self.dim = 4


class Wrong(Flat):
    grid = (3, 3)

    def forward(self, image):
        return Encoded(image.new_ones(len(image), 4, 4), image.new_ones(len(image), 4))


def test_encoders_without_a_grid_that_fits(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_encoder", sys.modules[__name__])
    with pytest.raises(ValueError, match=r"encoder 'own_encoder.Flat' has the grid \(\)"):
        made(encoder="own_encoder.Flat", encoder_options={})
    method = made(encoder="own_encoder.Wrong", encoder_options={})
    with pytest.raises(ValueError, match="gave 4 patches for a grid of 3 x 3"):
        method.represent(make_readings(method.cohort))


def test_unknown_attribute():
    with pytest.raises(KeyError, match="no attribute 'scanner'"):
        made(lambda_dep=1.0, spurious=["scanner"])
