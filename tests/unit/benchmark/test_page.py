"""The page of a suite in a browser: headless Chromium, driven through Debian's chromedriver."""

import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from made_results import results_of

from medprism.benchmark.report import publish

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs Chromium and chromedriver on the PATH", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[dev]'")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

QUIET = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync", "window-size=1280,900")  # fmt: skip
MARKUP = "<img src=x onerror=alert(1)>"
METHODS = ("erm", "fair", "good", "half")
SEARCHED = """cohort,method,seed,fold,state,validation,value,chosen,settings
a,erm,0,,finished,val/auroc,0.25,no,"{""lr"": 0.1}"
a,erm,0,,finished,val/auroc,0.75,yes,"{""lr"": 0.01}"
a,erm,1,,failed,,,no,"{""lr"": 0.1}"
a,erm,1,,finished,val/auroc,0.5,yes,"{""lr"": 0.01}"
"""
ODDS = "sex/equalized_odds_difference"


def made(folder):
    """Four cohorts, one of them with shifted sets; `half` is incomplete on the first; names that look like markup."""
    generator = np.random.default_rng(0)
    means = {
        (cohort, where, method, metric): round(float(value), 5)
        for cohort, sets in {
            "a": ("same", "inverted", "balanced"),
            "b": ("test",),
            "c": ("test",),
            "d": ("test",),
        }.items()
        for where in sets
        for method in METHODS
        for metric, value in zip(("accuracy", "auroc", ODDS), generator.uniform(0.2, 0.9, 3), strict=True)
    }
    means["a", "balanced", "erm", "accuracy"] = 0.0625  # a tie, which Python and a browser round apart
    leakage = [
        ("a", m, f"leakage/{block}/{name}/auroc", 2, 0.8, 0.1)
        for m in METHODS
        for block in ("z", "sex")
        for name in ("sex", "site")
    ]
    leakage.append(("a", "erm", "seconds", 2, 10.0, 1.0))
    groups = [
        ("a", "balanced", m, "sex", group, "accuracy", 2, 0.7, 0.1, 0.6, 0.8)
        for m in METHODS
        for group in ("female", "male")
    ]
    base = results_of(means)
    results = results_of(
        means,
        incomplete=[("a", "half")],
        trials=2,
        title=f"Made up. {MARKUP}",
        labels={m: f"{m} {MARKUP}" for m in METHODS},
        extras=pd.DataFrame(leakage, columns=base.extras.columns),
        groups=pd.DataFrame(groups, columns=base.groups.columns),
    )
    results.save(folder)
    (folder / "search.csv").write_text(SEARCHED)
    publish(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (*QUIET, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ.setdefault("SE_OFFLINE", "true")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, folder):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get((folder / "report.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []  # no error, and nothing that the policy refused


def choose(browser, name: str, text: str, section: str = "#filters") -> None:
    Select(browser.find_element(By.CSS_SELECTOR, f"{section} select[name='{name}']")).select_by_visible_text(text)


def lines(browser, section: str = "#results") -> list[list[str]]:
    """The cells of a section's first table, line by line."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(row => [...row.cells].map(c => c.textContent.trim()))"
    )
    return browser.execute_script(script, f"{section} table:first-of-type tbody tr")


def heads(browser) -> list[str]:
    return [each.text for each in browser.find_elements(By.CSS_SELECTOR, "#results thead th")]


def test_it_opens_without_errors_and_asks_the_network_for_nothing(opened, folder):
    sections = [each.text for each in opened.find_elements(By.TAG_NAME, "h2")]
    assert sections[:4] == ["Results", "Performance against gaps", "Shifts", "Leakage"] and sections[-1] == "Runs"
    assert len(opened.find_elements(By.CSS_SELECTOR, "svg[role=img][aria-label]")) >= 4
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    asked = re.findall(r'"url":"([^"]*)"', " ".join(each["message"] for each in opened.get_log("performance")))
    assert any(url.startswith("file:") for url in asked)
    assert not [url for url in asked if url.startswith(("http", "ws"))]
    assert not opened.find_elements(By.TAG_NAME, "img")  # names are text
    assert MARKUP in opened.find_element(By.CSS_SELECTOR, ".lead").text
    assert re.findall(r"https?://[^\"]*", (folder / "report.html").read_text()) == ["http://www.w3.org/2000/svg"]


def test_numbers_equal_summary_csv(opened, folder):
    summary = pd.read_csv(folder / "summary.csv")
    for name, text in (("Cohort", "all cohorts"), ("Test set", "all test sets"), ("Metric", "all metrics")):
        choose(opened, name, text)
    names = heads(opened)
    assert names[:7] == ["Method", "Cohort", "Test set", "Metric", "Seeds", "Mean", "SD"]
    shown = lines(opened)
    assert len(shown) == len(summary) == 4 * 6 * 3
    for line, (_, row) in zip(shown, summary.iterrows(), strict=True):
        found = dict(zip(names, line, strict=True))
        assert (
            found["Method"].startswith(f"{row['method']} {MARKUP}")
            and found["Cohort"] == f"{row['cohort']} (simulated)"
        )
        assert found["Test set"] == row["set"] and found["Seeds"] == str(row["seeds"])
        assert found["Mean"] == f"{row['mean']:.3f}" and found["SD"] == f"{row['sd']:.3f}"
        assert found["95 % interval"] == f"[{row['low']:.3f}, {row['high']:.3f}]"
    assert "0.062" in [line[5] for line in shown]
    exact = opened.execute_script(
        "return [...document.querySelectorAll('#results tbody tr')].map(r => +r.cells[5].dataset.value)"
    )
    assert exact == summary["mean"].tolist()


def test_filters(opened, folder):
    summary = pd.read_csv(folder / "summary.csv").set_index(["cohort", "set", "metric", "method"])["mean"]
    for cohort, where, metric, shown in (("a", "inverted", "auroc", "AUROC"), ("b", "test", "accuracy", "accuracy")):
        choose(opened, "Cohort", f"{cohort} (simulated)")
        choose(opened, "Test set", where)
        choose(opened, "Metric", shown)
        assert "Cohort" not in heads(opened)
        assert [line[2] for line in lines(opened)] == [f"{summary[cohort, where, metric, m]:.3f}" for m in METHODS]
    assert opened.find_element(By.CSS_SELECTOR, "#shifts p").text == "This cohort has one test set."
    choose(opened, "Cohort", "a (simulated)")  # has no set `test`: the one that says most
    assert Select(opened.find_element(By.NAME, "Test set")).first_selected_option.text == "balanced"
    assert len(lines(opened)) == 4


def test_sorting_by_keyboard(opened):
    opened.find_element(By.CSS_SELECTOR, ".skip").send_keys(Keys.NULL)
    opened.execute_script("document.querySelector('select[name=Metric]').focus()")
    focused = lambda: opened.switch_to.active_element  # noqa: E731
    for _ in range(12):
        focused().send_keys(Keys.TAB)
        if focused().tag_name == "button" and focused().text.strip() == "Mean":
            break
    assert focused().text.strip() == "Mean"
    before = [line[2] for line in lines(opened)]
    for state, wanted in (
        ("ascending", sorted(before, key=float)),
        ("descending", sorted(before, key=float, reverse=True)),
        (None, before),
    ):
        focused().send_keys(Keys.ENTER)
        head = opened.find_element(By.XPATH, "//section[@id='results']//th[contains(., 'Mean')]")
        assert head.get_dom_attribute("aria-sort") == state
        assert [line[2] for line in lines(opened)] == wanted
        assert focused().text.strip() == "Mean"  # the focus stays
    assert "order of the suite" in opened.find_element(By.CSS_SELECTOR, "#results [role=status]").get_attribute(
        "textContent"
    )


def test_the_front_and_what_is_incomplete(opened, folder):
    front = pd.read_csv(folder / "pareto.csv")
    first = front[(front["cohort"] == "a") & (front["set"] == "balanced") & (front["metric"] == "accuracy")]
    first = first[first["gap"] == "same minus inverted"].set_index("method")
    found = {re.match(r"\d+ (\w+)", line[0])[1]: line[1:] for line in lines(opened, "#front")}
    for method, row in first.iterrows():
        state = "yes" if row["front"] else "" if row["compared"] else "not compared"
        assert found[method] == [f"{row['value']:.3f}", f"{row['gap value']:.3f}", state]
    assert found["half"][2] == "not compared"
    assert len(opened.find_elements(By.CSS_SELECTOR, "#front .dot.on")) == first["front"].sum()
    assert "1 of 16 cells" in opened.find_element(By.ID, "incomplete").text
    assert lines(opened)[3][0].endswith("incomplete")
    choose(opened, "Gap", "sex equalized odds difference", "#front")
    assert opened.switch_to.active_element.get_attribute("name") == "Gap"  # the choice keeps the focus


def test_leakage_groups_ranks_and_runs(opened):
    assert [line[1:] for line in lines(opened, "#leakage")[:2]] == [["z", "0.800", "0.800"], ["sex", "0.800", "0.800"]]
    assert len(opened.find_elements(By.CSS_SELECTOR, "#leakage td.own")) == 4
    assert len(opened.find_elements(By.CSS_SELECTOR, "#groups .block")) == 8
    captions = [each.text for each in opened.find_elements(By.CSS_SELECTOR, "#ranks figcaption")]
    assert len(captions) == 2 and captions[0].startswith("3 cohorts.")  # `a` is left out: one method is incomplete
    link = opened.find_element(By.CSS_SELECTOR, "#results tbody td a")
    opened.execute_script("arguments[0].click()", link)
    cell = opened.switch_to.active_element.find_element(By.XPATH, "..")
    assert cell.get_attribute("id") == "runs-a-erm" and cell.get_attribute("open")
    assert "a/erm/seed0_0123456789" in cell.text and "model: erm" in cell.text
    assert "2 settings of every method" in opened.find_element(By.ID, "top").text
    tried = lines(opened, "#runs-a-erm > .scroll:nth-of-type(2)")
    assert [line[1:] for line in tried[:3]] == [
        ["0", "", "0.250", ""],
        ["0", "", "0.750", "yes"],
        ["1", "", "failed", ""],
    ]
    assert tried[1][0] == "lr 0.01" and not opened.find_elements(
        By.CSS_SELECTOR, "#runs-a-fair > .scroll:nth-of-type(2)"
    )


def paper(browser) -> list[int]:
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return [int(part) for part in re.findall(r"\d+", colour)[:3]]


def test_dark_and_light(opened):
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        opened.refresh()
        assert (max(paper(opened)) < 60) if scheme == "dark" else (min(paper(opened)) > 200)
        switch = opened.find_element(By.ID, "dark")
        assert switch.get_attribute("aria-pressed") == ("true" if scheme == "dark" else "false")
        switch.send_keys(Keys.SPACE)
        assert (min(paper(opened)) > 200) if scheme == "dark" else (max(paper(opened)) < 60)


CONTRAST = """
function rgb(text) {  // what a colour is on the screen, whatever its notation
  const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
  context.fillStyle = text; context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
const light = (c) => c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
const paper = light(rgb(getComputedStyle(document.body).backgroundColor));
return ['body', '.soft', '.tag', 'nav a', 'caption', '.note'].map((name) => {
  const text = light(rgb(getComputedStyle(document.querySelector(name)).color));
  return (Math.max(text, paper) + .05) / (Math.min(text, paper) + .05);
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_everything_a_name(opened, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened.refresh()
    assert min(opened.execute_script(CONTRAST)) >= 4.5  # WCAG 2, level AA
    unnamed = """return [...document.querySelectorAll('select')].filter(s => !s.labels.length).length
        + [...document.querySelectorAll('button')].filter(b => !b.textContent.trim()).length
        + [...document.querySelectorAll('table')].filter(t => !t.caption.textContent.trim()).length
        + [...document.querySelectorAll('svg')].filter(s => !s.ariaLabel && s.ariaHidden !== 'true').length"""
    assert opened.execute_script(unnamed) == 0


def test_a_narrow_window_does_not_scroll_sideways(opened):
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened.refresh()
        for name, text in (("Cohort", "all cohorts"), ("Test set", "all test sets"), ("Metric", "all metrics")):
            choose(opened, name, text)
        assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
