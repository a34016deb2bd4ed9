"""Local stand-ins for what Bazel 4 would download for its own C++, Java and coverage toolchains, none of which we use."""

def bazel_stand_ins():
    """Declares them for Debian's Bazel only: it is built without a version and works offline. Others bring their own."""
    if not native.bazel_version:
        for name in ["remote_coverage_tools", "rules_cc", "rules_java"]:
            native.local_repository(
                name = name,
                path = "third_party/bazel/" + name,
            )
