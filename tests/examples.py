"""Small cohorts and batches that several tests share."""

import torch

from medprism.cohort import Cohort, Factor


def make_cohort(regions: int = 12, **changes) -> Cohort:
    """A connectome cohort: binary disease, sensitive sex and age, nuisance site."""
    values = {
        "name": "Made",
        "fields": ("id", "subject", "connectome", "target", "attributes"),
        "input_shape": (regions, regions),
        "target": Factor("disease", ("control", "case"), (("healthy control",), ("case of disease", "ill")), "target"),
        "attributes": (
            Factor("sex", ("male", "female"), role="sensitive"),
            Factor("age", ("young", "old"), (("age 6 to 12",), ("age 12 to 18",)), role="sensitive"),
            Factor("site", ("NYU", "UM", "KKI"), role="nuisance"),
        ),
        "regions": tuple(f"region {r}" for r in range(regions)),
    }
    return Cohort(**{**values, **changes})


def make_batch(cohort: Cohort, n: int = 16, seed: int = 0, unknown: bool = True) -> dict:
    """A random batch with every field of the cohort; some attributes unknown."""
    generator = torch.Generator().manual_seed(seed)
    regions = cohort.input_shape[0]
    half = torch.randn(n, regions, regions, generator=generator) / 4
    connectome = (half + half.transpose(1, 2)).tanh()
    low = -1 if unknown else 0
    return {
        "id": [f"s{seed}_{i}" for i in range(n)],
        "subject": [f"s{seed}_{i}" for i in range(n)],
        "connectome": connectome,
        "target": torch.randint(0, len(cohort.target.classes), (n,), generator=generator),
        "attributes": {
            factor.name: torch.randint(low, len(factor.classes), (n,), generator=generator)
            for factor in cohort.attributes
        },
    }
