"""One step of mutual-information minimisation on a CPU thread: batched critics, few negatives, against all pairs.

The step is that of MIMM-X at batch size 500: the loss of the critics with its gradient, and the term of the encoder
with its gradient to the features. `plain` is the scheme that it replaces: every pair of blocks has a critic of its own,
one runs after another, and each scores all 500 x 500 pairs of samples. Its critics cost the same, so the first
`--timed` of them are timed and scaled to their number (both numbers stand in the result).

    python benchmarks/speed/mutual_information.py
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from medprism.dependence import MutualInformation

from common import highest, machine, megabytes, seconds, write

BATCH, DIM, HIDDEN = 500, 2, 400


# --------------------------------------------------------------------------------------------------- the plain scheme
def plain_critic(width: int) -> nn.Sequential:
    """One critic, as the methods' notes describe it."""
    layers: list[nn.Module] = []
    for inputs in (width, HIDDEN, HIDDEN):
        norm = nn.BatchNorm1d(HIDDEN, track_running_stats=False)
        layers += [nn.Linear(inputs, HIDDEN, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, 1))


def plain_estimate(critic: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """The Donsker-Varadhan bound from the scores of all pairs."""
    n = len(a)
    scores = critic(torch.cat([a.repeat_interleave(n, 0), b.repeat(n, 1)], 1)).view(n, n)
    off = scores.masked_fill(torch.eye(n, dtype=torch.bool), -math.inf)
    return scores.diagonal().mean() - (off.flatten().logsumexp(0) - math.log(n * (n - 1)))


def plain_steps(attributes: int, timed: int) -> Callable[[], None]:
    """The first `timed` critics of all pairs of blocks, one after another."""
    blocks = features(attributes)
    pairs = [(i, j) for i in range(attributes + 1) for j in range(i)][:timed]
    critics = [plain_critic(2 * DIM) for _ in pairs]

    def step() -> None:
        for critic, (i, j) in zip(critics, pairs, strict=True):
            (-plain_estimate(critic, blocks[i].detach(), blocks[j].detach())).backward()
            critic.requires_grad_(False)
            plain_estimate(critic, blocks[i], blocks[j]).backward()
            critic.requires_grad_(True)

    return step


# --------------------------------------------------------------------------------------------------------------- ours
def our_steps(attributes: int, scheme: str) -> Callable[[], None]:
    """`joint`: one critic on the target's block and all others; `pairwise`: all pairs of blocks, batched."""
    blocks = features(attributes)

    def chosen() -> list[tuple[Tensor, Tensor]]:
        if scheme == "joint":
            return [(blocks[0], torch.cat(blocks[1:], 1))]
        return [(blocks[i], blocks[j]) for i in range(attributes + 1) for j in range(i)]

    measure = MutualInformation([(a.shape[1], b.shape[1]) for a, b in chosen()], hidden=HIDDEN)

    def step() -> None:
        measure.critic_loss(chosen()).backward()
        measure(chosen()).mean().backward()

    return step


def features(attributes: int) -> list[Tensor]:
    """Latent blocks of the target and the attributes."""
    return [torch.randn(BATCH, DIM, requires_grad=True) for _ in range(attributes + 1)]


# ---------------------------------------------------------------------------------------------------------- measuring
def peak(scheme: str, attributes: int) -> float:
    """How many MB a first step adds to the peak memory of this process."""
    torch.set_num_threads(1)
    step = plain_steps(attributes, 1) if scheme == "plain" else our_steps(attributes, scheme)
    torch.randn(64, 64).mm(torch.randn(64, 64))  # what the libraries take is not the step's
    before = highest()
    step()
    return highest() - before


def correlated(information: float, n: int) -> tuple[Tensor, Tensor]:
    """Two blocks of normal features with that mutual information in nat."""
    rho = math.sqrt(1 - math.exp(-2 * information / DIM))
    a, noise = torch.randn(2, n, DIM)
    return a, rho * a + math.sqrt(1 - rho**2) * noise


def trained(information: list[float], negatives: int | str, n: int, hidden: int, steps: int) -> MutualInformation:
    """Critics of Gaussian pairs."""
    torch.manual_seed(0)
    measure = MutualInformation([(DIM, DIM)] * len(information), negatives=negatives, hidden=hidden)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(measure.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        measure.critic_loss([correlated(x, n) for x in information]).backward()
        optimizer.step()
    return measure


def as_plain(measure: MutualInformation, index: int) -> nn.Sequential:
    """One of the batched critics as a plain one."""
    networks, critic = measure.critics, plain_critic(2 * DIM)
    first = torch.cat([networks.first[0][index], networks.first[1][index]])
    for layer, weight in enumerate([first, *(linear[index] for linear in networks.linear)]):
        critic[3 * layer].weight = nn.Parameter(weight.detach().T)
        critic[3 * layer + 1].weight = nn.Parameter(networks.scale[layer][index, 0].detach())
        critic[3 * layer + 1].bias = nn.Parameter(networks.shift[layer][index, 0].detach())
    critic[9].weight = nn.Parameter(networks.last[index].detach().T)
    critic[9].bias = nn.Parameter(networks.bias[index, 0].detach())
    return critic


@torch.no_grad()
def estimates(information: list[float], batches: int) -> dict[str, list[dict[str, float]]]:
    """Nat by 8 derangements and by all pairs: of the same critics (B = 500), and of critics trained apart (B = 64)."""
    with torch.enable_grad():
        measure = trained(information, 8, 128, HIDDEN, 120)
        own = [trained(information, negatives, 64, 64, 300) for negatives in (8, "all")]
    same = []
    for index, x in enumerate(information):
        critic, found = as_plain(measure, index), []
        alone = MutualInformation([(DIM, DIM)], hidden=HIDDEN)
        state = {name: value[index : index + 1] for name, value in measure.critics.state_dict().items()}
        alone.critics.load_state_dict(state)
        for _ in range(batches):
            a, b = correlated(x, BATCH)
            values = []
            for _ in range(4):
                values.append(float(alone([(a, b)])))
                alone.draws.advance()
            found.append((statistics.mean(values), float(plain_estimate(critic, a, b))))
        same.append(difference(x, *zip(*found, strict=True)))
    draws = [[correlated(x, 64) for x in information] for _ in range(200)]
    few, every = (torch.stack([measure(pairs) for pairs in draws]).T.tolist() for measure in own)
    apart = [difference(x, p, q) for x, p, q in zip(information, few, every, strict=True)]
    return {"same critic": same, "trained apart": apart}


def difference(true: float, few: list[float], every: list[float]) -> dict[str, float]:
    """Means of both and of their difference."""
    values = {"true": true, "derangements": statistics.mean(few), "all pairs": statistics.mean(every)}
    return {**values, "difference": values["derangements"] - values["all pairs"], "batches": len(few)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timed", type=int, default=3, help="critics of the plain scheme that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="timings of our steps; their median counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    memory = megabytes(peak, "plain", 1)  # of one critic, as they run one after another
    for attributes in (1, 2, 8):
        critics = attributes * (attributes + 1) // 2
        timed = min(options.timed, critics)
        plain = seconds(plain_steps(attributes, timed)) * critics / timed
        rows.append(("plain", attributes, critics, plain, 1.0, memory))
        for scheme in ("joint", "pairwise"):
            step = our_steps(attributes, scheme)
            step()
            ours = statistics.median(seconds(step) for _ in range(options.repeats))
            number = 1 if scheme == "joint" else critics
            rows.append((scheme, attributes, number, ours, plain / ours, megabytes(peak, scheme, attributes)))
    names = ("scheme", "attributes", "critics", "seconds", "times faster than plain", "memory MB")
    table = [dict(zip(names, row, strict=True)) for row in rows]
    joint = {row["attributes"]: row["seconds"] for row in table if row["scheme"] == "joint"}
    result = {
        "batch": BATCH,
        "block_dim": DIM,
        "hidden": HIDDEN,
        "negatives": 8,
        "plain critics timed": options.timed,
        "steps": table,
        "joint: 8 attributes against 1": float(joint[8]) / float(joint[1]),
        "nat": estimates([0.0, 0.368, 1.0], batches=6),
        "environment": machine(),
    }
    for row in table:
        print(
            "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items())
        )
    print(f"joint, 8 attributes against 1: {result['joint: 8 attributes against 1']:.2f} times the time")
    for kind, found in result["nat"].items():
        for row in found:
            print(f"{kind}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    write("mutual_information", result)


if __name__ == "__main__":
    main()
