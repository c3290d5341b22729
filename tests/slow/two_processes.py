"""Start a script in two processes on CPUs under `accelerate launch`: side by side (DDP) or in shards (FSDP)."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType

# `--cpu` would start one process, so the launcher of several does it, without a look for devices.
DDP = "--multi_gpu"
FSDP = (
    "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_cpu_ram_efficient_loading false"
)
_REST = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"


def launch(script, arguments, kind=DDP, **environment):
    """Return the finished process; what the script imports from tests and recipes it must find itself."""
    command = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", *kind.split(), *_REST.split()]
    return subprocess.run(
        [*command, str(script), *map(str, arguments)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=900,
    )  # fmt: skip


def in_shards():
    """Say whether this process was started with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def shard_on_cpus():
    """Have Accelerate keep FSDP for two CPU processes, too: it drops it there without a word and takes DDP."""
    place = PartialState.set_device

    def set_device(self):
        place(self)
        self.distributed_type = DistributedType.MULTI_GPU

    PartialState.set_device = set_device
