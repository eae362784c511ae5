"""A real browser without a window, over files of this machine: Debian's chromium, driven by selenium."""

import base64
import shutil
import time
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = "chromium", "chromedriver"
LAPTOP, PHONE = (1440, 900, False), (390, 844, True)
PATIENCE = 60
"""Seconds after which a page is given up: a machine may be busy; how long it took is no matter of a test."""


def is_there() -> bool:
    return bool(shutil.which(CHROMIUM) and shutil.which(DRIVER))


class Browser:
    """One window for all pages."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
            options.add_argument("--" + argument)
        options.binary_location = str(shutil.which(CHROMIUM))
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(shutil.which(DRIVER))))

    def close(self) -> None:
        self.driver.quit()

    def window(self, size: tuple[int, int, bool], dark: bool = False) -> None:
        width, height, phone = size
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})

    def open(self, page: Path) -> int:
        """Waits until all is drawn: milliseconds from the beginning, as the page has measured them."""
        self.errors()
        self.driver.get(page.as_uri())
        return int(self.wait("return document.documentElement.dataset.drawn"))

    def wait(self, script: str) -> Any:
        """What the script returns as soon as that is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}; console: {self.errors()}"
            time.sleep(0.05)
        return found

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def errors(self) -> list[str]:
        """What the console has said since the last call, whatever it is."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def mouse(self, x: float, y: float, kind: str = "mouseMoved") -> None:
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {
            "type": kind, "x": x, "y": y, "button": "none" if kind == "mouseMoved" else "left", "clickCount": 1})

    def click(self, x: float, y: float, done: str) -> None:
        """Until the script says that it has had its effect: a page that is busy drawing may miss one."""
        end = time.monotonic() + PATIENCE
        while not self.run(done):
            assert time.monotonic() < end, f"no click led to {done}; console: {self.errors()}"
            for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
                time.sleep(0.15)
                self.mouse(x, y, kind)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": name, "code": name})

    def box(self, selector: str) -> dict[str, float]:
        """Where an element is in the window, after scrolling to it."""
        found = self.run("const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
                         "const b = e.getBoundingClientRect();"
                         "return {x: b.x, y: b.y, width: b.width, height: b.height}", selector)
        return dict(found)

    def picture(self, path: Path, size: tuple[int, int, bool], dark: bool = False) -> None:
        """The whole page as a png."""
        height = self.run("return document.documentElement.scrollHeight")
        self.window((size[0], min(height, 12000), size[2]), dark)
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))
