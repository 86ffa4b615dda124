"""OHIF in a headless Chromium, handled as a radiologist handles it."""

import shutil

import numpy as np
import pytest
from PIL import Image
from support import ROOT

PICTURES = ROOT / "work" / "screenshots"  # kept, so that somebody can look at them
PATIENCE = 120_000  # ms, on a core that does something else too
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def needs_chromium():
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no Chromium: sudo apt-get install chromium")
    return browser


class Viewer:
    """A page of OHIF.

    Args:
        browser: Playwright's browser.
        address: the annotation server.
        name: of the pictures.
    """

    def __init__(self, browser, address, name):
        self.address, self.name = address, name
        self.page = browser.new_page(viewport={"width": 1440, "height": 860})
        self.page.set_default_timeout(PATIENCE)
        # fonts and the like from the Internet: a test needs this computer only
        self.page.route(lambda url: url.startswith("http") and not url.startswith(address), lambda way: way.abort())
        self.errors, self.failed = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", self._note)
        self.page.on("dialog", lambda dialog: dialog.accept())
        PICTURES.mkdir(parents=True, exist_ok=True)

    def _note(self, answer):
        # OHIF asks whether a training runs, and takes 404 for no
        if answer.status >= 400 and "check_if_running" not in answer.url:
            self.failed.append(answer.url)

    def picture(self, title):
        file = PICTURES / f"{self.name}_{title}.png"
        self.page.screenshot(path=file)
        return file

    def open_list(self):
        self.page.goto(f"{self.address}/ohif/", wait_until="load")
        self.page.wait_for_selector("text=Study List")
        self.page.wait_for_selector('[data-cy="study-list-results"] tr, table tr')
        button = self.page.locator("text=Confirm and Hide")
        if button.count():
            button.first.click()

    def rows(self):
        """The patients of the list, as far as they are shown."""
        return [text for text in self.page.locator("text=/^(HCC|Patient)_[0-9]+$/").all_inner_texts() if text]

    def open_study(self, patient):
        self.page.locator(f"text={patient}").first.click()
        self.page.locator('[data-cy^="mode-monai-label"]').first.click()
        self.page.wait_for_selector("canvas")
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(2000)

    def connect(self):
        assert self.page.locator("#monailabelServerURL").input_value() == f"{self.address}/"
        self.page.locator(".monaiLabelPanel .settingsTable button").first.click()
        self.page.wait_for_selector(".monaiLabelPanel .tabs")
        self.page.wait_for_timeout(1500)

    def tab(self, title):
        """Open a tab of the panel."""
        tab = self.page.locator(f".tab:has(> label:text-is('{title}'))")
        if not tab.locator("button").first.is_visible():
            tab.locator("label.tab-label").click()
            tab.locator("button").first.wait_for(state="visible")
        return tab

    def run(self):
        """Press Run; what the server answered (NRRD)."""
        tab = self.tab("Auto-Segmentation")
        done = lambda message: "updated the segmentation" in message.text or "TODO::" in message.text  # noqa: E731
        answers = []

        def keep(way):  # Chromium itself forgets bodies of this size
            answer = way.fetch(timeout=PATIENCE)
            answers.append((answer.status, answer.body()))
            way.fulfill(response=answer)

        self.page.route("**/infer/**", keep)
        with self.page.expect_console_message(done):
            tab.locator("button").first.click()
        self.page.unroute("**/infer/**")
        self.page.wait_for_timeout(4000)
        status, body = answers[-1]
        assert status == 200, body
        return body

    def next_sample(self):
        """Press Next Sample; the text of the dialogue."""
        self.tab("Active Learning").locator("button", has_text="Next Sample").click()
        self.page.wait_for_selector(".nextSampleForm")
        return self.page.locator(".nextSampleForm").first.inner_text()

    def coloured(self):
        """Share of coloured pixels in the view that has most of them; scans are grey."""
        file = PICTURES / f"{self.name}_view.png"
        shares = []
        for view in self.page.locator("canvas").all():
            view.screenshot(path=file)
            pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
            high, wide = pixels.shape[0] // 5, pixels.shape[1] // 8
            inner = pixels[high:-high, wide:-wide]
            shares.append(float((inner.max(-1) - inner.min(-1) > 40).mean()))
        file.unlink()
        return max(shares)
