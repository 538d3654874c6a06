#!/usr/bin/env python3
"""Adds up the lines that tests run, for each crate, from `cargo llvm-cov report --json`; fails where they are too few."""

import collections
import json
import pathlib
import re
import sys

BOUND = 85
BOUND_CRATES = {"domain", "database", "models", "services", "api", "worker"}


def main(path):
    lines = collections.defaultdict(lambda: [0, 0])
    for file in json.loads(pathlib.Path(path).read_text())["data"][0]["files"]:
        crate = re.search(r"/crates/([^/]+)/src/", file["filename"])
        if crate:
            summary = file["summary"]["lines"]
            for name in crate[1], "all":
                lines[name][0] += summary["covered"]
                lines[name][1] += summary["count"]
    missed = False
    for name, (covered, count) in sorted(lines.items(), key=lambda item: (item[0] == "all", item[0])):
        percent = 100 * covered / count
        is_low = name in BOUND_CRATES and percent < BOUND
        missed |= is_low
        print(f"  {name:10} {percent:5.1f} % of {count} lines" + (f": below {BOUND} %" if is_low else ""))
    return missed


sys.exit(main(sys.argv[1]))
