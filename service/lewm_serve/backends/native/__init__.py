"""Roll-outs in bfloat16 by C++ code: its sources, its library and the backend that calls it."""
