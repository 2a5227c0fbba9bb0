from pathlib import Path

import pytest
import yaml

from medprism.benchmark.suite import Suite, SuiteError, merged

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
GOOD = {
    "reference": "erm",
    "seeds": [0, 1],
    "cohorts": {"a": {"data": {"class_path": "A", "init_args": {"x": 1}}}},
    "methods": {"erm": {"model": {"class_path": "ERM", "init_args": {"lr": 0.1}}}},
}


def suite_of(folder: Path, content: object = None, data: Path | None = None, **changes) -> Suite:
    path = folder / "made.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump({**GOOD, **changes}))
    return Suite.read(path, data, base=folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [1", "not valid YAML"),
        ("[1, 2]", "must be a mapping, and is list"),
        ("", "must be a mapping, and is NoneType"),
        ("reference: erm\ncohorts: {a: {}}", "with the keys reference, cohorts, methods"),
        ("reference: erm\ncohorts: [a]\nmethods: {erm: {}}", "cohorts must be a mapping from names"),
        ("reference: erm\ncohorts: {a: {}}\nmethods: {erm: configs/erm.yaml}", "'erm' in methods must be a mapping"),
        ("reference: erm\ncohorts: {a: {}}\nmethods: {erm: {}, off: {}}", "has the name False"),
        ("reference: erm\ncohorts: {../a: {}}\nmethods: {erm: {}}", "it becomes a folder"),
    ],
)
def test_bad_files(tmp_path, content, says):
    with pytest.raises(SuiteError, match=says) as error:
        suite_of(tmp_path, content)
    assert "made.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": [1]}, r"unknown keys \['seed'\]; expected reference, cohorts, methods, title"),
        ({"reference": "ern"}, r"reference 'ern' is none of \['erm'\]"),
        ({"ceiling": "oracle"}, r"ceiling 'oracle' is none of \['erm'\]"),
        ({"seeds": 3}, "seeds of the suite are 3; expected a list"),
        ({"seeds": []}, "seeds of the suite"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"cohorts": {"a": {"seeds": ["one"]}}}, "seeds of a are"),
        ({"cohorts": {"a": {"folds": 1}}}, "folds of a are 1; expected a whole number of at least 2"),
        ({"methods": {"erm": {"cohorts": ["b"]}}}, r"cohorts of method 'erm' names \['b'\]; the cohorts are \['a'\]"),
        ({"methods": {"erm": {"for_cohort": {"b": {}}}}}, "for_cohort of method 'erm' names"),
        ({"shown": "accuracy"}, "shown is a list"),
    ],
)
def test_bad_values(tmp_path, changes, says):
    with pytest.raises(SuiteError, match=says):
        suite_of(tmp_path, **changes)


def test_a_suite_or_config_that_is_not_there(tmp_path):
    with pytest.raises(SuiteError, match="there is no suite"):
        Suite.read(tmp_path / "none.yaml")
    with pytest.raises(SuiteError, match=r"names gone\.yaml, which is not there"):
        suite_of(tmp_path, methods={"erm": {"model": "gone.yaml"}}).jobs()
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(SuiteError, match=r"broken\.yaml is not valid YAML"):
        suite_of(tmp_path, methods={"erm": {"model": {"file": "broken.yaml"}}}).jobs()


def test_the_folder_of_data_sets_takes_its_place_and_cohorts_that_need_it_are_left_out_without(tmp_path):
    cohorts = {**GOOD["cohorts"], "b": {"data": {"class_path": "B", "init_args": {"roots": ["{data}/b"], "n": 3}}}}
    without = suite_of(tmp_path, cohorts=cohorts)
    assert without.without_data == ["b"]
    assert {job.cohort for job in without.jobs()} == {"a"}
    suite = suite_of(tmp_path, cohorts=cohorts, data=Path("D"))
    assert suite.without_data == []
    found = next(job.config["data"]["init_args"] for job in suite.jobs() if job.cohort == "b")
    assert found == {"roots": ["D/b"], "n": 3, "split_seed": 0}
    methods = {"erm": {"model": {"weights": "{data}/w"}}}
    with pytest.raises(SuiteError, match=r"'\{data\}/w' needs the folder of data sets; name it with --data"):
        suite_of(tmp_path, methods=methods).jobs()


def test_merging():
    old = {"class_path": "A", "init_args": {"x": 1, "deep": {"y": 2, "z": 3}}, "list": [1, 2]}
    over = {"init_args": {"deep": {"y": 4}}, "list": [5]}
    assert merged(old, over) == {
        "class_path": "A",
        "init_args": {"x": 1, "deep": {"y": 4, "z": 3}},
        "list": [5],
    }
    assert merged(old, {"class_path": "A", "init_args": {"x": 2}})["init_args"] == {"x": 2, "deep": {"y": 2, "z": 3}}
    other = merged(old, {"class_path": "B", "init_args": {"q": 1}})
    assert (other["class_path"], other["init_args"]) == ("B", {"q": 1})
    assert "init_args" not in merged(old, {"class_path": "B"})
    nested = merged({"optimizer": old}, {"optimizer": {"class_path": "B", "init_args": {"lr": 1}}})
    assert nested["optimizer"]["init_args"] == {"lr": 1}
    assert old["init_args"] == {"x": 1, "deep": {"y": 2, "z": 3}}


def test_who_overrides_whom_and_files_are_read(tmp_path):
    (tmp_path / "m.yaml").write_text("class_path: M\ninit_args: {lr: 0.1, depth: 1, width: 1}\n")
    (tmp_path / "long.yaml").write_text("max_epochs: 100\nlogger: true\n")
    suite = suite_of(
        tmp_path,
        common={"trainer": "long.yaml", "checkpoint": {"monitor": "val/x"}},
        cohorts={"a": {"trainer": {"max_epochs": 7}, "data": {"class_path": "A"}}, "b": {"data": {"class_path": "B"}}},
        methods={
            "erm": {
                "label": "ERM",
                "model": {"file": "m.yaml", "init_args": {"depth": 2}},
                "for_cohort": {"a": {"model": {"init_args": {"width": 9}}, "trainer": {"max_epochs": 8}}},
            },
            "only": {"model": "m.yaml", "cohorts": ["b"], "trainer": {"max_epochs": 3}},
        },
        seeds=[5],
    )
    jobs = {(job.cohort, job.method): job.config for job in suite.jobs()}
    assert set(jobs) == {("a", "erm"), ("b", "erm"), ("b", "only")}
    assert jobs["a", "erm"]["model"] == {"class_path": "M", "init_args": {"lr": 0.1, "depth": 2, "width": 9}}
    assert jobs["b", "erm"]["model"]["init_args"]["width"] == 1
    assert [config["trainer"]["max_epochs"] for config in jobs.values()] == [8, 100, 3]
    assert jobs["a", "erm"]["trainer"]["logger"] is True and not jobs["a", "erm"]["trainer"]["enable_progress_bar"]
    assert jobs["a", "erm"]["test_after_fit"] and jobs["a", "erm"]["seed_everything"] == 5
    assert not {"label", "for_cohort", "cohorts", "folds", "seeds"} & set(jobs["a", "erm"])


def test_folds_and_seeds_of_a_cohort(tmp_path):
    data = {"data": {"class_path": "A"}}
    suite = suite_of(tmp_path, cohorts={"a": {**data, "folds": 3, "seeds": [4, 0]}, "b": data})
    found = [(job.seed, job.cohort, job.fold) for job in suite.jobs()]
    assert found == [(0, "a", 0), (0, "a", 1), (0, "a", 2), (0, "b", None), (1, "b", None)] + [
        (4, "a", fold) for fold in range(3)
    ]
    last = suite.jobs()[-1].config["data"]["init_args"]
    assert last == {"split_seed": 4, "split": "kfold", "folds": 3, "fold": 2}


def test_names_of_jobs_are_readable_stable_and_differ_with_every_argument(tmp_path):
    jobs = suite_of(tmp_path, cohorts={"a": {"folds": 2, "data": {"class_path": "A"}}}).jobs()
    assert [job.name.rsplit("_", 1)[0] for job in jobs] == [
        f"a/erm/seed{seed}_fold{fold}" for seed in (0, 1) for fold in (0, 1)
    ]
    assert len({job.name for job in jobs}) == 4
    plain = suite_of(tmp_path).jobs()[0].name
    assert plain == "a/erm/seed0_2eb9ff257c"  # kept runs would be lost if names changed
    turned = dict(reversed(GOOD.items()))
    assert suite_of(tmp_path, yaml.safe_dump(turned, sort_keys=False)).jobs()[0].name == plain
    for changes in (
        {"methods": {"erm": {"model": {"class_path": "ERM", "init_args": {"lr": 0.2}}}}},
        {"cohorts": {"a": {"data": {"class_path": "A", "init_args": {"x": 2}}}}},
        {"common": {"trainer": {"max_epochs": 3}}},
    ):
        assert suite_of(tmp_path, **changes).jobs()[0].name != plain
    for changes in ({"title": "x"}, {"shown": ["auroc"]}, {"ceiling": "erm"}, {"seeds": [0]}):
        assert suite_of(tmp_path, **changes).jobs()[0].name == plain


@pytest.mark.parametrize("name", ["digits", "shortcuts", "quick", "cross"])
def test_shipped_suites_can_be_read(name):
    suite = Suite.read(BENCHMARKS / f"{name}.yaml", Path("DATA"), base=BENCHMARKS.parent)
    jobs = suite.jobs()
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.config["checkpoint"]["monitor"] for job in jobs} == {"val/mean_cell/accuracy"}


def test_the_suite_of_abide_is_the_rows_of_the_committed_results():
    configs = BENCHMARKS.parent / "configs"
    suite = Suite.read(BENCHMARKS / "abide.yaml", Path("DATA"), base=BENCHMARKS.parent)
    found = {job.method: job.config for job in suite.jobs() if (job.seed, job.fold) == (1, 2)}
    rows = yaml.safe_load((BENCHMARKS / "abide_rows.yaml").read_text())["trained"]
    assert set(found) == set(rows)
    for name, row in rows.items():
        experiment = yaml.safe_load((BENCHMARKS.parent / row["config"]).read_text())
        overlay = yaml.safe_load((BENCHMARKS.parent / row["overlay"]).read_text()) if "overlay" in row else {}
        for key in ("model", "data", "trainer"):
            content = yaml.safe_load((configs / experiment[key]).read_text())
            over = overlay.get(key, {})
            wanted = merged(content, over)
            if "encoder_options" in over.get("init_args", {}):  # on the command line an option replaces the whole
                wanted["init_args"]["encoder_options"] = over["init_args"]["encoder_options"]
            wanted.get("init_args", {}).update({"root": "DATA", "split_seed": 1, "fold": 2} if key == "data" else {})
            ours = {k: v for k, v in found[name][key].items() if key != "trainer" or k in wanted}
            assert ours == wanted, (name, key)
        assert found[name]["early_stopping"] == experiment["early_stopping"]
    assert {job.reads for job in suite.jobs()} == {("DATA/ABIDE_pcp",)}


def test_the_suite_of_digits_is_the_shipped_experiments():
    root = BENCHMARKS.parent / "configs"
    suite = Suite.read(BENCHMARKS / "digits.yaml", base=root.parent)
    jobs = {job.method: job.config for job in suite.jobs() if job.seed == 2}
    assert {"oracle", "erm", "resample", "mimmx", "dcor_resample", "adversarial", "mdn"} <= set(jobs)
    assert suite.ceiling == "oracle"
    for method, name in (("mimmx", "mimmx_digits"), ("erm", "erm_digits")):
        shipped = yaml.safe_load((root / f"{name}.yaml").read_text())
        for key in ("model", "data", "trainer"):
            content = yaml.safe_load((root / shipped[key]).read_text())
            content.get("init_args", {}).pop("split_seed", None)
            assert merged(jobs[method][key], content) == jobs[method][key], (method, key)
    assert jobs["oracle"]["data"]["init_args"]["oracle"] is True
    assert jobs["resample"]["data"]["init_args"]["balance"] == "resample"
    assert jobs["dcor_resample"]["model"]["init_args"]["measure"] == "dcor"
