"""What has to be set before torch is imported."""

import os

# Threads that spin while they wait for each other starve whatever else runs beside the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
