"""Python runs this first in each process with this folder in its PYTHONPATH: the harness's API and workers."""

import os

import fail_points

if folder := os.environ.get(fail_points.FOLDER):
    fail_points.install(folder)
