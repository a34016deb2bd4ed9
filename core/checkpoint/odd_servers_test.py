"""Servers that answer oddly: the file comes whole and as it is there, or one line says why not."""

import datetime
import http.server
import ipaddress
import os
import ssl
import subprocess
import sys
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.checkpoint import remote
from core.testing.file_server import files_of, refused

pytest_plugins = ["core.testing.file_server"]


class Answering:
  """Answers each request with given bytes, whatever they are."""

  def __init__(self, answer: bytes, tls: ssl.SSLContext | None = None):
    self.asked = []
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        outer.asked.append(self.path)
        self.wfile.write(answer)
        self.close_connection = True

      def log_message(self, *_):
        pass

    self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
      self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
    self.host = f"127.0.0.1:{self._http.server_port}"
    threading.Thread(target=self._http.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._http.shutdown()
    self._http.server_close()


def answer(*headers: bytes, status: bytes = b"200 OK", body: bytes = b"weights") -> bytes:
  return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body])


def test_a_part_that_was_not_asked_for_is_not_taken_for_the_file(cache):
  """A 206 is the answer to a request with Range (RFC 9110, section 15.3.7), and there was none."""
  part = answer(b"Content-Range: bytes 0-6/300000", b"Content-Length: 7", status=b"206 Partial Content")
  with Answering(part) as server:
    line = refused(f"http://{server.host}/w.npz")
  assert "a part of the file (HTTP 206), and the whole was asked for" in line
  assert files_of(cache) == []


@pytest.mark.parametrize(
  "headers",
  [
    [b"x-goog-hash: md5=a"],
    [b"x-goog-hash: md5=AAAA,crc32c=AA=="],
    [b"x-goog-hash: crc32c====="],
    [b'x-linked-etag: "abc"'],
    [b'ETag: "\xff\xfe"'],
    [b'ETag: "' + b"x" * 4_000 + b'"'],
    [b"ETag: "],
    [b"Last-Modified: \xf0\x9f\x8e\x89"],
    [b"Content-Encoding: identity"],
    [b"Set-Cookie: \xff=;;;;=,"],
    [b"Content-Range: bytes a-b/c"],
    [b"Content-Disposition: attachment; filename=../../x"],
  ],
  ids=lambda headers: headers[0][:40].decode("latin-1").replace("/", " "),
)
def test_headers_that_say_nothing_are_passed_over(cache, headers):
  with Answering(answer(b"Content-Length: 7", *headers)) as server:
    assert remote.fetch(f"http://{server.host}/w.npz").read_bytes() == b"weights"
  assert files_of(cache) == ["w.npz", "w.npz.json"]


@pytest.mark.parametrize(
  "sent",
  [
    b"",
    b"\x00",
    b"weights",
    b"HTTP/9.9 200 OK\r\n\r\nweights",
    b"HTTP/1.1 weights\r\n\r\n",
    answer(b"Content-Length: -1"),
    answer(b"Content-Length: " + b"9" * 5_000),
    answer(b"Content-Length: 7", b"Content-Length: 8"),
    answer(b"Content-Length: 1000000000000000000000000"),
    answer(b"Content-Length: 7", b"Content-Encoding: gzip"),
    answer(b"Transfer-Encoding: chunked", body=b"weights"),
    answer(b"no header"),
    answer(b"X: " + b"x" * 100_000),
    answer(b"Location: http://[::1", status=b"302 Found"),
    answer(b"Location: http://h:99999/", status=b"302 Found"),
    answer(b"Location: ftp://h/w.npz", status=b"302 Found"),
    answer(b"Location: file:///etc/hostname", status=b"302 Found"),
    answer(b"Location: \xff\xfe://", status=b"302 Found"),
    answer(b"Location: /w.npz", status=b"302 Found"),
    answer(status=b"302 Found"),
    answer(status=b"999 Odd"),
  ],
  ids=lambda sent: sent[:60].decode("latin-1").replace("/", " "),
)
def test_answers_that_are_none_are_one_line(cache, sent):
  with Answering(sent) as server:
    line = refused(f"http://{server.host}/w.npz")
    assert line.startswith(f"http://{server.host}/w.npz: ")
  assert [name for name in files_of(cache) if not name.endswith((".part", ".part.json"))] == []


def test_a_name_of_dots_alone_is_no_folder_of_the_cache(server, cache):
  for name in ("..", ".", "...", "%2e%2e"):
    path = remote.cached_path(f"{server.url}/a/{name}")
    assert path.parent.parent == cache
    assert path.name.strip(".")
    assert path.name == path.resolve().name


# TLS.


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
  """Gives a server's context and the file of its certificate, which is of this moment and signed by itself."""
  folder = tmp_path_factory.mktemp("tls")
  key = ec.generate_private_key(ec.SECP256R1())
  name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
  now = datetime.datetime.now(datetime.UTC)
  hour = datetime.timedelta(hours=1)
  made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - hour, now + hour)
  made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
  made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
  (folder / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
  form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
  (folder / "key.pem").write_bytes(key.private_bytes(*form))
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
  return context, folder / "cert.pem"


def fetched(certificate, *locations: str) -> list[str]:
  """Returns what a process that trusts the certificate says of each location: `True`, or the line of its error."""
  program = (
    "import sys\nfrom core.checkpoint import remote\nfrom core.errors import UserError\nfor place in sys.argv[1:]:\n"
    "  try: print(remote.fetch(place).read_bytes() == b'weights')\n  except UserError as error: print(error)"
  )
  env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SSL_CERT_FILE": str(certificate)}
  env = {name: value for name, value in env.items() if name.lower() != "https_proxy"}
  command = [sys.executable, "-c", program, *locations]
  return subprocess.run(command, stdout=-1, env=env, text=True, check=True).stdout.splitlines()


def test_https_does_not_lead_to_http(tls, cache):
  context, certificate = tls
  good = answer(b"Content-Length: 7")
  with Answering(good) as plain, Answering(good, context) as secure:
    down = answer(f"Location: http://{plain.host}/w.npz".encode(), status=b"302 Found")
    on = answer(f"Location: https://{secure.host}/w.npz".encode(), status=b"302 Found")
    with Answering(down, context) as leads_down, Answering(on, context) as leads_on, Answering(on) as leads_up:
      secure_places = [f"https://{each.host}/w.npz" for each in (leads_down, leads_on)]
      refusal, *rest = fetched(certificate, *secure_places, f"http://{leads_up.host}/w.npz")
    assert "the server redirects from https to http, which anybody on the way can change" in refusal
    assert rest == ["True", "True"]
    assert plain.asked == []
    assert "the server's certificate is not trusted" in refused(f"https://{secure.host}/v.npz")
    with Answering(down) as from_http:
      assert remote.fetch(f"http://{from_http.host}/w.npz").read_bytes() == b"weights"
