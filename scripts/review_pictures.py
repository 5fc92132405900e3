"""Takes the pictures of the review page in docs/img: the real store, two days of a made-up shop, and a
real browser. `python -m scripts.review_pictures`, run by `make docs`.
"""

import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.traces.page import shop
from tests.traces.page.conftest import CHROMIUM, FLAGS
from tests.traces.process import TOKEN, StoreProcess

IMAGES = Path(__file__).parent.parent / "docs/img"
VIEWS = {"decisions": "", "graph": "graph", "link": "trace?id={}"}
WIDTHS = {"": 1280, "-narrow": 420}


def take(store: StoreProcess, folder: Path) -> None:
    link = next(x for x in store.links("limit=500") if len(x["sides"]) == 2)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for suffix, width in WIDTHS.items():
            context = browser.new_context(
                viewport={"width": width, "height": 860},
                extra_http_headers={"X-Podlink-Token": TOKEN},
            )
            page = context.new_page()
            for name, address in VIEWS.items():
                page.goto(store.url("/" + address.format(link["trace_id"])))
                if name == "graph":
                    page.wait_for_selector("#graph[data-drawn]")
                page.screenshot(path=folder / f"review-{name}{suffix}.png")
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shop.write(Path(folder), shop.days(time.time_ns()))
        store = StoreProcess(Path(folder))
        store.start()
        try:
            take(store, IMAGES)
        finally:
            store.stop()


if __name__ == "__main__":
    main()
