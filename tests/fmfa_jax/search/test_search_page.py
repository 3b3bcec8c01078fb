# SPDX-License-Identifier: Apache-2.0
"""The web page in headless Chromium, as a person uses it."""

import os
import shutil

import pytest

from fmfa_jax import search as search_room
from fmfa_jax.search import service as limits
from tests.fmfa_jax.search import webdriver
from tests.fmfa_jax.search.served import running
from tests.fmfa_jax.search.webdriver import Browser

pytestmark = pytest.mark.skipif(
    not (webdriver.CHROMIUM and webdriver.DRIVER),
    reason="chromium or chromedriver is missing: apt-get install chromium-driver",
)

SENTENCE = "a man in a red jacket"
RANKS = (
    "[...document.querySelectorAll('#results .rank')].map(x => Number(x.textContent))"
)
FOCUS = (
    "(document.activeElement.getAttribute('aria-label') || document.activeElement.id)"
)
SETTLED = "!document.body.classList.contains('busy')"
CLOSED = "!document.getElementById('detail').open"
DRAWN = (
    "(() => { const c = document.getElementById('overlay');"
    "return document.getElementById('detail-picture').naturalWidth > 0"
    " && c.width === c.clientWidth && c.height === c.clientHeight })()"
)
"""The picture is there, and its regions are drawn at the size that it is shown at."""


@pytest.fixture(scope="module")
def server(searcher):
    with running(searcher) as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def page(chromium, server):
    """The page, freshly opened at a desk's width; the console must stay silent."""
    chromium.resize(1200, 900)
    chromium.open("about:blank")
    chromium.open(server.url)
    chromium.wait(
        "document.getElementById('about').textContent.includes('24 pictures')"
    )
    yield chromium
    assert chromium.complaints() == []


def visible(page, name):
    return page.run(f"return document.getElementById('{name}').offsetParent !== null")


def search(page, sentence=SENTENCE):
    page.run("document.getElementById('sentence').value = ''")
    page.type_into("#sentence", sentence + webdriver.ENTER)
    # The address names the sentence from the moment the page begins to ask for it;
    # what is shown before that may belong to the search before.
    asked = "new URLSearchParams(location.hash.slice(1)).get('q')"
    page.wait(f"{asked} === '{sentence}' && {SETTLED} && {RANKS}.length")


def wait_for_focus(page, label):
    """Wait until the focus is on the element whose label begins like this."""
    page.wait(f"{FOCUS}.startsWith('{label}')")


def test_the_keyboard_alone_finds_and_opens_a_picture(page, searcher):
    assert visible(page, "empty") and not visible(page, "filter")
    page.press("/")
    wait_for_focus(page, "sentence")
    page.press(SENTENCE + webdriver.ENTER)
    page.wait(f"{RANKS}.length === 20")
    found = searcher.search(searcher.vector(SENTENCE), 20)
    labels = page.run(
        "return [...document.querySelectorAll('#results button')]"
        ".map(x => x.getAttribute('aria-label'))"
    )
    for rank, (label, row) in enumerate(zip(labels, found.rows, strict=True), 1):
        place, similarity, file = label.split(", ")
        assert (place, file) == (f"Rank {rank}", searcher.gallery.file(int(row)))
        cosine = float(similarity.removeprefix("similarity "))
        assert cosine == pytest.approx(found.similarity[rank - 1], abs=6e-4)
    assert not visible(page, "empty") and visible(page, "filter")
    wait_for_focus(page, "Rank 1,")
    page.press(webdriver.RIGHT + webdriver.RIGHT + webdriver.LEFT + webdriver.DOWN)
    across = page.run(
        "const all = [...document.querySelectorAll('#results button')];"
        "return all.filter(x => x.offsetTop === all[0].offsetTop).length"
    )
    wait_for_focus(page, f"Rank {2 + across},")
    page.press(webdriver.ENTER)
    page.wait("document.querySelectorAll('#words button').length === 6")
    page.press(webdriver.RIGHT)
    page.wait(
        "document.getElementById('detail-title').textContent"
        f".startsWith('{3 + across}.')"
    )
    page.press(webdriver.ESCAPE)
    page.wait(CLOSED)
    # The dialog's close event, which moves the focus, comes after it has closed.
    wait_for_focus(page, f"Rank {3 + across},")


def test_a_word_shows_its_regions(page, searcher):
    search(page)
    page.click("#results li:nth-child(2) button")
    word = page.wait("document.getElementById('overlay').dataset.word")
    row = int(searcher.search(searcher.vector(SENTENCE), 2).rows[1])
    maps = searcher.explain(SENTENCE, row)
    strength = dict(zip(maps.words, maps.strength, strict=True))
    # Articles match anywhere: the strongest word that names something is shown first.
    assert word == max(("man", "red", "jacket"), key=lambda each: strength[each])
    page.wait(DRAWN)
    inked = (
        "const c = document.getElementById('overlay');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        ".filter((_, i) => i % 4 === 3).reduce((a, b) => a + b, 0)"
    )
    first = page.run(inked)
    other = "[data-number='2']"
    page.click(f"#words button{other}")
    page.wait("document.getElementById('overlay').dataset.word === 'in'")
    assert first > 0 and page.run(inked) not in (0, first)
    page.click(f"#words button{other}")
    page.wait("document.getElementById('overlay').dataset.word === undefined")
    assert page.run(inked) == 0
    page.click("#close")
    page.wait(CLOSED)
    search(page, "a man")
    page.click("#results button")
    assert page.wait("document.getElementById('overlay').dataset.word") == "man"
    page.click("#close")


def test_pages_and_the_way_back(page):
    search(page)
    assert page.run(f"return {RANKS}") == list(range(1, 21))
    page.click("#next")
    page.wait(f"{RANKS}.length === 4")
    assert page.run(f"return {RANKS}") == [21, 22, 23, 24]
    assert page.run("return document.getElementById('next').disabled")
    text = page.run("return document.getElementById('status').textContent")
    assert text == "Pictures 21 to 24 of 24"
    page.back()
    page.wait(f"{RANKS}.length === 20")
    page.back()
    page.wait("document.getElementById('empty').offsetParent")


def test_a_threshold_cuts_the_ranking(page, searcher, server):
    search(page)
    found = searcher.search(searcher.vector(SENTENCE), 24)
    # The slider stands on multiples of 0.005 above its left end.
    middle = float(found.similarity[6])
    page.run(
        "const m = document.getElementById('minimum'); m.value = arguments[0];"
        "m.dispatchEvent(new Event('input')); m.dispatchEvent(new Event('change'))",
        middle,
    )
    page.wait(f"{SETTLED} && {RANKS}.length < 20")
    least = float(page.run("return document.getElementById('minimum').value"))
    assert page.run(f"return {RANKS}.length") == (found.similarity >= least).sum() > 0
    page.open(f"{server.url}#q=a+man&min=0.999")
    page.wait("document.getElementById('nothing').offsetParent")
    text = page.run("return document.getElementById('nothing-text').textContent")
    assert text.startswith("No picture reaches a similarity of 0.999; the best has")
    page.click("#all")
    page.wait(f"{RANKS}.length === 20")


def test_an_example_picture_finds_its_like(page, searcher, shared_gallery):
    file = searcher.gallery.file(9)
    page.type_into("#file", str(shared_gallery / file))
    page.wait(f"{RANKS}.length === 20")
    assert visible(page, "example")
    label = (
        "return document.querySelector('#results button').getAttribute('aria-label')"
    )
    assert page.run(label) == f"Rank 1, similarity 1.000, {file}"
    page.click("#results button")
    page.wait("document.getElementById('why-text').textContent.includes('alone')")
    page.press(webdriver.ESCAPE)
    page.wait(CLOSED)
    page.click("#forget")
    page.wait("document.getElementById('empty').offsetParent")


def test_a_file_that_is_no_picture_is_told_and_nothing_breaks(page, shared_gallery):
    page.type_into("#file", str(shared_gallery / "notes.txt"))
    page.wait("document.getElementById('failure').offsetParent")
    text = page.run("return document.getElementById('failure-text').textContent")
    assert text.startswith("the picture cannot be read")
    assert "400" in page.next_complaint()
    search(page)
    assert not visible(page, "failure")


HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    '"><script>alert(1)<\\script>.jpg',
    "new\nline\x1b[2J.jpg",
    "a'b&amp;c;.jpg",
    "\u202egpj.exe.jpg",
    "javascript:alert(1)#%00.jpg",
    "{{7*7}}${7*7}.jpg",
]


def test_hostile_names_are_text(chromium, gallery, encoder, tmp_path):
    """Chromium's log must stay silent: nothing runs, nothing is asked for elsewhere."""
    source = next(path for path in gallery.rglob("*.jpg"))
    names = [*HOSTILE, os.fsdecode(b"bad\xff\xfe.jpg")]
    hostile = tmp_path / "<b>gallery"
    hostile.mkdir()
    for name in names:
        shutil.copy(source, hostile / name)
    search_room.index_gallery(hostile, tmp_path / "index", encoder, batch_size=8)
    with running(search_room.open_searcher(tmp_path / "index")) as server:
        chromium.resize(1200, 900)
        chromium.open(server.url)
        chromium.wait("document.getElementById('about').textContent.includes('<b>')")
        search(chromium)
        # As numbers: a name that is no UTF-8 has letters that JSON cannot bring.
        codes = ".map(text => text.split('').map(each => each.charCodeAt(0)))"
        tiles = (
            "[...document.querySelectorAll('#results .name')].map(e => e.textContent)"
        )
        shown = chromium.run(f"return {tiles}{codes}")
        assert sorted(shown) == sorted([ord(letter) for letter in n] for n in names)
        chromium.click("#results button")
        chromium.wait("document.getElementById('overlay').dataset.word")
        title = "[document.getElementById('detail-title').textContent]"
        (title,) = chromium.run(f"return {title}{codes}")
        assert any(name in "".join(map(chr, title)) for name in names)
        inside = (
            "document.querySelectorAll('#results script, #results img[onerror], b')"
        )
        assert chromium.run(f"return {inside}.length") == 0
        chromium.click("#close")
        assert chromium.complaints() == []


def test_busy_and_broken_servers_are_told(page, server):
    service = server.service
    for _ in range(limits.WAITING + 1):
        assert service._places.acquire(blocking=False)
    page.type_into("#sentence", SENTENCE + webdriver.ENTER)
    page.wait("document.getElementById('status').textContent.includes('busy')")
    assert not page.run(f"return {SETTLED}")
    for _ in range(limits.WAITING + 1):
        service._places.release()
    page.wait(f"{RANKS}.length === 20")
    assert all("503" in text for text in page.complaints())
    page.run(
        "window.kept = fetch; window.fetch = () => Promise.reject(new TypeError())"
    )
    page.type_into("#sentence", " and a hat" + webdriver.ENTER)
    page.wait("document.getElementById('failure').offsetParent")
    text = page.run("return document.getElementById('failure-text').textContent")
    assert text == "The server does not answer. Is it still running?"
    page.run("window.fetch = window.kept")
    page.click("#again")
    page.wait(f"{RANKS}.length === 20")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(page, server):
    page.resize(360, 740)
    page.wait("innerWidth === 360")
    wide = "return document.documentElement.scrollWidth"
    assert page.run(wide) == 360
    search(page)
    assert page.run(wide) == 360
    small = (
        "return [...document.querySelectorAll('button, .file span')]"
        ".filter(x => x.offsetParent && Math.min(x.offsetWidth, x.offsetHeight) < 40)"
        ".map(x => x.textContent)"
    )
    assert page.run(small) == []
    page.click("#results button")
    page.wait("document.getElementById('overlay').dataset.word")
    page.wait(DRAWN)
    assert page.run("return document.getElementById('detail').scrollWidth") <= 360
    slider, shown = (
        page.run("return document.getElementById(arguments[0]).offsetTop", name)
        for name in ("minimum", "minimum-shown")
    )
    assert abs(slider - shown) < 20  # its value stands beside it, not below
    box = page.run(
        "const b = document.getElementById('detail').getBoundingClientRect();"
        "return [b.left, b.right]"
    )
    assert box[0] >= 0 and box[1] <= 360
    page.click("#close")
