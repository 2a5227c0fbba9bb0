"""Mean maps, leading regions and overlap, against plain loops and closed forms."""

import math

import pytest
import torch
from torch import Tensor

from medprism.cohort import Batch, Cohort, Factor, Representation
from medprism.explain.regions import (
    MapSums,
    NothingToShow,
    difference,
    mean_maps,
    overlap,
    region_name,
    top_regions,
)

N = 7
COHORT = Cohort(
    name="tiny",
    fields=("connectome", "target", "attributes"),
    input_shape=(N, N),
    target=Factor("diagnosis", ("control", "ADHD", "ASD"), role="target"),
    attributes=(Factor("sex", ("female", "male"), role="sensitive"), Factor("site", ("A",))),
    regions=("a", "b", "c", "", "e", "f", "g"),
)


def samples(n: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "target": torch.randint(0, 3, (n,), generator=generator),
        "sex": torch.randint(-1, 2, (n,), generator=generator),
        "logits": torch.randn(n, 3, generator=generator),
        "diagnosis": torch.randn(n, 3, N, generator=generator).softmax(-1),
        "sexmap": torch.randn(n, 2, N, generator=generator).softmax(-1),
    }


def part(data: dict[str, Tensor], rows: list[int]) -> tuple[Batch, Representation]:
    batch: Batch = {
        "id": [f"s{row}" for row in rows],
        "target": data["target"][rows],
        "attributes": {"sex": data["sex"][rows]},
    }
    return batch, Representation(
        {"diagnosis": data["logits"][rows]},
        maps={"diagnosis": data["diagnosis"][rows], "sex": data["sexmap"][rows]},
    )


def loop(data: dict[str, Tensor], factor: str, code: int) -> tuple[list[float], int]:
    """The definition, written out: mean of the class's map over its (correctly classified) subjects."""
    total, count = [0.0] * N, 0
    for row in range(len(data["target"])):
        if factor == "diagnosis":
            scores = data["logits"][row].tolist()
            counts = data["target"][row] == code and scores.index(max(scores)) == code
        else:
            counts = data["sex"][row] == code
        if counts:
            count += 1
            for region in range(N):
                total[region] += float(data["diagnosis" if factor == "diagnosis" else "sexmap"][row, code, region])
    return [value / count for value in total], count


@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_mean_maps_follow_their_definition_whatever_the_batches(batch_size: int) -> None:
    data = samples(40)
    parts = [part(data, list(range(40))[start : start + batch_size]) for start in range(0, 40, batch_size)]
    answers = iter(rep for _, rep in parts)
    maps = mean_maps(lambda batch: next(answers), [batch for batch, _ in parts], COHORT)
    assert list(maps) == ["diagnosis", "sex"]  # the site has no map
    for name, each in maps.items():
        for code in range(len(each.factor.classes)):
            expected, count = loop(data, name, code)
            assert each.subjects[code] == count > 0
            assert each.of(code).tolist() == pytest.approx(expected, abs=1e-6)
            assert float(each.of(code).sum()) == pytest.approx(1, abs=1e-6)


def test_processes_agree_with_one_process_although_samplers_pad() -> None:
    data, shards, size = samples(10), 4, 2
    order = [*range(10), 0, 1]  # what a DistributedSampler does with 10 samples on 4 processes
    sums = []
    for shard in range(shards):
        rows = order[shard::shards]
        mine = MapSums(COHORT)
        for start in range(0, len(rows), size):
            mine.add(*part(data, rows[start : start + size]))
        sums.append(mine)
    merged = MapSums.merge(sums).means()
    single = MapSums(COHORT)
    single.add(*part(data, list(range(10))))
    for name, each in single.means().items():
        assert merged[name].subjects == each.subjects
        torch.testing.assert_close(merged[name].weights, each.weights, equal_nan=True)


def test_processes_that_share_more_than_padding_are_refused() -> None:
    data = samples(6)
    sums = []
    for _ in range(2):
        mine = MapSums(COHORT)
        mine.add(*part(data, [0, 1, 2]))
        mine.add(*part(data, [3, 4, 5]))
        sums.append(mine)
    with pytest.raises(ValueError, match=r"3 samples .* several processes"):
        MapSums.merge(sums)


def test_a_process_without_batches_can_be_merged() -> None:
    data = samples(6)
    full = MapSums(COHORT)
    full.add(*part(data, list(range(6))))
    assert MapSums.merge([MapSums(COHORT), full]).means()["sex"].subjects == full.means()["sex"].subjects


def test_a_class_without_subjects_has_no_map() -> None:
    data = samples(12)
    data["target"][data["target"] == 1] = 0
    sums = MapSums(COHORT)
    sums.add(*part(data, list(range(12))))
    maps = sums.means()["diagnosis"]
    assert maps.subjects[1] == 0 and maps.weights[1].isnan().all() and 1 not in maps.shown
    with pytest.raises(NothingToShow, match="diagnosis = ADHD"):
        difference(maps, positive=1)


def test_difference_is_last_minus_first_and_sums_to_zero() -> None:
    sums = MapSums(COHORT)
    sums.add(*part(samples(40), list(range(40))))
    maps = sums.means()["diagnosis"]
    torch.testing.assert_close(difference(maps), maps.weights[2] - maps.weights[0])
    torch.testing.assert_close(difference(maps, 0, 2), -difference(maps))
    assert float(difference(maps).sum()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("maps", "sentence"),
    [(torch.full((2, 3, N + 1), 1 / (N + 1)), "has shape"), (torch.full((2, 3, N), 0.5), "do not sum to 1")],
)
def test_maps_that_break_the_contract_are_refused(maps: Tensor, sentence: str) -> None:
    batch, rep = part(samples(2), [0, 1])
    rep.maps["diagnosis"] = maps
    with pytest.raises(ValueError, match=sentence):
        MapSums(COHORT).add(batch, rep)


def test_other_kinds_of_targets_leave_the_attributes() -> None:
    several = Cohort(
        "several", COHORT.fields, COHORT.input_shape, COHORT.target, "labels", COHORT.attributes, COHORT.regions
    )
    batch, rep = part(samples(9), list(range(9)))
    batch["target"] = torch.ones(9, 3)
    assert list(mean_maps(lambda _: rep, [batch], several)) == ["sex"]


def test_top_regions_rank_by_magnitude() -> None:
    weights = torch.tensor([0.1, -0.4, 0.1, 0.3, 0.0, 0.0, 0.1])
    table = top_regions(weights, COHORT, 4)
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table["region"].tolist() == [2, 4, 1, 3]  # numbers from 1; ties in the order of the regions
    assert table["name"].tolist() == ["b", "region 4", "a", "c"]
    assert table["ratio_to_uniform"].tolist() == pytest.approx([-2.8, 2.1, 0.7, 0.7])
    assert table[["x", "y", "z"]].isna().all(axis=None)
    assert len(top_regions(weights, COHORT, 100)) == N
    assert region_name(COHORT, 3) == "region 4"


def test_overlap_has_its_closed_forms() -> None:
    p = torch.tensor([0.7, 0.3, 0.0, 0.0])
    q = torch.tensor([0.0, 0.0, 0.4, 0.6])
    assert overlap(p, p, 2) == pytest.approx({"cosine": 1, "jensen_shannon": 1, "dice": 1})
    assert overlap(p, q, 2) == pytest.approx({"cosine": 0, "jensen_shannon": 0, "dice": 0}, abs=1e-7)
    a, b = [0.5, 0.25, 0.25, 0.0], [0.1, 0.6, 0.1, 0.2]
    divergence = 0.0
    for x, y in zip(a, b, strict=True):
        middle = (x + y) / 2
        divergence += sum(0.5 * v * math.log2(v / middle) for v in (x, y) if v > 0)
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    numbers = overlap(torch.tensor(a), torch.tensor(b), 2)
    assert numbers == pytest.approx({"cosine": cosine, "jensen_shannon": 1 - divergence, "dice": 0.5}, abs=1e-6)
    assert overlap(torch.tensor(b), torch.tensor(a), 2) == pytest.approx(numbers)


def test_overlap_refuses_differences() -> None:
    uniform = torch.full((4,), 0.25)
    with pytest.raises(ValueError, match="non-negative weights that sum to 1"):
        overlap(uniform, torch.tensor([0.5, -0.5, 0.0, 0.0]))
