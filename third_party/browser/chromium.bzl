"""A repository rule: the browser of this machine, by which tests look at pages."""

_NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
_INSTALL = "apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium"

def _find(ctx):
    for name in _NAMES:
        found = ctx.which(name)
        if found:
            return found
    return None

def _chromium_impl(ctx):
    browser = _find(ctx)
    reason = ""
    is_root = ctx.execute(["id", "-u"]).stdout.strip() == "0"
    sudo = [] if is_root else ["sudo", "-n", "--preserve-env=DEBIAN_FRONTEND"]
    may_install = is_root or (ctx.which("sudo") and ctx.execute(["sudo", "-n", "true"]).return_code == 0)
    if not browser and ctx.which("apt-get") and may_install:
        ctx.report_progress("installing chromium by apt-get")
        result = ctx.execute(
            sudo + ["sh", "-c", _INSTALL],
            environment = {"DEBIAN_FRONTEND": "noninteractive"},
            timeout = 1800,
        )
        reason = result.stderr
        browser = _find(ctx)
    if not browser:
        fail("tests of pages need Chromium on PATH: install it (Debian, as root: apt-get install chromium)\n" + reason)

    # Not a link: a launcher looks for its files beside itself.
    ctx.file("chromium", "#!/bin/sh\nexec '%s' \"$@\"\n" % browser)
    ctx.file("BUILD", """\
package(default_visibility = ["//visibility:public"])

exports_files(["chromium"])
""")

chromium = repository_rule(
    doc = "`@chromium//:chromium`: starts the Chromium of this machine, which root has installed where there is none.",
    implementation = _chromium_impl,
    environ = ["PATH"],
)
