"""Devices of the to-do app as processes, their pages in a browser, and what a person does there."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from tests.e2e.processes import kill, relay_process

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "examples" / "todos"
# A machine under load: reached only by a test that fails.
SECONDS_MAX = 20.0


@asynccontextmanager
async def example(program: str, *arguments: object) -> AsyncIterator[tuple[Process, str]]:
    """A program of the example and the address that it prints; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(APP / program), *map(str, arguments)), stdout=PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS_MAX):
            line = (await process.stdout.readline()).decode()
        assert ": http://" in line, line
        yield process, line.partition(": ")[2].strip()
    finally:
        await kill(process)


@dataclass(frozen=True)
class Stage:
    """Who plays: two devices, and what is between them."""

    runner: asyncio.Runner
    browser: Browser
    folder: Path
    postgres: str
    relay: str
    ada: str
    ben: str

    def play(self, scenario: Callable[[Page, Page], Awaitable[None]]) -> None:
        """Let two persons act, each on a device of theirs, in an empty list of their own."""

        async def whole() -> None:
            async with AsyncExitStack() as stack:
                ada = await stack.enter_async_context(self.page(self.ada))
                ben = await stack.enter_async_context(self.page(self.ben))
                name = f"List {uuid4().hex[:6]}"
                await make_list(ada, name)
                await show_list(ben, name)
                await scenario(ada, ben)

        self.runner.run(whole())

    @asynccontextmanager
    async def page(
        self, url: str, width: int = 1000, height: int = 800, online: bool = True
    ) -> AsyncIterator[Page]:
        """The page at this address; what fails in it fails the test."""
        context = await self.browser.new_context(viewport={"width": width, "height": height})
        errors: list[str] = []
        try:
            page = await context.new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            await page.goto(url)
            if online and "/static" not in url:
                await expect(page.locator("#device")).not_to_have_text("Todos")
                await page.get_by_role("switch").check()
            yield page
        finally:
            await context.close()
        assert not errors, errors


async def open_stage(
    stack: AsyncExitStack, runner: asyncio.Runner, chromium: str, postgres: str, folder: Path
) -> Stage:
    """Start all of it; `stack` ends it."""
    expect.set_options(timeout=SECONDS_MAX * 1000)
    # Chromium's sandbox is not to be had by root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    playwright = await stack.enter_async_context(async_playwright())
    browser = await playwright.chromium.launch(executable_path=chromium, args=options)
    stack.push_async_callback(browser.close)
    _, relay = await stack.enter_async_context(relay_process(postgres))
    urls = []
    for name in ("Ada", "Ben"):
        device = example(
            "app.py", "--name", name, "--db", folder / name, "--relay", relay, "--port", 0
        )
        urls.append((await stack.enter_async_context(device))[1])
    return Stage(runner, browser, folder, postgres, relay, *urls)


# What a person does, and sees.


async def make_list(page: Page, name: str) -> None:
    await page.get_by_label("Name of a new list").fill(name)
    await page.keyboard.press("Enter")
    await expect(page.locator("#list-name")).to_have_text(name)


async def show_list(page: Page, name: str) -> None:
    await page.locator("#lists button", has_text=name).click()
    await expect(page.locator("#list-name")).to_have_text(name)


async def add(page: Page, text: str) -> None:
    await page.get_by_label("What is to be done").fill(text)
    await page.keyboard.press("Enter")


async def switch(page: Page, *, online: bool) -> None:
    await page.get_by_role("switch").set_checked(online)
    await expect(page.locator("body")).to_have_attribute(
        "data-state", "live" if online else "disconnected"
    )


def todo(page: Page, text: str) -> Locator:
    return page.locator("li.todo", has=page.get_by_role("button", name=text, exact=True))


def note_of(page: Page, text: str) -> Locator:
    return page.get_by_role("textbox", name=f"Note of {text}")


async def open_note(page: Page, text: str) -> Locator:
    await page.get_by_role("button", name=f"Note of {text}").click()
    await expect(note_of(page, text)).to_be_enabled()
    return note_of(page, text)
