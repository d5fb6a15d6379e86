"""Before anything imports torch: threads wait at barriers instead of spinning, so that tests beside other work stay fast."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
