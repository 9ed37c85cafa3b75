"""The page of a report in a real browser: what a reader sees, clicks and downloads."""

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import HOSTILE_NAMES

pytest.importorskip("vl_convert", reason="needs the extra report, for drawing")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra test")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
Select = pytest.importorskip("selenium.webdriver.support.select").Select

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip(
        "needs chromium and chromedriver (Debian: chromium, chromium-driver)",
        allow_module_level=True,
    )

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage",),
)
RUNS = 52


@pytest.fixture(scope="module")
def report(demo_report: Path) -> Path:
    return demo_report


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(1200, 900)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    return open_page(browser, report / "index.html")


def open_page(browser: Any, path: Path) -> Any:
    if browser.current_url.startswith("file:"):  # what an earlier test chose is forgotten
        browser.execute_script("sessionStorage.clear()")
    browser.get(path.as_uri())
    wait(lambda: browser.execute_script("return document.documentElement.dataset.drawn"))
    return browser


def wait(is_so: Callable[[], Any]) -> Any:
    """Waits until something is so, a minute at most."""
    deadline = time.monotonic() + 60
    while not (found := is_so()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def runs_table(page: Any) -> Any:
    return page.find_element(By.CSS_SELECTOR, '[data-table="runs"]')


def column(page: Any, heading: str) -> list[str]:
    """The cells of a column of the table of runs, as shown."""
    return page.execute_script(
        """
        const [table, wanted] = arguments;
        const at = [...table.querySelectorAll("th")].findIndex((th) => th.innerText === wanted);
        return [...table.querySelectorAll("tbody tr")].map((row) => row.cells[at].innerText);
        """,
        runs_table(page),
        heading,
    )


def filter_by(page: Any, words: str) -> None:
    search = runs_table(page).find_element(By.CSS_SELECTOR, "input[type=search]")
    search.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    search.send_keys(words)


def test_it_loads_without_a_word_on_the_console_and_draws_everything(page, report):
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
    figures = json.loads((report / "report.json").read_text())["figures"]
    drawn = {figure["name"] for figure in figures if figure["data"]}
    for name in drawn:
        plot = page.find_element(By.CSS_SELECTOR, f'.plot[data-figure="{name}"]')
        size = plot.find_element(By.TAG_NAME, "svg").size
        assert size["width"] > 300
        assert size["height"] > 40
        assert plot.find_elements(By.CSS_SELECTOR, "svg .role-axis-title")
    assert len(page.find_elements(By.CSS_SELECTOR, ".plot")) == len(drawn)
    # One file, and no network: nothing was loaded beside the page itself.
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert page.find_element(By.CSS_SELECTOR, "#answer .chip.measured").is_displayed()


def test_names_that_mean_harm_are_shown_as_text(page):
    filter_by(page, "<script>")
    assert column(page, "run") == ["<script>alert(1)"]
    assert page.execute_script("return document.querySelectorAll('td script, td img').length") == 0
    filter_by(page, "")
    page.execute_script(
        "arguments[0].querySelectorAll('.pages button')[2].click()", runs_table(page)
    )
    shown = column(page, "run")
    assert len(shown) == RUNS
    assert {name for name in HOSTILE_NAMES if name.isprintable()} <= set(shown)
    assert "right\\u202eto-left" in shown


def test_the_table_sorts_both_ways_with_nothing_last(page):
    def watts(text: str) -> float:
        number, unit = text.split()
        return float(number) * {"mJ": 1e-3, "J": 1, "kJ": 1e3}[unit]

    heading = runs_table(page).find_element(By.XPATH, ".//th/button[.='J per update']")
    heading.click()
    values = [watts(text) for text in column(page, "J per update") if text]
    assert values == sorted(values)
    assert len(values) > 40
    heading.click()
    values = [watts(text) for text in column(page, "J per update") if text]
    assert values == sorted(values, reverse=True)
    cell = heading.find_element(By.XPATH, "..")
    assert cell.get_attribute("aria-sort") == "descending"
    # It stays so when the page is loaded again, as it is while a sweep runs.
    page.refresh()
    assert [watts(text) for text in column(page, "J per update") if text] == values


def test_the_table_is_filtered_and_what_is_left_downloaded(page, tmp_path):
    page.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    filter_by(page, "adamw measured")
    assert len(column(page, "run")) == 9
    choice = runs_table(page).find_element(By.XPATH, ".//label[contains(., 'optimizer')]/select")
    Select(choice).select_by_value("sgd")
    assert column(page, "run") == []
    assert "Nothing fits" in runs_table(page).text
    Select(choice).select_by_value("adamw")
    runs_table(page).find_element(By.CSS_SELECTOR, "button.csv").click()
    file = wait(lambda: next(tmp_path.glob("*.csv"), None))
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert len(rows) == 9
    assert {row["optimizer"] for row in rows} == {"adamw"}
    assert all(float(row["price"]) > 0 for row in rows)


def test_hovering_names_the_run_and_a_click_opens_it(page, report):
    plot = page.find_element(By.CSS_SELECTOR, '.plot[data-figure="accuracy"]')
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    mark = plot.find_elements(By.CSS_SELECTOR, ".mark-symbol path")[0]
    webdriver.ActionChains(page).move_to_element(mark).perform()
    tip = wait(
        lambda: next(iter(page.find_elements(By.CSS_SELECTOR, "#vg-tooltip-element.visible")), None)
    )
    name = tip.find_element(By.XPATH, ".//tr[td='run' or td='run:']/td[2]").text
    assert name.startswith(("sgd-", "adam"))
    webdriver.ActionChains(page).click(mark).perform()
    wait(lambda: "/runs/" in page.current_url)
    assert page.find_element(By.TAG_NAME, "h1").text == name


def test_data_and_command_stand_beside_each_figure(page):
    for details in page.find_elements(By.CSS_SELECTOR, "details[data-figure]"):
        page.execute_script("arguments[0].open = true", details)
        wait(lambda details=details: details.find_elements(By.CSS_SELECTOR, ".data tbody tr"))
        assert details.find_element(By.TAG_NAME, "pre").text.startswith("python -m experiments.")


def test_the_page_of_a_run_draws_its_power(browser, report):
    for name in ("stopped", "damaged-lines"):
        page = open_page(browser, report / "runs" / f"{name}.html")
        assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
        plots = page.find_elements(By.CSS_SELECTOR, ".plot svg")
        assert len(plots) == (name == "stopped")
        assert page.find_element(By.LINK_TEXT, "All runs").is_displayed()
    assert "line 1" in page.find_element(By.TAG_NAME, "body").text


def test_it_fits_every_width_and_can_be_read_in_both_themes(page):
    try:
        for theme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            text, ground, axis = page.execute_script(
                """
                const color = (element, what) =>
                  getComputedStyle(element)[what].match(/\\d+/g).map(Number);
                const label = document.querySelector(".plot .role-axis-label text");
                const body = document.body;
                return [color(body, "color"), color(body, "backgroundColor"), color(label, "fill")];
                """
            )
            assert contrast(text, ground) > 7
            assert contrast(axis, ground) > 4.5
            assert (sum(ground) > 380) == (theme == "light")
        for width in (1600, 1024, 390):
            screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            # Figures follow the width; tables scroll inside their frames, the page does not.
            wait(
                lambda width=width: (
                    page.execute_script(
                        "return Math.max(document.documentElement.scrollWidth, "
                        "...[...document.querySelectorAll('.plot svg')].map("
                        "(svg) => svg.getBoundingClientRect().right))"
                    )
                    <= width
                )
            )
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(first: list[int], second: list[int]) -> float:
    """The contrast ratio of two colours, by WCAG 2."""

    def luminance(color: list[int]) -> float:
        parts = [value / 255 for value in color[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
