"""The Open Inference Protocol (KServe v2, Triton): what both of its transports share."""
