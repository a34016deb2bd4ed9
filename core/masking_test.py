"""What is secret in a URL does not come through, whatever the text around it is."""

import json
import shlex

import pytest

from core import masking
from core.errors import UserError, cut

# Forms of RFC 3986, and of what stores sign: AWS (SigV4 query), Google Cloud Storage (V4), Azure (SAS), CloudFront.
URLS = {
  "https://user:hunter2@host/w.npz": "https://***@host/w.npz",
  "https://hunter2@host:8080/w.npz": "https://***@host:8080/w.npz",
  "https://user:hunter2/hunter2@host/w.npz": "https://***@host/w.npz",
  "https://user:hunt?er#hunter2@host/w.npz": "https://***@host/w.npz",
  "https://user:0:hunter2#@host/w.npz": "https://***@host/w.npz",
  "https://user:80:hunter2/x@host/w.npz": "https://***@host/w.npz",
  "https://user:0;hunter2#@host/w.npz": "https://***@host/w.npz",
  "https://user:0,hunter2#@host/w.npz": "https://***@host/w.npz",
  "https://user:1#hunter2@host/w.npz": "https://user:1#***",
  "https://user:1#hunter2#@host/w.npz": "https://user:1#***#***",
  "https://user:1#hunter2?x@host/w.npz": "https://user:1#***?***",
  "https://user:1?hunter2@host/w.npz": "https://user:1?***",
  "https://user:hunter2@@host/w.npz": "https://***@host/w.npz",
  "https://host/w.npz?X-Amz-Credential=hunter2%2Faws4&X-Amz-Date=1&X-Amz-Signature=hunter2": (
    "https://host/w.npz?X-Amz-Credential=***&X-Amz-Date=***&X-Amz-Signature=***"
  ),
  "https://storage.googleapis.com/b/w.npz?X-Goog-Signature=hunter2": (
    "https://storage.googleapis.com/b/w.npz?X-Goog-Signature=***"
  ),
  "https://a.blob.core.windows.net/c/w.npz?sv=2024&se=2026-01-01T00:00:00Z&sig=hunter2%3D": (
    "https://a.blob.core.windows.net/c/w.npz?sv=***&se=***&sig=***"
  ),
  "https://host/w.npz?token=hunter2&v=2": "https://host/w.npz?token=***&v=2",
  "https://host/w.npz?v=2&hunter2": "https://host/w.npz?v=2&***",
  "https://host/w.npz?hunter2": "https://host/w.npz?***",
  "https://host/w.npz?hunter2=&v=2": "https://host/w.npz?***&v=2",
  "https://host/w.npz;token=hunter2": "https://host/w.npz;token=***",
  "https://host/w.npz#access_token=hunter2": "https://host/w.npz#access_token=***",
  "https://host/w.npz?token=a;hunter2&b#hunter2": "https://host/w.npz?token=***&***#***",
  "https://host/w.npz?token=hun'ter2": "https://host/w.npz?token=***",
  "https://host/w.npz?token=hunter2#sha256=00ff": "https://host/w.npz?token=***#sha256=00ff",
  "https://host/w.npz?token=hunter2:img": "https://host/w.npz?token=***:img",
  "https://host/w.npz?version=hunter2%20": "https://host/w.npz?version=***",
  "ftp://user:hunter2@host/w.npz": "ftp://***@host/w.npz",
}
OPEN = [
  *("", "a b", "/a/b@c.npz:img", "w.npz?token=x", "gs://bucket/w.npz", "gs://bucket/a@b/w.npz:img", "hf://a/b@main"),
  *("https://host/w.npz", "https://host:8080/a@b.npz", "http://[::1]:80/w.npz", "http://127.0.0.1:99999/x"),
  *("https://host/w.npz?v=2:img", "https://host/w.npz?v=2#sha256=00ff:img", "https://host/page#section"),
  "https://host:8080/w.npz,https://host:80,https://other/a@b.npz",
  "give http(s)://, gs:// or hf://; see https://host/page?",
  "https://host/w.npz: access denied (HTTP 403); download it by hand to /a/w.npz, or give a local file",
]


@pytest.mark.parametrize("url, shown", URLS.items())
def test_user_password_and_query_are_masked_wherever_a_url_stands(url, shown):
  assert masking.masked(url) == shown
  assert masking.masked(shown) == shown
  assert masking.is_masked(shown)
  assert not masking.is_masked(url)
  ways = [f"weights {url!r}: no", f"--weights={url} --x", shlex.join([f"--weights={url}"]), f"{url}: no", f"a,{url},b"]
  ways += [f'decode|tokenize(model="{url}", length=16)|keep("labels")', f"{url},{url}", json.dumps([url, {"a": url}])]
  for text in ways:
    once = masking.masked(text)
    assert "hunt" not in once
    assert "ter2" not in once
    assert masking.masked(once) == once


@pytest.mark.parametrize("text", OPEN)
def test_what_is_not_secret_stays(text):
  assert masking.masked(text) == text
  assert masking.masked_tree(text) == text
  assert not masking.is_masked(text)


def test_a_text_around_a_url_stays():
  pp = 'decode|tokenize(model="https://h/v.txt?token=hunter2", length=16)|keep("labels")'
  assert masking.masked(pp) == 'decode|tokenize(model="https://h/v.txt?token=***", length=16)|keep("labels")'
  assert masking.masked("['https://u:p@a/x', 'https://b/y?sig=0'] of 2") == (
    "['https://***@a/x', 'https://b/y?sig=***'] of 2"
  )


def test_a_config_is_masked_whole_and_keeps_its_form():
  config = {"model_init": "https://u:hunter 2@h/w.npz", "evals": {"a": {"n": 1, "paths": ["https://h/x?sig=hunter2"]}}}
  assert masking.masked_tree(config) == {
    "model_init": "https://***@h/w.npz",
    "evals": {"a": {"n": 1, "paths": ["https://h/x?sig=***"]}},
  }


@pytest.mark.parametrize("length", range(20, 120, 7))
def test_a_line_that_is_cut_holds_no_half_of_a_password(length):
  url = f"https://user:{'hunter2' * 20}@host/w.npz?token={'hunter2' * 20}"
  assert "hunter2" not in cut(url, length)
  assert "hunter2" not in masking.masked(url[:length])
  assert "hunter2" not in str(UserError(f"{url}: no such file"))
