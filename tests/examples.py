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


PLACES = ("upper left", "upper right", "lower left", "lower right")


def make_reading_cohort(**changes) -> Cohort:
    """An image cohort with sentences, gaze and boxes: opacity or not, seen from the front or the back."""
    values = {
        "name": "Readings",
        "fields": ("id", "subject", "image", "target", "attributes", "sentences", "gaze", "has_gaze", "boxes"),
        "input_shape": (1, 16, 16),
        "target": Factor(
            "opacity",
            ("absent", "present"),
            (("no opacity",), tuple(f"opacity in the {place} zone" for place in PLACES)),
            "target",
        ),
        "attributes": (Factor("view", ("AP", "PA")), Factor("sex", ("female", "male"), role="sensitive")),
        "grid": (8, 8),
    }
    return Cohort(**{**values, **changes})


def make_readings(cohort: Cohort, n: int = 8, seed: int = 0) -> dict:
    """A batch in which a bright quarter of the image is an opacity that a sentence names and a reader looked at.

    Sample 1 has no sentence, every second one no gaze, some attributes are unknown.
    """
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 2, (n,), generator=generator)
    places = torch.randint(0, 4, (n,), generator=generator).tolist()
    more = torch.randint(0, 3, (n,), generator=generator).tolist()
    image = torch.rand(n, *cohort.input_shape, generator=generator) / 4
    gaze = torch.zeros(n, 3, *(cohort.grid or (2, 2)))
    sentences, boxes = [], []
    for row, (place, present) in enumerate(zip(places, target.tolist(), strict=True)):
        top, left = divmod(place, 2)
        size = image.shape[-1] // 2
        if present:
            image[row, :, top * size : (top + 1) * size, left * size : (left + 1) * size] += 0.7
        said = [cohort.target.phrases[1][place] if present else "no opacity"]
        sentences.append([] if row == 1 else said + ["the heart is normal", "no effusion"][: more[row]])
        boxes.append([(said[0], left / 2, top / 2, (left + 1) / 2, (top + 1) / 2)] if present else [])
        size = gaze.shape[-1] // 2
        if sentences[-1]:
            gaze[row, 0, top * size : (top + 1) * size, left * size : (left + 1) * size] = 1.0
            gaze[row, 1 : len(sentences[-1]), size, size] = 0.5
    has_gaze = torch.arange(n) % 2 == 0
    batch = {
        "id": [f"s{seed}_{i}" for i in range(n)],
        "subject": [f"p{seed}_{i}" for i in range(n)],
        "image": image,
        "target": target,
        "attributes": {f.name: torch.randint(-1, 2, (n,), generator=generator) for f in cohort.attributes},
        "sentences": sentences,
        "gaze": (gaze * has_gaze[:, None, None, None])[:, : max(map(len, sentences))],
        "has_gaze": has_gaze,
        "boxes": boxes,
    }
    return {name: value for name, value in batch.items() if name in cohort.fields}
