"""Describes the machine that the bench ran on."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

from scripts.bench.sides import SERVING


def facts(python):
    """Return the machine, and the Python and libraries that Rialto and the pass-through run on."""
    versions = python.versions(SERVING)
    gcc = subprocess.run(["gcc", "-dumpfullversion"], check=False, capture_output=True, text=True)
    return {
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": python.facts["version"],
        "python_build": python.build,
        "event_loop": f"uvloop {versions['uvloop']}",
        "aiohttp": versions["aiohttp"],
        "gcc": gcc.stdout.strip(),
    }


def _cpu():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def described(known):
    """Format the facts from the results as lines of text."""
    cores = f"the gateway alone on core {known['gateway_core']}; load, upstream and PostgreSQL on"
    return [
        f"{known['cpu']}, {known['cores']} cores, {known['system']}",
        f"{cores} core {known['load_core']}",
        f"Python {known['python']}, {known['python_build']}; {known['event_loop']},"
        f" aiohttp {known['aiohttp']}, {known['postgres'] or 'no PostgreSQL'}",
        f"measured {known['measured_at']}, load average {known['load_average']:.1f} at the start",
    ]
