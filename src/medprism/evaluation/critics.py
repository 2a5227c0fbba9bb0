"""Mutual information between latent blocks, by critics that are trained afresh on frozen latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from medprism.distributed import rank, world_size
from medprism.evaluation.predictions import Array

HIDDEN = 32
"""Width of the two layers of a critic; on frozen latents more width cost time and changed no estimate."""

EVERY = 20
"""Training steps between two looks at the subjects that decide when to stop."""

FEWEST = 20
"""Subjects without whom nothing is measured: a fifth of them decides when to stop."""


def fresh_critic_mi(
    blocks: Mapping[str, Array],
    pairs: Sequence[tuple[str, str]],
    subjects: Array,
    held_out: Mapping[str, Array] | None = None,
    steps: int = 300,
    batch: int = 500,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[list[float], int]:
    """Donsker-Varadhan bound of the mutual information of pairs of blocks, on samples the critics have not seen.

    A fifth of the subjects decides which step of a critic counts, so that those of a small cohort do not learn it by
    heart; where no step finds dependence in them the value is 0. It is a lower bound, up to the noise of the held-out
    samples.

    Args:
        blocks: block name to `(n, d)` training latents.
        pairs: names of the blocks to compare.
        subjects: `(n,)` codes of people; all samples of a person are on one side.
        held_out: block name to `(m, d)` latents to measure on; a further fifth of the subjects when left out.
        steps: training steps.
        batch: samples of a step.
        learning_rate: of Adam.
        seed: of the critics, the batches and the division of subjects.
        device: where to train.

    Returns:
        For each pair the mutual information in nat, and the number of samples that it was measured on.

    Raises:
        ValueError: when there are too few subjects, or held-out samples.
    """
    from medprism.dependence import build_measure

    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(subjects))
    if len(people) < FEWEST:
        raise ValueError(f"mutual information between blocks needs at least {FEWEST} subjects, not {len(people)}")
    fifth = len(people) // 5
    choose, score = np.isin(subjects, people[:fifth]), np.isin(subjects, people[fifth : 2 * fifth])
    if held_out is not None and len(next(iter(held_out.values()))) < 2:
        raise ValueError("mutual information between blocks needs at least 2 held-out samples")
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    whole = {name: _standard(blocks[name], blocks[name]) for name in names}
    if held_out is None:
        last = {name: whole[name][score] for name in names}
        fit = np.flatnonzero(~choose & ~score)
    else:
        last = {name: _standard(held_out[name], blocks[name]) for name in names}
        fit = np.flatnonzero(~choose)

    def of(
        latents: Mapping[str, torch.Tensor], pair: tuple[str, str], rows: Array
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # A measure gathers over ranks: each gives it its part, and together they are the rows in this order.
        mine = torch.from_numpy(np.array_split(rows, world_size())[rank()])
        return [(latents[pair[0]][mine].to(device), latents[pair[1]][mine].to(device))]

    rows, values = np.arange(len(next(iter(last.values())))), []
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        for pair in pairs:
            torch.manual_seed(seed)
            dims = [(whole[pair[0]].shape[1], whole[pair[1]].shape[1])]
            measure = build_measure("dv", dims, hidden=HIDDEN, layers=2, seed=seed).to(device)
            optimizer = torch.optim.Adam(measure.parameters(), lr=learning_rate)
            best, value = 0.0, 0.0  # of a critic that scores all samples alike
            for step in range(1, steps + 1):
                drawn = rng.choice(fit, min(batch, len(fit)), replace=False)
                loss = measure.critic_loss(of(whole, pair, drawn))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if step % EVERY == 0:
                    with torch.no_grad():
                        now = float(measure(of(whole, pair, np.flatnonzero(choose))))
                        if now > best:
                            best, value = now, float(measure(of(last, pair, rows)))
            values.append(value)
    return values, len(rows)


def _standard(latents: Array, reference: Array) -> torch.Tensor:
    """`(n, d)` float32 with mean 0 and variance 1 in the reference; it changes no mutual information."""
    spread = reference.std(axis=0)
    scaled = (latents - reference.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return torch.from_numpy(scaled.astype(np.float32))
