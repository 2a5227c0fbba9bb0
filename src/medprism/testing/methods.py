"""`check_method`: every check of a method, by name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from medprism.data.base import CohortDataModule
from medprism.method import Method
from medprism.testing.cohorts import fitting_cohort
from medprism.testing.contract import (
    check_arguments,
    check_attributes_unseen,
    check_construct,
    check_contract,
    check_requires,
    check_samples_alone,
    check_target_unseen,
)
from medprism.testing.ranks import check_two_ranks
from medprism.testing.report import Check, Report, require_class, run_checks
from medprism.testing.training import (
    check_bf16,
    check_checkpoint,
    check_critics,
    check_determinism,
    check_finite_losses,
    check_gradients,
    check_overfits,
    check_unknown_labels,
)
from medprism.testing.trial import MethodTrial, quiet

METHOD_CHECKS: Mapping[str, Check[MethodTrial]] = {
    "construct": check_construct,
    "arguments": check_arguments,
    "contract": check_contract,
    "requires": check_requires,
    "finite_losses": check_finite_losses,
    "unknown_labels": check_unknown_labels,
    "gradients": check_gradients,
    "critics": check_critics,
    "overfits": check_overfits,
    "checkpoint": check_checkpoint,
    "determinism": check_determinism,
    "target_unseen": check_target_unseen,
    "attributes_unseen": check_attributes_unseen,
    "samples_alone": check_samples_alone,
    "bf16": check_bf16,
    "two_ranks": check_two_ranks,
}
"""Name to check; the first is what the others build on. All but `two_ranks` run in this process, on the CPU."""


def check_method(
    cls: type[Method],
    cohort: CohortDataModule | None = None,
    checks: Sequence[str] | None = None,
    skip: Mapping[str, str] | None = None,
    **init_args: Any,
) -> Report:
    """Check that a method keeps the promises that training, evaluation and comparisons rely on.

    Args:
        cls: the class, a subclass of `Method`.
        cohort: a datamodule to check it on; a small one without downloads that suits it when left out.
        checks: names of the checks to run, of `METHOD_CHECKS`; all when left out.
        skip: name to reason of checks that do not suit the method; the reason stands in the report.
        **init_args: arguments of the class, beside the cohort; small networks make the checks quick.

    Returns:
        The report; printing it shows a table of all checks.

    Raises:
        TypeError: when `cls` is no class of a method that can be built, or `cohort` is no datamodule.
        ValueError: for unknown names of checks, a skip without a reason, or when no default cohort suits the class.
        ChecksFailed: lists every check that failed, with what was expected, what was found, and the mend.
    """
    require_class("check_method", cls, Method)
    if cohort is not None and not isinstance(cohort, CohortDataModule):
        raise TypeError(f"cohort is a datamodule, such as SimulatedConnectomes(subjects=60), and got {cohort!r}")
    silent = ("medprism.data",) if cohort is None else ()  # what a default cohort reports is known
    with tempfile.TemporaryDirectory(prefix="medprism-check-") as name, isolate_rng(), quiet(*silent):
        data = cohort or fitting_cohort(cls, init_args, str(Path(name, "cache")))
        data.prepare_data()
        data.setup("fit")
        trial = MethodTrial(cls, init_args, data, Path(name))
        return run_checks(f"{cls.__name__} on {data.cohort.name}", METHOD_CHECKS, trial, checks, skip)
