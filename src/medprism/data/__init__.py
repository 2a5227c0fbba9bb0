"""Leak-free data for every modality: splits by subject, caching, and the base of all datamodules."""
