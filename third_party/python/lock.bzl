"""Repository rules: one Python for every target, and one folder of packages for every lock file."""

_PROBE = "import sys; sys.version_info[:2] == (3, 11) or sys.exit(1); print(sys._base_executable)"

def _run(ctx, what, arguments):
    """Runs a command without the caller's Python settings, silently unless it fails."""
    result = ctx.execute(
        arguments,
        environment = {"PYTHONHOME": "", "PYTHONPATH": "", "PIP_USER": "0", "UV_PYTHON_DOWNLOADS": "never"},
        timeout = 3600,
    )
    if result.return_code:
        fail("%s failed:\n%s%s" % (what, result.stdout, result.stderr))

def _python_interpreter_impl(ctx):
    for name in ["python3.11", "python3", "python"]:
        found = ctx.which(name)
        probe = ctx.execute([found, "-I", "-c", _PROBE]) if found else None
        if probe and probe.return_code == 0:
            base = ctx.path(probe.stdout.strip())
            break
    if not probe or probe.return_code:
        fail("Python 3.11 is needed and none is on PATH: install it (Debian 12: apt-get install python3 python3-pip)")

    # A virtual environment without packages: neither the machine's site-packages nor the user's are on its path.
    ctx.symlink(base, "bin/python")
    ctx.file("pyvenv.cfg", "home = %s\ninclude-system-site-packages = false\n" % base.dirname)
    ctx.template("python", ctx.attr._wrapper, {"@python@": str(ctx.path("bin/python"))})
    ctx.file("BUILD", """\
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

package(default_visibility = ["//visibility:public"])

exports_files(["bin/python", "python"])

py_runtime(
    name = "runtime",
    interpreter = "python",
    python_version = "PY3",
    stub_shebang = "#!{python} -ES",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
""".format(python = base))

python_interpreter = repository_rule(
    doc = "Python 3.11 of this machine, without the packages of this machine.",
    implementation = _python_interpreter_impl,
    environ = ["PATH"],
    attrs = {"_wrapper": attr.label(default = "//third_party/python:python.sh")},
)

def _python_uv_impl(ctx):
    python = ctx.path(ctx.attr._python).realpath
    if ctx.execute([python, "-m", "pip", "--version"]).return_code:
        fail("%s has no pip: install it (Debian: apt-get install python3-pip)" % python)
    ctx.report_progress("installing uv")
    _run(
        ctx,
        "installing " + str(ctx.attr.lock),
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"] +
        ["--only-binary=:all:", "--target=" + str(ctx.path(".")), "--requirement", ctx.path(ctx.attr.lock)],
    )
    ctx.file("BUILD", """exports_files(["bin/uv"], visibility = ["//visibility:public"])\n""")

python_uv = repository_rule(
    doc = "The installer of all other packages, itself pinned and installed by pip.",
    implementation = _python_uv_impl,
    attrs = {
        "lock": attr.label(mandatory = True),
        "_python": attr.label(default = "@python3//:bin/python"),
    },
)

def _python_lock_impl(ctx):
    lock = ctx.path(ctx.attr.lock)
    if ctx.attr.shared_lock and ctx.read(ctx.attr.shared_lock) == ctx.read(lock):
        ctx.symlink(ctx.path(ctx.attr.shared_with).dirname.get_child("site-packages"), "site-packages")
    else:
        ctx.report_progress("installing %s" % ctx.attr.lock)

        # `bazel run` shows no progress, and a print() would come again with every later command.
        ctx.execute(["echo", "Installing the packages of %s (once)" % ctx.attr.lock], quiet = False)
        _run(
            ctx,
            "installing " + str(ctx.attr.lock),
            # A sandboxed test cannot write bytecode, so all of it is compiled now: TensorFlow is seconds slower without.
            [ctx.path(ctx.attr._uv), "pip", "install", "--quiet", "--no-progress", "--compile-bytecode"] +
            ["--require-hashes", "--no-deps", "--build-constraints", ctx.path(ctx.attr._build_lock)] +
            ["--python", ctx.path(ctx.attr._python), "--target", "site-packages", "--requirements", lock],
        )

    # One directory label: a glob would be tens of thousands of links in every target's runfiles.
    ctx.file("BUILD", """\
py_library(
    name = "{name}",
    data = ["site-packages"],
    imports = ["site-packages"],
    visibility = ["//visibility:public"],
)
""".format(name = ctx.name))

python_lock = repository_rule(
    doc = "The packages of one lock file, each checked against its hashes, as the py_library `@<name>`.",
    implementation = _python_lock_impl,
    attrs = {
        "lock": attr.label(mandatory = True),
        "shared_lock": attr.label(doc = "A lock whose packages serve this one too, if the two are the same."),
        "shared_with": attr.label(doc = "The BUILD file of that lock's packages, which are then installed first."),
        "_build_lock": attr.label(default = "//third_party/python:uv.lock"),
        "_python": attr.label(default = "@python3//:bin/python"),
        "_uv": attr.label(default = "@uv//:bin/uv"),
    },
)

def python_locks(project):
    """Declares `@<project>_pins` and its accelerator flavours, `@<project>_pins_cuda` and `@<project>_pins_tpu`.

    A project that pins what core does shares core's folder of packages, and has one of its own from the day it differs.
    """
    for flavour in ["", "cuda", "tpu"]:
        python_lock(
            name = "_".join([project, "pins"] + ([flavour] if flavour else [])),
            lock = "//projects/%s:requirements%s.lock" % (project, "." + flavour if flavour else ""),
            shared_lock = None if flavour else "//core:requirements.lock",
            shared_with = None if flavour else "@core_pins//:BUILD",
        )
