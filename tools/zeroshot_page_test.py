"""A real browser, without a network, shows every image with its scores, and sorts them when a prompt is clicked."""

import html.parser
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tools import zeroshot_page

# Bazel names the one of this machine; without Bazel it is on PATH.
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
QUIET = ("--disable-background-networking", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND")

LABELS = ["cat", 'a <b>dog</b> & "co"', "</script><script>document.title='taken over'</script>", "Käfer 甲虫"]
NAMES = ["first.jpg", "sec<i>ond</i>.png", "third.jpg"]
PROBABILITY = [[0.7, 0.1, 0.05, 0.15], [0.2, 0.6, 0.1, 0.1], [0.3, 0.25, 0.4, 0.05]]
SIMILARITY = [[0.31, 0.11, 0.05, 0.12], [0.12, 0.29, 0.1, -0.1], [0.13, 0.12, 0.14, -0.25]]


@pytest.fixture(scope="module")
def pictures():
  found = []
  for number, name in enumerate(NAMES):
    size = ((300, 200), (16, 16), (150, 300))[number]
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., number] = np.linspace(40, 255, size[0], dtype=np.uint8)
    found.append(zeroshot_page.Picture.of_pixels(name, pixels, 320))
  return found


def write(path, pictures, **changes):
  options = dict(model="siglip, params.npz", labels=LABELS, templates=["a photo of a {}."], by_itself=False)
  scores = dict(probability=PROBABILITY, similarity=SIMILARITY)
  path.write_text(zeroshot_page.write(pictures, **(options | scores | changes)), encoding="utf-8")
  return path


def browse(page, *flags, profile):
  command = [BROWSER, *FLAGS, *QUIET, f"--user-data-dir={profile}", *flags, page]
  return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


class Page(html.parser.HTMLParser):
  """What of a page's document counts: the title, the cards in order, and of each the name, the picture, the rows."""

  def __init__(self, text):
    super().__init__()
    self.cards, self.title, self.count, self.options = [], "", "", []
    self._into = None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    kind = attributes.get("class", "")
    if tag == "article":
      self.cards.append({"image": int(attributes["data-image"]), "rows": [], "name": ""})
    elif tag == "img":
      self.cards[-1] |= {"alt": attributes["alt"], "source": attributes["src"]}
    elif "row" in kind.split():
      row = {"best": "best" in kind, "sorted": "sorted" in kind, "label": int(attributes["data-label"])}
      self.cards[-1]["rows"].append(row | {"name": "", "value": ""})
    elif kind == "fill":
      self.cards[-1]["rows"][-1]["width"] = attributes["style"]
    self._into = {"title": "title", "h2": "h2", "option": "option"}.get(tag) or (kind or attributes.get("id"))

  def handle_endtag(self, tag):
    self._into = None

  def handle_data(self, text):
    if self._into in ("name", "value"):
      self.cards[-1]["rows"][-1][self._into] += text
    elif self._into == "h2":
      self.cards[-1]["name"] += text
    elif self._into == "title":
      self.title += text
    elif self._into == "count":
      self.count += text
    elif self._into == "option":
      self.options.append(text)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
  return tmp_path_factory.mktemp("profile")


def look(path, profile, address=""):
  return Page(browse(f"{path.as_uri()}{address}", "--dump-dom", profile=profile))


def test_every_image_is_shown_with_every_prompt_and_its_score(tmp_path, pictures, profile):
  page = look(write(tmp_path / "page.html", pictures), profile)
  assert [card["name"] for card in page.cards] == [card["alt"] for card in page.cards] == NAMES
  assert [card["source"] for card in page.cards] == [picture.source for picture in pictures]
  for card, values in zip(page.cards, PROBABILITY):
    ranked = sorted(range(4), key=lambda label: -values[label])
    # Equal ones keep the order given.
    assert [row["label"] for row in card["rows"]] == ranked
    assert [row["name"] for row in card["rows"]] == [LABELS[label] for label in ranked]
    assert [row["value"] for row in card["rows"]] == [f"{values[label]:.1%}" for label in ranked]
    widths = [float(row["width"].removeprefix("width: ").removesuffix("%;")) for row in card["rows"]]
    np.testing.assert_allclose(widths, [100 * values[label] for label in ranked])
    assert [row["best"] for row in card["rows"]] == [True, False, False, False]
  assert page.count == "3 of 3 images"


def test_what_looks_like_html_in_a_label_stays_text(tmp_path, pictures, profile):
  page = look(write(tmp_path / "page.html", pictures), profile)
  assert page.title == "Images against prompts"
  assert page.options[1:5] == LABELS


@pytest.mark.parametrize("label, order", [(0, [0, 2, 1]), (1, [1, 2, 0]), (2, [2, 1, 0])])
def test_a_click_on_a_prompt_sorts_the_images_by_it_and_a_second_one_undoes_that(
  tmp_path, pictures, profile, label, order
):
  path = write(tmp_path / "page.html", pictures)
  click = f"document.querySelector('button[data-label=\"{label}\"]').click();"
  for clicks, want in ((1, order), (2, [0, 1, 2])):
    page = path.with_name(f"{clicks}.html")
    page.write_text(path.read_text("utf-8").replace("</html>", f"<script>{click * clicks}</script></html>"), "utf-8")
    found = look(page, profile)
    assert [card["image"] for card in found.cards] == want
    marked = [row["label"] for card in found.cards for row in card["rows"] if row["sorted"]]
    assert marked == ([label] * 3 if clicks == 1 else [])


def test_the_address_tells_what_is_shown(tmp_path, pictures, profile):
  path = write(tmp_path / "page.html", pictures)
  page = look(path, profile, "#sort=3&show=similarity")
  assert [card["image"] for card in page.cards] == [0, 1, 2]
  assert page.cards[0]["rows"][0]["value"] == "0.310"
  assert page.cards[0]["rows"][0]["width"] == "width: 100%;"
  assert page.cards[2]["rows"][-1]["width"] == "width: 0%;"
  page = look(path, profile, "#find=THIRD")
  assert [card["image"] for card in page.cards] == [2]
  assert page.count == "1 of 3 images"
  # What is not there is passed over.
  assert len(look(path, profile, "#sort=99&show=nothing").cards) == 3


def test_of_many_prompts_the_best_are_shown_and_the_one_that_is_sorted_by(tmp_path, pictures, profile):
  values = np.random.default_rng(0).dirichlet(np.ones(300), size=3)
  changes = dict(labels=[f"class {n}" for n in range(300)], probability=values.tolist(), similarity=values.tolist())
  worst = int(values[0].argmin())
  page = look(write(tmp_path / "page.html", pictures, **changes), profile, f"#sort={worst}")
  assert [card["image"] for card in page.cards] == np.argsort(-values[:, worst]).tolist()
  (first,) = [card for card in page.cards if card["image"] == 0]
  assert [row["label"] for row in first["rows"]] == [*np.argsort(-values[0])[:10], worst]


def test_the_page_asks_for_nothing_from_outside(tmp_path, pictures):
  text = write(tmp_path / "page.html", pictures).read_text("utf-8")
  assert "http://" not in text
  assert "https://" not in text
  assert "default-src 'none'" in text


def test_pictures_and_bars_are_painted(tmp_path, pictures, profile):
  """The colours of the three pictures and of the best bars are on the browser's own picture of the page."""
  shot = tmp_path / "shot.png"
  page = write(tmp_path / "page.html", pictures)
  browse(page.as_uri(), f"--screenshot={shot}", "--window-size=1100,800", profile=profile)
  pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
  assert pixels.shape == (800, 1100, 3)
  for channel in range(3):
    others = np.delete(pixels, channel, axis=2).max(axis=2)
    assert ((pixels[..., channel] > 150) & (others < 30)).sum() > 500
  assert (np.abs(pixels - (0x2F, 0x5F, 0xD0)).max(axis=2) < 3).sum() > 500
