"""What every test shares: one thread per process, so that parallel tests do not spin on each other's cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
