"""Load on a running server: robots, open-loop arrivals, bad requests, slow readers, clients that
leave. It runs from the repository and is not installed; docs/load.md says how to read the reports.

    python -m loadtests --http HOST:PORT --grpc HOST:PORT --seconds 30   # a load and its report
    python -m loadtests.soak --seconds 3600                              # does the server drift?

Locust schedules the users. It replaces blocking calls of the whole process by those of gevent, so
the load has a process of its own (`loadtests.generator`). All other modules know nothing of gevent.
"""
