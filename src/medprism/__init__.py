"""medprism: medical models that do not lean on shortcuts or sensitive attributes."""

from importlib.metadata import version

__version__ = version("medprism")
