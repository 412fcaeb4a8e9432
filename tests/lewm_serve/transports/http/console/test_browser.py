"""The console in a real browser: what people see, click and type."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.lewm_serve.support.browser import running_browser
from tests.lewm_serve.support.keys import bearer
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.transports.http.console.conftest import PREFIX, Console
from tests.patience import PATIENCE_S

PHONE, DESKTOP = (390, 844), (1360, 900)

expect.set_options(timeout=1000 * PATIENCE_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for this file."""
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page without a past, on which nothing may go wrong."""
    context = browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
    context.set_default_timeout(1000 * PATIENCE_S)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    # A request that is refused shows in the console, too. What a policy blocks must not.
    page.on("console", lambda message: problems.append(message.text))
    yield page
    context.close()
    assert [problem for problem in problems if "status of 4" not in problem] == []


def test_live_shows_a_plan_as_it_comes(console: Console, page: Page) -> None:
    page.goto(f"{console.page}#live")
    expect(page.locator("nav a[aria-current]")).to_have_text("Live")
    request_id = console.plan("watched", deadline_ms=60_000)
    expect(page.locator("article.plan h2")).to_have_text("watched")
    panel = page.locator("article.plan")
    expect(panel.locator("code").first).to_have_text(request_id)
    expect(panel.locator(".strip img")).to_have_count(5)
    expect(panel).to_contain_text("the model's decoder")
    expect(panel.locator(".fan path.elite")).to_have_count(4)
    expect(panel.locator(".fan path.candidate")).to_have_count(8)
    expect(panel.locator(".fan path.best")).to_have_count(1)
    expect(panel).to_contain_text("iteration 2 of 2: 12 candidates")
    expect(panel.locator(".costs")).to_contain_text("deadline")
    expect(panel).to_contain_text("steps now")
    expect(panel.locator(".scores")).to_contain_text("Mahalanobis distance")
    expect(panel.locator(".timing")).to_contain_text(re.compile(r"solve [\d.]+ ms"))
    page.keyboard.press("ArrowLeft")
    expect(panel).to_contain_text("iteration 1 of 2: 16 candidates")
    expect(panel.locator(".fan path.candidate")).to_have_count(12)
    # The key pauses the view, so that a newer plan does not take its place.
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    console.plan("newer")
    expect(page.locator("table.plans tbody tr").first).to_contain_text("newer")
    expect(page.locator("article.plan h2")).to_have_text("watched")
    page.select_option("#robot", "newer")
    page.keyboard.press("Escape")
    expect(page.locator("article.plan h2")).to_have_text("newer")


def test_the_way_to_the_goal_is_drawn_with_its_scale(console: Console, page: Page) -> None:
    for _ in range(3):
        console.plan("on-its-way")
    page.goto(f"{console.page}#live")
    page.select_option("#robot", "on-its-way")
    line = page.locator(".to-go")
    expect(line).to_contain_text(
        re.compile(r"on-its-way, last 3 plans: [\d.]+ steps to go, between [\d.]+ and [\d.]+")
    )
    expect(line.locator("svg text")).to_have_text([re.compile(r"[\d.]+"), "0"])
    expect(page.locator("#notice")).to_be_hidden()


def test_names_of_robots_are_text(console: Console, page: Page) -> None:
    name = "<img src=x onerror=alert(1)>"
    console.plan(name)
    page.goto(f"{console.page}#live")
    expect(page.locator("table.plans tbody")).to_contain_text(name)
    page.goto(f"{console.page}#fleet")
    expect(page.locator("table.fleet tbody")).to_contain_text(name)
    expect(page.locator("img[src=x]")).to_have_count(0)


def test_a_plan_is_found_scrubbed_and_planned_again(console: Console, page: Page) -> None:
    request_id = console.plan("replayed")
    page.goto(console.page)
    expect(page.locator("nav a[aria-current]")).to_have_text("Live")
    page.keyboard.press("/")
    expect(page.locator("nav a[aria-current]")).to_have_text("Replay")
    page.locator("#request-id").fill(request_id)
    page.keyboard.press("Enter")
    before, again = page.locator("article.plan").nth(0), page.locator("article.plan").nth(1)
    expect(before.locator("h2")).to_have_text("replayed")
    expect(before.locator("code").first).to_have_text(request_id)
    page.get_by_role("button", name="Plan again").click()
    expect(page.locator(".compare")).to_contain_text("the same actions")
    expect(again.locator(".fan")).to_be_visible()
    expect(page.locator("input[name=samples]")).to_have_value("16")
    page.select_option("select[name=name]", "cem")
    expect(page.locator("form.settings")).to_contain_text("general ones of cem")
    for name, value in (("samples", "300"), ("iterations", "30"), ("elites", "30")):
        expect(page.locator(f"input[name={name}]")).to_have_value(value)
    page.select_option("select[name=name]", "mppi")
    expect(page.locator("input[name=elites]")).to_have_count(0)
    page.select_option("select[name=name]", "cem")
    page.fill("input[name=samples]", "40")
    page.fill("input[name=iterations]", "6")
    page.fill("input[name=elites]", "4")
    page.get_by_role("button", name="Plan again").click()
    expect(page.locator(".compare")).to_contain_text("other actions")
    expect(again).to_contain_text("6 iterations, 241 candidates")
    again.get_by_label("Iteration", exact=True).fill("2")
    expect(again).to_contain_text("iteration 3 of 6: 40 candidates")
    expect(before).to_contain_text("iteration 2 of 2")  # it has no third one
    again.get_by_label("Iteration", exact=True).fill("6")
    expect(again.locator("output")).to_contain_text("final mean, after 6 iterations: cost")
    page.fill("input[name=samples]", "100000")
    page.get_by_role("button", name="Plan again").click()
    expect(page.locator(".settings .problem")).to_contain_text("solver.samples")
    page.goto(f"{console.page}#replay/999999")
    expect(page.locator("article.plan").first).to_contain_text("not kept any more")


def test_two_plans_stand_beside_each_other_on_the_same_scales(console: Console, page: Page) -> None:
    number = console.number_of(console.plan("compared", deadline_ms=60_000))
    page.goto(f"{console.page}#replay/{number}")
    before, again = page.locator("article.plan").nth(0), page.locator("article.plan").nth(1)
    expect(before.locator(".best-point")).to_have_count(5)
    page.fill("input[name=samples]", "64")
    page.fill("input[name=iterations]", "8")
    page.get_by_role("button", name="Plan again").click()
    expect(again).to_contain_text("iteration 8 of 8")

    def tops(name: str) -> list[float]:
        boxes = [view.locator(name).first.bounding_box() for view in (before, again)]
        assert all(boxes)
        return [box["y"] for box in boxes if box is not None]

    left, right = before.bounding_box(), again.bounding_box()
    assert left is not None
    assert right is not None
    assert right["x"] >= left["x"] + left["width"]
    for name in ("h2", ".pictures", ".fan", ".timing"):
        first, second = tops(name)
        assert first == pytest.approx(second, abs=1), name
    # The same place of the drawing is the same state, cost, time and distance.
    for drawing in (".fan .start", ".fan .goal"):
        attribute = "cx" if drawing.endswith("start") else "d"
        one, other = (view.locator(drawing).get_attribute(attribute) for view in (before, again))
        assert one == other
    for index in (0, 1):
        limits = [view.locator(".costs text").nth(index).text_content() for view in (before, again)]
        assert limits[0] == limits[1]
    widths = [
        sum(float(bar.get_attribute("width") or 0) for bar in view.locator(".stage").all())
        for view in (before, again)
    ]
    assert max(widths) == pytest.approx(100, abs=0.1)
    assert widths[0] < widths[1]
    page.set_viewport_size({"width": 400, "height": 800})
    left, right = before.bounding_box(), again.bounding_box()
    assert left is not None
    assert right is not None
    assert right["y"] >= left["y"] + left["height"]


def test_a_goal_by_states_is_shown_in_words_and_on_the_map(console: Console, page: Page) -> None:
    number = console.number_of(
        console.plan(
            "by-states",
            goal={"state": {"x": 180.0, "y": 60.0}},
            avoid=[
                {"state": {"x": [100.0, 130.0], "y": [40.0, 60.0]}},
                {"centre": {"x": 60.0, "y": 60.0}, "radius": 12.0},
            ],
        )
    )
    page.goto(f"{console.page}#replay/{number}")
    panel = page.locator("article.plan").first
    expect(panel.locator(".goal-states")).to_have_text("x 180y 60")
    expect(panel.locator(".fan .goal")).to_have_count(1)
    expect(panel.locator(".fan rect.region")).to_have_count(1)
    expect(panel.locator(".fan ellipse.region")).to_have_count(1)
    expect(panel).to_contain_text("keeps out of the box x 100 to 130, y 40 to 60")
    expect(panel).to_contain_text("keeps out of the disc of radius 12 around x 60, y 60")
    expect(panel.locator("table.states tbody tr")).to_have_count(2)
    expect(panel.locator("table.states tbody tr").first).to_contain_text("180")
    page.get_by_role("button", name="Plan again").click()
    expect(page.locator(".compare")).to_contain_text("the same actions")


def test_words_are_explained_by_keyboard_and_touch(console: Console, browser: Browser) -> None:
    console.plan("words")
    context = browser.new_context(viewport={"width": PHONE[0], "height": PHONE[1]}, has_touch=True)
    page = context.new_page()
    page.goto(f"{console.page}#live")
    word = page.locator("article.plan").get_by_role("button", name="Mahalanobis distance")
    note = page.locator("#meaning")
    expect(note).to_be_hidden()
    word.tap()
    expect(note).to_contain_text("measured by how widely these are spread")
    box = note.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE[0]
    # The word is in use, so no newer plan takes its place.
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    page.keyboard.press("Escape")
    expect(note).to_be_hidden()
    page.locator("article.plan").get_by_role("button", name="elites").first.focus()
    page.keyboard.press("Enter")
    expect(note).to_contain_text("The best candidates of an iteration")
    context.close()


def test_every_word_that_a_view_explains_has_a_meaning(console: Console, page: Page) -> None:
    number = console.number_of(console.plan("all-words"))
    seen = 0
    for view in ("live", f"replay/{number}", "drive", "fleet"):
        page.goto("about:blank")
        page.goto(f"{console.page}#{view}")
        page.wait_for_selector(".term", state="attached")
        for word in page.locator(".term").all():
            assert len(word.get_attribute("title") or "") > 20, word.text_content()
            seen += 1
    assert seen > 30


def test_a_robot_is_driven_to_a_goal_that_is_clicked(console: Console, page: Page) -> None:
    page.goto(f"{console.page}#drive")
    expect(page.locator("#environment option")).to_have_count(4)
    # Only the robot that the served model was made for can be chosen.
    expect(page.locator("#environment option:not([disabled])")).to_have_text(["two-room"])
    expect(page.locator("#environment")).to_have_value("two-room")
    expect(page.locator("#model option")).to_have_text(["two-room"])
    expect(page.locator("form.toolbar")).to_contain_text(
        "No served model was made for cube, push-t, reacher."
    )
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".goals img")).to_have_count(6)
    state = page.locator("[role=status][aria-live]")
    expect(state).to_contain_text("waits for a goal")
    page.select_option("#fault", "white")
    page.locator(".goals button").nth(0).click()
    expect(state).to_contain_text("fallback hold: anomalous")
    expect(state).to_contain_text("Mahalanobis distance")
    page.select_option("#fault", "")
    page.get_by_label("300 ms of latency").check()
    expect(state).to_contain_text("fallback hold: deadline")
    page.get_by_label("300 ms of latency").uncheck()
    expect(state).to_contain_text("Goal reached")
    expect(state.locator(".badges")).not_to_contain_text("fallback")
    world = page.locator(".world-button")
    box = world.bounding_box()
    assert box is not None
    # Beside the last goal, so the way is short.
    world.click(position={"x": 0.5 * box["width"], "y": 0.22 * box["height"]})
    expect(state).to_contain_text("Goal reached")
    expect(page.get_by_alt_text("the goal")).to_be_visible()
    expect(page.locator("table.plans tbody tr").first).to_contain_text("ok")
    page.get_by_role("button", name="Stop the robot").click()
    expect(page.get_by_role("button", name="Let it go on")).to_be_visible()
    page.get_by_role("button", name="End the drive").click()
    expect(state).to_contain_text("Ended: the driver has ended it.")
    page.locator("table.plans tbody a").first.click()
    expect(page.locator("article.plan h2").first).to_have_text("drive")


def test_the_fleet_is_counted(console: Console, page: Page) -> None:
    console.plan("fleet-1")
    page.goto(f"{console.page}#fleet")
    row = page.locator("table.fleet tbody tr", has_text="fleet-1")
    expect(row).to_contain_text("rest")
    expect(page.locator(".tile", has_text="cache")).to_contain_text("%")
    expect(page.locator(".tile", has_text="queue")).to_contain_text("0")
    # Every tile says of which time it is.
    periods = {
        name: page.locator(".tile", has_text=name).locator(".muted").last.text_content()
        for name in ("robots", "latency", "queue", "cache", "anomalies", "errors")
    }
    assert periods == dict.fromkeys(periods, "last 5 minutes") | {
        "queue": "now",
        "cache": "since the start",
    }


def test_the_fleet_is_read_on_a_phone(console: Console, page: Page) -> None:
    console.plan("a-robot-with-a-rather-long-name-that-has-no-space-in-it")
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"{console.page}#fleet")
    row = page.locator("table.fleet tbody tr", has_text="a-robot-with")
    for cell in [row.locator("th"), *row.locator("td").all()]:
        box = cell.bounding_box()
        assert box is not None
        assert box["width"] > 40
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 400
        assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth")
    label = "cell => getComputedStyle(cell, '::before').content"
    labels = [cell.evaluate(label).strip('"') for cell in row.locator("td").all()]
    columns = page.locator("table.fleet thead th").all_text_contents()
    assert labels == columns[1:]


def test_a_key_is_entered_once(keyed_console: Console, page: Page) -> None:
    address = f"{keyed_console.process.url}{PREFIX}/console"
    page.goto(f"{address}#live")
    expect(page.locator("form.key")).to_be_visible()
    page.fill("#key", "nonsense")
    page.keyboard.press("Enter")
    expect(page.locator("form.key .problem")).to_contain_text("the key is wrong")
    page.fill("#key", keyed_console.keys["robot"])
    page.keyboard.press("Enter")
    expect(page.locator("form.key .problem")).to_contain_text("expected read")
    page.fill("#key", keyed_console.keys["viewer"])
    page.keyboard.press("Enter")
    expect(page.locator("#server")).to_contain_text("key viewer")
    page.reload()
    expect(page.locator("#server")).to_contain_text("key viewer")
    page.goto(f"{address}#drive")
    expect(page.locator("main")).to_contain_text("needs a key with the role infer")
    (cookie,) = page.context.cookies()
    assert (cookie["path"], cookie["httpOnly"], cookie["expires"]) == (
        f"{PREFIX}/console",
        True,
        -1,
    )
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Forget the key").click()
    expect(page.locator("form.key")).to_be_visible()


def test_a_model_without_probe_decoder_and_calibration(keyed_console: Console, page: Page) -> None:
    answer = page.request.post(
        f"{keyed_console.process.url}/plan",
        data=plan(),
        headers={**bearer(keyed_console.keys["operator"]), "lewm-robot": "bare"},
    )
    assert answer.ok
    page.goto(f"{keyed_console.page}#live")
    page.fill("#key", keyed_console.keys["operator"])
    page.keyboard.press("Enter")
    panel = page.locator("article.plan")
    expect(panel.locator("h2")).to_have_text("bare")
    expect(panel).to_contain_text("the nearest frames of other plans")
    expect(panel).to_contain_text("uncalibrated")
    expect(panel).to_contain_text("The model has no learned distance")
    expect(panel).to_contain_text("across: component 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_page(
    console: Console, browser: Browser, size: tuple[int, int], scheme: str
) -> None:
    console.plan("a-robot-with-a-rather-long-name-that-has-no-space-in-it")
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    grounds = set()
    for view, ready in (
        ("live", "article.plan h2"),
        ("replay", "table.plans tbody tr"),
        ("drive", "#environment"),
        ("fleet", "table.fleet tbody tr"),
    ):
        page.goto(f"{console.page}#{view}")
        expect(page.locator(ready).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == {"rgb(20, 23, 26)" if scheme == "dark" else "rgb(246, 247, 248)"}
    context.close()
