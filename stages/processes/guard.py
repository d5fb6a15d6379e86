"""Replace this process by a command that the kernel ends when its parent ends: python -I guard.py SIGNAL
COMMAND…

Run as a plain file and without imports of ours, because it starts programs that must see nothing of this
repository. Linux: PR_SET_PDEATHSIG, which survives execv.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    death_signal = signal.Signals[sys.argv[1]]
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent or parent == 1:
        sys.exit("the parent process has ended")
    # A shell's background jobs ignore Ctrl-C; programs that turn SIGTERM into SIGINT would then never stop.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
