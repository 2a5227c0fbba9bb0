"""The data sets, one file a modality or source; each is a `CohortDataModule`."""

from medprism.datamodules.abide import ABIDE
from medprism.datamodules.adhd200 import ADHD200
from medprism.datamodules.manifest import FmriManifest
from medprism.datamodules.simulated import SimulatedConnectomes

__all__ = ["ABIDE", "ADHD200", "FmriManifest", "SimulatedConnectomes"]
