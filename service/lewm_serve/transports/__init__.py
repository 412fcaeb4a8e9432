"""HTTP and gRPC. Transports translate requests and render answers; the planner does the rest."""
