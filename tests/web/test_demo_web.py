"""`reunite demo --web`: three devices on one page, from the command to Ctrl-C."""

import asyncio
import os
import re
import signal
import subprocess
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect

from reunite_transport.demo_web import DEVICES, FIRST_TODOS
from tests.transport.commands import REUNITE, heeding_ctrl_c
from tests.web.stage import SECONDS_MAX


def test_the_demo_shows_three_devices_and_a_merge(chromium: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        process = await asyncio.create_subprocess_exec(
            *(REUNITE, "demo", "--web", "--no-open", "--port", "0"),
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
            preexec_fn=heeding_ctrl_c,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(2 * SECONDS_MAX):
                await process.stdout.readline()
                said = (await process.stdout.readline()).decode()
            found = re.match(r"http://127\.0\.0\.1:\d+/", said)
            assert found, said
            await look_at(found[0], chromium)
        finally:
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(SECONDS_MAX):
                _, complained = await process.communicate()
        assert (process.returncode, complained) == (128 + signal.SIGINT, b"")

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


async def look_at(url: str, chromium: str) -> None:
    expect.set_options(timeout=SECONDS_MAX * 1000)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=sandbox)
        page = await browser.new_page(viewport={"width": 1440, "height": 900})
        await page.goto(url)
        devices = [page.frame_locator(f"iframe[title={name}]") for name in DEVICES]
        for device in devices:
            await expect(device.locator("li.todo .text")).to_have_text([*FIRST_TODOS][::-1])
        await page.get_by_role("button", name="Backend adds a todo").click()
        for device in devices:
            await expect(device.get_by_text("Via backend").first).to_be_visible()
        await page.get_by_role("button", name="Drift apart").click()
        await expect(page.locator("#caption")).to_contain_text("Merged")
        for device in devices:
            await expect(device.get_by_label("Done: Buy oat milk, two litres")).to_be_checked()
            await expect(device.get_by_label("Vote for Book the ferry, 3 votes")).to_be_visible()
            await expect(device.locator("li.todo")).to_have_count(len(FIRST_TODOS) + 4)
        await expect(page.locator("#rows")).to_have_text(f"1 list, {len(FIRST_TODOS) + 4} todos")
        await page.set_viewport_size({"width": 390, "height": 844})
        await expect(page.locator(".device:visible")).to_have_count(1)
        await page.get_by_role("tab", name="Phone").click()
        await expect(page.locator("iframe[title=Phone]")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == 390
        await browser.close()


def test_the_demo_in_a_browser_has_no_json() -> None:
    refused = subprocess.run(
        [REUNITE, "demo", "--web", "--json"], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, "")


@pytest.mark.parametrize("folder", ["examples/todos", "transport/reunite_transport/demo_page"])
def test_a_page_loads_nothing_from_elsewhere(folder: str) -> None:
    root = Path(__file__).resolve().parents[2]
    pages = [path for path in (root / folder).rglob("*") if path.suffix in (".html", ".js", ".css")]
    assert len(pages) >= 3
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!127\.0\.0\.1)|innerHTML|@import", text), path
