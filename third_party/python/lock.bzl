"""Repository rules: one Python for every target, and one folder of packages for every lock file."""

def _run(ctx, what, arguments, environment = {}):
    """Runs a command without the caller's Python settings, silently unless it fails, and returns what it prints."""
    settings = {"PYTHONHOME": "", "PYTHONPATH": "", "PIP_USER": "0"}
    settings.update(environment)
    result = ctx.execute(arguments, environment = settings, timeout = 3600)
    if result.return_code:
        fail("%s failed:\n%s%s" % (what, result.stdout, result.stderr))
    return result.stdout.strip()

def _say(ctx, words):
    # `bazel run` shows no progress, and a print() would come again with every later command.
    ctx.execute(["echo", words], quiet = False)

def _python_build_impl(ctx):
    bootstrap, pins = ctx.path(ctx.attr._bootstrap), ctx.path(ctx.attr.pins)
    build = _run(ctx, "reading " + str(ctx.attr.pins), ["sh", bootstrap, "build", pins])
    _say(ctx, "Python 3.11 is not on PATH: installing uv's CPython %s (once)" % build)
    ctx.report_progress("installing CPython " + build)
    python = _run(
        ctx,
        "installing CPython " + build,
        ["sh", bootstrap, "python", ctx.path(ctx.attr._uv), pins, ctx.path("installed")],
    )

    # Under a short name: scripts name their interpreter in a line that old kernels cut at 127 characters.
    for name in ["bin", "include", "lib"]:
        ctx.symlink(ctx.path(python).dirname.dirname.get_child(name), name)
    ctx.file("BUILD", """exports_files(["bin/python3.11"], visibility = ["//visibility:public"])\n""")

python_build = repository_rule(
    doc = "The one build of CPython 3.11 that `pins` names, for a machine that has no Python 3.11.",
    implementation = _python_build_impl,
    attrs = {
        "pins": attr.label(mandatory = True),
        "_bootstrap": attr.label(default = "//third_party/python:bootstrap.sh"),
        "_uv": attr.label(default = "@uv//:bin/uv"),
    },
)

def _python_interpreter_impl(ctx):
    found = ctx.execute(["sh", ctx.path(ctx.attr._bootstrap), "find"])

    # By this label, and by nothing else, @cpython is installed.
    base = ctx.path(found.stdout.strip() if found.return_code == 0 else Label("@cpython//:bin/python3.11"))

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
    doc = "Python 3.11 of this machine, without the packages of this machine; @cpython where it has none.",
    implementation = _python_interpreter_impl,
    environ = ["PATH"],
    attrs = {
        "_bootstrap": attr.label(default = "//third_party/python:bootstrap.sh"),
        "_wrapper": attr.label(default = "//third_party/python:python.sh"),
    },
)

def _python_uv_impl(ctx):
    ctx.report_progress("installing uv")
    _run(
        ctx,
        "installing " + str(ctx.attr.lock),
        ["sh", ctx.path(ctx.attr._bootstrap), "uv", ctx.path(ctx.attr.lock), ctx.path(".")],
    )
    ctx.file("BUILD", """exports_files(["bin/uv"], visibility = ["//visibility:public"])\n""")

python_uv = repository_rule(
    doc = "The installer of all other packages, itself pinned and installed by pip of whichever Python 3 is there.",
    implementation = _python_uv_impl,
    attrs = {
        "lock": attr.label(mandatory = True),
        "_bootstrap": attr.label(default = "//third_party/python:bootstrap.sh"),
    },
)

def _python_lock_impl(ctx):
    lock = ctx.path(ctx.attr.lock)
    if ctx.attr.shared_lock and ctx.read(ctx.attr.shared_lock) == ctx.read(lock):
        ctx.symlink(ctx.path(ctx.attr.shared_with).dirname.get_child("site-packages"), "site-packages")
    else:
        ctx.report_progress("installing %s" % ctx.attr.lock)
        _say(ctx, "Installing the packages of %s (once)" % ctx.attr.lock)
        _run(
            ctx,
            "installing " + str(ctx.attr.lock),
            # A sandboxed test cannot write bytecode, so all of it is compiled now: TensorFlow is seconds slower without.
            [ctx.path(ctx.attr._uv), "pip", "install", "--quiet", "--no-progress", "--compile-bytecode"] +
            ["--require-hashes", "--no-deps", "--build-constraints", ctx.path(ctx.attr._build_lock)] +
            ["--python", ctx.path(ctx.attr._python), "--target", "site-packages", "--requirements", lock],
            environment = {"UV_PYTHON_DOWNLOADS": "never"},
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
