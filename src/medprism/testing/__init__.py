"""Conformance checks for methods and cohorts, also those of other packages.

`check_method(MyMethod)` and `check_datamodule(MyData, root=...)` run named checks, as `check_estimator` of scikit-learn
does; call them in a test of your own.
"""

from medprism.testing.datamodules import DATAMODULE_CHECKS, check_datamodule
from medprism.testing.methods import METHOD_CHECKS, check_method
from medprism.testing.report import ChecksFailed, Outcome, Report

__all__ = [
    "DATAMODULE_CHECKS",
    "METHOD_CHECKS",
    "ChecksFailed",
    "Outcome",
    "Report",
    "check_datamodule",
    "check_method",
]
