"""A shop's store, and a real browser to look at it with."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from tests.traces.page import shop
from tests.traces.process import TOKEN, StoreProcess

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def shop_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """The real store over two days of a shop's life. Read-only: every test of a module shares it."""
    folder: Path = tmp_path_factory.mktemp("shop")
    shop.write(folder, shop.days(time.time_ns()))
    it = StoreProcess(folder)
    it.start()
    yield it
    it.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser here: {' or '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        it = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield it
        it.close()


@dataclass
class Reader:
    """A person at a browser who has logged in, and all that went wrong or astray meanwhile."""

    page: Page
    context: BrowserContext
    store: StoreProcess
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, address: str) -> None:
        answer = self.page.goto(self.store.url("/" + address))
        assert answer is not None and answer.status == 200, address

    def elsewhere(self) -> list[str]:
        return [url for url in self.asked if not url.startswith(self.store.url("/"))]


def reader_of(store: StoreProcess, browser: Browser, **options: object) -> Reader:
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    it = Reader(page, context, store)

    def ask(request: Request) -> None:
        it.asked.append(request.url)

    page.on("request", ask)
    page.on("pageerror", lambda error: it.complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: it.complaints.append(f"dialog: {dialog.message}"))
    page.on(
        "console",
        lambda said: it.complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    page.goto(store.url("/login"))
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_selector("h1")
    return it


@pytest.fixture
def reader(shop_store: StoreProcess, browser: Browser) -> Iterator[Reader]:
    """Fails the test if the page broke its own policy, raised, or spoke to anybody else."""
    it = reader_of(shop_store, browser)
    yield it
    complaints, elsewhere = list(it.complaints), it.elsewhere()
    it.context.close()
    assert complaints == []
    assert elsewhere == []
