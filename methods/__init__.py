"""The methods: one file each, all behind `medprism.method.Method`."""

from medprism.methods.erm import ERM
from medprism.methods.neurolip import NeuroLIP

__all__ = ["ERM", "NeuroLIP"]
