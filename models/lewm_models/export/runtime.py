"""ONNX Runtime without its telemetry. The project imports it from here alone.

Since 1.32 its Linux packages send events to their vendor, for which they write a device id and a
queue below `~/.cache`. The variable is read when the library is loaded; the call keeps events off
in a process that has loaded it before.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime  # noqa: TID251

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
