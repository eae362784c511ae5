"""Two hosts: network namespaces with a cable between them, each with its own ranks under its own torchrun."""

import os
import subprocess
import sys

import pytest

from tests.accumulate.test_ranks import SCRIPT, check_whole, environment
from tests.selection import slow

CABLE = "hbp0"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """The names of two namespaces that see each other as 10.231.77.1 and .2."""
    names = [f"hbp-{os.getpid()}-{number}" for number in (1, 2)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.231.77.{number}/24", "dev", CABLE)
            ip("-n", name, "link", "set", CABLE, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not to be had here: {getattr(error, 'stderr', None) or error}")
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.filterwarnings("ignore::hbpcompiler.errors.UnusedParametersWarning",
                            "ignore::hbpcompiler.errors.LengthsWarning")
@slow("test_ranks has the same three ranks on one host")
def test_two_hosts_give_what_one_process_gives(hosts, tmp_path):
    """Two ranks on the first, one on the second; only the cable connects them."""
    running = []
    for number, (name, ranks) in enumerate(zip(hosts, (2, 1), strict=True)):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
                   f"--node-rank={number}", f"--nproc-per-node={ranks}", "--master-addr=10.231.77.1",
                   "--master-port=29511", str(SCRIPT), "whole", str(tmp_path)]
        running.append(subprocess.Popen(command, env={**environment(), "GLOO_SOCKET_IFNAME": CABLE},
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(text[-2000:] for text in said)
    check_whole(tmp_path)
