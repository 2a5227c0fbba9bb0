"""The methods: one file each, all behind `medprism.method.Method`."""

from medprism.methods.adversarial import Adversarial
from medprism.methods.clip import CLIP, ImageTextMethod
from medprism.methods.egma import EGMA
from medprism.methods.end import EnD
from medprism.methods.erm import ERM
from medprism.methods.mdn import MDN
from medprism.methods.mimmx import MIMMX
from medprism.methods.neurolip import NeuroLIP

__all__ = ["CLIP", "EGMA", "ERM", "MDN", "MIMMX", "Adversarial", "EnD", "ImageTextMethod", "NeuroLIP"]
