"""The one list of projects: `projects/<name>` with a BUILD of its own, requirements.in and train.py."""

PROJECTS = [
    "clippo",
    "distill",
    "flexivit",
    "gsam",
    "lit",
    "mixer",
    "siglip",
    "vit",
]
