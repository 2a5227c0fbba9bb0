"""The fine-grained contrast on a CPU, value and gradient: in chunks with the winners kept, against the whole tensor.

`plain` builds the `(B, B, n, m)` products of all patches with all sentences and lets autograd keep what it needs. Both
get the same tokens, and their values and gradients are compared. Time is that of one process, both in turn; memory is
what a first step adds to the peak of a process of its own.

    python benchmarks/speed/fine_grained.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.losses.finegrained import fine_grained_contrast

from common import highest, machine, megabytes, seconds, write

BATCH, PATCHES, SENTENCES, DIM = 256, 49, 12, 512
TOLERANCE = 1e-4
"""Of values, and of gradients relative to the largest one."""


def plain_contrast(patches: Tensor, sentences: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """The equation, all products at once."""
    products = torch.einsum("bid,cjd->bcij", patches, sentences)  # (B, B, n, m)
    to_text = products.masked_fill(~mask[:, None, :], -1e4).max(3).values.mean(2)  # (B, B) images by texts
    to_image = (products.max(2).values * mask).sum(2) / mask.sum(1)  # likewise
    own = torch.arange(len(patches))
    return (F.cross_entropy(scale * to_text, own) + F.cross_entropy(scale * to_image.T, own)) / 2


CONTRASTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain_contrast,
    "chunks": fine_grained_contrast,
}


def tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patches, sentences, mask and scale; every text has all of its sentences, so that both do the same work."""
    torch.manual_seed(0)
    patches = F.normalize(torch.randn(BATCH, PATCHES, DIM), dim=-1).requires_grad_()
    sentences = F.normalize(torch.randn(BATCH, SENTENCES, DIM), dim=-1).requires_grad_()
    return patches, sentences, torch.ones(BATCH, SENTENCES, dtype=torch.bool), torch.tensor(1 / 0.07).requires_grad_()


def step(scheme: str, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    """The value, and the gradients of patches, sentences and scale."""
    loss = CONTRASTS[scheme](*inputs)
    gradients = torch.autograd.grad(loss, [x for x in inputs if x.requires_grad])
    return [loss.detach(), *gradients]


def peak(scheme: str, threads: int) -> float:
    """How many MB a first step adds to the peak memory of this process."""
    torch.set_num_threads(threads)
    inputs = tokens()
    small = tuple(x if x.ndim == 0 else x[:2, :2].detach().requires_grad_(x.requires_grad) for x in inputs)
    step(scheme, small)  # type: ignore[arg-type]  # what the libraries take is not the step's
    before = highest()
    step(scheme, inputs)
    return highest() - before


def differences() -> dict[str, float]:
    """Largest difference of the value, and of each gradient relative to its largest entry."""
    inputs = tokens()
    plain, ours = (step(scheme, inputs) for scheme in CONTRASTS)
    relative = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(plain, ours, strict=True)]
    found = dict(zip(("value", "patches", "sentences", "scale"), relative, strict=True))
    if max(relative) > TOLERANCE:
        raise RuntimeError(f"the schemes differ by more than {TOLERANCE}: {found}")
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each scheme; their median counts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # On one thread, processor time is the time of an idle machine, whatever else runs.
    clock = time.process_time if options.threads == 1 else time.perf_counter
    inputs = tokens()
    equality = differences()
    times: dict[str, list[float]] = {scheme: [] for scheme in CONTRASTS}
    for _ in range(options.repeats):
        for scheme in CONTRASTS:
            times[scheme].append(seconds(lambda scheme=scheme: step(scheme, inputs), clock))  # type: ignore[misc]
    median = {scheme: statistics.median(found) for scheme, found in times.items()}
    memory = {scheme: megabytes(peak, scheme, options.threads) for scheme in CONTRASTS}
    result = {
        "batch": BATCH,
        "patches": PATCHES,
        "sentences": SENTENCES,
        "dim": DIM,
        "repeats": options.repeats,
        "seconds": median,
        "all seconds": times,
        "times faster": median["plain"] / median["chunks"],
        "memory MB": memory,
        "of which gradients MB": sum(x.numel() * x.element_size() for x in inputs if x.requires_grad) / 2**20,
        "times less memory": memory["plain"] / memory["chunks"],
        "relative difference": equality,
        "environment": machine(),
    }
    for scheme in CONTRASTS:
        print(f"{scheme}: {median[scheme]:.2f} s, {memory[scheme]:.0f} MB")
    print(f"{result['times faster']:.2f} times faster, {result['times less memory']:.1f} times less memory")
    print("relative difference: " + ", ".join(f"{name} {value:.1e}" for name, value in equality.items()))
    write("fine_grained", result)


if __name__ == "__main__":
    main()
