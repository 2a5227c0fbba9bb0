"""Checks of how a method learns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medprism.checkpoint import CheckpointError, load_method
from medprism.cohort import UNKNOWN, Batch
from medprism.method import Method
from medprism.testing.batches import same
from medprism.testing.report import CheckFailure, NotApplicable, described
from medprism.testing.trial import MethodTrial, part_of, terms_of, total, with_unknown

FEW, STEPS, EVERY, RATE = 8, 400, 10, 1e-2
"""Samples to fit, most steps of Adam on them, how often their predictions are looked at, and the learning rate."""
FALL = 0.2
"""Share by which the loss of a method that does not read the target must fall."""


def check_finite_losses(trial: MethodTrial) -> None:
    """Every term is finite, in training and in evaluation."""
    method, batch = trial.build(), trial.batch()
    for training in (True, False):
        method.train(training)
        _refuse_infinite(terms_of(method, batch), "training" if training else "evaluation")


def check_unknown_labels(trial: MethodTrial) -> None:
    """Labels of -1 (unknown) do not break the losses, also when no label of a batch is known."""
    for every, what in ((3, "some labels"), (1, "all labels")):
        method = trial.build()
        try:
            terms = terms_of(method, with_unknown(trial.batch(), every))
        except Exception as error:
            raise CheckFailure(
                f"losses of a batch with {what} unknown (-1)",
                described(error),
                "mask unknown labels: target_loss and mean_over_samples(values, known) do",
            ) from error
        _refuse_infinite(terms, f"a batch with {what} unknown (-1)")


def _refuse_infinite(terms: Mapping[str, Tensor], where: str) -> None:
    bad = {name: float(term) for name, term in terms.items() if not term.isfinite()}
    if bad:
        raise CheckFailure(
            f"finite loss terms in {where}",
            f"{bad} among {list(terms)}",
            "keep logarithms and roots away from 0, and let a mean over no samples be 0, as mean_over_samples does",
        )


def check_gradients(trial: MethodTrial) -> None:
    """Every trainable parameter gets a finite gradient from the sum of the terms."""
    method = trial.build()
    total(terms_of(method, trial.batch())).backward()  # type: ignore[no-untyped-call]
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None]
    if without:
        raise CheckFailure(
            "a gradient for every trainable parameter: several processes wait for each of them",
            f"none for {_some(without)}",
            "use it in a term, delete it, or freeze it (requires_grad_(False)); if players take turns, skip this check "
            "and train with --trainer.strategy ddp_find_unused_parameters_true",
        )
    bad = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    if bad:
        raise CheckFailure(
            "finite gradients",
            f"NaN or infinite ones for {_some(bad)}",
            "look for square roots and norms at 0, and for torch.where around infinite values",
        )


def check_critics(trial: MethodTrial) -> None:
    """Terms of critics train critics alone, and the other terms leave the critics as they are."""
    method, batch = trial.build(), trial.batch()
    rep = method.represent(batch)
    losses, critic_losses = method.losses(batch, rep), method.critic_losses(batch, rep)
    critics = {id(p) for p in method.critic_parameters()}
    if not critics and not critic_losses:
        raise NotApplicable("the method has no critics")
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    strangers = len(critics - {id(p) for p in named.values()})
    if not critics or not critic_losses or strangers:
        raise CheckFailure(
            "critic_losses and critic_parameters to go together, the latter trainable parameters of the method",
            f"terms {sorted(critic_losses)} and {len(critics)} parameters, {strangers} of them not the method's",
            "return the parameters of the modules that critic_losses trains from critic_parameters",
        )
    played = {name: p for name, p in named.items() if id(p) in critics}
    rest = {name: p for name, p in named.items() if id(p) not in critics}
    if reached := _reached(critic_losses, rest):
        raise CheckFailure(
            "terms of critics to leave all but the critics alone",
            f"gradients for {_some(reached)}",
            "detach the blocks that critic_losses reads (block.detach())",
        )
    if idle := sorted(set(played) - set(_reached(critic_losses, played, also_zero=True))):
        raise CheckFailure("terms of critics to train every critic", f"no gradient for {_some(idle)}", "use it there")
    if losses and (reached := _reached(losses, played)):
        raise CheckFailure(
            "the terms of losses to leave the critics alone",
            f"gradients for {_some(reached)}",
            "ask the critics with frozen parameters (torch.func.functional_call with detached ones, as the measures of "
            "medprism.dependence do), or move the term to critic_losses; skip this check if it is meant",
        )


def _reached(terms: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], also_zero: bool = False) -> list[str]:
    """Names of the parameters that the terms have a gradient for, other than 0 unless that counts too."""
    loss = total(terms)
    if not loss.requires_grad or not parameters:
        return []
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    each = zip(parameters, found, strict=True)
    return [name for name, grad in each if grad is not None and (also_zero or bool(grad.any()))]


def check_overfits(trial: MethodTrial) -> None:
    """A few hundred steps on one tiny batch fit it."""
    method, batch = trial.build(), part_of(trial.batch(), slice(0, FEW))
    critics = list(method.critic_parameters())
    taken = {id(p) for p in critics}
    rest = [p for p in method.parameters() if p.requires_grad and id(p) not in taken]
    groups: list[dict[str, Any]] = [{"params": group} for group in (rest, critics) if group]
    optimizer = torch.optim.Adam(groups, lr=RATE)
    supervised = "target" in trial.cls.requires
    first = _own_loss(method, batch)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        method.on_train_batch_start(batch, step)
        total(terms_of(method, batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % EVERY == 0 and (right := _fits(trial, method, batch, first, supervised)) >= 1:
            return
    if supervised:
        raise CheckFailure(
            f"right predictions for all of {len(batch['id'])} samples after {STEPS} steps of Adam ({RATE:g}) on them",
            f"a fit of {right:.0%}",
            "see that the target's logits come from the input and that their term trains the whole path",
        )
    raise CheckFailure(
        f"a loss that falls by {FALL:.0%} within {STEPS} steps of Adam ({RATE:g}) on {len(batch['id'])} samples",
        f"{first:.4g} at first and {_own_loss(method, batch):.4g} at last",
        "see that the terms train the whole path from the input",
    )


def _fits(trial: MethodTrial, method: Method, batch: Batch, first: float, supervised: bool) -> float:
    """At least 1 when the batch is fitted."""
    if not supervised:
        return (first - _own_loss(method, batch)) / (FALL * abs(first) + 1e-12)
    found, target = trial.predictions(method, batch)["probabilities"], batch["target"]
    method.train()
    if trial.cohort.target_kind == "value":
        rest = (found.squeeze(-1) - target).square().mean() / target.var(correction=0).clamp(min=1e-12)
        return float(1.1 - rest)
    if trial.cohort.target_kind == "labels":
        return float(((found > 0.5) == (target > 0.5)).float().mean())
    known = target != UNKNOWN
    return float((found.argmax(1) == target)[known].float().mean())


def _own_loss(method: Method, batch: Batch) -> float:
    """The sum of the terms that are not the critics', in training mode."""
    method.train()
    with torch.no_grad():
        return float(total(method.losses(batch, method.represent(batch))))


def check_checkpoint(trial: MethodTrial) -> None:
    """A checkpoint that a trainer wrote gives the same model back, without pickles."""
    method, trainer = trial.after_training
    batch, path = trial.batch(), trial.folder / "checked.ckpt"
    expected = trial.predictions(method, batch)
    trainer.save_checkpoint(path)
    try:
        again = load_method(path)
    except CheckpointError as error:
        raise CheckFailure(
            "a checkpoint of tensors and plain values from which the method can be built",
            described(error),
            "let constructor arguments be numbers, texts, lists and dictionaries, and pass them on to the base",
        ) from error
    lost = [name for name in trial.init_args if name not in (*again.hparams, "optimizer", "scheduler")]
    if lost:
        raise CheckFailure("all arguments in the checkpoint", f"{lost} missing", "do not ignore them when saving")
    found = trial.predictions(again, batch)
    for name in ("probabilities", "blocks"):
        if not same(expected[name], found[name]):
            raise CheckFailure(
                f"the same {name} from the checkpoint",
                "others",
                "keep everything that training changes in parameters or buffers (register_buffer)",
            )


def check_determinism(trial: MethodTrial) -> None:
    """The same seed gives the same weights after three steps of a trainer."""
    first, second = (trial.fitted(seed=7)[0].state_dict() for _ in range(2))
    other = [name for name, value in first.items() if not same(value, second[name])]
    if other:
        raise CheckFailure(
            "the same weights from the same seed",
            f"others in {_some(other)}",
            "draw from torch, numpy or random as they are seeded, not from a generator of your own without a seed",
        )


def check_bf16(trial: MethodTrial) -> None:
    """Under bfloat16 autocast losses and gradients are finite and predictions close to those of float32."""
    method, batch = trial.build(), trial.batch()
    exact = trial.predictions(method, batch)["probabilities"]
    method.train()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = terms_of(method, batch)
        _refuse_infinite(terms, "bfloat16")
        total({name: term.float() for name, term in terms.items()}).backward()  # type: ignore[no-untyped-call]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = trial.predictions(method, batch)["probabilities"]
    except CheckFailure:
        raise
    except Exception as error:
        raise CheckFailure(
            "a step under bfloat16 autocast",
            described(error),
            "compute what needs float32 on x.float(), within torch.autocast(device.type, enabled=False)",
        ) from error
    bad = [name for name, p in method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if bad or not rough.isfinite().all():
        raise CheckFailure(
            "finite gradients and predictions in bfloat16", f"{_some(bad)} not finite", "use x.float() there"
        )
    apart = float((rough - exact).abs().mean())
    if trial.cohort.target_kind != "value" and apart > 0.1:
        raise CheckFailure(
            "probabilities close to those of float32",
            f"a mean difference of {apart:.2f}",
            "compute cosines, exponentials and statistics on x.float(), with autocast off",
        )


def _some(names: Iterable[str], most: int = 6) -> str:
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
