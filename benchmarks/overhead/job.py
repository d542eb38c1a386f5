"""One run of the default graph on light stages, in a process of its own: `python -m benchmarks.overhead.job on|off`.

`on` is what `inverse-alignment run` does: Prefect's server and task runs, MLflow's journal and store. `off` is the same
flow on the same artifact store without either. Prints the seconds from the start of the process, and the stages.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

from benchmarks.overhead.stages import LIGHT
from flows.compare import compare
from inverse_alignment.config import load
from inverse_alignment.core.store import open_store
from inverse_alignment.stages.registry import STAGES
from tasks import run_stage
from tasks.run_stage import Ahead, Execute, Remember


def main(how: str) -> None:
    """Run in the working directory, which holds params.yaml, data and nothing else."""
    STAGES.update(LIGHT)
    config = load(Path("params.yaml"))
    remember = Remember()
    execute = Execute(open_store(config.store), config.runtime, (remember,))

    def flow() -> object:
        return compare(config)

    run_stage.plan(flow, execute.store)
    ahead = Ahead(execute).walk(flow)
    if how == "on":
        from tasks.server import SharedServer

        server = SharedServer(Path.cwd()).begin()
        from flows.scheduled import run_compare

        run_compare(config, (remember,), server, ahead)
    else:
        with run_stage.driving(execute):
            flow()
    seconds = time.time() - psutil.Process().create_time()
    print(json.dumps({"seconds": seconds, "stages": len(remember.entries)}))


if __name__ == "__main__":
    main(sys.argv[1])
