"""The data sets, one file a modality or source; each is a `CohortDataModule`."""

from medprism.datamodules.abide import ABIDE
from medprism.datamodules.adhd200 import ADHD200
from medprism.datamodules.digits import ConfoundedDigits, MorphoMNIST
from medprism.datamodules.gaze_released import EGDCXR, MIMICEYE, REFLACX
from medprism.datamodules.manifest import FmriManifest
from medprism.datamodules.mri import MriManifest, OasisSlices
from medprism.datamodules.mri_bids import MriBids
from medprism.datamodules.osie import OSIE
from medprism.datamodules.phantoms import SimulatedVolumes
from medprism.datamodules.reading_room import SimulatedReadingRoom
from medprism.datamodules.simulated import SimulatedConnectomes
from medprism.datamodules.simulated_xray import SimulatedXray
from medprism.datamodules.xray import CheXpert, CovidXray, MimicCXR, NIHChestXray
from medprism.datamodules.xray_manifest import XrayManifest

__all__ = [
    "ABIDE",
    "ADHD200",
    "EGDCXR",
    "MIMICEYE",
    "OSIE",
    "REFLACX",
    "CheXpert",
    "ConfoundedDigits",
    "CovidXray",
    "FmriManifest",
    "MimicCXR",
    "MorphoMNIST",
    "MriBids",
    "MriManifest",
    "NIHChestXray",
    "OasisSlices",
    "SimulatedConnectomes",
    "SimulatedReadingRoom",
    "SimulatedVolumes",
    "SimulatedXray",
    "XrayManifest",
]
