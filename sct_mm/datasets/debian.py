"""Files of Debian's packages, which are not installed: no root is needed."""
import os.path as osp
import subprocess
from typing import Optional, Sequence

# Root downloads too, into a folder that apt's own user may not write to.
DOWNLOAD = ('apt-get', '-o', 'APT::Sandbox::User=root', 'download')


def run(*command: str, folder: str) -> Optional[str]:
    """What a command says; None if it failed, or did not end in time."""
    try:
        done = subprocess.run(command, cwd=folder, timeout=600, text=True,
                              capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def download(packages: Sequence[str], folder: str) -> bool:
    """Put those of ``packages`` that this release of Debian has into
    ``folder``, as files, from the mirrors that apt uses.

    Returns:
        bool: whether there is one; without apt, there is none.
    """
    for _ in range(2):
        known = (run('apt-cache', 'pkgnames', folder=folder) or '').split()
        names = [name for name in packages if name in set(known)]
        if names and run(*DOWNLOAD, *names, folder=folder) is not None:
            return True
        # The lists may be old, or none. Only this needs root.
        run('apt-get', 'update', folder=folder)
    return False


def unpack_package(package: str, folder: str) -> bool:
    """Put the files of a package into ``folder``; False if one can't."""
    return run('dpkg-deb', '-x', osp.abspath(package), '.',
               folder=folder) is not None
