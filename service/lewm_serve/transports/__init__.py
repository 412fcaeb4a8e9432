"""HTTP and gRPC: bytes to request objects, responses to bytes. The planner does the rest."""
