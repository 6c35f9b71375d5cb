"""How long a fresh clone takes to its first answer."""

import os
import re
import shutil

from scripts.bench.programs import ROOT, BenchError, Program, ask, free_port, run_step
from scripts.bench.sides import PROBE, Side

KEY = re.compile(r"demo key +(\S+)")
FIRST_ANSWER_S = 300


def first_answer_s(python, directory):
    """Clone the last commit and return the seconds from the start of ``scripts/run.sh`` to the
    answer to the first call, which comes from the sandbox. All cores may be used. Packages that the
    installer has in its cache are not loaded again, since the speed of the network is not Rialto's.

    :raises BenchError: if there is no answer.
    """
    home = directory / "fresh"
    shutil.rmtree(home, ignore_errors=True)
    run_step("git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", home)
    port, log_path = free_port(), directory / "fresh.log"
    log_path.unlink(missing_ok=True)
    program = Program(
        ["sh", "scripts/run.sh"],
        core=",".join(map(str, range(os.cpu_count()))),
        log_path=log_path,
        environment={"PYTHON": str(python), "PORT": str(port)},
        cwd=home,
    )

    def is_answered():
        found = KEY.search(log_path.read_text(errors="replace"))
        if found is None:
            return False
        headers = {"Authorization": f"Bearer {found[1]}"}
        body = {**PROBE, "model": Side.model}
        status, answer = ask(port, Side.chat_path, headers=headers, body=body)
        return status == 200 and b'"choices"' in answer

    try:
        return program.wait_for(is_answered, FIRST_ANSWER_S)
    except BenchError as error:
        raise BenchError(f"a fresh clone does not answer: {error}") from error
    finally:
        program.stop()
        shutil.rmtree(home, ignore_errors=True)
