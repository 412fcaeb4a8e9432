"""Ray Serve: the same planner on a cluster, one replica for each device. Needs the extra `ray`."""
