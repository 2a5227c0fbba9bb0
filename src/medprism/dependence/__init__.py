"""Dependence between features: value and gradient, on the samples of all ranks; no Lightning."""

from medprism.dependence.base import Measure
from medprism.dependence.measures import HSIC, MEASURES, MMD, DistanceCorrelation, build_measure
from medprism.dependence.mutual_information import CLUB, MutualInformation

__all__ = [
    "CLUB",
    "HSIC",
    "MEASURES",
    "MMD",
    "DistanceCorrelation",
    "Measure",
    "MutualInformation",
    "build_measure",
]
