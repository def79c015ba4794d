"""The dashboard as it is really served: who may talk to it, and what a browser shows."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("streamlit", reason="the dashboard is the extra [app]")

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 240.0  # seconds; a busy machine may be slow to start a server and a browser
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1440,1400",
)


@pytest.fixture(scope="module")
def server(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Serves the planted run with the product's own command; gives the port."""
    from apps.dashboard.launch import command

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "streamlit.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(planted, port, headless=True),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=planted.parent,
        )
        try:
            wait(lambda: process.poll() is not None or healthy(port), "the server to start")
            assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
            yield port
        finally:
            process.terminate()
            process.wait(30)


def healthy(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/_stcore/health")
            return connection.getresponse().status == 200
        except OSError:
            return False


def wait(condition: Callable[[], Any], what: str) -> Any:
    """Polls until the condition holds; fails the test when it does not for long.

    A page may be drawn anew while it is looked at: an element that is gone by then is looked for again.
    """
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(StaleElementReferenceException):
            if found := condition():
                return found
        time.sleep(0.2)
    pytest.fail(f"waited {PATIENCE:.0f} s for {what}")


def handshake(port: int, host: str, origin: str) -> int:
    """Status of a request to open the app's WebSocket."""
    headers = {
        "Host": host,
        "Origin": origin,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/_stcore/stream", headers=headers)
        with closing(connection.getresponse()) as response:  # after status 101 the response holds the socket
            return response.status


def test_only_this_machine_and_its_own_pages_are_served(server: int) -> None:
    own = f"localhost:{server}"
    assert handshake(server, own, f"http://{own}") == 101
    assert handshake(server, own, "http://evil.example") == 403
    # DNS rebinding: another site's name that resolves to this machine
    assert handshake(server, "evil.example", "http://evil.example") in (400, 403)
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        if not str(address).startswith("127."):
            with pytest.raises(OSError), socket.create_connection((str(address), server), timeout=5):
                pass


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="BROWSER TEST NOT RUN: selenium is not installed")
    chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = " and ".join(n for n, p in (("chromium", chromium), ("chromedriver", driver)) if p is None)
        pytest.skip(f"BROWSER TEST NOT RUN: {missing} not on PATH; install chromium and its driver to check the pages")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_script_timeout(PATIENCE)
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.mark.browser
@pytest.mark.slow
def test_from_home_to_a_feature(server: int, browser: Any, tmp_path: Path) -> None:
    """Opens Home, follows a concept to its feature, walks to the next one; the maps are there and nothing broke."""

    def titled(text: str) -> bool:
        return bool(
            browser.execute_script(
                "return [...document.querySelectorAll('h1')].some(e => e.innerText == arguments[0])", text
            )
        )

    def n_pictures() -> int:
        """Pictures that the browser has loaded and that are not empty."""
        return browser.execute_script(
            "return [...document.querySelectorAll('[data-testid=stImage] img')].filter(e => e.naturalWidth > 32).length"
        )

    def unbroken() -> None:
        for kind in ("stException", "stError"):
            assert not browser.find_elements("css selector", f"[data-testid={kind}]"), browser.find_element(
                "tag name", "body"
            ).text

    def screenshot(name: str) -> None:
        folder = Path(os.environ.get("DENOSCOPE_SCREENSHOTS", tmp_path))
        folder.mkdir(parents=True, exist_ok=True)
        assert browser.save_screenshot(str(folder / f"{name}.png"))

    browser.get(f"http://localhost:{server}")
    wait(lambda: titled("planted"), "Home")
    wait(lambda: n_pictures() == 12, "the concepts' pictures")
    wait(lambda: len(browser.find_elements("css selector", ".js-plotly-plot")) == 3, "Home's charts")
    unbroken()
    screenshot("home")
    links = browser.find_elements("css selector", "[data-testid=stPageLink] a")
    next(link for link in links if link.text.startswith("feature 0 ")).click()

    wait(lambda: titled("Feature 0"), "the feature's page")
    wait(lambda: n_pictures() >= 9 + 6, "the heat maps")
    wait(lambda: len(browser.find_elements("css selector", ".js-plotly-plot")) == 4, "the feature's charts")
    unbroken()
    assert "f=0" in browser.current_url
    assert "ft_step=strongest" in browser.current_url
    screenshot("feature")

    next(b for b in browser.find_elements("tag name", "button") if "Next" in b.text).click()
    wait(lambda: titled("Feature 1"), "the next feature")
    wait(lambda: "f=1" in browser.current_url, "its link")
    unbroken()
    link = browser.current_url
    browser.get("about:blank")
    browser.get(link)  # a link shows again what was seen
    wait(lambda: titled("Feature 1"), "the feature of the link")
    wait(lambda: n_pictures() >= 9 + 6, "its heat maps")
    unbroken()


@pytest.mark.browser
@pytest.mark.slow
def test_two_features_share_a_step(server: int, browser: Any, tmp_path: Path) -> None:
    """Compare in a browser: a suggestion becomes B, the locked step moves both panes, and the address follows both."""

    def elements(selector: str) -> list[Any]:
        return browser.find_elements("css selector", selector)

    def captions(text: str) -> int:
        return browser.execute_script(
            "return [...document.querySelectorAll('[data-testid=stCaptionContainer]')]"
            ".filter(e => e.innerText.includes(arguments[0])).length",
            text,
        )

    browser.get(f"http://localhost:{server}/compare?f=9")
    wait(lambda: captions("each at its strongest step") == 2, "both panes")
    wait(lambda: len(elements(".js-plotly-plot")) == 3, "the scatter and both curves")
    shown = [e for e in elements("[class*=st-key-cp_take_] button") if e.text]  # Streamlit hides a twin of each
    suggestion = shown[-1]  # the first is B already
    taken = suggestion.text
    suggestion.click()
    wait(lambda: f"cp_f={taken}" in browser.current_url, "the address of the suggestion")
    wait(lambda: captions("each at its strongest step") == 2, "both panes again")
    elements("[data-testid=stSlider] input[type=range]")[0].send_keys("\ue014")  # the right arrow
    wait(lambda: "cp_step=0" in browser.current_url, "the address of the step")
    wait(lambda: captions("step 0 of 5") == 2, "both panes at the step")
    assert not elements("[data-testid=stException], [data-testid=stError]")
    folder = Path(os.environ.get("DENOSCOPE_SCREENSHOTS", tmp_path))
    assert browser.save_screenshot(str(folder / "compare.png"))


@pytest.mark.browser
@pytest.mark.slow
def test_a_drag_over_the_image_selects_its_cells(server: int, browser: Any, tmp_path: Path) -> None:
    """Inspect: a drag over the picture becomes the cells in the address, a short one a single cell; a click too."""
    from selenium.webdriver import ActionChains

    def picker() -> Any:
        return wait(lambda: browser.find_elements("css selector", ".js-plotly-plot"), "the picture")[0]

    def cells() -> str:
        return parse_qs(urlsplit(browser.current_url).query).get("in_cells", [""])[0]

    def cell(at: Any) -> float:
        """Side of one of the picture's 8 x 8 cells."""
        return min(at.size["width"], at.size["height"]) / 8

    def dragged(first: int, then: int) -> bool:
        """Down and right in two moves, from above and left of the middle of the cell in row 1, column 2."""
        at = picker()
        side = cell(at)
        hand = ActionChains(browser).move_to_element_with_offset(at, round(-1.8 * side), round(-2.8 * side)).pause(0.5)
        hand.click_and_hold().move_by_offset(first, first).move_by_offset(then, then).release().perform()
        return True

    def clicked() -> bool:
        """In the middle of the cell in row 4, column 4."""
        at = picker()
        half = round(cell(at) / 2)
        ActionChains(browser).move_to_element_with_offset(at, half, half).pause(0.5).click().perform()
        return True

    def pressed(name: str) -> bool:
        next(b for b in browser.find_elements("tag name", "button") if b.text.strip() == name).click()
        return True

    browser.get(f"http://localhost:{server}/inspect?in_step=4")
    wait(lambda: len(browser.find_elements("css selector", ".js-plotly-plot")) == 2, "the picture and the raster")
    wait(lambda: cells() == "all", "the whole image")
    far = wait(lambda: round(2.4 * cell(picker())), "a picture with a size")
    wait(lambda: dragged(far // 2, far), "a long drag")
    wait(lambda: cells() == "1-4,2-5", "the cells of a long drag")
    wait(lambda: browser.find_elements("css selector", ".js-plotly-plot .shapelayer path"), "the frame around them")
    folder = Path(os.environ.get("DENOSCOPE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(folder / "inspect.png"))
    wait(lambda: dragged(5, 5), "a short drag")
    wait(lambda: cells() == "1,2", "the cell of a short drag")
    wait(lambda: pressed("click"), "the switch")
    wait(
        lambda: browser.execute_script("return arguments[0]._fullLayout.dragmode", picker()) == "pan", "the click mode"
    )
    wait(clicked, "a click")
    wait(lambda: cells() == "4,4", "the cell of a click")
    for kind in ("stException", "stError"):
        assert not browser.find_elements("css selector", f"[data-testid={kind}]")
