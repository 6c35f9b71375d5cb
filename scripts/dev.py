"""Runs adev on 127.0.0.1 only.

adev has no option for that, and it spawns its server processes: each of them runs this file again
before it serves.
"""

from aiohttp_devtools.cli import cli
from aiohttp_devtools.runserver import main, serve

main.HOST = serve.HOST = "127.0.0.1"

if __name__ == "__main__":
    cli()
