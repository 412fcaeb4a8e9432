"""Roll-outs in bfloat16 by C++ code that is compiled on the machine that runs it."""
