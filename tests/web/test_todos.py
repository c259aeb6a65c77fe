"""The to-do app as persons use it: two devices in a browser, and a relay between them."""

import asyncio
import json

import aiohttp
from playwright.async_api import Page, WebSocketRoute, expect

from tests.e2e.processes import free_port
from tests.web.stage import (
    SECONDS_MAX,
    Stage,
    add,
    example,
    make_list,
    note_of,
    open_note,
    show_list,
    switch,
    todo,
)


def test_what_is_added_on_one_device_appears_on_the_other(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await add(ada, "first")
        await add(ben, "second")
        for page in (ada, ben):
            await expect(page.locator("li.todo .text")).to_have_text(["second", "first"])
        await ben.get_by_label("Done: first").check()
        await expect(ada.get_by_label("Done: first")).to_be_checked()
        await expect(ada.locator("#count")).to_have_text("1 of 2 done")
        await ada.get_by_role("button", name="Delete second").click()
        await expect(ben.locator("li.todo")).to_have_count(1)

    stage.play(scenario)


def test_what_is_done_offline_waits_and_merges(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await add(ada, "milk")
        await expect(todo(ben, "milk")).to_be_visible()
        await switch(ada, online=False)
        await todo(ada, "milk").locator(".text").click()
        await ada.keyboard.type("oat milk")
        await ada.keyboard.press("Enter")
        await expect(ada.locator("#status-text")).to_have_text("Offline, 1 change waiting")
        await ben.get_by_label("Done: milk").check()
        await expect(todo(ben, "milk").locator(".state")).to_have_attribute("data-state", "synced")
        await expect(ada.get_by_label("Done: oat milk")).not_to_be_checked()
        await switch(ada, online=True)
        for page in (ada, ben):
            await expect(page.get_by_label("Done: oat milk")).to_be_checked()
        await expect(ada.locator("#status-text")).to_have_text("Up to date")

    stage.play(scenario)


def test_an_item_tells_that_it_waits_and_that_it_arrived(stage: Stage) -> None:
    async def scenario(ada: Page, _: Page) -> None:
        await switch(ada, online=False)
        await add(ada, "on its way")
        state = todo(ada, "on its way").locator(".state")
        await expect(state).to_have_attribute("data-state", "pending")
        await expect(state).to_have_text("waiting")
        await switch(ada, online=True)
        await expect(state).to_have_attribute("data-state", "synced")

    stage.play(scenario)


def test_two_who_type_in_one_note_both_keep_their_words(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await add(ada, "trip")
        left, right = await open_note(ada, "trip"), await open_note(ben, "trip")
        await left.press_sequentially("the middle 🏰")
        await expect(right).to_have_value("the middle 🏰")
        await right.press("Home")
        await asyncio.gather(
            left.press_sequentially(" and the end 🐉."), right.press_sequentially("🌍 Begin with ")
        )
        for note in (left, right):
            await expect(note).to_have_value("🌍 Begin with the middle 🏰 and the end 🐉.")

    stage.play(scenario)


def test_what_others_type_does_not_move_the_caret(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await add(ada, "caret")
        left, right = await open_note(ada, "caret"), await open_note(ben, "caret")
        await left.fill("one three")
        await expect(right).to_have_value("one three")
        await left.evaluate("area => area.setSelectionRange(4, 4)")
        await right.evaluate("area => area.setSelectionRange(0, 0)")
        await right.press_sequentially("zero ")
        await expect(left).to_have_value("zero one three")
        await left.press_sequentially("two ")
        for note in (left, right):
            await expect(note).to_have_value("zero one two three")

    stage.play(scenario)


def test_notes_typed_offline_merge(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await add(ada, "apart")
        left, right = await open_note(ada, "apart"), await open_note(ben, "apart")
        await left.fill("middle")
        await expect(right).to_have_value("middle")
        await switch(ada, online=False)
        await left.press_sequentially(", end")
        await right.press("Home")
        await right.press_sequentially("begin, ")
        await switch(ada, online=True)
        for note in (left, right):
            await expect(note).to_have_value("begin, middle, end")

    stage.play(scenario)


def test_votes_of_both_count(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await add(ada, "ferry")
        await expect(todo(ben, "ferry")).to_be_visible()
        await switch(ada, online=False)
        for page, votes in ((ada, 2), (ben, 3)):
            for _ in range(votes):
                await page.get_by_label("Vote for ferry").click()
            await expect(todo(page, "ferry").locator(".vote")).to_have_text(str(votes))
        await switch(ada, online=True)
        for page in (ada, ben):
            await expect(todo(page, "ferry").locator(".vote")).to_have_text("5")

    stage.play(scenario)


def test_all_of_a_list_are_deleted_at_once_when_that_is_confirmed(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        for text in ("one", "two", "three"):
            await add(ada, text)
        await expect(ben.locator("li.todo")).to_have_count(3)
        await ada.get_by_role("button", name="Delete all").click()
        await expect(ada.get_by_role("dialog")).to_contain_text("Delete all 3 todos")
        await ada.keyboard.press("Escape")
        await expect(ada.locator("li.todo")).to_have_count(3)
        await ada.get_by_role("button", name="Delete all").click()
        await ada.get_by_role("button", name="Delete", exact=True).click()
        for page in (ada, ben):
            await expect(page.locator("li.todo")).to_have_count(0)
            await expect(page.get_by_text("Nothing to do here yet.")).to_be_visible()

    stage.play(scenario)


def test_a_list_is_renamed_and_deleted_everywhere(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await add(ada, "inside")
        name = await ada.locator("#list-name").inner_text()
        await ada.get_by_role("button", name="Rename").click()
        # What others do meanwhile is shown around the name that is being edited.
        await ben.get_by_label("Done: inside").check()
        await expect(ada.get_by_label("Done: inside")).to_be_checked()
        await ada.keyboard.type(f"{name} renamed")
        await ada.keyboard.press("Enter")
        await expect(ben.locator("#list-name")).to_have_text(f"{name} renamed")
        await expect(todo(ben, "inside")).to_be_visible()
        await ben.get_by_role("button", name="Delete the list").click()
        await ben.get_by_role("button", name="Delete", exact=True).click()
        for page in (ada, ben):
            await expect(page.locator("#lists button", has_text=name)).to_have_count(0)

    stage.play(scenario)


async def clash(ada: Page, ben: Page, name: str) -> None:
    """Both make a list of one name, and Ben comes back later than Ada."""
    for page in (ada, ben):
        await switch(page, online=False)
        await make_list(page, name)
        state = page.locator("#lists button", has_text=name).locator(".state")
        await expect(state).to_have_attribute("data-state", "pending")
    await add(ben, "of Ben")
    await switch(ada, online=True)
    mine = ada.locator("#lists button", has_text=name)
    await expect(mine.locator(".state")).to_have_attribute("data-state", "synced")
    await switch(ben, online=True)
    banner = ben.locator("#refusals")
    await expect(banner).to_contain_text(f"New list “{name}” with 1 todo")
    await expect(banner).to_contain_text("another list has this name already")
    await expect(ada.locator("#refusals")).to_be_hidden()


def test_a_list_whose_name_was_taken_can_be_kept_under_another(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await clash(ada, ben, "Twins")
        await ben.get_by_role("button", name="Keep under another name").click()
        await expect(ben.locator("#refusals")).to_be_hidden()
        await show_list(ada, "Twins 2")
        await expect(todo(ada, "of Ben")).to_be_visible()

    stage.play(scenario)


def test_a_refusal_can_be_dismissed(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        await clash(ada, ben, "Only one")
        await ben.get_by_role("button", name="Dismiss").click()
        await expect(ben.locator("#refusals")).to_be_hidden()
        await expect(ben.locator("#lists button", has_text="Only one")).to_have_count(1)
        await ben.reload()
        await expect(ben.locator("#lists button", has_text="Only one")).to_have_count(1)
        await expect(ben.locator("#refusals")).to_be_hidden()

    stage.play(scenario)


def test_what_a_backend_adds_appears_at_once(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        for page in (ada, ben):
            await show_list(page, "First list")
        async with (
            example("backend.py", "--postgres", stage.postgres, "--port", 0) as (_, url),
            aiohttp.ClientSession() as http,
        ):
            async with http.post(url, json={"text": "call the customer"}) as answer:
                assert answer.status == 201
            for page in (ada, ben):
                await expect(todo(page, "Via backend: call the customer")).to_be_visible()
            await ada.get_by_label("Done: Via backend: call the customer").check()
            async with asyncio.timeout(SECONDS_MAX):
                found: list[dict[str, object]] = []
                while not any(each["done"] for each in found):
                    async with http.get(url) as answer:
                        found = await answer.json()
            assert found[0]["text"] == "Via backend: call the customer"
            async with http.post(url, json={"text": " "}) as answer:
                assert answer.status == 400
            async with http.post(url, json={"text": "x", "list": "none"}) as answer:
                assert answer.status == 404

    stage.play(scenario)


def test_a_page_goes_on_when_its_server_is_back(stage: Stage) -> None:
    async def scenario() -> None:
        port = free_port()
        options = ("--db", stage.folder / "restarted.db", "--relay", stage.relay, "--port", port)
        async with example("app.py", *options) as (process, url), stage.page(url) as page:
            await make_list(page, "Before and after")
            await add(page, "before")
            await open_note(page, "before")
            process.terminate()
            async with asyncio.timeout(SECONDS_MAX):
                assert await process.wait() == 0
            await expect(page.locator("#status-text")).to_contain_text("not running")
            await note_of(page, "before").press_sequentially("typed meanwhile")
            async with example("app.py", *options):
                await add_when_back(page, "after")
                await expect(todo(page, "before")).to_be_visible()
                await page.reload()
                await show_list(page, "Before and after")
                await expect(todo(page, "before").locator(".preview")).to_have_text(
                    "typed meanwhile"
                )

    stage.runner.run(scenario())


async def add_when_back(page: Page, text: str) -> None:
    await expect(page.locator("body")).to_have_attribute("data-state", "live")
    await add(page, text)
    await expect(todo(page, text)).to_be_visible()


def test_an_app_works_before_it_has_ever_met_a_relay(stage: Stage) -> None:
    async def scenario() -> None:
        options = ("--db", stage.folder / "alone.db", "--relay", "ws://127.0.0.1:1", "--port", 0)
        async with (
            example("app.py", *options) as (_, url),
            stage.page(url) as page,
        ):
            await expect(page.locator("#list-name")).to_have_text("First list")
            await add(page, "alone")
            await expect(todo(page, "alone").locator(".state")).to_have_text("waiting")
            await expect(page.locator("#status-text")).to_contain_text("No relay")

    stage.runner.run(scenario())


def test_when_sync_has_stopped_the_page_offers_to_reload(stage: Stage) -> None:
    asked: list[object] = []

    async def between(page: WebSocketRoute) -> None:
        server = page.connect_to_server()

        def ask(message: str | bytes) -> None:
            asked.append(json.loads(message)["do"])
            server.send(message)

        def tell(message: str | bytes) -> None:
            told = json.loads(message)
            if told["kind"] == "status" and "reload" not in asked:
                told["value"] |= {"state": "stopped", "reason": "this file is of another realm"}
            page.send(json.dumps(told))

        page.on_message(ask)
        server.on_message(tell)

    async def scenario() -> None:
        page = await stage.browser.new_page()
        await page.route_web_socket("**/live", between)
        await page.goto(stage.ada)
        banner = page.locator("#stopped")
        await expect(banner).to_contain_text("this file is of another realm")
        await make_list(page, "Before the reload")
        await add(page, "kept")
        await page.get_by_role("button", name="Reload from the relay").click()
        await expect(banner).to_be_hidden()
        await expect(page.locator("body")).to_have_attribute("data-state", "live")
        state = todo(page, "kept").locator(".state")
        await expect(state).to_have_attribute("data-state", "synced")
        await page.close()

    stage.runner.run(scenario())


def test_blank_items_are_refused(stage: Stage) -> None:
    async def scenario(ada: Page, _: Page) -> None:
        await add(ada, "   ")
        await expect(ada.get_by_text("Write something first.")).to_be_visible()
        await add(ada, "  trimmed  ")
        await expect(ada.locator("li.todo .text")).to_have_text(["trimmed"])
        await expect(ada.get_by_text("Write something first.")).to_be_hidden()
        await todo(ada, "trimmed").locator(".text").click()
        await ada.get_by_label("Text of the todo").fill(" ")
        await ada.keyboard.press("Enter")
        await expect(ada.get_by_text("Write something first.")).to_be_visible()
        await expect(todo(ada, "trimmed")).to_be_visible()

    stage.play(scenario)


def test_markup_is_shown_as_text(stage: Stage) -> None:
    async def scenario(ada: Page, ben: Page) -> None:
        markup = "<img src=x onerror=\"document.title='hurt'\"><b>bold</b>"
        await add(ada, markup)
        for page in (ada, ben):
            await expect(page.locator("li.todo .text")).to_have_text([markup])
            assert await page.locator("li.todo :is(img, b)").count() == 0
            assert "hurt" not in await page.title()

    stage.play(scenario)


def test_only_pages_of_the_server_itself_may_connect(stage: Stage) -> None:
    async def scenario() -> None:
        elsewhere = [{"Origin": "http://example.org"}, {"Host": "example.org"}]
        async with aiohttp.ClientSession() as http:
            for headers in elsewhere:
                async with http.get(f"{stage.ada}live", headers=headers) as answer:
                    assert answer.status == 403
            async with http.get(stage.ada) as answer:
                assert answer.status == 200
                assert "script-src 'self'" in answer.headers["Content-Security-Policy"]

    stage.runner.run(scenario())


def test_a_small_phone_has_nothing_beyond_its_edge(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.page(stage.ada, width=360, height=640) as page:
            await make_list(page, "A name of a list that is long enough to be wrapped on a phone")
            await add(page, "Averylongwordwithoutanyplacetobreakit" * 3)
            await expect(page.locator("li.todo")).to_have_count(1)
            await page.get_by_role("button", name="Note of").click()
            await page.get_by_role("textbox", name="Note of").fill("Words that go on. " * 20)
            assert await page.evaluate("document.documentElement.scrollWidth") == 360
            await page.get_by_role("button", name="Note of").click()
            await expect(page.locator(".preview")).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") == 360

    stage.runner.run(scenario())
