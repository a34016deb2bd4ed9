"""How Python is built here: a library a folder, a test target a test file, and everything that makes up a project."""

load("//tools:bundle.bzl", "bundle")

# What only tests read, wherever it stands; and what only people, Bazel or uv read.
_TEST_DATA = ["**/testdata/**", "**/witness/**", "**/repro/**", "**/*.npz"]
_NOT_DATA = ["**/*.py", "**/__pycache__/**", "**/*.md", "**/*.png", "BUILD", "requirements*"] + _TEST_DATA

# Tests compile much and compute little: the code that XLA's CPU backend makes may be slow, if it is made fast.
_TEST_ENV = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "XLA_FLAGS": " ".join([
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",  # Bazel runs other tests beside this one.
    ]),
}

# In place of it for tests that two programs round alike, and for those with libtpu, which ends a program at a flag that
# only the CPU's XLA knows.
FUSED = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}

def pins(name):
    """The packages of a lock: core's, a tool's, or a project's in the flavour that --config=cuda or --config=tpu chose."""
    if name in ["core", "aot"]:
        return ["@%s_pins" % name]
    return select({
        "//third_party/python:cuda": ["@%s_pins_cuda" % name],
        "//third_party/python:tpu": ["@%s_pins_tpu" % name],
        "//conditions:default": ["@%s_pins" % name],
    })

def python_library(name, deps = [], data = [], exclude = []):
    """All of this folder but its tests. `:python_files` is every source, for the test that holds the house rules.

    Args:
      name: of the library; that of its folder.
      deps: the folders it imports. Packages come with the tests and binaries: core does not know whose they are.
      data: files to read at run time, beside those that stand in this folder.
      exclude: sources that another target here owns.
    """
    native.py_library(
        name = name,
        srcs = native.glob(["**/*.py"], exclude = ["**/*_test.py"] + _TEST_DATA + exclude, allow_empty = True),
        data = data + native.glob(["**"], exclude = _NOT_DATA, allow_empty = True),
        deps = deps,
    )
    native.filegroup(
        name = "python_files",
        srcs = native.glob(["**/*.py"], allow_empty = True),
    )

def python_modules(modules, deps = [], **kwargs):
    """A library of each of some files of this folder, where others need one of them and not its neighbours.

    Args:
      modules: their names without `.py`; or of each, what it imports beside `deps`, `{"knn": [":features"]}`.
      deps: what all of them import.
      **kwargs: any other attribute of py_library.
    """
    for name in modules:
        native.py_library(
            name = name,
            srcs = [name + ".py"],
            deps = deps + (modules[name] if type(modules) == "dict" else []),
            **kwargs
        )

def python_tests(
        deps,
        locked = "core",
        srcs = None,
        together = None,
        size = "medium",
        data = [],
        env = {},
        tags = [],
        **kwargs):
    """One target a test file, run by pytest: `errors_test.py` is `:errors_test`.

    Args:
      deps: the libraries that the tests import.
      locked: whose packages they run against, `"core"`, a project or a tool.
      srcs: the test files; all in this folder by default.
      together: name of a target that runs all of them in one process, which imports what they share once. Patterns like
        `//...` then run that one; the target of a file is there for those who name it.
      size: Bazel's: small is up to a minute, medium 5, large 15.
      data: files the tests read, beside `testdata` folders and `.npz` files.
      env: environment variables, beside JAX_PLATFORMS=cpu.
      tags: Bazel's.
      **kwargs: any other attribute of py_test.
    """
    srcs = srcs if srcs != None else native.glob(["**/*_test.py"], allow_empty = True)
    targets = {src[:-len(".py")].replace("/", "_"): [src] for src in srcs}
    if together:
        targets[together] = srcs
    for name, files in targets.items():
        native.py_test(
            name = name,
            size = size,
            srcs = files + ["//third_party/python:pytest_main.py"],
            main = "//third_party/python:pytest_main.py",
            args = ["$(location %s)" % file for file in files],
            data = data + ["//:pyproject.toml"] + native.glob(_TEST_DATA, allow_empty = True),
            env = dict(_TEST_ENV, **env),
            tags = tags + (["manual"] if together and name != together else []),
            deps = deps + pins(locked),
            **kwargs
        )

def project(
        name,
        evaluators,
        bundle_args,
        deps = [],
        data = [],
        test_size = "large",
        configs_shards = 1,
        tries_bundle = False):
    """A project, projects/<name>: `:train`, `:bundle`, `:repin`, the library `:<name>`, and its tests.

    A trainer and a bundle hold every evaluator, for a person's config may name any; tests hold those of `evaluators`,
    and are not run again when another one changes.

    Args:
      name: of its folder.
      evaluators: the modules of core/evaluators that its configs name; configs_test says which one is missing here.
      bundle_args: the flags of a run of a few steps, by which a test tries the unpacked bundle.
      deps: what its sources import beside what every trainer does.
      data: files to read at run time, beside those that stand in this folder.
      test_size: of its tests.
      configs_shards: into how many parts configs_test is divided, which run beside each other.
      tries_bundle: whether `bazel test //...` installs and starts the bundle, too; //projects:whole_runs tries them all.
    """
    native.exports_files(native.glob(["requirements*"]))
    native.filegroup(
        name = "requirements",
        srcs = native.glob(["requirements*"]),
    )
    native.alias(
        name = "lock",
        actual = select({
            "//third_party/python:cuda": "requirements.cuda.lock",
            "//third_party/python:tpu": "requirements.tpu.lock",
            "//conditions:default": "requirements.lock",
        }),
    )
    python_library(
        name = name,
        data = data + [":lock"],  # Beside train.py, which writes its digest to the run's record.
        deps = ["//core:trainer"] + deps,
    )
    native.py_binary(
        name = "train",
        srcs = ["train.py"],
        deps = [":" + name, "//core/evaluators"] + pins(name),
    )
    reads = ["recipes_test.py"]  # Configs are read there, and no more.
    runs = [":" + name] + ["//core/evaluators:" + each for each in evaluators]
    whole_runs = native.glob(["*_run_test.py"], allow_empty = True)
    python_tests(
        srcs = native.glob(reads, allow_empty = True),
        locked = name,
        size = test_size,
        deps = [":" + name, "//core/testing:configs"],
    )
    python_tests(
        srcs = native.glob(["**/*_test.py"], exclude = whole_runs + reads + ["configs_test.py"]),
        locked = name,
        size = test_size,
        deps = runs + ["//core/testing"],
    )
    python_tests(
        srcs = ["configs_test.py"],
        locked = name,
        size = test_size,
        shard_count = configs_shards,
        deps = runs + ["//core/testing:configs"],
    )

    # Minutes each: //projects:whole_runs has them all, //... leaves them out.
    python_tests(
        srcs = whole_runs,
        locked = name,
        size = test_size,
        tags = ["manual"],
        visibility = ["//projects:__pkg__"],
        deps = runs + ["//core/testing:default_run"],
    )

    # What its first steps give, pinned in repro/golden.json.
    native.py_binary(
        name = "repin",
        srcs = ["//tools:golden.py"],
        main = "//tools:golden.py",
        args = ["--project=" + name],
        deps = runs + pins(name),
    )
    native.py_test(
        name = "golden_test",
        size = "large",
        srcs = ["//third_party/python:pytest_main.py", "//tools:golden.py", "//tools:golden_test.py"],
        main = "//third_party/python:pytest_main.py",
        args = ["$(location //tools:golden_test.py)"],
        data = ["//:pyproject.toml"] + native.glob(["repro/**"], allow_empty = True),
        env = {"JAX_PLATFORMS": "cpu", "PROJECT": name},
        deps = runs + pins(name),
    )
    bundle(
        name = "bundle",
        out = name + "_bundle.tar.gz",
        lock = ":lock",
        module = "projects.%s.train" % name,
        deps = [":" + name, "//core/evaluators"],
    )

    bundled = {"BUNDLE": "$(rootpath :bundle)", "BUNDLE_ARGS": " ".join(bundle_args), "JAX_PLATFORMS": "cpu"}
    native.py_test(
        name = "bundle_contents_test",
        size = "small",
        srcs = ["//third_party/python:pytest_main.py", "//tools:bundle_contents_test.py"],
        main = "//third_party/python:pytest_main.py",
        args = ["$(location //tools:bundle_contents_test.py)"],
        data = [":bundle", "//:pyproject.toml"],
        env = bundled,
        deps = ["//tools:bundle_archive"] + pins(name),
    )

    # Unpacks the bundle, installs its lock and trains: hard links to uv's cache need that folder, hence no sandbox.
    native.py_test(
        name = "bundle_test",
        size = "large",
        srcs = ["//third_party/python:pytest_main.py", "//tools:bundle_test.py"],
        main = "//third_party/python:pytest_main.py",
        args = ["$(location //tools:bundle_test.py)"],
        data = [":bundle", "//:pyproject.toml"],
        env = bundled,
        tags = ["no-sandbox", "requires-network"] + ([] if tries_bundle else ["manual"]),
        visibility = ["//projects:__pkg__"],
        deps = pins(name),
    )
