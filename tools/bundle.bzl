"""One archive that trains elsewhere: sources, configs, lock, and a script that makes its own environment and runs."""

def _in_archive(file):
    return "%s=%s" % (file.short_path, file.path)

def _bundle_impl(ctx):
    start = ctx.actions.declare_file(ctx.label.name + "_start.sh")
    ctx.actions.expand_template(
        template = ctx.file._start,
        output = start,
        substitutions = {
            "@bootstrap@": ctx.file._bootstrap.short_path,
            "@cpython@": ctx.file._cpython.short_path,
            "@lock@": ctx.file.lock.short_path,
            "@module@": ctx.attr.module,
            "@uv_lock@": ctx.file._uv_lock.short_path,
        },
    )
    runfiles = depset(transitive = [dep[DefaultInfo].default_runfiles.files for dep in ctx.attr.deps]).to_list()
    files = [f for f in runfiles if not f.short_path.startswith("../")]
    files += [ctx.file._bootstrap, ctx.file._cpython, ctx.file._uv_lock]
    entries = ctx.actions.args()
    entries.add("start=" + start.path)
    entries.add_all(files, map_each = _in_archive)
    entries.use_param_file("@%s", use_always = True)
    entries.set_param_file_format("multiline")
    ctx.actions.run(
        executable = ctx.executable._archive,
        arguments = [ctx.outputs.out.path, ctx.outputs.out.basename.replace(".tar.gz", ""), entries],
        inputs = files + [start],
        outputs = [ctx.outputs.out],
        mnemonic = "Bundle",
    )
    return [DefaultInfo(files = depset([ctx.outputs.out]), runfiles = ctx.runfiles([ctx.outputs.out]))]

bundle = rule(
    doc = "An archive of `deps`, their lock and a `start` script, the same bytes whenever the contents are the same.",
    implementation = _bundle_impl,
    attrs = {
        "deps": attr.label_list(doc = "libraries; packages are left to the lock"),
        "lock": attr.label(doc = "among the files of deps", allow_single_file = True, mandatory = True),
        "module": attr.string(doc = "what `start` runs, by `python -m`", mandatory = True),
        "out": attr.output(mandatory = True),
        "_archive": attr.label(default = "//tools:bundle", executable = True, cfg = "exec"),
        "_bootstrap": attr.label(default = "//third_party/python:bootstrap.sh", allow_single_file = True),
        "_cpython": attr.label(default = "//third_party/python:cpython.json", allow_single_file = True),
        "_start": attr.label(default = "//tools:bundle_start.sh", allow_single_file = True),
        "_uv_lock": attr.label(default = "//third_party/python:uv.lock", allow_single_file = True),
    },
)
