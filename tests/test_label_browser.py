"""The labelling page in a real browser without a window: by keyboard alone, through a reload, a kill and a restart, on
a phone and in the dark.

Needs selenium, chromium and chromedriver; left out where they are not.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from minialign.heads import describe_model  # noqa: E402
from minialign.rlhf.comparisons import read_comparisons  # noqa: E402
from minialign.runs.files import write_jsonl  # noqa: E402
from minialign.runs.run_folder import RunFolder  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
pytestmark = [pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
              pytest.mark.filterwarnings("ignore::ResourceWarning")]
SCRIPT = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
POLICIES = {"first_policy": "sft", "second_policy": "reference"}
PAIRS = [{"prompt": f"Where is Mira at {i}?\nAnswer briefly.", "first": f" At home, {i}.",
          "second": f" Go away {SCRIPT}", **POLICIES} for i in range(20)]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
                 "--window-size=1200,900"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def folder(tmp_path, decoder, tokenizer):
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    run = RunFolder(tmp_path / "base")
    run.begin(describe_model(decoder), tokenizer)
    run.finish(decoder)
    return tmp_path


@pytest.fixture
def start(folder):
    processes = []

    def start(port=0):
        line = [sys.executable, "-m", "minialign", "label", str(folder / "base"), "--out", str(folder), "--no-open",
                "--annotator", "Ada", "--port", str(port)]
        processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
        return processes[-1], processes[-1].stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def until(condition, seconds=20):
    """Wait for what a page does in its own time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def text(browser, place):
    return browser.find_element(By.ID, place).text


def done(browser):
    return int((text(browser, "count") or "-1").split()[0])


def press(browser, *keys):
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def label(browser, *keys):
    """Press keys and wait until the label is saved and the next pair shows."""
    before = text(browser, "message"), text(browser, "prompt"), text(browser, "first-text")
    press(browser, *keys)
    until(lambda: (text(browser, "message"), text(browser, "prompt"), text(browser, "first-text")) != before
          and browser.execute_script("return !busy"))


def test_twenty_pairs_are_labelled_by_keyboard_through_undo_reload_kill_and_restart(browser, folder, start):
    process, url = start()
    browser.get(url)
    until(lambda: done(browser) == 0)
    chosen = {}
    for i in range(20):
        if i == 6:
            process.kill()
            process.wait()
            press(browser, "0")
            until(lambda: "Start it again" in text(browser, "message"))
            process, url = start()
            browser.get(url)
            until(lambda: done(browser) == 6)
        while (where := text(browser, "prompt").split("\n")[0]) in chosen:  # a pair that comes back
            label(browser, "2" if "Go away" in text(browser, "first-text") else "1", Keys.ENTER)
        place = "1" if "At home" in text(browser, "first-text") else "2"
        chosen[where] = place
        label(browser, place, str(1 + i % 9))
        if i == 3:
            label(browser, "u")
            assert done(browser) == 3 and text(browser, "prompt").split("\n")[0] == where
            browser.refresh()
            until(lambda: done(browser) == 3 and text(browser, "prompt").split("\n")[0] == where)
            label(browser, place, "9")
    while browser.find_element(By.ID, "task").is_displayed():
        label(browser, "2" if "Go away" in text(browser, "first-text") else "1", Keys.ENTER)
    assert "That was the last pair" in text(browser,
                                            "done") and done(browser) == 20 and browser.title.startswith("Which answer")
    kept, left_out = read_comparisons(folder / "labels.jsonl")
    records = [json.loads(line) for line in (folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 20 and left_out == {"taken back": 1, "asked again": 2} and len(records) == 24
    for record in kept:
        assert record["chosen"].startswith(" At home") and record["shown_first"] == ("chosen"
            if chosen[record["prompt"].split("\n")[0]] == "1" else "rejected")
    assert [record["confidence"] for record in kept] == [9 if i == 3 else 1 + i % 9 for i in range(20)]
    assert "100 %" in text(browser, "agreement") and "2 of 2" in text(browser, "agreement")


def test_two_tabs_show_two_pairs_and_mouse_ties_and_skips_work(browser, folder, start):
    _, url = start()
    browser.get(url)
    until(lambda: done(browser) == 0)
    browser.switch_to.new_window("tab")
    browser.get(url)
    until(lambda: done(browser) == 0)
    second, (one, two) = text(browser, "prompt"), browser.window_handles[-2:]
    browser.find_element(By.ID, "tie").click()
    until(lambda: done(browser) == 1)
    browser.find_element(By.ID, "first").click()
    assert browser.find_element(By.ID,
        "first").get_attribute("aria-pressed") == "true" and not browser.find_element(By.ID, "tie").is_displayed()
    press(browser, Keys.ESCAPE)
    assert browser.find_element(By.ID, "first").get_attribute("aria-pressed") == "false"
    browser.find_element(By.ID, "skip").click()
    until(lambda: done(browser) == 2)
    browser.close()
    browser.switch_to.window(one)
    assert text(browser, "prompt") != second and two != one
    browser.find_element(By.ID, "second").click()
    browser.find_elements(By.CSS_SELECTOR, "#scale button")[6].click()
    until(lambda: done(browser) == 3)
    records = [json.loads(line) for line in (folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["choice"], r.get("confidence")) for r in records] == [("tie", None), ("skip", None), ("second", 7)]
    assert len({r["pair"] for r in records}) == 3


def test_an_answer_that_is_a_script_is_shown_and_does_not_run(browser, start):
    _, url = start()
    browser.get(url)
    until(lambda: done(browser) == 0)
    assert SCRIPT in text(browser, "first-text") + text(browser,
                                                        "second-text") and browser.title.startswith("Which answer")


def test_an_empty_answer_is_shown_as_one(browser, folder, start):
    write_jsonl(folder / "pairs.jsonl", [{**pair, "second": ""} for pair in PAIRS])
    _, url = start()
    browser.get(url)
    until(lambda: done(browser) == 0)
    assert sorted(text(browser, side)[:7] for side in ("first-text", "second-text")) == ["(an emp", "At home"]


def test_it_has_a_name_for_every_control_and_fits_a_phone_in_light_and_dark(browser, folder, start):
    _, url = start()
    browser.get(url)
    until(lambda: done(browser) == 0)
    shots = os.environ.get("MINIALIGN_SCREENSHOTS")  # a folder: leave pictures there to look at
    for width, height in ((1200, 860), (360, 740)):
        for scheme in ("light", "dark"):
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height,
                "deviceScaleFactor": 1, "mobile": width < 500})
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features":
                [{"name": "prefers-color-scheme", "value": scheme}]})
            for state in ("choose", "sure"):
                if state == "sure":
                    press(browser, "1")
                assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), (width,
                    scheme, state)
                small = browser.execute_script(
                    "return [...document.querySelectorAll('button')].filter(b => b.offsetParent && (b.offsetHeight < "
                    "44 || b.offsetWidth < 30)).map(b => b.id)"
                )
                assert small == []
                if shots:
                    browser.save_screenshot(f"{shots}/{width}-{scheme}-{state}.png")
            press(browser, Keys.ESCAPE)
            color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            luminance = color.removeprefix("rgb(").split(",")[0]
            assert (int(luminance) < 80) == (scheme == "dark")
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = [node for node in tree if node.get("role", {}).get("value") in ("button", "progressbar", "group")
             and not node.get("ignored")]
    assert len(named) >= 7 and all(node.get("name", {}).get("value") for node in named)
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en" and text(browser,
        "message") is not None
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_long_prompt_is_whole_on_a_phone_and_elsewhere_says_that_it_goes_on(browser, folder, start):
    write_jsonl(folder / "pairs.jsonl", [{**pair, "prompt": "Mira and Tom baked some bread. " * 60 + pair["prompt"]}
                                         for pair in PAIRS])
    _, url = start()
    shots = os.environ.get("MINIALIGN_SCREENSHOTS")
    hidden = "return document.querySelector('.prompt').scrollHeight - document.querySelector('.prompt').clientHeight"
    for width, height, touch in ((360, 740, True), (740, 360, True), (1200, 860, False)):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height,
            "deviceScaleFactor": 1, "mobile": touch})
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        browser.get(url)
        until(lambda: done(browser) == 0)
        sign, keys = browser.find_element(By.CLASS_NAME, "more"), browser.find_elements(By.TAG_NAME, "kbd")
        assert (browser.execute_script(hidden) > 0) == sign.is_displayed() == (not touch)
        assert any(key.is_displayed() for key in keys) == (not touch), "keys are named where there are some"
        for scheme in ("light", "dark") if shots else ():
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features":
                [{"name": "prefers-color-scheme", "value": scheme}]})
            browser.save_screenshot(f"{shots}/long-{width}-{scheme}.png")
    browser.execute_script("document.querySelector('.prompt').scrollTop = 1e6")
    until(lambda: not sign.is_displayed())
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
