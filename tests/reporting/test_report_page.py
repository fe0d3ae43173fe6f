"""The report page in headless Chromium: no error in the console, pointer, keyboard, phone, light and dark."""

import json
import shutil

import numpy as np
import pytest
from support.report_pages import HOSTILE

from moco_tf.reporting import classes, page, results, sections

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: apt-get install chromium chromium-driver"
    ),
]


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e .[dev]")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Opened:
    """A page in a browser of some width, light or dark."""

    def __init__(self, browser, path, width=1280, scheme="light"):
        self.browser = browser
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(path.as_uri())

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def js(self, code, *arguments):
        return self.browser.execute_script(f"return {code}", *arguments)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def point(self, element, right=0, down=0):
        from selenium.webdriver.common.action_chains import ActionChains

        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.browser).move_to_element_with_offset(element, right, down).perform()

    def focused(self):
        return self.browser.switch_to.active_element


@pytest.fixture(name="page")
def _page(browser, run):
    """The page on a desk; afterwards nothing may be in the console, and nothing was asked of a network."""
    yield Opened(browser, run / "report.html")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and {url.split(":")[0] for url in asked} <= {"file", "data"}


def test_hostile_names_are_text(page):
    assert page.js("document.querySelectorAll('img[onerror], section i').length") == 0
    shown = [button.text for button in page.all("button[data-class]")]
    assert [text[1:].strip() for text in shown] == sorted(HOSTILE)  # after its sign
    assert "run<b>" in page.browser.title


def test_tab_reaches_everything_and_shows_where_it_is(page):
    from selenium.webdriver.common.keys import Keys

    stops = "a[href], button, input, summary, [tabindex='0']"
    wanted = page.js("[...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).length", stops)
    seen = []
    for _ in range(wanted):
        page.press(Keys.TAB)
        seen.append(page.focused())
        style, width = page.js("(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(arguments[0]))", seen[-1])
        assert style == "solid" and float(width[:-2]) >= 2, seen[-1].tag_name
    assert seen[0].get_attribute("textContent") == "Skip to the results"
    assert len({element.id for element in seen}) == wanted > 25


def test_links_and_details(page):
    for link in page.all("nav a"):
        link.click()
        assert page.js("location.hash") == "#" + link.get_attribute("href").split("#")[1]
        assert page.js("Math.abs(document.querySelector(location.hash).getBoundingClientRect().top) < 900")
    details = page.find("[data-chart=loss] details")
    page.js("arguments[0].scrollIntoView({block: 'center'})", details)
    details.find_element("css selector", "summary").click()
    assert details.find_element("css selector", "td").is_displayed()


def test_chart_is_read_by_keyboard_and_pointer(page):
    from selenium.webdriver.common.keys import Keys

    plot, series = page.find("[data-chart=loss] .plot"), page.js("data.charts.loss.series[0]")
    readout, last = page.find("[data-chart=loss] .readout"), len(series["value"]) - 1
    page.js("arguments[0].focus()", plot)
    for key, place in ((Keys.HOME, 0), (Keys.RIGHT, 1), (Keys.END, last), (Keys.RIGHT, last), (Keys.LEFT, last - 1)):
        page.press(key)
        assert plot.get_attribute("aria-valuenow") == str(place)
        assert f"loss {series['value'][place]:.4g}" in readout.text
        assert readout.text.split(" · ")[1] in plot.get_attribute("aria-valuetext")
    assert page.find("[data-chart=loss] .cursor").is_displayed()
    page.point(plot, right=-plot.size["width"] // 2 + 5)
    assert plot.get_attribute("aria-valuenow") == "0"


def test_map_is_read_by_keyboard_and_pointer(page):
    from selenium.webdriver.common.keys import Keys

    field, tip, the_map = page.find(".field"), page.find(".tip"), page.js("data.map")
    assert not tip.is_displayed()
    page.js("arguments[0].focus({focusVisible: true})", field)
    assert tip.is_displayed()  # the mark in the middle
    before = tip.text
    for key in (Keys.RIGHT, Keys.LEFT, Keys.UP, Keys.DOWN):
        page.press(key)
    said = page.find("#map-status").get_attribute("textContent")
    assert tip.text != before or said
    assert said.split(", ")[-1] in the_map["files"]
    page.press(Keys.ESCAPE)
    assert not tip.is_displayed()
    place = 7
    scale = field.size["width"] / the_map["width"]
    middle = the_map["width"] / 2
    page.point(field, round((the_map["x"][place] - middle) * scale), round((the_map["y"][place] - middle) * scale))
    lines = tip.text.split("\n")
    assert lines[0] == the_map["names"][the_map["labels"][place]] and lines[-1] == the_map["files"][place]
    agrees = the_map["labels"][place] == the_map["predicted"][place]
    assert lines[1] == ("✓ kNN agrees" if agrees else f"✗ kNN: {the_map['names'][the_map['predicted'][place]]}")
    assert page.find(".thumb").value_of_css_property("background-image").startswith('url("data:image/')


def test_a_class_alone(page):
    first, second, _ = page.all("button[data-class]")
    page.js("arguments[0].scrollIntoView({block: 'center'})", first)
    first.click()
    label = first.get_attribute("data-class")
    faded = {
        g.get_attribute("id"): float(g.value_of_css_property("opacity")) < 0.5 for g in page.all(".field g[id^=mark]")
    }
    assert faded == {f"mark-{n}": str(n) != label for n in range(3)}
    second.click()
    first.click()
    assert [b.get_attribute("aria-pressed") for b in (first, second)] == ["false", "true"]
    second.click()
    assert not page.all(".field g.faded")


def test_search(page):
    """The first eight; then those of every word, by class and file; again the first eight, and all of them."""
    box, items = (
        page.find(".found input"),
        "[...document.querySelectorAll('.found li')].filter(e => e.checkVisibility())",
    )
    assert page.js(f"{items}.length") == 8
    box.send_keys("BIRD 05.p")
    assert page.js(f"{items}.map(e => e.dataset.text)") == ["bird 05.png"]
    assert page.find(".found [role=status]").text == "1 of 24"
    box.clear()
    box.send_keys(" ")
    assert page.js(f"{items}.length") == 8
    page.find(".found button").click()
    assert page.js(f"{items}.length") == 24 and not page.find(".found button").is_displayed()


def test_matrix_of_ten_classes_fits_a_phone(browser, run, tmp_path):
    """Nothing to scroll, and digits of 12 px."""
    names, counts = [f"class {n}" for n in range(10)], np.full((10, 10), 103)
    found = classes.summary(classes.Counted(counts, tuple(names), ""))
    made = sections.of_files(results.read_all([str(run)]))
    sections.add_images(made, [], None, None)
    made["classes"] = {"says": "", "no_matrix": "", **found}
    page.write(tmp_path / "page.html", page.render(made))
    phone = Opened(browser, tmp_path / "page.html", width=390)
    box = "document.querySelector('.confusion').parentElement"
    assert phone.js(f"{box}.scrollWidth - {box}.clientWidth") == 0
    assert (
        phone.js("getComputedStyle(document.querySelector('.confusion td.full, .confusion tbody td')).fontSize")
        == "12px"
    )


def test_one_of_many_classes_alone(browser, many_classes):
    page = Opened(browser, many_classes, 390)
    selection = page.find("#class")
    selection.find_element("css selector", "option[value='7']").click()
    faded = [group.get_attribute("id") for group in page.all(".field g.faded")]
    assert sorted(faded) == sorted(f"mark-{n}" for n in range(30) if n != 7)
    page.js("arguments[0].focus({focusVisible: true})", page.find(".field"))
    assert page.find(".tip").text.split("\n")[:2] == ["class 7", "✗ kNN: class 9"]
    selection.find_element("css selector", "option[value='']").click()
    assert not page.all(".field g.faded") and browser.get_log("browser") == []
    assert page.js("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_and_follows_the_scheme(width, scheme, page, run):
    Opened(page.browser, run / "report.html", width, scheme)
    assert page.js("document.documentElement.scrollWidth") <= width
    back, ink = (page.js(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    brightness = [sum(int(c) for c in text[4:-1].split(",")) for text in (back, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    small = page.js("[...document.querySelectorAll('nav a, button')].filter(e => e.offsetHeight < 32).length")
    assert small == 0  # fingers
