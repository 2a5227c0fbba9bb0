"""Metrics from predictions alone: performance, fairness, leakage, with intervals over subjects."""

from medprism.evaluation.bootstrap import paired_difference
from medprism.evaluation.evaluator import Evaluator
from medprism.evaluation.predictions import Predictions, StepOutput
from medprism.evaluation.report import evaluate, flatten, table

__all__ = ["Evaluator", "Predictions", "StepOutput", "evaluate", "flatten", "paired_difference", "table"]
