"""What the bench ran on."""

import datetime
import os
import platform
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path


def facts():
    """The machine, the Python and the libraries that Rialto and the pass-through run on."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    gcc = subprocess.run(["gcc", "-dumpfullversion"], check=False, capture_output=True, text=True)
    return {
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        # Of the profile that guides the compiler and of the optimisation across files: together
        # they make CPython 10 to 20 % faster, and a build without them says little of production.
        "python_pgo": "--enable-optimizations" in arguments,
        "python_lto": "--with-lto" in arguments,
        "event_loop": f"uvloop {metadata.version('uvloop')}",
        "aiohttp": metadata.version("aiohttp"),
        "gcc": gcc.stdout.strip(),
    }


def _cpu():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def described(known):
    """The same as lines of text, from the results."""
    pgo, lto = (
        f"{'with' if known[flag] else 'WITHOUT'} {flag.removeprefix('python_').upper()}"
        for flag in ("python_pgo", "python_lto")
    )
    cores = f"the gateway alone on core {known['gateway_core']}; load, upstream and PostgreSQL on"
    return [
        f"{known['cpu']}, {known['cores']} cores, {known['system']}",
        f"{cores} core {known['load_core']}",
        f"Python {known['python']}, built {pgo} and {lto}; {known['event_loop']},"
        f" aiohttp {known['aiohttp']}, {known['postgres'] or 'no PostgreSQL'}",
        f"measured {known['measured_at']}, load average {known['load_average']:.1f} at the start",
    ]
